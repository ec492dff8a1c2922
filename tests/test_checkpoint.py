"""A saved model comes back as it was, or not at all; each kind of bad input has one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bmmae.checkpoint import (
    Metric,
    PartialLoadWarning,
    Provenance,
    SyntheticWeightsWarning,
    describe,
    info,
    load_encoder,
    load_model,
    preprocessing_of,
    provenance_of,
    save_model,
)
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import CheckpointError, ConfigError, OutputError
from bmmae.hub import sha256_of
from bmmae.model.config import RECIPES, DecoderConfig, EncoderConfig, ModelConfig
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel

CONFIG = ModelConfig(
    modalities=("flair", "t1", "dwi"),
    patch=(8, 8, 4),
    size=(16, 16, 16),
    encoder=EncoderConfig(24, 2, 2),
    decoder=DecoderConfig(kind="cross", dim=12, depth=1, heads=2, colocated=True, mixing=True),
)
PROVENANCE = Provenance(
    data="a test",
    subjects=2,
    content_hashes=("ab" * 32, "cd" * 32),
    command="pretrain/train.py",
    metrics={"psnr": Metric(30.0, 29.0, 31.0, "dB, higher is better", 2)},
    licence="CC-BY-4.0",
)


@pytest.fixture
def model() -> MAE:
    return MAE(CONFIG)


@pytest.fixture
def saved(model: MAE, tmp_path: Path) -> Path:
    return save_model(
        model, tmp_path / "model", preprocessing=PreprocessConfig(spacing=(1.0, 1.0, 2.0)), provenance=PROVENANCE
    )


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- what holds


def test_loading_gives_back_weights_config_and_metadata(model, saved) -> None:
    loaded = load_model(saved)
    assert equal(loaded, model)
    assert loaded.config == CONFIG
    assert preprocessing_of(loaded) == PreprocessConfig(spacing=(1.0, 1.0, 2.0))
    assert provenance_of(loaded) == PROVENANCE
    assert not loaded.training


def test_every_kind_of_model_loads_by_the_kind_in_its_config(tmp_path) -> None:
    head = SegmentationModel(
        SegmentationConfig(model=ModelConfig(**{**vars(CONFIG), "patch": (8, 8, 8)}), regions=("WT",))
    )
    loaded = load_model(save_model(head, tmp_path / "head"))
    assert type(loaded) is SegmentationModel
    assert loaded.config == head.config
    assert equal(loaded, head)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name) -> None:
    from bmmae.schema import from_dict, to_dict

    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(RECIPES[name])))) == RECIPES[name]


def test_loading_draws_no_random_numbers(saved) -> None:
    before = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_twice_gives_the_same_bytes(model, saved, tmp_path) -> None:
    again = save_model(load_model(saved), tmp_path / "again")
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_tensors_that_share_memory_are_saved(tmp_path, model) -> None:
    model.encoder.norm.bias = model.decoder.norm.bias = torch.nn.Parameter(torch.zeros(24))
    model.decoder.norm.weight = torch.nn.Parameter(torch.ones(24))
    save_model(model, tmp_path / "tied")
    assert (tmp_path / "tied" / "model.safetensors").is_file()


def test_saving_replaces_a_model_and_leaves_nothing_beside_it(saved) -> None:
    other = MAE(CONFIG)
    save_model(other, saved)
    assert equal(load_model(saved), other)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_old_model_as_it_was(model, saved, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match=r"cannot write the model to .*model: No space left on device"):
        save_model(MAE(CONFIG), saved)
    assert equal(load_model(saved), model)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saved_weights_have_the_permissions_of_other_files(saved) -> None:
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1


def test_from_pretrained_of_a_class_takes_only_that_class(saved) -> None:
    assert isinstance(MAE.from_pretrained(saved), MAE)
    assert isinstance(PretrainedModel.from_pretrained(saved), MAE)
    with pytest.raises(CheckpointError, match="holds a model of kind 'mae', expected 'segmentation'"):
        SegmentationModel.from_pretrained(saved)


def test_a_model_file_stands_for_its_folder(model, saved) -> None:
    assert equal(load_model(saved / "model.safetensors"), model)


# ---- runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for step in (1, 2):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        describe(made := MAE(CONFIG), provenance=Provenance(data=f"step {step}"))
        save_model(made, folder / "checkpoints" / f"step-{step:08d}")
    index = {"best": "step-00000001", "last": "step-00000002"}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("tag", "data"), [("", "step 1"), ("@best", "step 1"), ("@last", "step 2"), ("@step-00000002", "step 2")]
)
def test_a_run_means_its_best_checkpoint_unless_another_is_named(run, tag, data) -> None:
    assert provenance_of(load_model(f"{run}{tag}")).data == data


def test_a_run_that_was_never_evaluated_means_its_last_checkpoint(run) -> None:
    (run / "checkpoints" / "index.json").write_text(json.dumps({"best": None, "last": "step-00000002"}))
    assert provenance_of(load_model(run)).data == "step 2"


def test_a_checkpoint_that_a_run_lacks_is_named(run) -> None:
    with pytest.raises(
        CheckpointError, match="has no checkpoint 'step-9': it has best, last, step-00000001, step-0000"
    ):
        load_model(f"{run}@step-9")


def test_a_tag_on_a_folder_that_is_no_run_is_refused(saved) -> None:
    with pytest.raises(CheckpointError, match="is no run folder, so '@last' means nothing"):
        load_model(f"{saved}@last")


# ---- bad input


def test_a_truncated_safetensors_file_is_named(saved) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: it is truncated.*save it again"):
        load_model(saved)


def test_missing_weights_are_named(saved) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its weights: expected a file model.safetensors"):
        load_model(saved)


def test_a_wrong_sha256_is_refused_and_a_right_one_accepted(saved) -> None:
    right = sha256_of(saved / "model.safetensors")
    table = "# Weights\n\n| name | data | sha256 |\n|---|---|---|\n| `model` | x | `{}` |\n| other | y | |\n"
    (saved.parent / "README.md").write_text(table.format(right))
    load_model(saved)
    (saved.parent / "README.md").write_text(table.format("0" * 64))
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {'0' * 64}, got {right}. Fetch or make it again"):
        load_model(saved)


def test_a_changed_checkpoint_of_a_run_is_refused(run) -> None:
    folder = run / "checkpoints" / "step-00000001"
    files = {"model.safetensors": {"size": 1, "sha256": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
        load_model(run)


def test_weights_of_another_architecture_list_what_does_not_fit(saved) -> None:
    values = json.loads((saved / "config.json").read_text())["model"]
    edit(saved, model={**values, "encoder": {**values["encoder"], "depth": 3, "mlp_ratio": 1.0}})
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    for part in ("12 missing: blocks.2.", "misshapen: ", "mlp.fc1.weight (expected (24, 24), got (48, 24))"):
        assert part.replace("blocks.2", "encoder.blocks.2") in str(caught.value)


def test_a_partial_load_is_reported(saved) -> None:
    values = json.loads((saved / "config.json").read_text())["model"]
    edit(saved, model={**values, "encoder": {**values["encoder"], "depth": 3}})
    with pytest.warns(PartialLoadWarning, match=r"was loaded in part: .*12 missing: encoder.blocks.2"):
        loaded = load_model(saved, partial=True)
    assert loaded.key_report is not None
    assert len(loaded.key_report.missing) == 12
    assert all(bool(torch.isfinite(value).all()) for value in loaded.state_dict().values())


def test_a_config_newer_than_the_library_asks_for_an_upgrade(saved) -> None:
    edit(saved, format=2, bmmae_version="9.1")
    with pytest.raises(CheckpointError, match=r"has format 2, written by bmmae 9.1.*pip install --upgrade bmmae"):
        load_model(saved)


def test_an_unknown_kind_names_the_known_ones(saved) -> None:
    edit(saved, kind="oracle")
    with pytest.raises(CheckpointError, match=r"unknown kind of model 'oracle': this library has .*mae, segmentation"):
        load_model(saved)


def test_an_unknown_config_key_proposes_the_nearest(saved) -> None:
    edit(saved, model={"pach": [8, 8, 8]})
    with pytest.raises(CheckpointError, match=r"unknown key model.pach: .*Did you mean 'patch'\?"):
        load_model(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "was not written by bmmae"),
        ('{"kind": "mae"}', '"format": 1, found no such number'),
    ],
)
def test_a_config_that_is_none_is_named(saved, text, message) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


def test_a_folder_without_a_model_lists_what_it_has(tmp_path) -> None:
    (tmp_path / "bmmae.pth").touch()
    with pytest.raises(CheckpointError, match=r"is no saved model: .*it has bmmae.pth. Name a file .* with filename="):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no file other.pth: it has bmmae.pth"):
        load_model(tmp_path, filename="other.pth")


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "weights.pth", "a/b/c", "./here/it"])
def test_a_source_that_is_nothing_says_what_would_be_one(source) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no model '.*': expected a model folder .* a run folder, .* hub name"
    ):
        load_model(source)


def test_a_model_without_the_head_that_is_needed_says_how_to_get_one(saved) -> None:
    with pytest.raises(
        CheckpointError, match=r"'mae', which has no segmentation head; .* finetune/segmentation.py --init"
    ):
        load_model(saved, kind="segmentation")


def test_a_modality_that_the_model_does_not_know_is_named(model) -> None:
    from bmmae.errors import ModalityError

    with pytest.raises(ModalityError, match="unknown modality 'ct': expected one of t1, flair, dwi"):
        model.stack({"ct": torch.zeros(1, 1, 16, 16, 16)})


def test_a_folder_with_other_files_is_not_overwritten(model, tmp_path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(
        OutputError, match=r"holds other files than a saved model \(thesis.txt\): choose a new or empty"
    ):
        save_model(model, tmp_path)


def test_saving_takes_no_foreign_config(model, tmp_path) -> None:
    with pytest.raises(ConfigError, match="save_pretrained takes no config"):
        model.save_pretrained(tmp_path / "x", config={"depth": 3})


def test_broken_metadata_is_named(saved) -> None:
    edit(saved, preprocessing={"spacng": [1, 1, 1]})
    with pytest.raises(CheckpointError, match=r"unknown key preprocessing.spacng: .*Did you mean 'spacing'\?"):
        preprocessing_of(load_model(saved))


def test_synthetic_weights_say_so_each_time(model, tmp_path) -> None:
    save_model(model, tmp_path / "toy", provenance=Provenance(synthetic=True))
    for _ in range(2):
        with pytest.warns(SyntheticWeightsWarning, match="toy was trained on synthetic data: .* nothing for a patient"):
            load_model(tmp_path / "toy")


# ---- encoders and summaries


def test_a_pretrained_encoder_goes_into_a_head_by_modality_name(saved, model) -> None:
    smaller = ModelConfig(**{**vars(CONFIG), "modalities": ("flair",), "encoder": EncoderConfig(24, 1, 2)})
    head = MAE(smaller)
    report = load_encoder(head, saved)
    assert report.complete
    assert torch.equal(head.encoder.embedding.weight[0], model.encoder.embedding.weight[1])
    assert equal(head.encoder.blocks[0], model.encoder.blocks[0])
    assert preprocessing_of(head).spacing == (1, 1, 2)
    assert provenance_of(head).parent == str(saved)


def test_info_tells_what_the_model_is(saved, model) -> None:
    found = info(saved)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    table = found.format_table()
    for part in (
        "T1, FLAIR, DWI",
        "8 x 8 x 4 voxels",
        "1 x 1 x 2 mm",
        "custom",
        "reconstruction",
        "2 content hashes",
        "30 (29 to 31) dB",
    ):
        assert part in table
    assert json.loads(json.dumps(found.as_dict()))["config"]["patch"] == [8, 8, 4]


@pytest.mark.parametrize("name", ["tiny", "published", "small"])
def test_info_names_the_recipe_whatever_the_modalities(name) -> None:
    from dataclasses import replace

    from bmmae.model_info import recipe_of

    assert recipe_of(replace(RECIPES[name], modalities=("t1", "ct"))) == name


# ---- the model card


def test_the_card_says_what_a_reader_must_know(saved) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: bmmae\n")
    for part in (
        "license: cc-by-4.0",
        "bmmae.load_model(",
        "T1, FLAIR, DWI",
        "| patients | 2 |",
        "2, as SHA-256 of image content",
        "| psnr | 30 | 29 to 31 | dB, higher is better | 2 |",
        "encoder.depth | 2",
        "preprocessing.spacing | [1.0, 1.0, 2.0]",
        "no medical device",
        "`pretrain/train.py`",
    ):
        assert part in card
    assert "synthetic images" not in card


def test_the_card_of_synthetic_weights_warns_first(model, tmp_path) -> None:
    save_model(model, tmp_path / "toy", provenance=Provenance(synthetic=True, generator="3"))
    card = (tmp_path / "toy" / "README.md").read_text()
    assert card.index("trained on **synthetic images**") < card.index("## How to load")

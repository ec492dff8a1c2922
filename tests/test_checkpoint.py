"""A saved model comes back as it was, with all that travels beside its weights."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from full_disk import files_of_at_most
from safetensors.torch import load_file
from saved_models import CONFIG, PROVENANCE, equal, model_fixture, run_fixture, saved_fixture  # noqa: F401

from bmmae.checkpoint import (
    Provenance,
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
from bmmae.model.config import RECIPES, EncoderConfig, ModelConfig
from bmmae.model.mae import MAE
from bmmae.model.pretrained import ModelMetadata, PretrainedModel, digest
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.model_info import summarise

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


def test_a_full_disk_leaves_the_old_model_as_it_was(model, saved) -> None:
    with (
        files_of_at_most(10_000),
        pytest.raises(OutputError, match=r"cannot write the model to .*model: .*File too large"),
    ):
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


def test_a_class_derived_from_a_model_does_not_stand_in_for_it(model, saved, monkeypatch) -> None:
    monkeypatch.setattr(PretrainedModel, "registry", dict(PretrainedModel.registry))

    class Mine(MAE):
        pass

    assert type(load_model(saved)) is MAE
    assert type(loaded := Mine.from_pretrained(saved)) is Mine
    assert equal(loaded, model)
    with pytest.raises(
        ConfigError, match=r"Other cannot be of kind 'mae', which is bmmae.model.mae.MAE: give it a kind"
    ):
        type("Other", (MAE,), {"kind": "mae"})
    for _ in range(2):  # as when the cell of a notebook is run again
        again = type("Again", (MAE,), {"kind": "again"})
    assert PretrainedModel.registry["again"] is again


def test_a_derived_class_with_a_kind_of_its_own_is_another_model(saved, monkeypatch) -> None:
    monkeypatch.setattr(PretrainedModel, "registry", dict(PretrainedModel.registry))
    other = type("Other", (MAE,), {"kind": "other"})
    with pytest.raises(CheckpointError, match=r"holds a model of kind 'mae', expected 'other': load it with"):
        other.from_pretrained(saved)


def test_infinity_that_a_new_model_has_is_no_broken_weight(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(PretrainedModel, "registry", dict(PretrainedModel.registry))

    class Causal(MAE):
        kind = "causal"

        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    loaded = load_model(save_model(Causal(CONFIG), tmp_path / "causal"))
    assert loaded.mask.isinf().sum() == 3
    loaded.head.bias.data[0] = -torch.inf
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in head.bias:"):
        load_model(save_model(loaded, tmp_path / "causal"))


def test_a_class_whose_config_is_not_known_says_so(monkeypatch) -> None:
    monkeypatch.setattr(PretrainedModel, "registry", dict(PretrainedModel.registry))

    class Bare(PretrainedModel):
        kind = "bare"

        def __init__(self, config) -> None:
            super().__init__()

    with pytest.raises(
        ConfigError, match=r"Bare.__init__ must annotate its argument config with a dataclass, got None"
    ):
        Bare.config_class()


def test_a_model_file_stands_for_its_folder(model, saved) -> None:
    assert equal(load_model(saved / "model.safetensors"), model)


# ---- runs


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


def test_of_a_runs_index_only_what_names_a_checkpoint_is_offered(run) -> None:
    values = {"status": "running", "step": 2, "best": None, "last": "step-00000002", "best_metric": None}
    (run / "checkpoints" / "index.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"has no checkpoint 'lats': it has last, step-00000001, step-00000002$"):
        load_model(f"{run}@lats")


def test_a_tag_on_a_folder_that_is_no_run_is_refused(saved) -> None:
    with pytest.raises(CheckpointError, match="is no run folder, so '@last' means nothing"):
        load_model(f"{saved}@last")


# ---- encoders and summaries


def test_a_pretrained_encoder_goes_into_a_head_by_modality_name(saved, model) -> None:
    smaller = ModelConfig(**{**vars(CONFIG), "modalities": ("flair",), "encoder": EncoderConfig(24, 1, 2)})
    head = MAE(smaller)
    report = load_encoder(head, saved)
    assert report.complete
    assert torch.equal(head.encoder.embedding.weight[0], model.encoder.embedding.weight[1])
    assert equal(head.encoder.blocks[0], model.encoder.blocks[0])
    assert preprocessing_of(head).spacing == (1, 1, 2)
    assert provenance_of(head).parent == saved.name


def test_a_head_carries_what_holds_of_its_encoder(model) -> None:
    before = Provenance(data="9 studies", content_hashes=("ab",), licence="MIT", limits=("One site.",))
    describe(model, provenance=replace(before, parent="older", parent_hashes=("cd",), parent_licences=("CC0-1.0",)))
    load_encoder(head := MAE(CONFIG), model)
    found = provenance_of(head)
    assert (found.seen, found.parent_licences, found.parent_limits) == (
        ("ab", "cd"),
        ("MIT", "CC0-1.0"),
        ("One site.",),
    )
    assert (found.parent, found.synthetic) == ("a mae model trained on 9 studies", False)


def test_a_model_that_gets_another_encoder_keeps_what_holds_of_its_head(model) -> None:
    describe(model, provenance=Provenance(data="9 studies", content_hashes=("ab",), licence="MIT"))
    before = Provenance(
        data="theirs", content_hashes=("ef",), licence="CC0-1.0", limits=("One scanner.",), synthetic=True
    )
    describe(head := MAE(CONFIG), provenance=Provenance(data="more", content_hashes=("gh",)).inherit(before))
    load_encoder(head, model)
    found = provenance_of(head)
    assert (found.seen, found.parent_licences) == (("ab", "ef", "gh"), ("CC0-1.0", "MIT"))
    assert (found.parent_limits, found.parent_synthetic) == (("One scanner.",), True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_saved_as_it_is_and_read_into_float32(model, tmp_path, dtype) -> None:
    half = copy.deepcopy(model).to(dtype)
    saved = load_file(save_model(half, tmp_path / "half") / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {dtype, torch.bool}
    loaded = load_model(tmp_path / "half")
    assert torch.equal(loaded.encoder.cls_token, half.encoder.cls_token.float())
    assert len({digest(one) for one in (model, half, loaded)}) == 3


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


def test_info_tells_what_holds_of_the_weights_before(model) -> None:
    before = Provenance(licence="CC-BY-4.0", limits=("Adults alone.",), synthetic=True)
    origin = Provenance(data="9 studies", licence="MIT", limits=("One site.",)).inherit(before)
    model.metadata = ModelMetadata(provenance=origin.changed("mae", "channels renamed").as_dict())
    table = summarise(model, "here").format_table()
    for line in (
        r"before that +synthetic data",
        r"changed since +channels renamed",
        r"licence +MIT",
        r"licences before +CC-BY-4.0",
        r"limits +One site. Adults alone.",
    ):
        assert re.search(f"^{line}$", table, re.MULTILINE)


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


def test_the_card_shows_what_the_weights_before_it_leave_to_a_model(model, tmp_path) -> None:
    parent = Provenance(licence="CC-BY-4.0", synthetic=True, limits=("Adults only.",))
    save_model(model, tmp_path / "child", provenance=Provenance(licence="MIT").inherit(parent))
    card = (tmp_path / "child" / "README.md").read_text()
    assert card.index("started from weights that were trained on **synthetic images**") < card.index("## How to load")
    assert "- Of the weights that its training started from: Adults only." in card
    assert "MIT\n\nIts training started from weights under CC-BY-4.0: keep to these terms as well." in card
    assert "| synthetic | not marked as such |" in card


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_on_a_frozen_synthetic_encoder_is_synthetic(model, frozen) -> None:
    describe(model, provenance=Provenance(synthetic=True, generator="3"))
    load_encoder(head := MAE(CONFIG), model)
    head.encoder.requires_grad_(not frozen)
    describe(head, provenance=Provenance(data="9 real studies"))
    assert provenance_of(head).synthetic == frozen
    assert provenance_of(head).generator == ("3" if frozen else None)


def test_a_folder_may_have_the_sign_of_tags_in_its_name(run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "me@home" / "run")
    assert load_model(tmp_path / "me@home" / "run").metadata == load_model(run).metadata
    assert load_model(f"{tmp_path}/me@home/run@last").metadata == load_model(f"{run}@last").metadata

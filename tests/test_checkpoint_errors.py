"""What cannot be loaded or saved is refused, with one message for each kind of bad input."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import CONFIG, model_fixture, run_fixture, saved_fixture  # noqa: F401

from bmmae import checkpoint
from bmmae.checkpoint import (
    PartialLoadWarning,
    Provenance,
    SyntheticWeightsWarning,
    info,
    load_model,
    preprocessing_of,
    save_model,
)
from bmmae.errors import CheckpointError, ConfigError, OutputError
from bmmae.hub import sha256_of
from bmmae.keys import KeyMismatchError, compare
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.sources import unfinished


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_truncated_safetensors_file_is_named(saved) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: it is truncated.*save it again"):
        load_model(saved)


def test_a_pointer_in_place_of_weights_says_how_to_get_them(saved) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    for name in ("model.safetensors", "bmmae.pth"):
        (saved / name).write_text(pointer)
        with pytest.raises(CheckpointError, match=rf"cannot read .*{name}: it is a Git LFS pointer.*`git lfs pull`"):
            load_model(saved, filename=name)


def test_weights_that_cannot_be_read_are_not_called_damaged(saved) -> None:
    for name in ("model.safetensors", "bmmae.pth"):
        (saved / name).unlink(missing_ok=True)
        (saved / name).mkdir()
    for source in (saved, saved / "bmmae.pth"):
        with pytest.raises(CheckpointError) as caught:
            load_model(source)
        assert "truncated" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(saved) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    weights["head.bias"][0] = torch.nan
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in head.bias: .* earlier checkpoint"):
        load_model(saved)


@pytest.mark.parametrize("kind", ["mae", "segmentation"])
def test_modalities_in_another_order_than_the_librarys_are_refused(saved, tmp_path, kind) -> None:
    folder = saved
    if kind == "segmentation":
        folder = save_model(
            SegmentationModel(SegmentationConfig(model=replace(CONFIG, patch=(8, 8, 8)))), tmp_path / "head"
        )
    config = json.loads((folder / "config.json").read_text())["model"]
    shape = config if kind == "mae" else config["model"]
    assert shape["modalities"] == ["t1", "flair", "dwi"]
    shape["modalities"] = ["t1", "T2-FLAIR", "DWI"]
    edit(folder, model=config)
    assert load_model(folder).model_config.modalities == ("t1", "flair", "dwi")
    shape["modalities"] = ["flair", "t1", "dwi"]
    edit(folder, model=config)
    with pytest.raises(
        CheckpointError, match=r"has the modalities flair, t1, dwi, which bmmae .* order t1, flair, dwi"
    ):
        load_model(folder)


def test_missing_weights_are_named(saved) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its weights: expected a file model.safetensors"):
        load_model(saved)


def test_missing_weights_that_a_manifest_lists_are_named_too(saved, run) -> None:
    digest = sha256_of(saved / "model.safetensors")
    (saved.parent / "README.md").write_text(f"| name | sha256 |\n|---|---|\n| model | {digest} |\n")
    (saved / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"cannot read .*model\.safetensors, which a manifest lists: No such file"
    ):
        load_model(saved)
    folder = run / "checkpoints" / "step-00000001"
    (folder / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": {"sha256": digest}}}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="of a run under way, load again, for a newer checkpoint may have taken"):
        load_model(run)


def test_a_wrong_sha256_is_refused_and_a_right_one_accepted(saved) -> None:
    right = sha256_of(saved / "model.safetensors")
    table = "# Weights\n\n| name | data | sha256 |\n|---|---|---|\n| `model` | x | `{}` |\n| other | y | |\n"
    (saved.parent / "README.md").write_text(table.format(right))
    load_model(saved)
    (saved.parent / "README.md").write_text(table.format("0" * 64))
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {'0' * 64}, got {right}. Fetch or make it again"):
        load_model(saved)


def test_a_manifest_counts_from_within_the_models_folder_too(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved.parent / "README.md").write_text(f"| name | sha256 |\n|---|---|\n| model | {'0' * 64} |\n")
    monkeypatch.chdir(saved)
    for source in (".", "model.safetensors"):
        with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
            load_model(source)


def test_a_readme_beside_a_model_may_be_of_any_encoding(saved: Path) -> None:
    text = f"Köln\n\n| name | sha256 |\n|---|---|\n| model | {'0' * 64} |\n"
    (saved.parent / "README.md").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
        load_model(saved)
    (saved.parent / "README.md").write_bytes(b"K\xf6ln")
    assert load_model(saved).kind == "mae"


def test_a_changed_checkpoint_of_a_run_is_refused(run) -> None:
    folder = run / "checkpoints" / "step-00000001"
    files = {"model.safetensors": {"size": 1, "sha256": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
        load_model(run)


def test_weights_of_another_architecture_list_what_does_not_fit(saved) -> None:
    values = json.loads((saved / "config.json").read_text())["model"]
    edit(saved, model={**values, "encoder": {**values["encoder"], "depth": 3, "mlp_ratio": 1.0}})
    with pytest.raises(KeyMismatchError) as caught:
        load_model(saved)
    assert len(caught.value.report.missing) == 12
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
    with pytest.raises(CheckpointError, match=r"unknown kind of model 'oracle': this library has mae, .*segmentation"):
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
    with pytest.raises(CheckpointError, match=re.escape(f"by its path ({tmp_path / 'bmmae.pth'})")):
        info(tmp_path)
    (tmp_path / "bmmae.pth").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"it has model.safetensors$"):
        load_model(tmp_path)


def test_a_slip_beside_local_models_is_not_asked_of_a_hub(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "runs" / "pretrain-tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bmmae.sources.fetch_model", lambda *_: pytest.fail("a hub was asked"))
    with pytest.raises(CheckpointError, match=r"there is no model 'runs/pretrain-tny'.*mean 'runs/pretrain-tiny'"):
        load_model("runs/pretrain-tny")


def test_a_folder_that_others_have_closed_is_told_and_hides_no_slip(saved, closed: Path) -> None:
    with pytest.raises(CheckpointError, match=r"closed/run' may not be read: Permission denied .*Ask the owner"):
        load_model(closed / "run")
    with pytest.raises(CheckpointError, match=r"there is no model .*Did you mean '.*/model'\?$"):
        load_model(saved.parent / "modell")


def test_a_slip_in_a_whole_path_is_told_as_well(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "pretrain-tiny")
    with pytest.raises(CheckpointError, match=r"Did you mean '.*/pretrain-tiny'\?"):
        load_model(tmp_path / "pretrain-tny")


def test_a_model_is_saved_to_and_loaded_from_the_home_folder(
    model: PretrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert save_model(model, "~/mine") == tmp_path / "mine"
    assert load_model("~/mine").config == model.config
    assert PretrainedModel.from_pretrained("~/mine").config == model.config
    assert not (tmp_path / "~").exists()


def test_a_run_under_way_in_the_home_folder_is_told(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "run" / "checkpoints" / "step-00000008")
    index = {"status": "running", "step": 8, "steps": 400, "last": "step-00000008", "best": None}
    (tmp_path / "run" / "checkpoints" / "index.json").write_text(json.dumps(index))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert info("~/run").run == unfinished("~/run@last") == "running, step 8 of 400"


def test_of_a_link_it_is_the_model_behind_that_is_replaced(model: PretrainedModel, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    shutil.copytree(saved, tmp_path / "disk" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    save_model(model, tmp_path / "link", provenance=Provenance(data="new"))
    assert (tmp_path / "link").is_symlink()
    assert info(tmp_path / "disk" / "model").provenance.data == "new"
    assert not list(tmp_path.glob(".link*"))


def test_what_is_no_model_of_this_library_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a model of this library, got Linear: save others with torch.save"):
        inspect.unwrap(save_model)(torch.nn.Linear(1, 1), tmp_path / "model")


def test_a_wrapped_model_says_where_the_model_is(model: PretrainedModel, tmp_path: Path) -> None:
    save = inspect.unwrap(save_model)
    with pytest.raises(ConfigError, match=r"got DataParallel: it holds one, so pass model.module$"):
        save(torch.nn.DataParallel(model), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"got OptimizedModule: it holds one, so pass model._orig_mod$"):
        save(torch.compile(model, backend="eager"), tmp_path / "model")


def test_what_json_cannot_hold_is_refused_before_anything_is_written(model: PretrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be saved as JSON: Object of type PosixPath is not JSON serializable"):
        save_model(model, tmp_path / "new", provenance=Provenance(extra={"table": tmp_path}))
    assert not list(tmp_path.glob("*new*"))


def test_what_describes_a_model_must_be_of_its_class(model: PretrainedModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "describe", inspect.unwrap(checkpoint.describe))
    for given, kind in (({"provenance": {"data": "9 studies"}}, "Provenance"), ({"preprocessing": {}}, "Preprocess")):
        with pytest.raises(ConfigError, match=f"expected a {kind}.*, got a dict"):
            inspect.unwrap(save_model)(model, tmp_path / "model", **given)
    assert not (tmp_path / "model").exists()


def test_what_is_no_name_of_a_model_is_refused(model: PretrainedModel, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "locate", inspect.unwrap(checkpoint.locate))
    for given, told in ((model, "MAE"), (None, "NoneType")):
        with pytest.raises(CheckpointError, match=f"a model goes by its name or path, got a {told}$"):
            inspect.unwrap(load_model)(given)


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "weights.pth", "a/b/c", "./here/it"])
def test_a_source_that_is_nothing_says_what_would_be_one(source) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no model '.*': expected a model folder .* a run folder, .* hub name"
    ):
        load_model(source)


def test_a_model_without_the_head_that_is_needed_says_how_to_get_one(saved) -> None:
    with pytest.raises(
        CheckpointError, match=r"'mae', which has no segmentation head; .* finetune/segmentation.py --model"
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


def test_weights_that_started_from_synthetic_ones_say_so(model, tmp_path) -> None:
    save_model(model, tmp_path / "child", provenance=Provenance(parent_synthetic=True))
    with pytest.warns(SyntheticWeightsWarning, match="child was pretrained on synthetic data: measure it on labelled"):
        load_model(tmp_path / "child")


def test_weights_under_another_name_are_not_passed_over(saved) -> None:
    (saved / "other.safetensors").touch()
    for asked in ({"source": saved / "other.safetensors"}, {"source": saved, "filename": "other.safetensors"}):
        with pytest.raises(CheckpointError, match=r"other.safetensors: a model's weights are called model.safetensors"):
            load_model(**asked)
    with pytest.raises(CheckpointError, match=r"cannot load other.safetensors: a model's weights"):
        load_model("lab/brain", filename="other.safetensors")


def test_a_revision_of_a_local_model_is_refused(saved, run) -> None:
    for source in (saved, saved / "model.safetensors", run, f"{run}@last"):
        with pytest.raises(CheckpointError, match="is on this machine and has no revision 'v9': leave revision out"):
            load_model(source, revision="v9")


def test_long_lists_of_keys_are_counted_in_the_message_and_whole_in_the_report() -> None:
    state = {f"layer.{i}": torch.zeros(1) for i in range(20)}
    report = compare(state, {})
    assert str(report).endswith("layer.11 and 8 more")
    assert len(report.unexpected) == 20


def test_a_file_is_not_replaced_by_a_model(model, tmp_path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt is a file, and a model is saved as a folder"):
        save_model(model, path)
    assert path.read_text() == "mine"


def test_a_model_can_be_saved_where_one_stands(model, tmp_path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_model(model, ".")
    assert load_model(tmp_path / "here").kind == model.kind

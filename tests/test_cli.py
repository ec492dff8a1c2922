"""Each kind of bad input: one clear sentence, exit code 2, nothing half-written."""

import argparse
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from full_disk import files_of_at_most
from tiny_models import tiny_mae, tiny_segmentation
from tiny_studies import SHAPE, brain, picture, save, write_study

from bmmae.checkpoint import save_model
from bmmae.cli import build_parser, main
from bmmae.data.cohort import Cohort
from bmmae.data.preprocess import PreprocessConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_mae(), tmp_path_factory.mktemp("model") / "mae", preprocessing=PreprocessConfig())


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_segmentation(), tmp_path_factory.mktemp("model") / "seg", preprocessing=PreprocessConfig())


@pytest.fixture
def t1(tmp_path: Path) -> Path:
    return save(tmp_path / "t1.nii.gz", picture())


def reconstruct(model: Path, out: Path, *images: object) -> int:
    return main(["reconstruct", "--model", str(model), *map(str, images), "--out", str(out)])


def refused(capsys: pytest.CaptureFixture[str], out: Path, code: int, *words: str) -> None:
    printed = capsys.readouterr().err
    assert code == 2
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, "one line"
    assert all(word in printed for word in words), printed
    assert not out.exists() or not any(out.iterdir()), "nothing half-written"


Capture = pytest.CaptureFixture[str]


def test_no_modality_given(model: Path, tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, tmp_path / "o", reconstruct(model, tmp_path / "o"), "no image given", "--t1", "--flair")


def test_a_path_that_does_not_exist(model: Path, tmp_path: Path, capsys: Capture) -> None:
    code = reconstruct(model, tmp_path / "o", "--t1", tmp_path / "gone.nii.gz")
    refused(capsys, tmp_path / "o", code, "gone.nii.gz")


def test_a_truncated_file(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    t1.write_bytes(t1.read_bytes()[:-200])
    refused(capsys, tmp_path / "o", reconstruct(model, tmp_path / "o", "--t1", t1), "t1.nii.gz", "truncated")


def test_a_file_of_four_axes(model: Path, tmp_path: Path, capsys: Capture) -> None:
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8, 3), np.float32), np.eye(4)), tmp_path / "dwi.nii.gz")
    code = reconstruct(model, tmp_path / "o", "--t1", tmp_path / "dwi.nii.gz")
    refused(capsys, tmp_path / "o", code, "dwi.nii.gz", "(8, 8, 8, 3)")


def test_modalities_on_different_grids(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    t2 = save(tmp_path / "t2.nii.gz", picture(1, (20, 20, 16)))
    code = reconstruct(model, tmp_path / "o", "--t1", t1, "--t2", t2)
    refused(capsys, tmp_path / "o", code, "different grids", "t1.nii.gz", "t2.nii.gz")


def test_an_image_of_zeros(model: Path, tmp_path: Path, capsys: Capture) -> None:
    empty = save(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.float32))
    refused(capsys, tmp_path / "o", reconstruct(model, tmp_path / "o", "--t1", empty), "empty.nii.gz", "only zeros")


def test_an_image_with_nans(model: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = picture()
    broken[brain()] = np.nan
    path = save(tmp_path / "nan.nii.gz", broken)
    refused(capsys, tmp_path / "o", reconstruct(model, tmp_path / "o", "--t1", path), "nan.nii.gz", "not finite")


def test_a_model_folder_without_config(tmp_path: Path, t1: Path, capsys: Capture) -> None:
    (tmp_path / "hollow").mkdir()
    code = reconstruct(tmp_path / "hollow", tmp_path / "o", "--t1", t1)
    refused(capsys, tmp_path / "o", code, "hollow", "config.json")


def test_a_model_config_with_an_unknown_key(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    odd = save_model(tiny_mae(), tmp_path / "odd", preprocessing=PreprocessConfig())
    config = json.loads((odd / "config.json").read_text())
    config["model"]["encoder"]["dpeth"] = config["model"]["encoder"].pop("depth")
    (odd / "config.json").write_text(json.dumps(config))
    refused(capsys, tmp_path / "o", reconstruct(odd, tmp_path / "o", "--t1", t1), "dpeth", "Did you mean 'depth'?")


def test_an_unknown_modality_name(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    code = reconstruct(model, tmp_path / "o", "--image", f"flare={t1}")
    refused(capsys, tmp_path / "o", code, "unknown modality 'flare'", "Did you mean 'flair'?")


@pytest.mark.parametrize("words", [("t2+flair",), ("t2,flair",), ("t2,", "FLAIR"), ("t2", "+", "fla")])
def test_names_may_be_joined_as_tables_and_lists_join_them(
    model: Path, tmp_path: Path, t1: Path, capsys: Capture, words: tuple[str, ...]
) -> None:
    assert reconstruct(model, tmp_path / "o", "--t1", t1, "--only", *words) == 0
    assert {path.name for path in (tmp_path / "o").glob("*.nii.gz")} == {"t2.nii.gz", "flair.nii.gz"}
    code = reconstruct(model, tmp_path / "no", "--t1", t1, "--only", ",")
    assert code == 2
    assert "unknown modality ','" in capsys.readouterr().err


def test_a_modality_given_twice(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    code = reconstruct(model, tmp_path / "o", "--t1", t1, "--image", f"T1w={t1}")
    refused(capsys, tmp_path / "o", code, "given twice")


def test_an_image_option_without_a_name(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    code = reconstruct(model, tmp_path / "o", "--image", t1)
    refused(capsys, tmp_path / "o", code, "NAME=FILE")


def test_an_output_folder_that_cannot_be_written(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert reconstruct(model, blocked / "o", "--t1", t1) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_model_of_another_kind(model: Path, segmenter: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    refused(capsys, tmp_path / "o", reconstruct(segmenter, tmp_path / "o", "--t1", t1), "segmentation", "mae")
    code = main(["segment", "--model", str(model), "--t1", str(t1), "--out", str(tmp_path / "o" / "seg.nii.gz")])
    refused(capsys, tmp_path / "o", code, "mae", "segmentation")


def test_reconstruct_writes_the_absent_modalities(model: Path, tmp_path: Path, t1: Path, capsys: Capture) -> None:
    assert reconstruct(model, tmp_path / "o", "--t1", t1) == 0
    written = {path.name for path in (tmp_path / "o").iterdir()}
    assert written == {"t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz", "reconstruction.json"}
    assert "not a medical device" in capsys.readouterr().out


def test_reconstruct_all_writes_the_given_ones_too(model: Path, tmp_path: Path, t1: Path) -> None:
    assert reconstruct(model, tmp_path / "o", "--t1", t1, "--all") == 0
    np.testing.assert_allclose(nib.load(tmp_path / "o" / "t1.nii.gz").get_fdata(), nib.load(t1).get_fdata(), rtol=1e-5)


def test_segment_writes_labels_on_the_input_grid(segmenter: Path, tmp_path: Path, t1: Path) -> None:
    out = tmp_path / "o" / "seg.nii.gz"
    assert main(["segment", "--model", str(segmenter), "--t1", str(t1), "--out", str(out)]) == 0
    labels, source = nib.load(out), nib.load(t1)
    np.testing.assert_allclose(labels.affine, source.affine)
    assert labels.shape == source.shape
    assert set(np.unique(labels.get_fdata())) <= {0, 1, 2, 4}


def test_index_check_and_cache_a_folder(tmp_path: Path, capsys: Capture) -> None:
    for subject in ("a", "b"):
        write_study(tmp_path / "data" / subject, labelled=False)
    table = str(tmp_path / "cohort.csv")
    assert main(["index", str(tmp_path / "data"), "--out", table]) == 0
    assert main(["check", table]) == 0
    assert main(["cache", table, "--out", str(tmp_path / "cache"), "--spacing", "2", "--workers", "1"]) == 0
    assert "2 of 2 studies" in capsys.readouterr().out


def test_index_keeps_what_was_added_to_its_table(tmp_path: Path, capsys: Capture) -> None:
    write_study(tmp_path / "data" / "a", labelled=False)
    table = tmp_path / "cohort.csv"
    command = ["index", str(tmp_path / "data"), "--out", str(table)]
    assert main(command) == 0
    assert main(command) == 0
    header, row = table.read_text().splitlines()
    table.write_text(f"{header},idh\n{row},1\n")
    assert main(command) == 2
    assert "lacks its columns idh: choose another --out" in capsys.readouterr().err
    assert table.read_text().endswith(",1\n")


def test_check_fails_where_a_file_is_broken(tmp_path: Path, capsys: Capture) -> None:
    study = write_study(tmp_path / "data" / "a", labelled=False)
    table = str(tmp_path / "cohort.csv")
    assert main(["index", str(tmp_path / "data"), "--out", table]) == 0
    path = study.images["t2"]
    path.write_bytes(path.read_bytes()[:100])
    assert main(["check", table]) == 1
    assert "t2.nii.gz" in capsys.readouterr().out


def test_info_is_readable_by_people_and_programs(model: Path, capsys: Capture) -> None:
    assert main(["info", str(model)]) == 0
    assert "FLAIR" in capsys.readouterr().out
    assert main(["info", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "mae"


def test_init_writes_scripts_and_configs_and_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "configs" / "pretrain" / "tiny.yaml").is_file()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"next, in {tmp_path / 'mine'}: accelerate launch pretrain/train.py --config configs/")
    assert main(["init", str(tmp_path / "mine")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("segment m --t1 a.nii.gz --out s.nii.gz --fold 0 --tolerance 2", "--fold, --tolerance: about a cohort"),
        ("segment m --cohort c.csv --out s --fold 0", "--fold 0 is one of --splits"),
        ("preprocess c.csv --out p --no-atlas --affine", "--affine is about the registration to the atlas"),
        ("embed --model m --cohort c.csv --out e.csv --colour sex", "--colour sex colours the picture of --umap"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: str, told: str, capsys: Capture) -> None:
    assert main(words.replace("segment m", "segment --model m").split()) == 2
    assert told in capsys.readouterr().err


def test_every_option_has_a_help_text_and_says_its_default() -> None:
    for name, command in build_parser()._subparsers._group_actions[0].choices.items():  # type: ignore[union-attr]
        for action in command._actions:
            assert action.help, f"{name} {action.dest}"
            if action.default and action.help != argparse.SUPPRESS and action.dest != "help":
                assert "default: " in action.help, f"{name} {action.dest}"


def test_every_command_has_a_help_text(capsys: Capture) -> None:
    for name in build_parser()._subparsers._group_actions[0].choices:  # type: ignore[union-attr]
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("check cohort.csv --workers -1", "argument --workers: expected a whole number from 1 on, got '-1'"),
        ("split cohort.csv --out f.json --seed -1", "argument --seed: expected a whole number from 0 on, got '-1'"),
        ("cache cohort.csv --out c --spacing nan", "argument --spacing: expected millimetres above 0, got 'nan'"),
        ("preprocess cohort.csv --out c --spacing 0", "argument --spacing: expected millimetres above 0, got '0'"),
        ("synth --out c --lesion-radius 1 inf", "argument --lesion-radius: expected millimetres above 0, got 'inf'"),
        (
            "segment m --cohort c --postprocess nan",
            "argument --postprocess: expected a number from 0 on, got 'nan'",
        ),
        ("segment m --cohort c.csv --tolerance two", "argument --tolerance: expected a number, got 'two'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_by_name(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert told in capsys.readouterr().err


def test_info_of_a_run_whose_curves_cannot_be_written_still_tells(
    model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(model, run / "checkpoints" / "step-00000002")
    (run / "checkpoints" / "index.json").write_text('{"best": "step-00000002", "status": "finished"}')
    (run / "metrics.jsonl").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(run), "~/run"):
        assert main(["info", name]) == 0
        told = capsys.readouterr()
        assert "holds no metrics" in told.err
        assert "FLAIR" in told.out


def test_init_that_meets_a_full_disk_can_be_given_again(tmp_path: Path, capsys: Capture) -> None:
    with files_of_at_most(500):
        assert main(["init", str(tmp_path)]) == 2
    assert "File too large" in capsys.readouterr().err.partition("[(")[0]
    assert main(["init", str(tmp_path)]) == 0


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["init", "~/mine"]) == 0
    assert (tmp_path / "mine" / "pretrain" / "train.py").is_file()


def test_the_next_command_can_be_pasted_whatever_the_table_is_called(tmp_path: Path, capsys: Capture) -> None:
    write_study(tmp_path / "data" / "a", labelled=False)
    assert main(["index", str(tmp_path / "data"), "--out", str(tmp_path / "my table.csv")]) == 0
    assert f"next: bmmae check '{tmp_path}/my table.csv'" in capsys.readouterr().out


def test_a_card_names_the_command_that_measures_its_model(
    model: Path, segmenter: Path, tmp_path: Path, capsys: Capture
) -> None:
    study = write_study(tmp_path / "data" / "a")
    Cohort((study,)).write(tmp_path / "cohort.csv")
    known = {"TABLE": str(tmp_path / "cohort.csv"), "NAMES": "t1"}
    for folder in (model, segmenter):
        (said,) = re.findall(r"measure on your own cases first \(`bmmae (.+)`\)\.", (folder / "README.md").read_text())
        words = [known.get(word, word) for word in said.split()]
        assert main([*words, "--model", str(folder), "--out", str(tmp_path / folder.name)]) == 0
        assert "all figures: " in (told := capsys.readouterr().out) or "all metrics: " in told

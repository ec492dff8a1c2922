"""The whole way: on three real studies, and on a tiny synthetic cohort through the demo's own commands."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_studies import write_study

from bmmae.checkpoint import load_model
from bmmae.cli import main
from bmmae.data.cohort import Cohort

ROOT = Path(__file__).parents[1]
NO_CONTRAST = "kirby21/sub-113/ses-2/anat/sub-113_ses-2"


def train(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::bmmae.inference.UnlikeTrainingWarning")  # two training studies: all is unlike them
def test_three_real_studies_end_to_end(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, run = tmp_path / "cohort.csv", tmp_path / "run"
    folder = tmp_path / "studies"
    folder.mkdir()
    for place in ("brats18/Brats18_2013_20_1", "brats23/BraTS-GLI-00000-000", "kirby21/sub-113"):
        (folder / Path(place).name).symlink_to(real / place)
    assert main(["index", str(folder), "--out", str(table)]) == 0
    assert main(["check", str(table)]) == 0
    config = ("--config", ROOT / "configs/pretrain/tiny.yaml", "--data.cohort", table, "--out", run)
    short = ("--train.steps", 2, "--train.batch_size", 1, "--train.workers", 0, "--optim.warmup_steps", 1)
    small = ("--model.synthesis.units", 32, "--train.progress", "false")
    ended = train("pretrain/train.py", *config, *short, *small)
    assert ended.returncode == 0, ended.stderr
    capsys.readouterr()

    scans = {"--t1": "T1w", "--t2": "T2w", "--flair": "FLAIR"}
    given = {flag: real / f"{NO_CONTRAST}_{name}.nii.gz" for flag, name in scans.items()}
    for flags in (("--t1",), tuple(given)):
        out = tmp_path / "-".join(flags)
        words = [str(word) for flag in flags for word in (flag, given[flag])]
        assert main(["reconstruct", "--model", str(run), *words, "--out", str(out)]) == 0
        made = sorted(path.name for path in out.glob("*.nii.gz"))
        assert made == (["flair.nii.gz", "t1ce.nii.gz", "t2.nii.gz"] if len(flags) == 1 else ["t1ce.nii.gz"])
        source, written = nib.load(given["--t1"]), nib.load(out / "t1ce.nii.gz")
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
        assert written.shape == source.shape
        assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(source.affine)
        assert written.header.get_zooms() == pytest.approx(source.header.get_zooms())
        assert np.isfinite(written.get_fdata()).all()
        assert written.get_fdata().std() > 0


def test_a_script_ends_with_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    ended = train(
        "pretrain/train.py", "--config", ROOT / "configs/pretrain/tiny.yaml", "--data.cohort", tmp_path / "no.csv"
    )
    assert ended.returncode == 2
    assert "no.csv" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_model_of_fewer_modalities_is_pretrained_in_the_folds_of_all(tmp_path: Path) -> None:
    names = (("flair", "t1"), ("flair", "t1"), ("flair",), ("flair", "t1"))
    studies = tuple(write_study(tmp_path / f"p{i}", each, seed=i) for i, each in enumerate(names))
    table, folds, run = Cohort(studies).write(tmp_path / "cohort.csv"), tmp_path / "folds.json", tmp_path / "run"
    assert main(["split", str(table), "--folds", "2", "--out", str(folds)]) == 0
    tested = [["p2", ""] in fold["test"] for fold in json.loads(folds.read_text())["folds"]]
    config = ("--config", ROOT / "configs/pretrain/tiny.yaml", "--data.cohort", table, "--out", run)
    short = ("--train.steps", 1, "--train.batch_size", 1, "--train.workers", 0, "--optim.warmup_steps", 1)
    small = ("--model.size", "[16, 16, 16]", "--model.synthesis.units", 0, "--train.progress", "false")
    fewer = ("--model.modalities", "[t1]", "--data.splits", folds, "--data.fold", tested.index(True))
    ended = train("pretrain/train.py", *config, *short, *small, *fewer)
    assert ended.returncode == 0, ended.stderr
    assert load_model(run, kind="mae").metadata.provenance["subjects"] == 1
    more = (*config[:-1], tmp_path / "more", "--start", run, *short, *small)
    ended = train("pretrain/train.py", *more)
    assert ended.returncode == 2
    assert "model.modalities ('t1',) where this run has ('t1', 't1ce', 't2', 'flair')" in ended.stderr
    ended = train("pretrain/train.py", *more, *fewer)
    assert ended.returncode == 0, ended.stderr
    assert load_model(tmp_path / "more", kind="mae").metadata.provenance["parent"] == "run"

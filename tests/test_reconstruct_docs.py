"""docs/reconstruct.md and examples/reconstruct_missing.py do what they say."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_mae
from tiny_studies import write_study

from bmmae.checkpoint import save_model
from bmmae.cli import build_parser
from bmmae.data.population import LEVELS
from bmmae.data.preprocess import PreprocessConfig
from bmmae.inference.likeness import BRAIN_MARGIN, USUAL_DISTANCE

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reconstruct.md").read_text()
SCRIPT = ROOT / "examples" / "reconstruct_missing.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_mae((24, 24, 24), kind="cross", colocated=True)
    return save_model(made, tmp_path_factory.mktemp("model") / "tiny", preprocessing=PreprocessConfig())


def test_commands_are_accepted() -> None:
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            assert build_parser().parse_args(shlex.split(line)[1:]).model == "checkpoints/tiny"


def test_every_option_is_explained() -> None:
    (command,) = (a.choices["reconstruct"] for a in build_parser()._subparsers._group_actions)  # type: ignore[union-attr,index]
    options = {word for action in command._actions if action.help != "==SUPPRESS==" for word in action.option_strings}
    known = {"-h", "--help", "--model", "--out", "--cohort", "--t1", "--t1ce", "--t2", "--flair", "--image"}
    for option in options - known:
        assert f"`{option}" in PAGE, option


def test_figures_are_those_of_the_code() -> None:
    flat = " ".join(PAGE.split())
    assert f"{len(LEVELS)} quantiles are matched" in flat
    assert f"over {BRAIN_MARGIN:.0%} smaller".replace("%", " %") in flat
    assert f"and than {USUAL_DISTANCE} deviations" in flat


def test_the_python_of_the_page_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, ("t1", "flair"), labelled=False)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code.replace("checkpoints/tiny", str(model)), {})
    assert (tmp_path / "t2_synthetic.nii.gz").is_file()


def test_the_example_completes_a_patient_and_compares(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_study(tmp_path, ("t1", "t2", "flair"), labelled=False).images
    words = [f"{name}={path}" for name, path in images.items()]
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main([*words, "--model", str(model), "--out", str(tmp_path / "out"), "--keep-out", "FLAIR"]) == 0
    printed = capsys.readouterr().out
    assert "flair.nii.gz: flair, (20, 24, 16) voxels, median" in printed
    assert np.isfinite(float(re.findall(r"median ([\d.-]+)", printed)[0]))
    html = (tmp_path / "out" / "report.html").read_text()
    assert "real FLAIR" in html
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["flair.nii.gz", "t1ce.nii.gz"]


@pytest.mark.parametrize("words", [["t1=a.nii", "b.nii"], ["t1=a.nii", "T1w=b.nii"]])
def test_the_example_takes_each_sequence_once_and_by_name(
    model: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit):
        main([*words, "--model", str(model), "--out", "out"])
    assert f"expected NAME=FILE, each name once, got {' '.join(words)}" in capsys.readouterr().err


def test_the_example_says_in_a_sentence_what_cannot_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    words = ["--model", str(model), "--out", str(tmp_path / "out")]
    for images, told in (
        (["t1=nowhere.nii"], "error: nowhere.nii does not exist"),
        (["dwi=a.nii"], "error: unknown modality 'dwi'"),
        (["t1=a.nii", "t2=b.nii", "--keep-out", "t2", "t1"], "error: --keep-out leaves no image to start from"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*images, *words])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


def test_the_example_makes_no_page_without_anything_to_compare_and_keeps_out_only_what_is_given(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_study(tmp_path, ("t1",), labelled=False).images
    main = runpy.run_path(str(SCRIPT))["main"]
    words = [f"T1={images['t1']}", "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("flair.nii.gz", "reconstruction.json", "t1ce.nii.gz", "t2.nii.gz")
    ]
    with pytest.raises(SystemExit):
        main([*words, "--keep-out", "t2"])
    assert "--keep-out t2: no such image is given" in capsys.readouterr().err

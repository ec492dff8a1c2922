"""Every command of docs/patient.md works as it is written."""

from __future__ import annotations

import re
import shlex
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_models import tiny_config

from bmmae.checkpoint import save_model
from bmmae.cli import main
from bmmae.config import parse
from bmmae.data.cohort import read_cohort
from bmmae.data.preprocess import PreprocessConfig
from bmmae.model.mae import MAE
from bmmae.patient_config import PatientConfig
from bmmae.patient_run import fine_tune

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "patient.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = [shlex.split(line) for block in BLOCKS for line in block.splitlines() if line]
OWN = [line for line in LINES if line[0] == "bmmae"]
TRAINING = [line for line in LINES if line[0] == "accelerate"]
JOIN, CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_shows_commands() -> None:
    assert (len(OWN), len(TRAINING)) == (6, 5)


def test_a_hospitals_table_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cohort.csv").write_text("subject,t1\n0007,7.nii\n0008,8.nii\n")
    Path("clinic.csv").write_text("subject;scanned;last_seen;event;age\n0007;01.02.2020;01.02.2021;1;61,5\n")
    exec(compile(JOIN, "patient.md", "exec"), {})
    known, unknown = read_cohort("joined.csv")
    assert (known.subject, known.values["age"], known.event) == ("0007", 61.5, True)
    assert known.time == pytest.approx(366 / 30.44)
    assert (unknown.time, unknown.event, unknown.values["age"]) == (None, None, None)


@pytest.mark.parametrize("line", TRAINING, ids=lambda line: line[-1])
def test_the_training_commands_are_understood(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / line[2]).is_file()
    config = parse(PatientConfig, line[3:])
    assert config.out == Path(line[-1])
    assert config.targets.labels or config.targets.survival


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    save_model(MAE(tiny_config()), "MODEL", preprocessing=PreprocessConfig(spacing=(12.0, 12.0, 12.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # synthetic data; the model has seen the patients
        for line in OWN[:1]:
            assert main(line[1:]) == 0
        assert fine_tune(parse(PatientConfig, TRAINING[0][3:])) == 0
        for line in OWN[1:]:
            words = [("2" if before == "--draws" else word) for before, word in pairwise(line)]
            assert main(words) == 0, line
        capsys.readouterr()
        exec(compile(CODE, "patient.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 30

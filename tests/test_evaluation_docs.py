"""docs/evaluation.md says what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmmae.cli import build_parser
from bmmae.data.cohort import Cohort, Study
from bmmae.data.writing import write_image
from bmmae.evaluation.predictions import read_predictions
from bmmae.metrics import classification_figures

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    studies = []
    for number in range(24):
        names = ("t1ce", "flair") if number % 4 else ("t1ce",)
        files = {name: tmp_path / f"{number}-{name}.nii" for name in names}
        for path in files.values():
            write_image(path, draw.normal(size=(3, 3, 3)).astype(np.float32), np.eye(4))
        values = {"grade": ("low", "high")[number % 2], "age": 50.0 + number, "sex": "fm"[number // 2 % 2]}
        studies.append(Study(f"p{number}", files, values=values))
    Cohort(tuple(studies)).write(tmp_path / "cohort.csv")
    names: dict[str, Any] = {}
    exec(BLOCKS[0].replace("draws=100", "draws=5"), names)
    classes, survival = read_predictions(tmp_path / "out_of_fold.csv")
    assert survival is None
    assert classes is not None
    assert len(classes.keys) == 2 * 2 * (24 + 18)  # models, repeats, and who has the subset
    assert "corrected t, 6 folds" in (tmp_path / "report.html").read_text()
    exec(BLOCKS[1], names)
    assert names["gains"] == pytest.approx({"t1ce": 0.3, "flair": 0, "age": 0})
    assert (names["drop"] == 64).all()


def test_every_figure_is_listed() -> None:
    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE) for name in re.findall(r"`(\w+)", row)
    }
    figures = {name for name in classification_figures(("a", "b", "c")) if not name.startswith("auc_")}
    assert figures <= listed
    assert {"harrell_c", "uno_c", "auc_over_time", "integrated_brier", "auc_at_"} <= listed


def test_its_command_is_accepted() -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    program, *arguments = shlex.split(block)
    assert program == "bmmae"
    assert build_parser().parse_args(arguments).target == "site"

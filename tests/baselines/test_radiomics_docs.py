"""docs/radiomics.md runs as it is written, and its tables of rows come from rows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "radiomics.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def write_tables(folder: Path) -> None:
    random = np.random.default_rng(0)
    names = [f"Mean_{region}_{modality}" for region in ("ET", "ED") for modality in ("T1", "T1Gd", "T2", "FLAIR")]
    for shift, name in enumerate(("GBM", "LGG")):
        rows = [[f"{name}{row}", "1", "5", *random.normal(shift, size=8)] for row in range(12)]
        lines = [",".join(map(str, row)) for row in [["ID", "Date", "VOLUME_ET", *names], *rows]]
        (folder / f"{name}.csv").write_text("\n".join(lines))


def test_the_first_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(BLOCKS[0], scope)
    assert scope["probabilities"].shape == (24, 2)
    assert scope["table"].modalities == ("t1", "t1ce", "t2", "flair")
    assert "Mean_ET_T1" in scope["table"].dropped
    assert "VOLUME_ET" in scope["table"].dropped


def test_the_second_example_is_code() -> None:
    compile(BLOCKS[1], "docs/radiomics.md", "exec")
    names = re.findall(r"^from ([\w.]+) import (.+)$", BLOCKS[1], flags=re.MULTILINE)
    for module, imported in names:
        for name in imported.split(", "):
            assert hasattr(__import__(module, fromlist=[name]), name)


@pytest.fixture
def row_tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import row_tables

    yield row_tables
    sys.modules.pop("row_tables")


def test_rows_are_listed_with_their_deviation(row_tables: Any) -> None:
    rows = [{"columns": "x", "method": "mfn_vae", "auc": 0.5, "auc_sd": 0.25}, {"columns": "x", "weight": "alpha"}]
    assert row_tables.listed(rows, ["columns"]) == "| method | auc |\n| --- | --- |\n| mfn vae | 0.500 ± 0.250 |\n"


def test_rows_are_pivoted(row_tables: Any) -> None:
    rows = [{"a": a, "b": b, "auc": float(f"0.{a}{b}"), "auc_sd": None} for a, b in ((1, 3), (1, 4), (2, 3))]
    expected = "| a | 3 | 4 |\n| --- | --- | --- |\n| 1 | 0.130 | 0.140 |\n| 2 | 0.230 |  |\n"
    assert row_tables.pivoted(rows, "auc", "a", "b") == expected


def test_places_without_a_result_say_so(row_tables: Any) -> None:
    text = "<!-- pivot: nothing auc a b -->\nold\n<!-- end -->"
    assert "Not measured yet: `python benchmarks/nothing.py`" in row_tables.updated_rows(text)

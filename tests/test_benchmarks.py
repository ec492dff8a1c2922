"""Tables say what the results say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_tables_match_the_results() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_a_result_says_what_was_run_where_and_how_often(path: Path) -> None:
    result = json.loads(path.read_text())
    keys = {"quick", "machine", "date", "commit", "command", "runs", "headline", "rows"}
    assert set(result) == keys
    assert result["quick"] is False
    figures = result["headline"].values()
    assert all(set(figure) == {"value", "low", "high", "floor", "asked", "unit"} for figure in figures)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)

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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_study_is_timed_in_a_process_of_its_own() -> None:
    path = ROOT / "benchmarks" / "results" / "quick" / "study_time.json"
    path.unlink(missing_ok=True)
    words = [sys.executable, str(ROOT / "benchmarks" / "study_time.py"), "--quick", "--runs", "1", "--threads", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(path.read_text())
    assert set(found["headline"]) == {"seconds_a_study", "memory_a_study"}
    assert [set(row) for row in found["rows"]] == [{"wall_seconds", "memory_gb"}]
    assert found["rows"][0]["memory_gb"] > 0.1


@pytest.mark.slow
def test_intervals_are_simulated() -> None:
    path = ROOT / "benchmarks" / "results" / "quick" / "intervals.json"
    path.unlink(missing_ok=True)
    words = [sys.executable, str(ROOT / "benchmarks" / "intervals.py"), "--quick"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(path.read_text())["rows"]
    held = {(row["figure"], row["patients"], row["levels"]): row["held"] for row in rows}
    assert {key[0] for key in held} == {"mean", "auc"}
    assert all(0.5 <= share <= 1 for share in held.values())
    assert all(held[*key[:2], "widened"] >= held[*key[:2], "plain"] for key in held)

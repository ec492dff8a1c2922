"""Tables say what the results say."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import feature_tables
import patient
import segmentation
import study_time
import synthesis
import transfer
import tumour_probe
from learning_data import EDITIONS, Source
from real import Parts

from bmmae.data.cache import StudyCache
from bmmae.data.preprocess import PreprocessConfig
from bmmae.modalities import STANDARD

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


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        (segmentation, ["--folds", "0", "9"], "unknown fold 9: expected some of 0, 1"),
        (segmentation, ["--only", "ours", "unnet"], "unknown method unnet"),
        (tumour_probe, ["--folds", "7"], "unknown fold 7: expected some of 0, 1"),
        (tumour_probe, ["--ours", "nowhere/{fold}"], "no weights in nowhere/0"),
        (transfer, ["--folds", "9"], "unknown fold 9: expected some of 0, 1, 2, 3, 4"),
        (transfer, ["--amounts", "2"], "unknown amount 2: expected some of 1, 3, all, 0.1, 0.3"),
        (transfer, ["--ours", "nowhere/{fold}"], "no weights in nowhere/0"),
        (synthesis, ["--model", "nowhere"], "no weights in nowhere"),
        (patient, ["--model", "nowhere"], "no weights in nowhere"),
        (feature_tables, ["--data", "nowhere"], "no feature tables at nowhere/LGG.csv, nowhere/GBM.csv"),
        (study_time, [], "the real studies are not at"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: ModuleType, words: list[str], told: str
) -> None:
    nobody = Parts((), (), ())
    source = Source("real", (nobody, nobody), StudyCache(tmp_path, PreprocessConfig(), STANDARD), EDITIONS)
    for module in (segmentation, tumour_probe):
        monkeypatch.setattr(module, "real_source", lambda: source)
    monkeypatch.setattr(study_time, "STUDY", tmp_path / "nowhere")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
    with pytest.raises(SystemExit, match=told):
        script.main()


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

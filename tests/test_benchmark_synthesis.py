"""The benchmark of synthesis: what its cells add up to, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from synthesis_figures import full_pairs, gains, gather, headline_figures, table_rows

PATIENTS = ("a", "b", "c")
FULL = {"t1": "t1ce+t2+flair>t1", "flair": "t1+t1ce+t2>flair"}


def cell(method: str, psnr: dict[str, tuple[float, ...]], fold: str = "0", **more: Any) -> dict[str, Any]:
    """A finished cell with the PSNR of each absent modality by patient; SSIM is a hundredth of it."""
    scores = {
        FULL[name]: {
            "psnr": dict(zip(PATIENTS, values, strict=True)),
            "psnr_unmapped": dict(zip(PATIENTS, values, strict=True)),
            "ssim": {p: v / 100 for p, v in zip(PATIENTS, values, strict=True)},
        }
        for name, values in psnr.items()
    }
    return {"cell": {"part": "score", "method": method, "fold": fold}, "seconds": 1.0, "scores": scores, **more}


OURS = cell(
    "ours",
    {"t1": (22, 23, 21), "flair": (20, 20, 20)},
    coverage={FULL["t1"]: {"a": 0.9, "b": 0.8, "c": 0.9}, FULL["flair"]: {"a": 1.0, "b": 0.8, "c": 0.8}},
)
RIDGE = cell("ridge", {"t1": (20, 20, 20), "flair": (19, 20, 21)})
UNET = cell("unet", {"t1": (21, 22, 20), "flair": (19, 19, 19)})


def test_gains_are_by_patient_and_the_smallest_is_named() -> None:
    figures = headline_figures([OURS, RIDGE, UNET])
    assert figures["psnr_gain_over_ridge_mean"].value == pytest.approx(1.0)
    assert figures["psnr_gain_over_ridge_min"].value == pytest.approx(0.0)
    assert figures["psnr_gain_over_ridge_min"].unit.endswith("flair")
    assert figures["psnr_gain_over_ridge_mean"].unit == "dB, from the three others, 3 patients"
    assert figures["psnr_gain_over_unet_mean"].value == pytest.approx(1.0)
    assert figures["ssim_gain_over_unet_min"].value == pytest.approx(0.01)
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())


def test_coverage_error_is_each_patients_distance_from_what_was_promised() -> None:
    figures = headline_figures([OURS, RIDGE])
    assert figures["coverage_error"].value == pytest.approx((0.05 + 0.1 + 0.05) / 3)
    too_much_here_too_little_there = {FULL["t1"]: dict.fromkeys("abc", 1.0), FULL["flair"]: dict.fromkeys("abc", 0.8)}
    uneven = headline_figures([{**OURS, "coverage": too_much_here_too_little_there}, RIDGE])
    assert uneven["coverage_error"].value == pytest.approx(0.1)
    rows = [row for row in table_rows([OURS]) if row["table"] == "coverage"]
    assert {row["pair"]: row["mean"] for row in rows} == {FULL["t1"]: 0.8667, FULL["flair"]: 0.8667}
    assert "coverage_error" not in headline_figures([{**OURS, "coverage": {}}, RIDGE])


def test_the_fixed_split_is_apart_from_the_folds() -> None:
    fixed = cell("ours", {"t1": (30, 30, 30), "flair": (30, 30, 30)}, fold="fixed")
    folds = headline_figures([OURS, RIDGE, fixed, {**RIDGE, "cell": {**RIDGE["cell"], "fold": "fixed"}}])
    assert folds["psnr_gain_over_ridge_mean"].value == pytest.approx(1.0)
    assert folds["psnr_gain_over_ridge_mean_fixed"].value == pytest.approx(10.0)
    found = gather([OURS, fixed], "score", fixed=True)["ours"]
    assert found[FULL["t1"]]["psnr"] == {"a": 30, "b": 30, "c": 30}
    rows = table_rows([OURS, RIDGE, fixed])
    assert {row["data"] for row in rows if row["table"] == "score"} == {"folds", "fixed"}
    gain = next(row for row in rows if row["table"] == "gains" and row["wanted"] == "t1" and row["metric"] == "psnr")
    assert (gain["over"], gain["mean"], gain["patients"]) == ("ridge", 2.0, 3)


def test_use_is_compared_with_real_sets_and_with_sets_that_lack_the_modality() -> None:
    def used(method: str, **dice: float) -> dict[str, Any]:
        scores = {place: {"WT": dict.fromkeys(PATIENTS, value)} for place, value in dice.items()}
        return {"cell": {"part": "use", "method": method, "fold": "0"}, "seconds": 1.0, "scores": scores}

    figures = headline_figures([OURS, used("ours", none=0.8, t1=0.7, flair=0.6), used("left out", t1=0.5, flair=0.6)])
    assert figures["use_minus_real"].value == pytest.approx(-15)
    assert figures["use_minus_left_out"].value == pytest.approx(10)


def test_from_one_modality_the_closest_comparator_counts() -> None:
    def alone(method: str, value: float) -> dict[str, Any]:
        scores = {"t1>flair": {"psnr": dict.fromkeys(PATIENTS, value)}}
        return {"cell": {"part": "score", "method": method, "fold": "0"}, "seconds": 1.0, "scores": scores}

    found = headline_figures([alone("ours", 20), alone("ridge", 18), alone("cyclegan", 19)])["psnr_gain_from_one"]
    assert (found.value, found.unit) == (1, "dB, from one modality, over cyclegan, the closest of 2, 3 patients")


def test_seeds_are_averaged_and_patients_paired() -> None:
    again = cell("ours", {"t1": (24, 25, 23), "flair": (20, 20, 20)})
    values = gather([OURS, again], "score", fixed=False)["ours"]
    assert values[FULL["t1"]]["psnr"]["a"] == 23
    theirs = {FULL["t1"]: {"psnr": {"a": 20.0, "d": 1.0}}}
    assert gains(values, theirs, [FULL["t1"]]) == {"a": 3}
    assert full_pairs({"t1>t2": {}, "t1+t1ce+flair>t2": {}}) == {"t2": ["t1+t1ce+flair>t2"]}
    assert full_pairs({"t1>t2": {}, "t1+t1ce+flair>t2": {}}, given=1) == {"t2": ["t1>t2"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_run_scores_every_method_on_all_pairs() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "synthesis.py"), "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = json.loads((ROOT / "benchmarks" / "results" / "quick" / "synthesis.json").read_text())
    gained = {
        "psnr_gain_over_ridge_mean",
        "psnr_gain_over_ridge_min",
        "psnr_gain_over_unet_mean",
        "ssim_gain_over_unet_mean",
        "psnr_gain_from_one",
        "use_minus_real",
        "use_minus_left_out",
    }
    assert gained <= set(result["headline"])
    scored = [row for row in result["rows"] if row["table"] == "score" and row["metric"] == "psnr"]
    pairs = {method: sum(row["method"] == method for row in scored) for method in ("mean", "ridge", "unet", "ours")}
    assert set(pairs.values()) == {28}
    assert {row["pair"] for row in scored if row["method"] == "cyclegan"} == {"t1ce>flair", "flair>t1ce"}
    used = {row["pair"] for row in result["rows"] if row["table"] == "use" and row["method"] == "ours"}
    assert used == {"none", "t1", "t1ce", "t2", "flair"}

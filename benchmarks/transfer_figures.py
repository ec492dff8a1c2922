"""Figures and table of the transfer benchmark, from its finished cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from statistics import mode
from typing import Any

import numpy as np
from harness import Figure
from paired import by_patient, counter_intuitive_by_patient, differences, figure_by_patient
from patient_learning import FIGURES, Predictions
from real import FOLDS

from bmmae.evaluation.comparison import paired_bootstrap

Row = Mapping[str, Any]
RIVALS = ("random", "published")
TENTH = 0.1
REAL_AMOUNTS: dict[float | None, str] = {1: "one_case", 3: "three_cases", None: "all_cases"}
SYNTHETIC_AMOUNTS: dict[float | None, str] = {TENTH: "10pct", 0.3: "30pct", 1.0: "100pct"}
"""How much training data, and what figures call it; 1 is a case there and a share here."""
DRAWS = 500


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose cell has these values."""
    return [row for row in rows if all(row["cell"].get(key, ...) == value for key, value in wanted.items())]


def headline_figures(rows: list[Row]) -> dict[str, Figure]:
    """Return the figures for which both sides have every fold."""
    real = [row for row in rows if row["cell"]["data"] == "real"]
    synthetic = [row for row in rows if row["cell"]["data"] != "real"]
    found: dict[str, Figure] = {}
    for some, amounts in ((real, REAL_AMOUNTS), (synthetic, SYNTHETIC_AMOUNTS)):
        for amount, name in amounts.items():
            for rival in RIVALS:
                label = name if rival == "random" else f"{name}_over_{rival}"
                found |= _gains(pick(some, amount=amount), rival, label, asked=rival == "random")
    return (
        found
        | _counter_intuitive(real, None, "")
        | _counter_intuitive(synthetic, 1.0, "_synthetic")
        | _neighbours(rows)
    )


def _gains(rows: list[Row], rival: str, label: str, *, asked: bool) -> dict[str, Figure]:
    """Return what our weights, those of a segmenter and its measures gain with one amount of training data."""
    found: dict[str, Figure] = {}
    for start, by in (("ours", ""), ("segmenter", "segmenter_"), ("measures", "measures_")):
        ours, theirs = (pick(rows, part="segmentation", weights=weights) for weights in (start, rival))
        if complete(ours, theirs):
            target = 5.0 if asked and label == REAL_AMOUNTS[3] else None
            found[f"{by}segmentation_gain_{label}"] = figure_by_patient(
                differences(by_patient(ours), by_patient(theirs)), asked=target
            )
        for part, prefix in (("patients", by), ("linear", f"{by}linear_")):
            ours, theirs = (pick(rows, part=part, weights=weights) for weights in (start, rival))
            for figure, wanted in (("auc", 0.05), ("c_index", 0.03)):
                if complete(ours, theirs):
                    few = asked and part == "patients" and label == SYNTHETIC_AMOUNTS[TENTH]
                    found[f"{prefix}{figure}_gain_{label}"] = gain(ours, theirs, figure, wanted if few else None)
    return found


def complete(*sides: Iterable[Row]) -> bool:
    """Tell whether all sides have the same folds, and of the real cases all of them."""
    folds = [{(row["cell"]["data"], row["cell"]["fold"]) for row in side} for side in sides]
    real = {fold for data, fold in folds[0] if data == "real"}
    return bool(folds[0]) and all(found == folds[0] for found in folds) and (not real or real == set(range(FOLDS)))


def gain(ours: list[Row], theirs: list[Row], name: str, asked: float | None) -> Figure:
    """Return the gain, the mean over seeds, with an interval by drawing test patients anew for both."""
    figure = FIGURES[name]
    patients = sorted(ours[0]["predictions"])

    def mean(rows: list[Row], chosen: list[str]) -> float:
        return statistics.fmean(figure(_predictions(row), chosen) for row in rows)

    def difference(places: Any) -> float:
        chosen = [patients[int(place)] for place in np.asarray(places)]
        return mean(ours, chosen) - mean(theirs, chosen)

    tested = paired_bootstrap(difference, patients, draws=DRAWS)
    value = tested.difference
    low, high = (value if bound is None else bound for bound in (tested.low, tested.high))
    return Figure(value, min(low, value), max(high, value), None, asked, name.replace("_", "-").replace("auc", "AUC"))


def _predictions(row: Row) -> Predictions:
    return dict(row["predictions"])


def _counter_intuitive(rows: list[Row], everything: float | None, suffix: str) -> dict[str, Figure]:
    """Return the rate of the models that had all training data: each patient's own, and their mean."""
    chosen = [row["scores"] for row in pick(rows, part="segmentation", weights="ours", seed=0, amount=everything)]
    return {f"counter_intuitive_rate{suffix}": counter_intuitive_by_patient(chosen)} if chosen else {}


def _neighbours(rows: list[Row]) -> dict[str, Figure]:
    """Return how often the nearest neighbours of a frozen embedding tell a label, and chance as the floor."""
    found = {}
    for weights in ("ours", "random", "published"):
        cells = pick(rows, part="embeddings", weights=weights)
        if not complete(cells):
            continue
        for label in dict.fromkeys(name for row in cells for name in row["neighbours"]):
            told = [row["neighbours"][label] for row in cells if label in row["neighbours"]]
            right = {patient: value for each in told for patient, value in each["right"].items()}
            truth = [value for each in told for value in each["truth"].values()]
            unit = f"share told by nearest neighbours, {weights}, {len(right)} patients"
            figure = figure_by_patient(right, floor=truth.count(mode(truth)) / len(truth), unit=unit, scale=1.0)
            found[f"neighbours_{label}_{weights}"] = figure
    return found


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one flat row a cell."""
    table = []
    for row in rows:
        flat = dict(row["cell"]) | {key: row[key] for key in ("steps", "training_seconds", "studies") if key in row}
        if "scores" in row:
            flat["dice"] = statistics.fmean(
                value for regions in row["scores"].values() for found in regions.values() for value in found.values()
            )
        table.append(flat | row.get("figures", {}))
    return table

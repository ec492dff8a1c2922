"""Figures and table of the transfer benchmark, from its finished cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from full_volumes import counter_intuitive_rate
from harness import Figure
from paired import by_patient, differences, figure_by_patient
from patient_learning import FIGURES, Predictions

from bmmae.evaluation.comparison import paired_bootstrap

Row = Mapping[str, Any]
FEW = 3
TENTH = 0.1
DRAWS = 500


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose cell has these values."""
    return [row for row in rows if all(row["cell"].get(key, ...) == value for key, value in wanted.items())]


def headline_figures(rows: list[dict[str, Any]], patients: Mapping[str, set[str]]) -> dict[str, Figure]:
    """Return the figures for which every patient has been scored.

    Args:
        rows: Finished cells.
        patients: The test patients of the real and of the synthetic source.
    """
    found: dict[str, Figure] = {}
    real = pick([row for row in rows if row["cell"]["data"] == "real"], part="segmentation", amount=FEW)
    everyone = patients.get("real", set())
    for rival, name in (("random", "segmentation_gain_few"), ("published", "segmentation_gain_few_over_published")):
        ours, theirs = by_patient(pick(real, weights="ours")), by_patient(pick(real, weights=rival))
        if everyone and set(ours) == set(theirs) == everyone:
            found[name] = figure_by_patient(differences(ours, theirs), asked=5.0 if rival == "random" else None)
    tenth = pick(rows, part="patients", amount=TENTH)
    for name, figure, asked in (("auc_gain_10pct", "auc", 0.05), ("c_index_gain_10pct", "c_index", 0.03)):
        for rival in ("random", "published"):
            ours, theirs = pick(tenth, weights="ours"), pick(tenth, weights=rival)
            if ours and theirs:
                key = name if rival == "random" else f"{name}_over_published"
                found[key] = gain(ours, theirs, figure, asked if rival == "random" else None)
    return found | _counter_intuitive(rows) | _probe_gains(rows, everyone)


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


def _counter_intuitive(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the rate for the real folds and the synthetic test subjects, each patient's own and their mean."""
    found = {}
    for suffix, real in (("", True), ("_synthetic", False)):
        chosen = [
            row["scores"]
            for row in pick(rows, part="segmentation", weights="ours", seed=0)
            if (row["cell"]["data"] == "real") == real and row["cell"]["amount"] in (None, 1.0)
        ]
        if not chosen:
            continue
        people = {patient for table in chosen for regions in table.values() for p in regions.values() for patient in p}
        rates = {patient: counter_intuitive_rate(_only(table, patient) for table in chosen).rate for patient in people}
        unit = f"share of (patient, pair, region), {len(people)} patients, lower is better"
        found[f"counter_intuitive_rate{suffix}"] = figure_by_patient(rates, asked=0.1, unit=unit, scale=1.0)
    return found


def _only(table: Mapping[str, Any], patient: str) -> dict[str, Any]:
    return {
        subset: {region: {patient: scores[patient]} for region, scores in regions.items() if patient in scores}
        for subset, regions in table.items()
    }


def _probe_gains(rows: list[dict[str, Any]], everyone: set[str]) -> dict[str, Figure]:
    found = {}
    probes = pick(rows, part="probe")
    for given, on in dict.fromkeys((row["cell"]["given"], row["cell"]["fitted_on"]) for row in probes):
        scored = {}
        for weights in dict.fromkeys(row["cell"]["weights"] for row in probes):
            chosen = pick(probes, given=given, fitted_on=on, weights=weights)
            scored[weights] = {patient: value for row in chosen for patient, value in row["ap"].items()}
        label = ("all" if "+" in given else given) + ("" if on == "train" else f"_{on}")
        for rival in ("random", "patch statistics", "published"):
            ours, theirs = scored.get("ours", {}), scored.get(rival, {})
            if ours and set(ours) == set(theirs) and (not everyone or set(ours) == everyone):
                gains = {patient: ours[patient] - theirs[patient] for patient in ours}
                name = f"probe_gain_{label}_over_{rival.replace(' ', '_')}"
                asked = None if rival == "published" else 0.1
                found[name] = figure_by_patient(gains, asked=asked, unit="average precision", scale=1.0)
    return found


SUMMARIES: dict[str, Callable[[Row], float]] = {
    "dice": lambda row: statistics.fmean(
        value for regions in row["scores"].values() for found in regions.values() for value in found.values()
    ),
    "ap": lambda row: statistics.fmean(row["ap"].values()),
    "auc": lambda row: statistics.fmean(row["auc"].values()),
}


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one flat row a cell."""
    table = []
    for row in rows:
        flat = dict(row["cell"]) | {key: row[key] for key in ("steps", "training_seconds", "studies") if key in row}
        needs = {"dice": "scores", "ap": "ap", "auc": "auc"}
        flat |= {name: SUMMARIES[name](row) for name, key in needs.items() if key in row}
        table.append(flat | row.get("figures", {}))
    return table

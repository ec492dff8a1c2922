"""Comparisons by patient: each patient's own difference, its mean, and an interval by resampling patients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from full_volumes import Scores, counter_intuitive_rate, flat
from harness import Figure

from bmmae.evaluation.intervals import mean_with_interval

POINTS = 100.0
Row = Mapping[str, Any]
Counts = Callable[[str, str], bool]
"""Whether a subset and region count."""

ByPlace = dict[str, dict[tuple[str, str], float]]
"""Patient, (subset, region): Dice, the mean over seeds."""


def everything(_subset: str, _region: str) -> bool:
    """Count every subset and region."""
    return True


def by_patient(rows: Iterable[Row], counts: Counts = everything) -> ByPlace:
    """Gather the scores of one method's cells; every patient is tested in one fold."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        for subset, region, patient, value in flat(row["scores"]):
            if counts(subset, region):
                found.setdefault(patient, {}).setdefault((subset, region), []).append(value)
    return {
        patient: {place: statistics.fmean(values) for place, values in places.items()}
        for patient, places in found.items()
    }


def means(scores: ByPlace) -> dict[str, float]:
    """Return each patient's mean."""
    return {patient: statistics.fmean(places.values()) for patient, places in scores.items()}


def differences(ours: ByPlace, theirs: ByPlace) -> dict[str, float]:
    """Return ours minus theirs for each patient that both scored, over the subsets and regions that both scored."""
    found = {}
    for patient in set(ours) & set(theirs):
        shared = set(ours[patient]) & set(theirs[patient])
        if shared:
            found[patient] = statistics.fmean(ours[patient][place] - theirs[patient][place] for place in shared)
    return found


def counter_intuitive_by_patient(tables: Iterable[Scores]) -> Figure:
    """Return how often Dice falls by over half a point when a modality is added, as the mean of patients' rates."""
    rates: dict[str, list[float]] = {}
    for table in tables:
        for patient in {patient for regions in table.values() for scores in regions.values() for patient in scores}:
            rates.setdefault(patient, []).append(counter_intuitive_rate([_of_one(table, patient)]).rate)
    unit = f"share of (patient, pair, region), {len(rates)} patients, lower is better"
    values = {patient: statistics.fmean(found) for patient, found in rates.items()}
    return figure_by_patient(values, asked=0.1, unit=unit, scale=1.0)


def _of_one(table: Scores, patient: str) -> Scores:
    return {
        subset: {region: {patient: scores[patient]} for region, scores in regions.items() if patient in scores}
        for subset, regions in table.items()
    }


def figure_by_patient(
    values: Mapping[str, float],
    *,
    asked: float | None = None,
    floor: float | None = None,
    unit: str = "Dice points",
    scale: float = POINTS,
) -> Figure:
    """Return the mean over patients with its bootstrap interval."""
    metric = mean_with_interval([values[patient] * scale for patient in sorted(values)])
    low, high = (metric.value if bound is None or math.isnan(bound) else bound for bound in (metric.low, metric.high))
    return Figure(metric.value, min(low, metric.value), max(high, metric.value), floor, asked, unit)

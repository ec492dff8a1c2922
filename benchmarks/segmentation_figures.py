"""Figures and tables of the segmentation benchmark, from its finished cells: always by patient, ours against theirs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from harness import Figure
from paired import (
    ByPlace,
    by_patient,
    counter_intuitive_by_patient,
    differences,
    everything,
    figure_by_patient,
    means,
)
from real import TEST
from segmentation_contestants import DEDICATED, MASKED, RELYING

from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS
from bmmae.modalities import STANDARD, subset_label

T1, T1CE, T2, FLAIR = STANDARD
DEDICATED_TO = tuple(map(subset_label, (STANDARD, (T1CE,), (FLAIR,), (T1, T2))))
RATE = "counter_intuitive_rate"
Runs = Mapping[str, list[dict[str, Any]]]
"""Finished cells by method."""


def headline_figures(runs: Runs, patients: int) -> dict[str, Figure]:
    """Return ours against each kind of rival, on the patients that both have scored.

    Args:
        runs: Finished cells by method.
        patients: Of the whole benchmark; where fewer were scored, the unit says how many.
    """
    scored = {method: by_patient(rows) for method, rows in runs.items() if rows}
    ours, found = scored.get("ours", {}), {}
    dedicated = _dedicated(scored)
    if not ours:
        return {}

    def gain(mine: ByPlace, theirs: ByPlace, asked: float | None = None) -> Figure:
        return _of(patients, figure_by_patient(differences(mine, theirs), asked=asked), set(mine) & set(theirs))

    against = partial(gain, ours)

    if set(ours) & set(dedicated):
        found["any_vs_dedicated"] = against(dedicated, 0.0)
    for name, subset, asked in (("full_set", DEDICATED_TO[0], -1.0), (T1CE, T1CE, None)):
        theirs = scored.get(DEDICATED + subset, {})
        if set(ours) & set(theirs):
            found[f"any_vs_dedicated_{name}"] = against(theirs, asked)
    if set(ours) & set(scored.get("scratch", {})):
        found["pretrained_vs_scratch"] = against(scored["scratch"], 5.0)
    masked = scored.get(MASKED, {})
    if set(masked) & set(scored.get("scratch", {})):
        found["masked_vs_scratch"] = gain(masked, scored["scratch"])
    rivals = {name: scored[name] for name in SEGMENTATION_NETWORKS if set(ours) & set(scored.get(name, {}))}
    if rivals:
        gaps = {name: against(theirs, 0.0) for name, theirs in rivals.items()}
        best = min(gaps, key=lambda name: gaps[name].value)
        unit = f"{gaps[best].unit}, over {best}, the best of {len(rivals)}"
        found["best_comparator_gap"] = replace(gaps[best], unit=unit)
    if scored.get(RELYING):
        found[f"{RATE}_relying"] = counter_intuitive_by_patient([row["scores"] for row in runs[RELYING]])
    return found | _alone(runs["ours"], patients)


def _dedicated(scored: Mapping[str, ByPlace]) -> ByPlace:
    """Return the dedicated models as one contestant, on the patients that all of them have scored."""
    those = [scored.get(DEDICATED + subset, {}) for subset in DEDICATED_TO]
    shared = set.intersection(*map(set, those))
    return {patient: {place: v for scores in those for place, v in scores[patient].items()} for patient in shared}


UNTRIED = frozenset(TEST)
"""Real patients on whom no setting of ours has been tried: the others were in the trials that chose them."""


def untried_figures(runs: Runs, patients: int) -> dict[str, Figure]:
    """Return the comparisons once more, on `UNTRIED` alone; nothing where they are not all scored.

    Args:
        runs: Finished cells by method.
        patients: Of the whole benchmark.
    """
    if not set(UNTRIED) <= set(by_patient(runs["ours"])):
        return {}
    there = {method: [_without_tried(row) for row in rows] for method, rows in runs.items()}
    found = headline_figures(there, patients)
    told = ("any_vs_dedicated", "pretrained_vs_scratch", "best_comparator_gap", "mean_dice")
    return {f"{name}_untried": found[name] for name in told if name in found}


def _without_tried(row: dict[str, Any]) -> dict[str, Any]:
    scores = {
        subset: {
            region: {patient: value for patient, value in values.items() if patient in UNTRIED}
            for region, values in regions.items()
        }
        for subset, regions in row["scores"].items()
    }
    return row | {"scores": scores}


def _alone(rows: list[dict[str, Any]], patients: int) -> dict[str, Figure]:
    """Return ours by itself; the two cases that no model can do well have lines of their own."""
    places = {
        "mean_dice": everything,
        "et_without_t1ce": lambda subset, region: region == "ET" and T1CE not in subset.split("+"),
        "wt_without_flair": lambda subset, region: region == "WT" and FLAIR not in subset.split("+"),
    }
    found = {}
    for name, counts in places.items():
        values = means(by_patient(rows, counts))
        found[name] = _of(patients, figure_by_patient(values), values)
    found[RATE] = counter_intuitive_by_patient([row["scores"] for row in rows])
    return found


def _of(patients: int, figure: Figure, scored: Iterable[str]) -> Figure:
    """Say in the unit how many patients a figure is about, where that is not all of them."""
    count = len(set(scored))
    return figure if count == patients else replace(figure, unit=f"{figure.unit}, {count} of {patients} patients")


def longer_figures(runs: Runs, patients: int, seconds: float) -> dict[str, Figure]:
    """Return what more training changes: ours against the dedicated models, and the weaknesses.

    Args:
        runs: Finished cells of the longer budget by method.
        patients: Of the whole benchmark.
        seconds: That budget.
    """
    found = headline_figures(runs, patients)
    told = (name for name in found if name.startswith("any_vs_dedicated") or name in ("mean_dice", RATE))
    return {f"{name}_{seconds:g}s": found[name] for name in told}


def comparisons(runs: Runs, *, part: str = "comparison") -> list[dict[str, Any]]:
    """Return a row for each method: its mean Dice over its subsets, and ours minus theirs on the same patients."""
    ours, table = by_patient(runs["ours"]), []
    for method, rows in runs.items():
        theirs = by_patient(rows)
        gap = differences(ours, theirs)
        if not gap:
            continue
        value = figure_by_patient(gap)
        table.append(
            {
                "part": part,
                "method": method,
                "patients": len(gap),
                "steps": round(statistics.fmean(row["steps"] for row in rows)),
                "training_seconds": statistics.fmean(row["training_seconds"] for row in rows),
                "dice": statistics.fmean(means({patient: theirs[patient] for patient in gap}).values()),
                "ours_minus_it_in_points": value.value,
                "low": value.low,
                "high": value.high,
            }
        )
    return table


def subset_rows(runs: Runs) -> list[dict[str, Any]]:
    """Return mean Dice by method, subset and region."""
    table = []
    for method, rows in runs.items():
        gathered: dict[tuple[str, str], list[float]] = {}
        for places in by_patient(rows).values():
            for place, value in places.items():
                gathered.setdefault(place, []).append(value)
        for (subset, region), values in gathered.items():
            row = {"part": "subsets", "method": method, "subset": subset, "region": region}
            table.append(row | {"dice": statistics.fmean(values), "worst": min(values), "patients": len(values)})
    return table

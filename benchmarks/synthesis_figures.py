"""What the cells of synthesis add up to: gains by patient, headline figures, flat rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import Figure
from paired import figure_by_patient

from bmmae.modalities import STANDARD

Cell = Mapping[str, Any]
Values = dict[str, dict[str, dict[str, float]]]
"""`t1+t2>flair`, metric, patient: value, the mean over seeds."""
OURS = ("saved", "ours")
"""Whose gains are the headline: weights given by hand, else those pretrained here."""
RIVALS = {"ridge": 1.0, "ridge_2mm": None, "unet": 0.5, "published": None, "mean": None}
"""Comparators from the three others, and by how many dB ours is asked to be above them."""
LEFT_OUT = "left out"
"""The method that does not synthesise: the segmenter sees the others alone."""
FULL = 3
FIXED = "fixed"
NOMINAL = 0.9


def gather(cells: Iterable[Cell], part: str, *, fixed: bool) -> dict[str, Values]:
    """Gather the scores of one part by method, over the folds or on the fixed split."""
    found: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for row in cells:
        cell = row["cell"]
        if cell["part"] != part or (cell["fold"] == FIXED) != fixed:
            continue
        for place, metrics in row["scores"].items():
            for metric, patients in metrics.items():
                into = found.setdefault(cell["method"], {}).setdefault(place, {}).setdefault(metric, {})
                for patient, value in patients.items():
                    into.setdefault(patient, []).append(value)
    return {
        method: {
            place: {
                metric: {patient: statistics.fmean(values) for patient, values in patients.items()}
                for metric, patients in metrics.items()
            }
            for place, metrics in places.items()
        }
        for method, places in found.items()
    }


def full_pairs(values: Values, given: int = FULL) -> dict[str, list[str]]:
    """Return the pairs of each absent modality whose subset has so many modalities."""
    pairs: dict[str, list[str]] = {}
    for label in values:
        subset, _, wanted = label.partition(">")
        if subset.count("+") + 1 == given:
            pairs.setdefault(wanted, []).append(label)
    return pairs


def gains(ours: Values, theirs: Values, labels: Sequence[str], metric: str = "psnr") -> dict[str, float]:
    """Return each patient's mean difference, ours minus theirs, over the pairs that both scored."""
    found: dict[str, list[float]] = {}
    for label in labels:
        one, other = (values.get(label, {}).get(metric, {}) for values in (ours, theirs))
        for patient in set(one) & set(other):
            found.setdefault(patient, []).append(one[patient] - other[patient])
    return {patient: statistics.fmean(values) for patient, values in found.items()}


def _figure(values: Mapping[str, float], unit: str, asked: float | None = None) -> Figure:
    return figure_by_patient(values, asked=asked, unit=unit, scale=1.0)


def headline_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Return the gains of ours by patient, over the folds and (`..._fixed`) on the fixed split."""
    figures: dict[str, Figure] = {}
    for fixed in (False, True):
        found = _figures(cells, fixed=fixed)
        figures |= {f"{name}_fixed" if fixed else name: figure for name, figure in found.items()}
    return figures


def _figures(cells: Sequence[Cell], *, fixed: bool) -> dict[str, Figure]:
    scores = gather(cells, "score", fixed=fixed)
    name = next((name for name in OURS if name in scores), None)
    figures: dict[str, Figure] = {}
    if name is None:
        return figures
    ours = scores[name]
    for rival, asked in RIVALS.items():
        if rival in scores:
            figures |= _over(ours, scores[rival], rival, asked)
    figures |= _from_one(ours, {rival: theirs for rival, theirs in scores.items() if rival not in OURS})
    return figures | _coverage(cells, name, fixed=fixed) | _use(gather(cells, "use", fixed=fixed), name)


def _over(ours: Values, theirs: Values, rival: str, asked: float | None) -> dict[str, Figure]:
    """From the three others: the mean gain over modalities, and that of the modality that gains least."""
    figures = {}
    pairs = full_pairs(ours)
    every = [label for labels in pairs.values() for label in labels]
    for metric, unit, target in (("psnr", "dB", asked), ("ssim", "SSIM", 0.0)):
        by_modality = {wanted: gains(ours, theirs, labels, metric) for wanted, labels in pairs.items()}
        by_modality = {wanted: values for wanted, values in by_modality.items() if values}
        if not by_modality:
            continue
        whole = gains(ours, theirs, every, metric)
        told = f"{unit}, from the three others, {len(whole)} patients"
        figures[f"{metric}_gain_over_{rival}_mean"] = _figure(whole, told, target)
        least = min(by_modality, key=lambda wanted: statistics.fmean(by_modality[wanted].values()))
        figures[f"{metric}_gain_over_{rival}_min"] = _figure(
            by_modality[least], f"{unit}, the smallest gain: {least}", 0.0
        )
    return figures


def _from_one(ours: Values, rivals: Mapping[str, Values]) -> dict[str, Figure]:
    """From one modality: the mean gain over whichever comparator is closest on the pairs that it makes."""
    every = [label for labels in full_pairs(ours, 1).values() for label in labels]
    over = {rival: gains(ours, theirs, every) for rival, theirs in rivals.items()}
    over = {rival: values for rival, values in over.items() if values}
    if not over:
        return {}
    closest = min(over, key=lambda rival: statistics.fmean(over[rival].values()))
    unit = f"dB, from one modality, over {closest}, the closest of {len(over)}, {len(over[closest])} patients"
    return {"psnr_gain_from_one": _figure(over[closest], unit, 0.0)}


def _coverage(cells: Sequence[Cell], method: str, *, fixed: bool) -> dict[str, Figure]:
    """How far coverage is from what was promised: of each modality of a patient, and the mean over these."""
    found: dict[str, list[float]] = {}
    for row in cells:
        if (row["cell"]["fold"] == FIXED) == fixed and row["cell"]["method"] == method:
            for patients in row.get("coverage", {}).values():
                for patient, share in patients.items():
                    found.setdefault(patient, []).append(abs(share - NOMINAL))
    if not found:
        return {}
    errors = {patient: statistics.fmean(shares) for patient, shares in found.items()}
    unit = f"distance of a modality's coverage from {NOMINAL:g}, lower is better"
    return {"coverage_error": _figure(errors, unit)}


def _use(used: Mapping[str, Values], method: str) -> dict[str, Figure]:
    """Dice of a segmenter on sets that ours completed, minus that on the real sets, and on sets that lack it."""
    ours, left_out = used.get(method), used.get(LEFT_OUT)
    if ours is None:
        return {}
    found = {}
    real = {name: ours["none"] for name in STANDARD if "none" in ours}
    for rival, name in ((real, "real"), (left_out or {}, "left_out")):
        values: dict[str, list[float]] = {}
        for wanted in set(ours) & set(rival) - {"none"}:
            for region, patients in ours[wanted].items():
                for patient in set(patients) & set(rival[wanted].get(region, {})):
                    values.setdefault(patient, []).append(patients[patient] - rival[wanted][region][patient])
        if values:
            unit = f"Dice points, completed minus {name.replace('_', ' ')}, {len(values)} patients"
            gap = {patient: statistics.fmean(gaps) for patient, gaps in values.items()}
            found[f"use_minus_{name}"] = figure_by_patient(gap, unit=unit)
    return found


def table_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return flat rows: how each method was trained, every mean with its interval, and gains in every modality."""
    rows: list[dict[str, Any]] = [_training_row(row) for row in cells]
    for fixed in (False, True):
        data = FIXED if fixed else "folds"
        for part in ("score", "use"):
            found = gather(cells, part, fixed=fixed)
            for method, values in _on_shared_patients(found).items():
                rows += [
                    {
                        "table": part,
                        "data": data,
                        "method": method,
                        "pair": label,
                        "metric": metric,
                        **_spread(patients),
                    }
                    for label, metrics in values.items()
                    for metric, patients in metrics.items()
                ]
            rows += _gain_rows(found, data) if part == "score" else []
        rows += _coverage_rows(cells, data, fixed=fixed)
    return rows


def _on_shared_patients(scores: Mapping[str, Values]) -> dict[str, Values]:
    """Return each method's scores on the patients whom all methods with that pair have scored: means that compare."""
    shared: dict[tuple[str, str], set[str]] = {}
    for values in scores.values():
        for label, metrics in values.items():
            for metric, patients in metrics.items():
                shared[label, metric] = shared.get((label, metric), set(patients)) & set(patients)
    return {
        method: {
            label: {
                metric: {patient: value for patient, value in patients.items() if patient in shared[label, metric]}
                for metric, patients in metrics.items()
                if shared[label, metric]
            }
            for label, metrics in values.items()
        }
        for method, values in scores.items()
    }


def _coverage_rows(cells: Sequence[Cell], data: str, *, fixed: bool) -> list[dict[str, Any]]:
    """Coverage of the deviations, asked for nine in ten voxels, by method and modality."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in cells:
        if (row["cell"]["fold"] == FIXED) == fixed:
            for label, patients in row.get("coverage", {}).items():
                found.setdefault((row["cell"]["method"], label), {}).update(patients)
    return [
        {"table": "coverage", "data": data, "method": method, "pair": label, **_spread(patients)}
        for (method, label), patients in sorted(found.items())
    ]


def _training_row(row: Cell) -> dict[str, Any]:
    kept = ("steps", "training_seconds", "seconds")
    return {"table": "cells", **row["cell"], **{key: row[key] for key in kept if key in row and key not in row["cell"]}}


def _gain_rows(scores: Mapping[str, Values], data: str) -> list[dict[str, Any]]:
    """Ours against each other method in each modality, from all others and from one alone."""
    rows = []
    for ours in (name for name in OURS if name in scores):
        for theirs in (name for name in scores if name != ours):
            for given in (FULL, 1):
                for wanted, labels in full_pairs(scores[ours], given).items():
                    for metric in ("psnr", "ssim", "tumour_psnr", "border_error"):
                        values = gains(scores[ours], scores[theirs], labels, metric)
                        if values:
                            place = {"given": given, "wanted": wanted, "metric": metric}
                            pair = {"table": "gains", "data": data, "method": ours, "over": theirs}
                            rows.append({**pair, **place, **_spread(values)})
    return rows


def _spread(values: Mapping[str, float]) -> dict[str, Any]:
    figure = _figure(values, "")
    numbers = {"mean": figure.value, "low": figure.low, "high": figure.high}
    return {"patients": len(values), **{key: round(value, 4) for key, value in numbers.items()}}


def short_table(cells: Sequence[Cell]) -> str:
    """Return PSNR mapped (and not), and SSIM, of each modality from all others, for the terminal."""
    lines = []
    for fixed in (False, True):
        found = gather(cells, "score", fixed=fixed)
        if found:
            where = "fixed split" if fixed else "folds"
            lines.append(f"{where}: dB mapped (unmapped), SSIM; native grid, from all others")
            lines.append(f"{'':12}" + "".join(f"{name:>24}" for name in STANDARD))
            lines += [f"{method:12}" + "".join(_cells_of(values)) for method, values in found.items()]
    return "\n".join(lines)


def _cells_of(values: Values) -> list[str]:
    pairs = full_pairs(values)
    cells = []
    for name in STANDARD:
        metrics = [values[label] for label in pairs.get(name, ())]
        if not metrics:
            cells.append(f"{'-':>24}")
            continue
        means = [statistics.fmean(metrics[0][key].values()) for key in ("psnr", "psnr_unmapped", "ssim")]
        cells.append(f"{means[0]:>10.2f} ({means[1]:5.2f}) {means[2]:.3f}")
    return cells

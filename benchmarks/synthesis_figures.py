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
    """Return the headline over the folds, or on the fixed split where no fold was run; gains of ours by patient."""
    on_folds = gather(cells, "score", fixed=False)
    scores = on_folds or gather(cells, "score", fixed=True)
    ours = next((scores[name] for name in OURS if name in scores), None)
    figures: dict[str, Figure] = {}
    if ours is None:
        return figures
    pairs = full_pairs(ours)
    every = [label for labels in pairs.values() for label in labels]
    where = f"from the three others, {len({p for label in every for p in ours[label]['psnr']})} patients"
    if "ridge" in scores:
        ridge = scores["ridge"]
        figures["psnr_gain_over_ridge_mean"] = _figure(gains(ours, ridge, every), f"dB, {where}", 1.0)
        worst = min(pairs, key=lambda name: statistics.fmean(gains(ours, ridge, pairs[name]).values()))
        values = gains(ours, ridge, pairs[worst])
        figures["psnr_gain_over_ridge_min"] = _figure(values, f"dB, the smallest gain: {worst}", 0.0)
    if "unet" in scores:
        unet = scores["unet"]
        figures["psnr_gain_over_unet_mean"] = _figure(gains(ours, unet, every), "dB, equal computing seconds", 0.5)
        figures["ssim_gain_over_unet"] = _figure(gains(ours, unet, every, "ssim"), "SSIM, mean over modalities", 0.0)
    figures |= _coverage(cells, fixed=not on_folds)
    return figures


def _coverage(cells: Sequence[Cell], *, fixed: bool) -> dict[str, Figure]:
    """How far each patient's coverage is from what was promised."""
    found: dict[str, list[float]] = {}
    rows = [row for row in cells if (row["cell"]["fold"] == FIXED) == fixed and row.get("coverage")]
    chosen = next((name for name in OURS if any(row["cell"]["method"] == name for row in rows)), None)
    for row in rows:
        if row["cell"]["method"] == chosen:
            for patients in row["coverage"].values():
                for patient, share in patients.items():
                    found.setdefault(patient, []).append(share)
    if not found:
        return {}
    errors = {patient: abs(statistics.fmean(shares) - NOMINAL) for patient, shares in found.items()}
    unit = f"distance of a patient's coverage from {NOMINAL:g}, lower is better"
    return {"coverage_error": _figure(errors, unit)}


def table_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return flat rows: how each method was trained, every mean with its interval, and gains in every modality."""
    rows: list[dict[str, Any]] = [_training_row(row) for row in cells]
    for fixed in (False, True):
        data = "fixed split" if fixed else "folds"
        for part in ("score", "use"):
            found = gather(cells, part, fixed=fixed)
            for method, values in found.items():
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
    return rows


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

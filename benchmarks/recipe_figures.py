"""Figures, table and plot of the recipe benchmark, from its finished cells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Figure
from paired import figure_by_patient
from recipe_factors import OURS, PUBLISHED

RANDOM, STATISTICS = "random weights", "patch statistics"
RACERS = (OURS, PUBLISHED)
COLOURS = {OURS: "tab:blue", PUBLISHED: "tab:orange"}
"""Of lines in the plot; all other changes are grey."""
SCORED = ("hidden", "absent", "absent_psnr", "ap_all", "ap_t1", "ap_all_unseen", "ap_t1_unseen")
Row = Mapping[str, Any]


def table_rows(cells: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row a variant, mean and deviation over seeds, and the curves point by point."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in cells:
        cell = row["cell"]
        key = (*(cell.get(name) for name in ("data", "scored", "part", "budget", "variant")), _windows(row))
        groups.setdefault(key, []).append(row)
    rows = []
    for (data, scored, part, budget, name, windows), found in sorted(groups.items(), key=lambda item: str(item[0][:4])):
        line: dict[str, Any] = {"table": "variants", "data": data, "scored": scored, "part": part, "variant": name}
        line |= {"budget": budget, "windows": windows, "seeds": len(found)}
        line["steps"] = round(statistics.fmean(row.get("steps", 0) for row in found))
        for score in SCORED:
            values = [_mean(row, score) for row in found if score in row["scores"]]
            line[score] = round(statistics.fmean(values), 4) if values else None
            if len(values) > 1:
                line[f"{score}_sd"] = round(statistics.stdev(values), 4)
        rows.append(line)
    return rows + [_point(row["cell"], point) for row in cells for point in row.get("curve", ())]


def _point(cell: Row, point: Row) -> dict[str, Any]:
    kept = {key: cell[key] for key in ("data", "scored", "part", "variant", "seed", "budget")}
    return {"table": "curve", **kept, **{key: round(value, 4) for key, value in point.items()}}


def _mean(row: Row, score: str) -> float:
    return statistics.fmean(row["scores"][score].values())


def headline_figures(cells: Sequence[Row]) -> dict[str, Figure]:
    """Return the headline on test patients: real ones, or synthetic ones where no real cell is done."""
    tested = [row for row in cells if row["cell"]["scored"] == "test"]
    real = [row for row in tested if row["cell"]["data"] == "real"]
    rows = real or tested
    return _race(rows) | _probe(rows)


def _race(rows: Sequence[Row]) -> dict[str, Figure]:
    """When ours reached the published recipe's best, as a share of the published budget; by seed."""
    budgets = {name: max((r["cell"]["budget"] for r in _of(rows, name, "race")), default=None) for name in RACERS}
    if None in budgets.values():
        return {}
    ours, theirs = (
        {r["cell"]["seed"]: r for r in _of(rows, name, "race") if r["cell"]["budget"] == budgets[name]}
        for name in RACERS
    )
    shares, errors, gains = [], [], []
    for seed in sorted(set(ours) & set(theirs)):
        best = min(point["hidden"] for point in theirs[seed]["curve"])
        reached = [point["seconds"] for point in ours[seed]["curve"] if point["hidden"] <= best]
        shares.append(min(reached, default=float("inf")) / theirs[seed]["cell"]["budget"])
        errors.append(_mean(ours[seed], "hidden") / best)
        gains.append(_mean(ours[seed], "ap_all") - _mean(theirs[seed], "ap_all"))
    if not shares:
        return {}
    seconds = f"{budgets[PUBLISHED]:g} s of the published recipe"
    found = {
        "error_over_published": _spread(errors, 1.0, f"ours after a third of {seconds} over its best; lower is better"),
        "probe_gain_over_published": _spread(gains, 0.0, "AP, all modalities, after a third of the time"),
    }
    if max(shares) < float("inf"):  # a share that was not reached is no number
        unit = f"share of {seconds}, lower is better"
        found = {"time_to_published_loss_share": _spread(shares, 1 / 3, unit)} | found
    return found


def _spread(values: Sequence[float], asked: float, unit: str) -> Figure:
    return Figure(statistics.fmean(values), min(values), max(values), None, asked, unit)


def _probe(rows: Sequence[Row]) -> dict[str, Figure]:
    """AP of our longest training minus that of random weights and of patch statistics, by patient."""
    ours = _of(rows, OURS)
    longest = max((row["cell"]["budget"] for row in ours), default=None)
    ours = [row for row in ours if row["cell"]["budget"] == longest]
    rows = [row for row in rows if _windows(row) in map(_windows, ours)]
    found = {}
    for label, said in (("all", ""), ("t1", "_t1"), ("all_unseen", "_unseen"), ("t1_unseen", "_t1_unseen")):
        for rival, name in ((RANDOM, "probe_gain"), (STATISTICS, "probe_gain_over_statistics")):
            sides = [[row for row in some if f"ap_{label}" in row["scores"]] for some in (ours, _of(rows, rival))]
            if all(sides):
                mine, other = (_by_patient(some, f"ap_{label}") for some in sides)
                gains = {patient: mine[patient] - other[patient] for patient in set(mine) & set(other)}
                asked = 0.1 if rival == RANDOM else 0.0
                given, on = "T1 alone" if "t1" in label else "all modalities", ", unseen" if "unseen" in label else ""
                unit = f"AP after {longest:g} s, {given}{on}"
                found[f"{name}{said}"] = figure_by_patient(gains, asked=asked, unit=unit, scale=1.0)
    return found


def _windows(row: Row) -> str:
    """Return where the probe looked, see `recipe.WINDOWS`."""
    return str(row["cell"].get("windows", "middle"))


def _of(rows: Sequence[Row], name: str, part: str | None = None) -> list[Row]:
    return [row for row in rows if row["cell"]["variant"] == name and part in (None, row["cell"]["part"])]


def _by_patient(rows: Sequence[Row], score: str) -> dict[str, float]:
    """Return each patient's mean over seeds."""
    return {
        patient: statistics.fmean(row["scores"][score][patient] for row in rows) for patient in rows[0]["scores"][score]
    }


def short_table(rows: Sequence[Row]) -> str:
    """Return the variants as text, for the terminal."""
    head = f"{'':10}{'variant':26}{'seconds':>8}{'seeds':>6}{'steps':>7}" + "".join(f"{s:>13}" for s in SCORED)
    lines = [head]
    for row in rows:
        if row["table"] == "variants":
            seconds = "" if row["budget"] is None else f"{row['budget']:g}"
            first = f"{row['data'][:9]:10}{row['variant']:26}{seconds:>8}{row['seeds']:>6}{row['steps']:>7}"
            lines.append(first + "".join(f"{'':13}" if row[s] is None else f"{row[s]:>13.3f}" for s in SCORED))
    return "\n".join(lines)


def plot(cells: Sequence[Row], path: Path) -> None:
    """Draw the errors over time, one line a training: ours and the published recipe in colour."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 3.6), layout="constrained")
    axes = canvas.subplots(1, 2)
    for row in cells:
        name, points = row["cell"]["variant"], row.get("curve", ())
        known = name in COLOURS
        style = {"color": COLOURS.get(name, "0.8"), "zorder": 2 if known else 1}
        label = name if known and name not in axes[0].get_legend_handles_labels()[1] else None
        for axis, score in zip(axes, ("hidden", "absent"), strict=True):
            axis.plot([p["seconds"] for p in points], [p[score] for p in points], marker=".", label=label, **style)
    for axis, title in zip(axes, ("hidden tissue, 75 % masked", "an absent modality, from the others"), strict=True):
        axis.set(xlabel="computing seconds", title=f"squared error: {title}", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    canvas.savefig(path, dpi=110)

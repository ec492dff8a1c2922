"""The pictures of a report on patients, as PNG files in memory."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from bmmae.arrays import Array, Float, Int
from bmmae.evaluation.classification import roc_curve
from bmmae.evaluation.predictions import ClassPredictions
from bmmae.evaluation.survival import RiskGroups
from bmmae.metrics import Steps, calibration_outcome, net_benefit, reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3366aa", "#cc5533", "#339966", "#8855aa", "#aa8833", "#557799")
LOW, HIGH = COLOURS[0], COLOURS[1]
GREY = "#9aa4b2"
PANEL = 3.4
"""Inches a panel."""
MOST_PANELS = 10


def draw_roc(predictions: ClassPredictions) -> bytes:
    """Draw the receiver operating characteristic of one model and subset: thin a fold of several, a panel a class.

    Of two classes, only the second is drawn. Folds without both kinds of patients are left out.
    """
    shown = range(len(predictions.classes)) if len(predictions.classes) > 2 else range(1, 2)
    figure, panels = _figure(len(shown))
    for axis, index in zip(panels, shown, strict=True):
        _draw_class(axis, predictions, index)
        axis.set(
            xlabel="1 - specificity", ylabel="sensitivity", title=_short(predictions.classes[index], 26), aspect="equal"
        )
    return _png(figure)


def _draw_class(axis: Axes, predictions: ClassPredictions, index: int) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    grid, curves, areas = np.linspace(0, 1, 101), [], []
    folds = sorted({key.fold for key in predictions.keys})
    alpha, width = (0.35, 1.0) if len(folds) > 1 else (1.0, 2.2)
    for fold in folds:
        rows = np.array([row for row, key in enumerate(predictions.keys) if key.fold == fold])
        wrong, found, area = roc_curve(predictions.take(rows), index)
        if not math.isnan(area):
            axis.plot(wrong, found, color=LOW, alpha=alpha, linewidth=width)
            curves.append(np.interp(grid, wrong, found))
            areas.append(area)
    if curves and len(folds) > 1:
        axis.plot(grid, np.mean(curves, axis=0), color=LOW, linewidth=2.2)
    text = f"AUC {np.mean(areas):.3f}" if areas else "not defined: one class alone"
    axis.text(0.98, 0.04, text, ha="right", transform=axis.transAxes)


def draw_reliability(predictions: ClassPredictions) -> bytes:
    """Draw predicted against observed of one model and subset, patients of all folds together."""
    figure, (axis, below) = _figure(2)
    predicted, happened = calibration_outcome(predictions.probabilities, predictions.label)
    bins = reliability(predicted, happened)
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    rows = len(predictions.keys)
    patients = len({key.group for key in predictions.keys})  # visits and repeats of folds are no other patients
    error = wilson_reach(bins.observed, bins.count * patients / max(rows, 1))
    axis.errorbar(bins.predicted, bins.observed, yerr=error, color=LOW, marker="o", capsize=2, linewidth=1.5)
    of_two = f"probability of\n{_short(predictions.classes[1])}"
    kind = of_two if len(predictions.classes) == 2 else "highest probability"
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"predicted {kind}", ylabel="came true", aspect="equal")
    below.hist(predicted, bins=np.linspace(0, 1, 21).tolist(), color=LOW)
    below.set(xlim=(0, 1), xlabel=f"predicted {kind}", ylabel="predictions")
    below.locator_params(axis="y", integer=True)
    return _png(figure)


def wilson_reach(share: Float[Array, " K"], count: Float[Array, " K"]) -> Float[Array, "2 K"]:
    """Return how far the 95 % intervals of shares reach down and up: of none or all of a few, they still reach far.

    Source: Wilson, JASA 22 (1927).
    """
    z = float(stats.norm.ppf(0.975))
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return np.maximum([share - middle + half, middle + half - share], 0)


def draw_decision_curve(predictions: ClassPredictions) -> bytes:
    """Draw the net benefit of treating by the probability of the second class, beside treating all and nobody.

    Patients of all folds together.
    """
    figure, (axis,) = _figure(1)
    predicted, happened = calibration_outcome(predictions.probabilities, predictions.label)
    share = float(happened.mean())
    thresholds = np.linspace(0.01, 0.99, 99)
    curves = {
        "by the model": (predicted, LOW, "-"),
        "all": (np.ones_like(predicted), HIGH, "--"),
        "nobody": (np.zeros_like(predicted), GREY, ":"),
    }
    for name, (given, colour, line) in curves.items():
        axis.plot(thresholds, net_benefit(given, happened, thresholds), line, color=colour, label=name)
    axis.set(xlim=(0, 1), ylim=(-0.05 - 0.2 * share, share + 0.05), ylabel="net benefit")
    axis.set(xlabel=f"treated from this probability of\n{_short(predictions.classes[1])} on")
    axis.legend(fontsize=7, title="treated", title_fontsize=7, loc="best")
    return _png(figure)


def draw_confusion(matrix: Int[Array, "C C"], classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix: counts, shaded by their share of the true class."""
    figure, (axis,) = _figure(1)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        colour = "white" if share[row, column] > 0.6 else "black"
        axis.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    places, names = range(len(classes)), [_short(name, 18) for name in classes]
    axis.set_xticks(places, names, rotation=45, ha="right")
    axis.set_yticks(places, names)
    axis.set(xlabel="predicted", ylabel="true")
    return _png(figure)


def draw_survival(groups: Sequence[RiskGroups]) -> bytes:
    """Draw Kaplan-Meier curves of low and high risk, a panel a fold, with the log-rank test's p-value in each."""
    figure, panels = _figure(min(len(groups), MOST_PANELS))
    for axis, group in zip(panels, groups, strict=False):
        end = float(group.time.max())
        for high, colour in ((False, LOW), (True, HIGH)):
            chosen = group.high == high
            curve, name = group.curve(high=high), "high" if high else "low"
            patients, died = group.counts(high=high)
            label = f"{name} risk: {patients}, {died} died"
            axis.step(*corners(curve), where="post", color=colour, label=label)
            censored = group.time[chosen & ~group.event]
            axis.plot(censored, curve.at(censored), "|", color=colour, markersize=5)
        p = "not defined" if math.isnan(group.p) else f"{group.p:.2g}"
        axis.set(ylim=(0, 1.02), xlim=(0, end), xlabel="time", title=f"fold {group.fold}: log-rank p = {p}")
        axis.legend(fontsize=7, loc="upper right")
    panels[0].set_ylabel("alive")
    return _png(figure)


def corners(curve: Steps) -> tuple[Array, Array]:
    """Return where a curve begins and changes, up to the longest follow-up of its patients; nothing without any."""
    if not len(curve.times):
        return np.zeros(0), np.zeros(0)
    return np.append(0.0, curve.times), np.append(1.0, curve.values)


def _short(name: str, letters: int = 30) -> str:
    """A name on lines that a panel has room for, three at most."""
    lines = textwrap.wrap(name, letters)
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2][: letters - 1]}\N{HORIZONTAL ELLIPSIS}"]
    return "\n".join(lines)


def _figure(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 5)
    rows = math.ceil(count / columns)
    size = (PANEL * columns, PANEL * rows)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=80, format="png", bbox_inches="tight")  # else titles of many panels are cut
    return stream.getvalue()

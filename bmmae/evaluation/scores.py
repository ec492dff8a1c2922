"""Figures of merit for every model, subset and fold, with intervals; computed within folds and never across them.

The models of two folds are two models: their probabilities need not be calibrated alike, and their risks have no common
scale. A figure is therefore computed within each fold's test patients, and averaged over folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bmmae.arrays import Array, Float, Int
from bmmae.evaluation.intervals import DRAWS, count_strata, is_point, patient_draws, percentile_interval, rests_on_one
from bmmae.evaluation.predictions import PredictionKey
from bmmae.provenance import Metric

Statistic = Callable[[Int[Array, " R"]], Mapping[str, float]]
"""Figures by name from some rows of one model, subset and fold."""
LOWER_IS_BETTER = ("brier", "ece", "integrated_brier")
BEST = {"calibration_slope": "1 is best", "calibration_in_the_large": "0 is best"}
WITHOUT_INTERVAL = ("ece",)
"""Draws hold patients twice, which looks like miscalibration: the intervals would hardly ever cover the truth."""


@dataclass(frozen=True)
class Score:
    """One figure of one model from one subset.

    Attributes:
        model: The model's name.
        subset: The modalities that it was given.
        metric: The figure's name.
        fold: The fold; None for the mean over folds.
        value: The estimate, its interval by patient bootstrap, and how many patients it rests on. The interval tells
            how much other patients would change it; not how much other training patients would. There is none where
            all draws agree, where it rests on one patient of a class or one death, and none of `WITHOUT_INTERVAL`.
        deviation: Standard deviation over folds, of the mean over two folds or more.
        undefined: Folds in which it is not defined and which the mean leaves out (0 or 1 for a fold's own score).
    """

    model: str
    subset: str
    metric: str
    fold: int | None
    value: Metric
    deviation: float | None = None
    undefined: int = 0


def score_folds(
    keys: Sequence[PredictionKey], statistic: Callable[[int], Statistic], *, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """Score every model from every subset, in each fold and on average.

    Args:
        keys: Whose prediction each row is.
        statistic: By fold, what is computed from some of its rows.
        draws: Bootstrap draws; 0 for no intervals.
        seed: Of the draws.
    """
    found = []
    for model, subset in dict.fromkeys((key.model, key.subset) for key in keys):
        rows = np.array([i for i, key in enumerate(keys) if (key.model, key.subset) == (model, subset)])
        own = [keys[row] for row in rows]
        folds = {fold: statistic(fold) for fold in sorted({key.fold for key in own})}
        resampled = patient_draws([key.group for key in own], [key.fold for key in own], draws=draws, seed=seed)
        found += _score(own, rows, folds, resampled)
    return found


def _score(
    own: Sequence[PredictionKey],
    rows: Int[Array, " R"],
    folds: Mapping[int, Statistic],
    resampled: Iterable[Int[Array, " R"]],
) -> list[Score]:
    """Score one model from one subset; the draws are places among its rows."""
    fold_of = np.array([key.fold for key in own])

    def figures(places: Int[Array, " P"]) -> list[Mapping[str, float]]:
        return [compute(rows[places[fold_of[places] == fold]]) for fold, compute in folds.items()]

    values = figures(np.arange(len(rows)))
    names = list(values[0])
    point = _table(values, names)
    drawn = np.array([_table(figures(places), names) for places in resampled]).reshape(-1, len(folds), len(names))
    patients = {fold: len({key.group for key in own if key.fold == fold}) for fold in folds}
    everybody, strata = len({key.group for key in own}), count_strata([key.group for key in own], fold_of.tolist())
    found = []
    for column, name in enumerate(names):
        score = partial(Score, own[0].model, own[0].subset, name)
        each, spread = point[:, column], drawn[:, :, column]
        undefined = int(np.isnan(each).sum())
        overall = _metric(name, float(_mean(each[None])[0]), _mean(spread), everybody, strata)
        deviation = float(np.nanstd(each, ddof=1)) if len(folds) - undefined > 1 else None
        found.append(score(None, overall, deviation, undefined))
        for place, (fold, count) in enumerate(patients.items()):
            metric = _metric(name, float(each[place]), spread[:, place], count)
            found.append(score(fold, metric, None, int(math.isnan(metric.value))))
    return found


def _table(values: Sequence[Mapping[str, float]], names: Sequence[str]) -> Float[Array, "F K"]:
    return np.array([[fold[name] for name in names] for fold in values])


def _mean(values: Float[Array, "D F"]) -> Float[Array, " D"]:
    """Mean over the folds where it is defined; NaN where it is in none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=1)
    total = np.where(defined, values, 0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0))


def _metric(name: str, value: float, drawn: Float[Array, " D"], patients: int, strata: int = 1) -> Metric:
    known = len(drawn) > 0 and not math.isnan(value) and name not in WITHOUT_INTERVAL
    interval = percentile_interval(drawn, patients, strata=strata) if known else None
    if interval is not None and (is_point(interval) or rests_on_one(drawn)):
        interval = None  # neither 16 of 16 patients nor one patient alone prove anything
    low, high = interval or (None, None)
    return Metric(value, low, high, unit_of(name), patients)


def unit_of(metric: str) -> str:
    """Return unit and sign of a figure, as people read it."""
    return BEST.get(metric) or ("lower is better" if metric in LOWER_IS_BETTER else "0 to 1, higher is better")


def format_scores(scores: Sequence[Score], metrics: Sequence[str]) -> str:
    """Return a table for the terminal: the mean over folds of some figures, a row a model and subset."""
    by_key = {(score.model, score.subset, score.metric): score for score in scores if score.fold is None}
    rows = dict.fromkeys((score.model, score.subset) for score in scores)
    lines = [f"{'model':16}{'subset':24}" + "".join(f"{name:>28}" for name in metrics)]
    for model, subset in rows:
        found = [by_key.get((model, subset, name)) for name in metrics]
        cells = ("not defined" if score is None else said(score.value) for score in found)
        lines.append(f"{model:16}{subset:24}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def value_and_interval(metric: Metric) -> tuple[str, str]:
    """Return a figure and its interval as people read them; an empty text where there is no interval."""
    if math.isnan(metric.value):
        return "not defined", ""
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}", ""
    return f"{metric.value:.3f}", f"{metric.low:.3f} to {metric.high:.3f}"


def said(metric: Metric) -> str:
    """Return a figure with its interval on one line: `0.812 (0.741 to 0.874)`."""
    value, interval = value_and_interval(metric)
    return f"{value} ({interval})" if interval else value

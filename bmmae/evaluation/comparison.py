"""Is one model better than another? Tests for figures that were measured on the same patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.stats import rankdata

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.evaluation.intervals import (
    DRAWS,
    LEVEL,
    ROUNDING,
    count_strata,
    is_point,
    patient_draws,
    percentile_interval,
    rests_on_one,
    share_beyond,
)
from bmmae.metrics.classification import require_scored


@dataclass(frozen=True)
class Comparison:
    """The difference of a figure between two models, the first minus the second.

    Attributes:
        difference: NaN if the figure is not defined.
        low: Lower end of its interval; None where there is none.
        high: Upper end.
        p: Two-sided p-value of no difference; NaN where the test is not defined.
        method: Which test.
        n: What it counts: patients, or folds of the corrected t-test.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    method: str
    n: int


def delong(
    one: Float[Array, " N"], two: Float[Array, " N"], positive: Bool[Array, " N"], level: float = LEVEL
) -> Comparison:
    """Test the difference of two AUCs on the same patients.

    The test takes rows as independent: give one row a patient. With few patients of a class its normal approximation
    is poor. Two scores that rank everyone the same differ by 0 with p = 1. NaN without two patients of each class.
    Sources: DeLong et al., Biometrics 44 (1988); Sun and Xu, IEEE Signal Processing Letters 21 (2014), for the ranks.

    Args:
        one: Scores of the first model, higher for positives.
        two: Those of the second.
        positive: The truth.
        level: Coverage of the interval.

    Raises:
        ValueError: If a score is NaN, `positive` is no array of bools, or lengths differ.
    """
    require_scored(positive, one, two)
    cases, controls = int(positive.sum()), int((~positive).sum())
    if cases < 2 or controls < 2:
        return Comparison(math.nan, None, None, math.nan, "DeLong", len(positive))
    beaten, unbeaten = zip(*(_placements(score, positive) for score in (one, two)), strict=True)
    difference = float(beaten[0].mean() - beaten[1].mean())
    variance = (beaten[0] - beaten[1]).var(ddof=1) / cases + (unbeaten[0] - unbeaten[1]).var(ddof=1) / controls
    error = math.sqrt(float(variance))
    if error < 1e-12:
        return Comparison(difference, None, None, 1.0 if abs(difference) < 1e-12 else math.nan, "DeLong", len(positive))
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    p = 2 * float(stats.norm.sf(abs(difference) / error))
    return Comparison(difference, difference - reach, difference + reach, p, "DeLong", len(positive))


def _placements(score: Float[Array, " N"], positive: Bool[Array, " N"]) -> tuple[Array, Array]:
    """The share of negatives that each positive beats, and of positives that beat each negative; ties count half."""
    ranks = rankdata(score)
    cases, controls = score[positive], score[~positive]
    beaten = (ranks[positive] - rankdata(cases)) / len(controls)
    return beaten, 1 - (ranks[~positive] - rankdata(controls)) / len(cases)


def corrected_t(differences: Sequence[float], test_share: float, level: float = LEVEL) -> Comparison:
    """Test the mean difference over the folds of a cross-validation, repeated or not.

    Folds share training patients, so that the plain t-test finds differences where there are none: the variance of
    the mean is taken as (1 / folds + test / train) times that of the folds. Source: Nadeau and Bengio, Machine
    Learning 52 (2003); for repeats, Bouckaert and Frank, PAKDD 2004. Folds in which it is not defined are left out.

    Args:
        differences: One a fold, NaN where not defined.
        test_share: Patients that a fold tests over those that it trains on (1/4 for five folds).
        level: Coverage of the interval.
    """
    defined = np.asarray([value for value in differences if not math.isnan(value)])
    if len(defined) < 2:
        value = float(defined.mean()) if len(defined) else math.nan
        return Comparison(value, None, None, math.nan, "corrected t", len(defined))
    mean, free = float(defined.mean()), len(defined) - 1
    error = math.sqrt((1 / len(defined) + test_share) * float(defined.var(ddof=1)))
    if error < 1e-12:
        return Comparison(mean, None, None, 1.0 if abs(mean) < 1e-12 else math.nan, "corrected t", len(defined))
    reach = float(stats.t.ppf((1 + level) / 2, free)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, free))
    return Comparison(mean, mean - reach, mean + reach, p, "corrected t", len(defined))


def paired_bootstrap(
    difference: Callable[[Int[Array, " R"]], float],
    groups: Sequence[str],
    strata: Sequence[int] | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Test any difference by drawing patients anew, the same for both models (say, of two C-indices).

    The p-value goes with the interval, which leaves 0 out where p is below 1 - `level`; draws on the other side of 0
    are counted from 1, so that it is never 0. Where all draws agree there is no interval, and no p-value but that of 1
    for no difference; where the difference rests on one patient of a class or one death there is neither.

    Args:
        difference: First minus second model on some rows; NaN where not defined.
        groups: The patient of each row.
        strata: As in `patient_draws`.
        draws: How many.
        level: Coverage of the interval.
        seed: Of the draws.
    """
    value = difference(np.arange(len(groups)))
    drawn = np.array([difference(rows) for rows in patient_draws(groups, strata, draws=draws, seed=seed)])
    patients, parts = len(set(groups)), count_strata(groups, strata)
    interval = percentile_interval(drawn, patients, level, strata=parts)
    if interval is None or math.isnan(value) or rests_on_one(drawn):
        return Comparison(value, None, None, math.nan, "paired bootstrap", patients)
    if is_point(interval):
        return Comparison(value, None, None, 1.0 if abs(value) < ROUNDING else math.nan, "paired bootstrap", patients)
    defined = drawn[~np.isnan(drawn)]
    beyond = 1 + min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p = share_beyond(beyond / (len(defined) + 1), patients, strata=parts)
    return Comparison(value, *interval, p, "paired bootstrap", patients)

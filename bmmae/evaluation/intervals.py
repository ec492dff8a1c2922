"""Intervals by resampling patients.

The bootstrap takes the patients there are for all there could be, and is too narrow where they are few. Levels are
therefore widened by `tail_share`: expanded percentiles (Hesterberg, What teachers should know about the bootstrap, The
American Statistician 69, 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from bmmae.arrays import Array, Float, Int
from bmmae.provenance import Metric

DRAWS = 1000
LEVEL = 0.95
FEW_DEFINED = 0.5
"""An interval needs its figure to be defined in more than this share of the draws."""
NOT_ALONE = 0.8
"""Of the draws, a share that defines figures of two patients of a class or more (86 %), and no figure of one (63 to
75 %)."""
ROUNDING = 1e-12


def tail_share(patients: int, level: float = LEVEL, *, strata: int = 1) -> float:
    """Return the share of bootstrap draws to leave out on either side, less than `(1 - level) / 2` for few patients.

    It is what makes the interval of a mean as long as that by Student's t: 1.3 % instead of 2.5 % for 15 patients.

    Args:
        patients: How many are drawn from.
        level: Coverage of the interval.
        strata: Parts within which they are drawn (`count_strata`): draws within each part spread less, as if each had
            lost a patient. With no more patients than parts nothing can be made up for.
    """
    freedom = patients - strata
    if freedom < 1:
        return (1 - level) / 2
    reach = stats.t.ppf((1 + level) / 2, freedom)
    return float(stats.norm.cdf(-reach * np.sqrt(patients / freedom)))


def share_beyond(tail: float, patients: int, *, strata: int = 1) -> float:
    """Return the two-sided p-value of what is at the edge of the interval that leaves this share out.

    Args:
        tail: Share of the draws on one side, above 0; `tail_share` is its inverse.
        patients: As in `tail_share`.
        strata: As in `tail_share`.
    """
    freedom = patients - strata
    if freedom < 1:
        return min(1.0, 2 * tail)
    reach = stats.norm.ppf(min(tail, 0.5)) * np.sqrt(freedom / patients)
    return float(2 * stats.t.cdf(reach, freedom))


def mean_with_interval(values: Sequence[float], unit: str = "", *, level: float = 0.95, seed: int = 0) -> Metric:
    """Return the mean over patients with its bootstrap interval (BCa, 2000 resamples, widened by `tail_share`).

    Args:
        values: One a patient; NaN (not defined for that patient) is left out and not counted.
        unit: Unit and sign, as people read it.
        level: Coverage of the interval.
        seed: Of the resampling.

    Returns:
        The mean; without an interval if fewer than three patients are left, all agree, or one is infinite; NaN if none
        is left.
    """
    defined = np.asarray([value for value in values if not np.isnan(value)])
    if not len(defined):
        return Metric(float("nan"), unit=unit, n=0)
    if len(defined) < 3 or not np.isfinite(defined).all() or _agree(defined):
        return Metric(float(defined.mean()), unit=unit, n=len(defined))
    inside = 1 - 2 * tail_share(len(defined), level)
    found = stats.bootstrap(
        (defined,), np.mean, n_resamples=2000, confidence_level=inside, rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Metric(float(defined.mean()), float(low), float(high), unit, len(defined))


def _agree(values: Float[Array, " N"]) -> bool:
    """Tell whether values differ by rounding alone: the bootstrap makes NaN of them."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def patient_draws(
    groups: Sequence[str], strata: Sequence[int] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Iterator[Int[Array, " R"]]:
    """Yield rows of bootstrap draws: patients with replacement, each with all rows that are theirs.

    Args:
        groups: The patient of each row.
        strata: What each row's patient was drawn within (say, the fold that tested them); a patient whose rows
            differ is of the lowest. By default all patients are one stratum.
        draws: How many.
        seed: Of the draws.
    """
    random = np.random.default_rng(seed)
    patient, stratum = _patients_and_strata(groups, strata)
    parts = [np.flatnonzero(stratum == value) for value in np.unique(stratum)]
    for _ in range(draws):
        drawn = np.concatenate([random.choice(part, len(part)) for part in parts])
        times = np.bincount(drawn, minlength=len(stratum))
        yield np.repeat(np.arange(len(patient)), times[patient])


def count_strata(groups: Sequence[str], strata: Sequence[int] | None = None) -> int:
    """Return how many parts `patient_draws` draws within, given the same."""
    return len(np.unique(_patients_and_strata(groups, strata)[1]))


def _patients_and_strata(
    groups: Sequence[str], strata: Sequence[int] | None
) -> tuple[Int[Array, " R"], Int[Array, " P"]]:
    """Return the place of each row's patient among all patients, and each patient's stratum."""
    names, patient = np.unique(np.asarray(groups), return_inverse=True)
    stratum = np.full(len(names), np.iinfo(int).max)
    np.minimum.at(stratum, patient, np.zeros(len(patient), int) if strata is None else np.asarray(strata))
    return patient, stratum


def percentile_interval(
    values: Float[Array, " D"], patients: int, level: float = LEVEL, *, strata: int = 1
) -> tuple[float, float] | None:
    """Return the middle part of a figure's values over bootstrap draws; None where it was mostly not defined.

    Args:
        values: One a draw; NaN where the draw left the figure undefined (say, no patient of a class).
        patients: How many are drawn from: where they are few, more of the draws are inside (`tail_share`).
        level: Coverage of the interval.
        strata: As in `tail_share`.
    """
    defined = values[~np.isnan(values)]
    if len(defined) <= FEW_DEFINED * len(values):
        return None
    tail = tail_share(patients, level, strata=strata)
    low, high = np.quantile(defined, (tail, 1 - tail))
    return float(low), float(high)


def rests_on_one(values: Float[Array, " D"]) -> bool:
    """Tell whether draws show that a figure rests on one patient of a class, or on one death.

    The draws without that patient do not define it, and the others do not vary it: they tell nothing of what another
    patient in its place would change. Of an AUC of .8 in 40 patients, 42 of 100 intervals by such draws hold it.

    Args:
        values: As in `percentile_interval`.
    """
    return bool(np.isnan(values).mean() > 1 - NOT_ALONE)


def is_point(interval: tuple[float, float]) -> bool:
    """Tell whether draws agree, as of a perfect figure in a few patients: they tell nothing of its uncertainty."""
    return interval[1] - interval[0] < ROUNDING

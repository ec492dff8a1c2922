"""Intervals cover what they should, and say when there is nothing to cover."""

import math

import numpy as np
import pytest
from scipy import stats

from bmmae.arrays import Array
from bmmae.evaluation.comparison import paired_bootstrap
from bmmae.evaluation.intervals import (
    count_strata,
    mean_with_interval,
    patient_draws,
    percentile_interval,
    share_beyond,
    tail_share,
)
from bmmae.evaluation.predictions import PredictionKey
from bmmae.evaluation.scores import score_folds
from bmmae.metrics import auc


def test_the_interval_surrounds_the_mean_and_is_the_same_again() -> None:
    values = np.random.default_rng(0).normal(5, 1, 40).tolist()
    first, again = mean_with_interval(values), mean_with_interval(values)
    assert first == again
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.value < first.high
    assert first.high - first.low == pytest.approx(4 / math.sqrt(40), rel=0.3)


def test_undefined_patients_are_left_out_and_not_counted() -> None:
    assert mean_with_interval([1.0, math.nan, 3.0]).n == 2
    assert mean_with_interval([1.0, math.nan, 3.0]).value == 2


def test_too_few_patients_have_no_interval() -> None:
    assert mean_with_interval([1.0, 2.0]).low is None
    assert mean_with_interval([2.0, 2.0, 2.0]).low is None
    assert mean_with_interval([5.0, 5.0, np.nextafter(5.0, 6.0), 5.0]).low is None  # they differ by rounding
    assert mean_with_interval([0.0, 0.0, 0.0]).low is None
    assert math.isnan(mean_with_interval([math.nan]).value)


def test_intervals_of_few_patients_are_as_long_as_students() -> None:
    values = np.random.default_rng(1).normal(size=12)
    drawn = np.random.default_rng(2).choice(values, (20_000, 12)).mean(axis=1)
    low, high = percentile_interval(drawn, 12)
    theirs = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert high - low == pytest.approx(theirs[1] - theirs[0], rel=0.05)
    assert tail_share(10_000) == pytest.approx(0.025, rel=0.01)
    assert tail_share(15) == pytest.approx(0.0132, abs=1e-4)


def test_the_mean_of_eight_patients_is_covered_nearly_as_often_as_stated() -> None:
    # Skewed to the left, as Dice is; without `tail_share` 177 of these intervals hold the mean.
    truth, hits = 5 / 6.2, 0
    for seed in range(200):
        found = mean_with_interval(np.random.default_rng(seed).beta(5, 1.2, 8).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits >= 183


def test_intervals_over_small_folds_are_as_long_as_students() -> None:
    folds = np.repeat(np.arange(6), 4)
    values = np.random.default_rng(1).normal(size=24) + folds
    groups = [f"p{number}" for number in range(24)]
    drawn = np.array([values[rows].mean() for rows in patient_draws(groups, folds.tolist(), draws=5000)])
    low, high = percentile_interval(drawn, 24, strata=6)
    pooled = np.mean([values[folds == fold].var(ddof=1) for fold in range(6)])
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 24 - 6) * (pooled / 24) ** 0.5, rel=0.05)

    keys = [PredictionKey(name, "", name, "m", "all", fold) for name, fold in zip(groups, folds.tolist(), strict=True)]
    scores = score_folds(keys, lambda _: lambda rows: {"mean": values[rows].mean() if len(rows) else math.nan})
    overall = next(score.value for score in scores if score.fold is None)
    assert overall.high - overall.low == pytest.approx(high - low, rel=0.05)


def test_strata_are_those_of_patients_not_of_rows() -> None:
    assert count_strata(["a", "a", "b", "c", "c"], [0, 1, 0, 3, 3]) == 2  # nobody is of stratum 1 alone
    assert count_strata(["a", "a", "b"]) == 1


def test_folds_of_one_patient_widen_nothing() -> None:
    assert tail_share(5, strata=5) == pytest.approx(0.025)
    assert share_beyond(0.025, 5, strata=5) == 0.05


@pytest.mark.parametrize(("patients", "strata"), [(3, 1), (15, 1), (400, 1), (20, 5), (20, 17)])
def test_p_values_agree_with_intervals(patients: int, strata: int) -> None:
    for level in (0.8, 0.95):
        assert share_beyond(tail_share(patients, level, strata=strata), patients, strata=strata) == pytest.approx(
            1 - level
        )
    assert share_beyond(0.5, patients, strata=strata) == pytest.approx(1)
    assert share_beyond(0.7, patients, strata=strata) == pytest.approx(1)


@pytest.mark.parametrize(("positives", "has"), [(1, False), (2, True)])
@pytest.mark.parametrize("patients", [4, 12, 40])
def test_what_rests_on_one_patient_has_no_interval(positives: int, patients: int, has: bool) -> None:
    """Draws with that patient leave out what other patients in its place would change."""
    truth, score = np.arange(patients) < positives, np.random.default_rng(0).normal(size=patients)
    names = [f"p{number}" for number in range(patients)]
    keys = [PredictionKey(name, "", name, "m", "all") for name in names]
    (whole, _) = score_folds(keys, lambda _: lambda rows: {"auc": auc(score[rows], truth[rows])})
    assert (whole.value.low is not None) == has

    def difference(rows: Array) -> float:
        return auc(score[rows], truth[rows]) - auc(score[rows] ** 2, truth[rows])

    assert math.isnan(paired_bootstrap(difference, names).p) == (not has)

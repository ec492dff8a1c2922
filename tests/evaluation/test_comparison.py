"""Tests of differences: equal to their definitions, and right about the null hypothesis."""

import math

import numpy as np
import pytest
from scipy import stats

from bmmae.evaluation.comparison import corrected_t, delong, paired_bootstrap
from bmmae.evaluation.intervals import patient_draws, percentile_interval, share_beyond
from bmmae.metrics import auc, harrell_c


def scores(seed: int, patients: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    positive = np.arange(patients) % 3 == 0
    shared = draw.normal(size=patients) + positive
    return np.round(shared + draw.normal(size=patients), 1), np.round(shared + draw.normal(size=patients), 1), positive


def by_definition(one: np.ndarray, two: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Difference and its variance from the matrix of pairs, as DeLong et al. print it."""
    kernels = []
    for score in (one, two):
        cases, controls = score[positive], score[~positive]
        kernels.append(np.array([[(x > y) + 0.5 * (x == y) for y in controls] for x in cases]))
    rows = np.cov([kernel.mean(axis=1) for kernel in kernels])
    columns = np.cov([kernel.mean(axis=0) for kernel in kernels])
    covariance = rows / kernels[0].shape[0] + columns / kernels[0].shape[1]
    contrast = np.array([1, -1])
    return float(kernels[0].mean() - kernels[1].mean()), float(contrast @ covariance @ contrast)


@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_its_definition(seed: int) -> None:
    one, two, positive = scores(seed)
    difference, variance = by_definition(one, two, positive)
    found = delong(one, two, positive)
    assert found.difference == pytest.approx(difference)
    assert found.difference == pytest.approx(auc(one, positive) - auc(two, positive))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)))


def test_delong_agrees_with_a_permutation_test() -> None:
    one, two, positive = scores(1, 150)
    ranked = [stats.rankdata(score) for score in (one, two)]
    draw = np.random.default_rng(0)
    observed = abs(auc(ranked[0], positive) - auc(ranked[1], positive))
    swaps = draw.random((2000, len(positive))) < 0.5
    permuted = [abs(auc(np.where(s, *ranked), positive) - auc(np.where(s, *ranked[::-1]), positive)) for s in swaps]
    assert delong(one, two, positive).p == pytest.approx(np.mean(np.array(permuted) >= observed), abs=0.05)


def test_delong_of_equal_scores_finds_nothing() -> None:
    one, _, positive = scores(0)
    assert delong(one, one, positive).p == 1
    assert math.isnan(delong(one, one, np.zeros(len(one), bool)).p)


def test_corrected_t_by_hand() -> None:
    # Mean 0.02, variance 0.0001, four folds, one tested to three trained: error = sqrt((1/4 + 1/3) * 0.0001).
    differences = [0.01, 0.01, 0.03, 0.03]
    error = math.sqrt((1 / 4 + 1 / 3) * np.var(differences, ddof=1))
    found = corrected_t([*differences, math.nan], 1 / 3)
    assert (found.difference, found.n) == (pytest.approx(0.02), 4)
    assert found.p == pytest.approx(2 * stats.t.sf(0.02 / error, 3))
    assert found.p > stats.ttest_1samp(differences, 0).pvalue


def test_corrected_t_of_one_fold_has_no_p() -> None:
    assert math.isnan(corrected_t([0.1], 0.25).p)
    assert math.isnan(corrected_t([math.nan], 0.25).difference)
    assert corrected_t([0.0, 0.0], 0.25).p == 1


def test_paired_bootstrap_finds_a_better_risk_and_no_other() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=80)
    time, died = draw.exponential(np.exp(-2 * truth)), np.ones(80, bool)
    noise = draw.normal(size=80)
    names = [f"p{number}" for number in range(80)]

    def gain(rows: np.ndarray) -> float:
        scored = [harrell_c(risk[rows], time[rows], died[rows]) for risk in (truth, noise)]
        return scored[0] - scored[1]

    better = paired_bootstrap(gain, names, draws=200)
    assert better.p == pytest.approx(share_beyond(1 / 201, 80))
    assert 2 / 201 < better.p < 3 / 201  # 80 patients are many: nearly the plain share of draws
    assert better.low is not None
    assert 0 < better.low < better.difference
    assert paired_bootstrap(lambda rows: 0.0, names, draws=50).p == 1
    folds = np.arange(80) % 20
    within = paired_bootstrap(gain, names, folds.tolist(), draws=200)
    assert within.p == pytest.approx(share_beyond(1 / 201, 80, strata=20))


def test_draws_keep_a_patients_rows_together_and_strata_full() -> None:
    groups, strata = ["a", "a", "b", "c", "c", "d"], [0, 1, 0, 1, 1, 1]
    for rows in patient_draws(groups, strata, draws=50):
        times = np.bincount(rows, minlength=6)
        assert times[0] == times[1]  # both visits of a, who is of stratum 0
        assert times[3] == times[4]
        assert (times[0] + times[2], times[3] + times[5]) == (2, 2)


def test_a_figure_that_is_mostly_undefined_has_no_interval() -> None:
    assert percentile_interval(np.array([math.nan, math.nan, 1.0]), 20) is None
    assert percentile_interval(np.array([1.0, 1.0, math.nan]), 20) == (1, 1)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # The exact AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt(2)).
    truth, hits = stats.norm.cdf(1 / math.sqrt(2)), 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        positive = np.arange(60) < 30
        score = draw.normal(size=60) + positive
        drawn = [auc(score[rows], positive[rows]) for rows in patient_draws([str(i) for i in range(60)], draws=150)]
        interval = percentile_interval(np.array(drawn), 60)
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert 50 <= hits <= 60


def test_corrected_t_is_calibrated_under_the_null_where_the_plain_test_is_not() -> None:
    # Folds that share most of their training patients: differences with a common part of variance 1/4 to 1.
    draw = np.random.default_rng(0)
    rejected = np.zeros(2)
    for _ in range(300):
        differences = 0.5 * draw.normal() + draw.normal(size=15)
        rejected += (corrected_t(differences.tolist(), 1 / 4).p < 0.05, stats.ttest_1samp(differences, 0).pvalue < 0.05)
    assert rejected[0] / 300 < 0.08 < rejected[1] / 300


def test_the_order_of_the_models_changes_the_sign_alone() -> None:
    left, right, positive = scores(2)
    forward, backward = delong(left, right, positive), delong(right, left, positive)
    assert forward.difference == pytest.approx(-backward.difference)
    assert forward.p == pytest.approx(backward.p)


def test_draws_that_all_agree_on_a_difference_prove_nothing() -> None:
    found = paired_bootstrap(lambda rows: 0.5, ["a", "b", "c"], draws=50)
    assert (found.difference, found.low, found.high) == (0.5, None, None)
    assert math.isnan(found.p)

"""Survival metrics: a known ordering, hand-computed cases, and scikit-survival's values."""

import math

import numpy as np
import pytest
from scipy import stats

from bmmae.arrays import Array
from bmmae.metrics import (
    censoring_curve,
    dynamic_auc,
    harrell_c,
    integrated_brier,
    kaplan_meier,
    log_rank,
    survival_brier,
    uno_c,
)

reference = pytest.importorskip("sksurv.metrics", reason="needs scikit-survival, of the extra `dev`")
SEEDS = range(4)


def followed(seed: int, patients: int = 60) -> tuple[Array, Array, Array]:
    """Risks, times in whole months (many tied), events; a higher risk dies sooner."""
    draw = np.random.default_rng(seed)
    risk = np.round(draw.normal(size=patients), 1)
    death = draw.exponential(20 * np.exp(-risk))
    end = draw.uniform(5, 40, size=patients)
    return risk, np.ceil(np.minimum(death, end)), death <= end


def structured(time: Array, event: Array) -> Array:
    from sksurv.util import Surv

    return np.asarray(Surv.from_arrays(event, time))


def test_risks_that_are_no_numbers_are_refused() -> None:
    time, event = np.array([1.0, 2.0]), np.array([True, True])
    with pytest.raises(ValueError, match="2 of 2 scores are NaN"):
        harrell_c(np.array([math.nan, math.nan]), time, event)


def test_orientation_whoever_has_the_higher_risk_dies_sooner() -> None:
    time = np.array([2.0, 5.0, 9.0, 14.0, 30.0])
    died = np.ones(5, bool)
    for score in (harrell_c(5 - np.arange(5.0), time, died), uno_c(-time, time, died, censoring_curve(time, died))):
        assert score == 1
    assert harrell_c(time, time, died) == 0
    assert harrell_c(np.ones(5), time, died) == 0.5
    assert dynamic_auc(-time, time, died, censoring_curve(time, died), np.array([6.0]))[0] == 1


def test_concordance_by_hand() -> None:
    # A dies at 1, B is censored at 2, C dies at 3, D is followed to 4. Comparable: A with B, C, D; C with D.
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])
    assert harrell_c(np.array([0.5, 0.1, 0.9, 0.5]), time, event) == (1 + 0 + 0.5 + 1) / 4


def test_survival_curve_by_hand() -> None:
    # Of four, one dies at 1; of the three left one dies at 2 as another is censored.
    curve = kaplan_meier(np.array([1.0, 2.0, 2.0, 5.0]), np.array([True, True, False, False]))
    assert curve.at(np.array([0.5, 1.0, 2.0, 9.0])) == pytest.approx([1, 3 / 4, 3 / 4 * 2 / 3, 1 / 2])


def test_censoring_curve_by_hand() -> None:
    # At 2 the death comes first: of the two left, one is censored.
    curve = censoring_curve(np.array([1.0, 2.0, 2.0, 5.0]), np.array([True, True, False, True]))
    assert curve.at(np.array([1.0, 2.0, 5.0])) == pytest.approx([1, 1 / 2, 1 / 2])


@pytest.mark.parametrize("seed", SEEDS)
def test_concordance_equals_scikit_survival(seed: int) -> None:
    risk, time, event = followed(seed)
    _, train_time, train_event = followed(seed + 100, 200)
    assert harrell_c(risk, time, event) == pytest.approx(reference.concordance_index_censored(event, time, risk)[0])
    known = structured(train_time, train_event)
    for until in (20.0, 30.0):
        expected = reference.concordance_index_ipcw(known, structured(time, event), risk, tau=until)[0]
        assert uno_c(risk, time, event, censoring_curve(train_time, train_event), until) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_brier_and_dynamic_auc_equal_scikit_survival(seed: int) -> None:
    risk, time, event = followed(seed)
    _, train_time, train_event = followed(seed + 100, 300)
    inside = time < train_time.max()
    risk, time, event = risk[inside], time[inside], event[inside]
    at = np.array([6.0, 12.0, 18.0, 24.0])
    survival = np.exp(-at * np.exp(risk[:, None]) / 20)
    known, asked, chance = (
        structured(train_time, train_event),
        structured(time, event),
        censoring_curve(train_time, train_event),
    )
    assert survival_brier(survival, time, event, chance, at) == pytest.approx(
        reference.brier_score(known, asked, survival, at)[1]
    )
    assert integrated_brier(survival, time, event, chance, at) == pytest.approx(
        reference.integrated_brier_score(known, asked, survival, at)
    )
    assert dynamic_auc(risk, time, event, chance, at) == pytest.approx(
        reference.cumulative_dynamic_auc(known, asked, risk, at)[0]
    )


@pytest.mark.parametrize("groups", [2, 3])
def test_log_rank_equals_its_references(groups: int) -> None:
    from sksurv.compare import compare_survival

    risk, time, event = followed(groups)
    group = np.digitize(risk, np.quantile(risk, np.arange(1, groups) / groups))
    assert log_rank(time, event, group) == pytest.approx(compare_survival(structured(time, event), group)[1])
    if groups == 2:
        parts = [stats.CensoredData.right_censored(time[chosen], ~event[chosen]) for chosen in (group == 0, group == 1)]
        assert log_rank(time, event, group) == pytest.approx(stats.logrank(*parts).pvalue)


def test_uno_leaves_out_deaths_after_everyone_in_training_was_censored() -> None:
    time, event = np.array([1.0, 5.0, 9.0]), np.array([True, True, True])
    chance = censoring_curve(np.array([1.0, 2.0, 4.0]), np.array([True, False, False]))
    assert uno_c(np.array([3.0, 1.0, 2.0]), time, event, chance) == 1


def test_without_deaths_nothing_is_defined() -> None:
    risk, time, _ = followed(0)
    alive = np.zeros(len(time), bool)
    chance = censoring_curve(time, alive)
    assert math.isnan(harrell_c(risk, time, alive))
    assert math.isnan(uno_c(risk, time, alive, chance))
    assert math.isnan(dynamic_auc(risk, time, alive, chance, np.array([10.0]))[0])
    assert math.isnan(log_rank(time, alive, (risk > 0).astype(int)))
    assert math.isnan(harrell_c(risk[:0], time[:0], alive[:0]))
    assert math.isnan(survival_brier(np.empty((0, 1)), time[:0], alive[:0], chance, np.array([5.0]))[0])

"""Calibration slope, calibration in the large, and net benefit: against scikit-learn and by hand."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from bmmae.metrics import calibration_in_the_large, calibration_slope, net_benefit


def cohort(patients: int, stretched: float = 1.0, added: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions whose logits are `stretched` times the true ones, of events that are more frequent by `added`."""
    random = np.random.default_rng(seed)
    true = random.normal(size=patients)
    return expit(true * stretched), random.random(patients) < expit(true + added)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stretched", [0.2, 1.0, 4.0])
def test_slope_is_that_of_logistic_regression(stretched: float, seed: int) -> None:
    predicted, happened = cohort(60, stretched, seed=seed)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit(predicted)[:, None], happened)
    assert calibration_slope(predicted, happened) == pytest.approx(theirs.coef_[0, 0], rel=1e-4)


def test_extreme_predictions_have_a_small_slope_and_rare_events_a_negative_intercept() -> None:
    assert calibration_slope(*cohort(20_000)) == pytest.approx(1, abs=0.05)
    assert calibration_slope(*cohort(20_000, stretched=2)) == pytest.approx(0.5, abs=0.05)
    assert calibration_in_the_large(*cohort(20_000)) == pytest.approx(0, abs=0.05)
    assert calibration_in_the_large(*cohort(20_000, added=-1)) == pytest.approx(-1, abs=0.05)


def test_in_the_large_makes_the_mean_what_happened() -> None:
    predicted, happened = cohort(30, 3, 1)
    added = calibration_in_the_large(predicted, happened)
    assert expit(logit(predicted) + added).mean() == pytest.approx(happened.mean(), abs=1e-6)


def test_certain_predictions_are_finite() -> None:
    predicted, happened = np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, True, True, False])
    assert calibration_slope(predicted, happened) == pytest.approx(0, abs=1e-6)
    assert calibration_in_the_large(predicted, happened) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(calibration_in_the_large(np.zeros(3), np.array([True, True, False])))


def test_what_is_not_defined_is_nan() -> None:
    apart = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
    for predicted, happened in (
        apart,
        (apart[0], ~apart[1]),
        (np.full(4, 0.3), apart[1]),
        (apart[0], np.ones(4, bool)),
    ):
        assert math.isnan(calibration_slope(predicted, happened))
    assert math.isnan(calibration_slope(np.zeros(0), np.zeros(0, bool)))
    assert math.isnan(calibration_in_the_large(apart[0], np.zeros(4, bool)))
    assert math.isnan(calibration_in_the_large(np.zeros(0), np.zeros(0, bool)))
    assert np.isnan(net_benefit(np.zeros(0), np.zeros(0, bool), np.array([0.5]))).all()


def test_a_slope_is_found_though_most_predictions_are_the_same() -> None:
    predicted = np.array([0.32, 0.31, 0.23, 0, 0, 0, 0])
    happened = np.array([True, False, True, True, True, True, True])
    clipped = logit(predicted.clip(1e-6))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(clipped[:, None], happened)
    assert calibration_slope(predicted, happened) == pytest.approx(theirs.coef_[0, 0], rel=1e-3)


def test_net_benefit_by_hand() -> None:
    predicted, happened = np.array([0.1, 0.3, 0.6, 0.9]), np.array([False, True, False, True])
    found = net_benefit(predicted, happened, np.array([0.0, 0.2, 0.5, 0.75, 0.95]))
    # All: 2 right, 2 wrong at no cost; from .2 on: 2 right, 1 wrong at 1/4; from .5: 1 and 1 at 1; from .75: 1 right.
    assert found == pytest.approx([2 / 4, 2 / 4 - 1 / 4 / 4, 1 / 4 - 1 / 4, 1 / 4, 0])
    everybody = net_benefit(np.ones(4), happened, np.array([0.2, 0.5]))
    assert everybody == pytest.approx([0.5 - 0.5 / 4, 0])


@pytest.mark.parametrize("figure", [calibration_slope, calibration_in_the_large])
def test_what_is_no_probability_is_refused(figure) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        figure(np.array([0.5, 1.5]), np.array([True, False]))


def test_a_threshold_of_certainty_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        net_benefit(np.array([0.5]), np.array([True]), np.array([1.0]))

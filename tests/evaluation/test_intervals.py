"""Intervals cover what they should, and say when there is nothing to cover."""

import math

import numpy as np
import pytest

from bmmae.evaluation.intervals import mean_with_interval


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
    assert math.isnan(mean_with_interval([math.nan]).value)

"""Metrics on cases that can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bmmae.metrics import affine_fit, dice, psnr


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [([1, 1, 0, 0], [1, 0, 1, 0], 0.5), ([1, 1], [1, 1], 1.0), ([1, 0], [0, 1], 0.0), ([0, 0], [1, 0], 0.0)],
)
def test_dice_is_twice_the_overlap_over_the_sum(predicted: list[int], truth: list[int], expected: float) -> None:
    assert dice(np.array(predicted, bool), np.array(truth, bool)) == expected


def test_dice_of_two_empty_masks_is_undefined() -> None:
    assert math.isnan(dice(np.zeros(3, bool), np.zeros(3, bool)))


def test_affine_fit_finds_scale_and_offset() -> None:
    x = np.array([0.0, 1.0, 5.0])
    assert affine_fit(x, 3 * x - 2) == pytest.approx((3, -2))
    assert affine_fit(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0])) == pytest.approx((0.5, 0.5))


def test_a_constant_prediction_maps_to_the_mean() -> None:
    assert affine_fit(np.full(3, 7.0), np.array([1.0, 2.0, 6.0])) == (0.0, 3.0)


def truth_and_inside() -> tuple[np.ndarray, np.ndarray]:
    truth = np.linspace(0, 100, 1001)
    return truth, truth >= 0


def test_psnr_is_the_range_over_the_error_in_db() -> None:
    truth, inside = truth_and_inside()
    assert psnr(truth + 1, truth, inside) == pytest.approx(10 * math.log10(99.0**2))


def test_psnr_after_a_fit_ignores_scale_and_offset() -> None:
    truth, inside = truth_and_inside()
    noisy = truth + np.cos(truth)
    expected = psnr(noisy, truth, inside, fit=True)
    assert psnr(5 * noisy - 40, truth, inside, fit=True) == pytest.approx(expected)
    assert expected > psnr(5 * noisy - 40, truth, inside)


def test_psnr_sees_only_what_is_inside() -> None:
    truth, inside = truth_and_inside()
    inside = truth < 50
    assert psnr(np.where(inside, truth, -1e6), truth, inside) == math.inf


@pytest.mark.parametrize("truth", [np.full(5, 2.0), np.zeros(5)])
def test_psnr_of_a_constant_truth_is_undefined(truth: np.ndarray) -> None:
    assert math.isnan(psnr(truth + 1, truth, np.ones(5, bool)))


def test_psnr_of_an_empty_mask_is_undefined() -> None:
    assert math.isnan(psnr(np.ones(5), np.arange(5.0), np.zeros(5, bool)))

"""Metrics of images: ranges, and structural similarity as scikit-image computes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from bmmae.metrics import intensity_range, psnr, ssim, ssim_map


def test_psnr_in_a_part_may_refer_to_the_range_of_the_whole() -> None:
    truth = np.linspace(0, 100, 1001)
    whole = psnr(truth + 1, truth, truth >= 0)
    assert psnr(truth + 1, truth, truth < 10, data_range=99.0) == pytest.approx(whole)
    assert psnr(truth + 1, truth, truth < 10) < whole - 15


def images(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth picture with noise, a blurred guess, and a mask."""
    rng = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(rng.normal(size=(21, 24, 18)), 2) * 400 + 300 + 5 * rng.normal(size=(21, 24, 18))
    guess = ndimage.gaussian_filter(truth, 1) + 3 * rng.normal(size=truth.shape)
    inside = np.zeros(truth.shape, bool)
    inside[2:, 3:-2, :-1] = True
    return guess, truth, inside


def test_ssim_is_that_of_scikit_image_averaged_in_the_mask() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    guess, truth, inside = images()
    span = intensity_range(truth[inside])
    _, expected = metrics.structural_similarity(
        guess, truth, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(guess, truth, span), expected, atol=1e-4)
    assert ssim(guess, truth, inside) == pytest.approx(float(expected[inside].mean()), abs=1e-5)


def test_ssim_of_the_truth_is_one_and_falls_with_noise() -> None:
    guess, truth, inside = images()
    worse = guess + 50 * np.random.default_rng(2).normal(size=guess.shape)
    assert ssim(truth, truth, inside) == pytest.approx(1)
    assert 1 > ssim(guess, truth, inside) > ssim(worse, truth, inside)


def test_ssim_without_a_mask_or_a_range_is_undefined() -> None:
    guess, truth, inside = images()
    assert math.isnan(ssim(guess, truth, np.zeros_like(inside)))
    assert math.isnan(ssim(guess, np.full_like(truth, 3), inside))
    assert math.isnan(intensity_range(np.zeros(0)))

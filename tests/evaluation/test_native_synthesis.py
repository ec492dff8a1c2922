"""Predictions judged on the native grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bmmae.evaluation.native_synthesis import BORDER_MM, Truth, score_native, subset_pairs
from bmmae.metrics import affine_fit, intensity_range, psnr
from bmmae.modalities import STANDARD

SHAPE = (24, 26, 22)


def real_image(seed: int = 0) -> np.ndarray:
    """A brain of about 100, zero outside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    tissue = 100 + 20 * np.sin(4 * grid[0]) + 10 * grid[1] + np.random.default_rng(seed).normal(size=SHAPE)
    return np.where((grid**2).sum(0) < 0.8, tissue, 0).astype(np.float32)


def ball(radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij"))
    return np.asarray((grid**2).sum(0) <= radius**2)


def noisy(image: np.ndarray, deviation: float = 3.0) -> np.ndarray:
    return (image + deviation * np.random.default_rng(1).normal(size=image.shape)).astype(np.float32)


def test_scale_and_offset_of_a_prediction_change_nothing_but_the_unmapped_figure() -> None:
    truth = Truth.of(real_image(), ball(5))
    guess = noisy(real_image())
    one, other = score_native(guess, truth), score_native(7 * guess - 20, truth)
    assert one.psnr == pytest.approx(other.psnr, abs=1e-3)
    assert one.ssim == pytest.approx(other.ssim, abs=1e-4)
    assert one.tumour_psnr == pytest.approx(other.tumour_psnr, abs=1e-3)
    assert one.border_error == pytest.approx(other.border_error, abs=1e-4)
    assert one.psnr_unmapped > other.psnr_unmapped + 1


def test_the_mapped_figure_is_the_metric_after_an_affine_fit_inside_the_brain() -> None:
    image = real_image()
    guess = noisy(image)
    score = score_native(guess, Truth.of(image))
    assert score.psnr == pytest.approx(psnr(guess, image, image > 0, fit=True), abs=1e-4)


def test_a_header_that_rounds_takes_nothing_from_the_border() -> None:
    plain, turned = (Truth.of(real_image(), ball(5), (side,) * 3) for side in (1.0, 1.0000000219))
    np.testing.assert_array_equal(plain.border, turned.border)


def test_z_scores_need_no_map() -> None:
    truth = Truth.of(real_image())
    guess = np.zeros(SHAPE)
    guess[truth.box] = (truth.image - truth.mean) / truth.deviation
    score = score_native(guess, truth)
    assert score.psnr_unmapped > 90
    assert score.ssim == pytest.approx(1, abs=1e-5)
    assert score.border_error != score.border_error  # no lesion, nothing to judge


def test_background_is_not_judged() -> None:
    truth = Truth.of(real_image(), ball(5))
    guess = noisy(real_image())
    elsewhere = np.where(real_image() > 0, guess, 1e3).astype(np.float32)
    assert score_native(guess, truth) == score_native(elsewhere, truth)


def test_the_lesion_is_judged_by_the_range_of_the_brain() -> None:
    image = real_image()
    lesion = ball(4)
    guess = np.where(lesion, image + 10, image)
    truth = Truth.of(image, lesion)
    slope, offset = affine_fit(guess[image > 0], image[image > 0])
    span = intensity_range(image[image > 0])
    expected = psnr(slope * guess + offset, image, lesion, data_range=span)
    assert score_native(guess, truth).tumour_psnr == pytest.approx(expected, abs=1e-3)
    assert score_native(guess, truth).psnr > expected
    assert score_native(guess, truth).tumour_ssim < score_native(guess, truth).ssim


def test_the_border_reaches_two_millimetres_to_both_sides() -> None:
    lesion = np.zeros(SHAPE, bool)
    lesion[10:, :, :] = True
    image = np.full(SHAPE, 5.0, np.float32) + np.arange(SHAPE[0], dtype=np.float32)[:, None, None]
    plane = Truth.of(image, lesion, (1.0, 3.0, 3.0)).border[:, 0, 0]
    assert np.flatnonzero(plane).tolist() == [8, 9, 10, 11]
    assert np.flatnonzero(Truth.of(image, lesion, (2.0, 3.0, 3.0)).border[:, 0, 0]).tolist() == [9, 10]
    assert BORDER_MM == 2


def test_without_a_real_image_there_is_no_score() -> None:
    score = score_native(real_image(), Truth.of(np.zeros(SHAPE, np.float32)))
    assert math.isnan(score.psnr)
    assert math.isnan(score.ssim)


def test_four_modalities_have_28_pairs_of_subset_and_absent_modality() -> None:
    pairs = list(subset_pairs(STANDARD))
    assert len(pairs) == len(set(pairs)) == 28
    assert len({given for given, _ in pairs}) == 14
    assert all(wanted not in given for given, wanted in pairs)

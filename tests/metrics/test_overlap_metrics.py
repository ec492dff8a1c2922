"""Overlap, surfaces and lesions: MONAI's numbers, and cases worked out by hand, every empty one among them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from bmmae.arrays import Array
from bmmae.metrics.lesions import count_lesions, match_lesions
from bmmae.metrics.overlap import dice, relative_volume_error, volume_error
from bmmae.metrics.regions import region_metrics
from bmmae.metrics.surface import diagonal, hd95, surface_dice

# MONAI calls itself by a deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:monai:FutureWarning")

SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (0.5, 2.0, 3.3))
NOTHING = np.zeros((6, 7, 8), bool)


def blob(seed: int, shape: tuple[int, int, int] = (18, 20, 16)) -> Array:
    """A few smooth blobs that touch no border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    mask = np.zeros(shape, bool)
    mask[2:-2, 2:-2, 2:-2] = noise[2:-2, 2:-2, 2:-2] > 0.8 * noise.std()
    return mask


def box(*spans: tuple[int, int]) -> Array:
    mask = NOTHING.copy()
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def monai(mask: Array) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [0, 2, 4])
def test_hd95_equals_monais(spacing: tuple[float, ...], seed: int) -> None:
    one, two = blob(seed), blob(seed + 1)
    theirs = compute_hausdorff_distance(monai(one), monai(two), percentile=95, include_background=True, spacing=spacing)
    assert hd95(one, two, spacing) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_surface_dice_equals_monais(spacing: tuple[float, ...], tolerance: float) -> None:
    one, two = blob(0), blob(1)
    theirs = compute_surface_dice(monai(one), monai(two), [tolerance], include_background=True, spacing=spacing)
    assert surface_dice(one, two, spacing, tolerance) == pytest.approx(float(theirs), abs=1e-6)


def test_two_voxels_apart_along_the_thick_axis_are_ten_millimetres() -> None:
    one, two = box((1, 2), (1, 2), (1, 2)), box((1, 2), (1, 2), (3, 4))
    assert hd95(one, two, (1.0, 1.0, 5.0)) == 10
    assert hd95(one, two, (1.0, 1.0, 1.0)) == 2
    assert surface_dice(one, two, (1.0, 1.0, 1.0), 2.0) == 1
    assert surface_dice(one, two, (1.0, 1.0, 5.0), 2.0) == 0


def test_a_header_that_rounds_moves_no_surface_beyond_the_tolerance() -> None:
    one, two = box((1, 4), (1, 4), (1, 4)), box((2, 5), (1, 4), (1, 4))
    turned = (1.0000000219, 1.0000000083, 0.9999999763)  # of 1 mm along turned axes, in single precision
    assert surface_dice(one, two, turned, 1.0) == surface_dice(one, two, (1.0, 1.0, 1.0), 1.0) == 1
    assert surface_dice(one, two, (1.001, 1.0, 1.0), 1.0) < 1


def test_equal_masks_are_perfect() -> None:
    mask = blob(3)
    found = region_metrics(mask, mask, (1.0, 1.0, 2.0))
    assert (found.dice, found.hd95, found.surface_dice, found.lesion_f1) == (1, 0, 1, 1)
    assert (found.volume_error_ml, found.volume_error_relative, found.false_lesions) == (0, 0, 0)


def test_the_volume_error_is_in_millilitres() -> None:
    predicted, truth = box((0, 5), (0, 5), (0, 4)), box((0, 5), (0, 5), (0, 2))
    assert volume_error(predicted, truth, (2.0, 2.0, 5.0)) == pytest.approx(1.0)  # 50 voxels of 20 mm3
    assert volume_error(truth, predicted, (2.0, 2.0, 5.0)) == pytest.approx(-1.0)
    assert relative_volume_error(predicted, truth) == 1


Metric = Callable[[Array, Array], float]
SPACING = (1.0, 2.0, 3.0)
FAR = diagonal(NOTHING.shape, SPACING)
METRICS: dict[str, Metric] = {
    "dice": dice,
    "hd95": lambda p, t: hd95(p, t, SPACING),
    "surface_dice": lambda p, t: surface_dice(p, t, SPACING),
    "f1": lambda p, t: count_lesions(p, t).f1,
    "sensitivity": lambda p, t: count_lesions(p, t).sensitivity,
    "relative": relative_volume_error,
}
EMPTY_TRUTH = {"dice": 0.0, "hd95": FAR, "surface_dice": 0.0, "f1": 0.0, "sensitivity": math.nan, "relative": math.nan}
EMPTY_PREDICTION = {"dice": 0.0, "hd95": FAR, "surface_dice": 0.0, "f1": 0.0, "sensitivity": 0.0, "relative": -1.0}


@pytest.mark.parametrize("name", METRICS)
def test_every_empty_case_is_as_the_table_says(name: str) -> None:
    some = box((1, 3), (2, 4), (3, 5))
    assert math.isnan(METRICS[name](NOTHING, NOTHING))
    assert METRICS[name](some, NOTHING) == pytest.approx(EMPTY_TRUTH[name], nan_ok=True)
    assert METRICS[name](NOTHING, some) == pytest.approx(EMPTY_PREDICTION[name], nan_ok=True)


def test_the_diagonal_is_between_the_corner_voxels() -> None:
    assert pytest.approx(math.sqrt(5**2 + 12**2 + 21**2)) == FAR


def test_one_study_without_truth_or_prediction_has_defined_counts() -> None:
    found = region_metrics(NOTHING, NOTHING, SPACING)
    assert (found.lesions, found.false_lesions, found.volume_error_ml, found.true_ml) == (0, 0, 0, 0)


def test_lesions_are_counted_by_component() -> None:
    truth = box((0, 2), (0, 2), (0, 2)) | box((4, 6), (5, 7), (6, 8)) | box((0, 1), (6, 7), (7, 8))
    predicted = box((1, 3), (1, 3), (1, 3)) | box((5, 6), (0, 1), (0, 1))
    counts = count_lesions(predicted, truth)
    assert (counts.true, counts.found, counts.predicted, counts.false) == (3, 1, 2, 1)
    assert counts.sensitivity == pytest.approx(1 / 3)
    assert counts.precision == pytest.approx(1 / 2)
    assert counts.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    sizes, found = match_lesions(truth, predicted)
    assert sorted(zip(sizes.tolist(), found.tolist(), strict=True)) == [(1, False), (8, False), (8, True)]
    assert [len(each) for each in match_lesions(NOTHING, truth)] == [0, 0]


def test_voxels_that_touch_by_a_corner_are_one_lesion() -> None:
    truth = box((1, 2), (1, 2), (1, 2)) | box((2, 3), (2, 3), (2, 3))
    assert count_lesions(NOTHING, truth).true == 1


def test_a_lesion_grazed_by_less_than_the_least_overlap_is_not_found() -> None:
    truth, grazing = box((0, 5), (0, 5), (0, 5)), box((0, 1), (0, 1), (0, 5))
    assert count_lesions(grazing, truth).found == 0  # 5 of 125 voxels
    assert count_lesions(grazing, truth).false == 0
    assert count_lesions(grazing, truth, least_overlap=0.04).found == 1


def test_a_prediction_that_floods_the_brain_is_false_though_it_holds_the_lesion() -> None:
    counts = count_lesions(np.ones_like(NOTHING), box((1, 2), (1, 2), (1, 2)))
    assert (counts.found, counts.false) == (1, 1)

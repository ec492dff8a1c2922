"""Where the brain is: the mask, else what is not zero, else the head; and which part each modality covers."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_studies import SHAPE, brain, picture, positions

from bmmae.data.brain import find_brain, head_foreground, is_stripped, otsu_threshold
from bmmae.errors import ImageError


def head(seed: int = 0) -> np.ndarray:
    """A bright ellipsoid in dim noise: nowhere exactly zero."""
    noise = np.abs(np.random.default_rng(seed).normal(2, 1, SHAPE)) + 0.1
    return (picture() + noise).astype(np.float32)


def test_the_brain_of_a_stripped_image_is_what_is_not_zero() -> None:
    found = find_brain(np.stack([picture(0), picture(1)]))
    assert found.source == "nonzero"
    assert np.array_equal(found.mask, brain())
    assert np.array_equal(found.covered[1], brain())


def test_negative_voxels_are_brain() -> None:
    volume = np.where(brain(), picture() - 100, 0).astype(np.float32)
    assert (volume < 0).any()
    assert np.array_equal(find_brain(volume[None]).mask, volume != 0)


@pytest.mark.parametrize(("zeros", "stripped"), [(200, True), (199, False)])
def test_an_image_is_stripped_if_a_fifth_of_its_box_is_exactly_zero(zeros: int, stripped: bool) -> None:
    volume = np.ones((10, 10, 10), np.float32)
    volume[1:].flat[:zeros] = 0
    assert is_stripped(volume) is stripped
    assert is_stripped(np.pad(volume, 9)) is stripped


def test_slices_that_were_not_scanned_strip_no_skull() -> None:
    volume = head()
    volume[:, :, 12:] = 0
    found = find_brain(volume[None])
    assert found.source == "foreground"
    assert not found.mask[:, :, 12:].any()
    assert found.mask.mean() < 0.3


def test_slices_of_a_head_that_were_not_scanned_are_not_covered_though_a_mask_says_brain() -> None:
    volume = head()
    volume[:, :, 12:] = 0
    volume[10, 12, 8] = 0
    found = find_brain(np.stack([head(1), volume]), [brain(), brain()])
    assert np.array_equal(found.covered[1], brain() & (np.arange(SHAPE[2]) < 12))


def test_the_mask_wins() -> None:
    mask = positions()[0] > 0
    found = find_brain(head()[None], [mask.astype(np.int16)])
    assert found.source == "mask"
    assert np.array_equal(found.mask, mask)


def test_a_modality_without_a_mask_uses_that_of_the_others() -> None:
    mask = brain(radius=0.5)
    found = find_brain(np.stack([head(0), head(1)]), [mask, None])
    assert np.array_equal(found.covered[1], mask)


def test_the_head_is_used_and_said_where_nothing_is_stripped() -> None:
    found = find_brain(np.stack([head(0), head(1)]))
    assert found.source == "foreground"
    overlap = 2 * (found.mask & brain()).sum() / (found.mask.sum() + brain().sum())
    assert overlap > 0.95


def test_the_heads_holes_are_filled_and_specks_left_out() -> None:
    volume = head()
    volume[9:11, 11:13, 7:9] = 1
    volume[0, 0, 0] = 150
    found = head_foreground(volume)
    assert found[10, 12, 8]
    assert not found[0, 0, 0]


def test_a_part_that_was_not_scanned_is_not_covered() -> None:
    partial = picture(1)
    partial[:, :, 12:] = 0
    found = find_brain(np.stack([picture(0), partial]))
    assert np.array_equal(found.mask, brain())
    assert np.array_equal(found.covered[1], brain() & (np.arange(SHAPE[2]) < 12))


def test_a_part_that_was_not_scanned_is_not_covered_though_a_mask_says_brain() -> None:
    partial = picture(1)
    partial[:, :, 12:] = 0
    found = find_brain(np.stack([picture(0), partial]), [brain(), brain()])
    assert np.array_equal(found.covered[1], brain() & (np.arange(SHAPE[2]) < 12))


@pytest.mark.parametrize("volume", [np.zeros(SHAPE, np.float32), np.full(SHAPE, 3, np.float32)])
def test_an_image_without_contrast_has_no_brain(volume: np.ndarray) -> None:
    with pytest.raises(ImageError, match="no brain voxel found"):
        find_brain(volume[None])


def test_a_mask_that_misses_the_image_is_refused() -> None:
    with pytest.raises(ImageError, match="the brain mask does not overlap them"):
        find_brain(picture()[None], [~brain()])


def test_otsu_separates_two_classes() -> None:
    values = np.concatenate([np.linspace(0.1, 0.2, 500), np.linspace(0.7, 0.9, 300)]).reshape(8, 10, 10)
    assert 0.19 <= otsu_threshold(values) < 0.7

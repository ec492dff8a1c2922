"""Patches: cutting and putting together are inverse, on any grid."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from tiny_models import flags, volumes

from bmmae.errors import ConfigError
from bmmae.patches import Triple, any_in_patch, as_triple, gather_patches, patch_grid, patchify, unpatchify

CASES = [((16, 16, 16), (8, 8, 8)), ((8, 16, 24), (8, 8, 8)), ((12, 8, 10), (6, 4, 2)), ((4, 4, 4), (1, 1, 1))]


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_unpatchify_undoes_patchify(size: Triple, patch: Triple) -> None:
    volume = volumes(2, 3, size)
    assert torch.equal(unpatchify(patchify(volume, patch), patch_grid(size, patch), patch), volume)


def test_patches_and_their_voxels_are_numbered_h_w_d() -> None:
    volume = torch.arange(4 * 6 * 2).reshape(4, 6, 2).float()
    patches = patchify(volume, (2, 3, 1))
    assert patches.shape == (8, 6)
    assert torch.equal(patches[5], volume[2:4, 0:3, 1].flatten())


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_gathering_patches_equals_patchify_and_index(size: Triple, patch: Triple) -> None:
    images = volumes(2, 3, size)
    sample, modality, place = flags(2, 3, patchify(images, patch).shape[-2]).nonzero(as_tuple=True)
    expected = patchify(images, patch)[sample, modality, place]
    assert torch.equal(gather_patches(images, patch, sample, modality, place), expected)


@pytest.mark.parametrize(("size", "patch"), CASES)
def test_a_patch_is_flagged_if_any_of_its_voxels_is(size: Triple, patch: Triple) -> None:
    flagged = flags(2, *size, share=0.01)
    expected = patchify(flagged.float(), patch).amax(-1) > 0
    assert torch.equal(any_in_patch(flagged, patch), expected)
    assert np.array_equal(any_in_patch(flagged.numpy(), patch), expected.numpy())


@pytest.mark.parametrize("size", [(16, 16, 12), (4, 8, 8), (0, 8, 8)])
def test_sizes_that_do_not_divide_are_refused(size: Triple) -> None:
    message = rf"volumes of \({size[0]}, .* do not divide into patches of \(8, 8, 8\): pad or crop"
    with pytest.raises(ConfigError, match=message):
        patch_grid(size, (8, 8, 8))
    with pytest.raises(ConfigError, match=message):
        patchify(torch.zeros(1, *size), (8, 8, 8))
    with pytest.raises(ConfigError, match=message):
        any_in_patch(torch.zeros(1, *size, dtype=torch.bool), (8, 8, 8))


def test_one_number_stands_for_three() -> None:
    assert as_triple(4) == as_triple([4, 4, 4]) == (4, 4, 4)
    assert inspect.unwrap(as_triple)(np.int64(4)) == as_triple(torch.Size([4, 4, 4])) == (4, 4, 4)


@pytest.mark.parametrize("value", [0, [1, 2], [8, 8, -8], 8.0, [8, 8, 8.5], "888"])
def test_other_than_one_or_three_positive_numbers_are_refused(value: int | list[int]) -> None:
    with pytest.raises(ConfigError, match="expected one or three positive numbers"):
        inspect.unwrap(as_triple)(value)

"""Where the brain is in a study, and which part of it each modality covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.errors import ImageError

Source = Literal["mask", "nonzero", "foreground"]
Voxels: TypeAlias = Float[np.ndarray, "H W D"] | Bool[np.ndarray, "H W D"]
"""Intensities, or whether they are not zero."""

ZERO_SHARE = 0.2
"""An image counts as skull-stripped if this much of the box around its non-zero voxels is exactly zero.

A stripped brain leaves about half of its box; slices that were not scanned lie outside."""


@dataclass(frozen=True)
class Brain:
    """The brain of one study.

    Attributes:
        mask: Bool[H, W, D], the union over the modalities.
        covered: Bool[K, H, W, D], the part of the brain in which each modality has data.
        source: Where the mask comes from; `foreground` means that the study is not skull-stripped and the whole
            head is used.
    """

    mask: Bool[np.ndarray, "H W D"]
    covered: Bool[np.ndarray, "K H W D"]
    source: Source


def is_stripped(volume: Voxels) -> bool:
    """Tell whether an image looks skull-stripped: at least a fifth of the box around its non-zero voxels is zero."""
    nonzero: Array = np.asarray(volume != 0)
    return _leaves_zeros(nonzero[box_of(nonzero)])


def find_brain(volumes: Float[np.ndarray, "K H W D"], masks: list[Array | None] | None = None) -> Brain:
    """Find the brain: the given masks, else the non-zero voxels, else the head's foreground.

    Args:
        volumes: The available modalities, on one grid.
        masks: A brain mask a modality, None where there is none.

    Raises:
        ImageError: If no brain voxel is left.
    """
    given = masks or [None] * len(volumes)
    known = [np.asarray(mask) > 0 for mask in given if mask is not None]
    fallback = np.logical_or.reduce(known) if known else None
    source: Source = "mask" if known else "nonzero"
    covered = np.empty(volumes.shape, dtype=bool)
    for index, (volume, mask) in enumerate(zip(volumes, given, strict=True)):
        if mask is not None or fallback is not None:
            inside = np.asarray(mask) > 0 if mask is not None else fallback
            covered[index] = inside & scanned_voxels(volume)
        elif is_stripped(volume):
            covered[index] = volume != 0
        else:
            covered[index] = head_foreground(volume)
            source = "foreground"
    union: Array = np.asarray(covered.any(axis=0))
    if not union.any():
        raise ImageError("no brain voxel found: the images are empty, or the brain mask does not overlap them")
    return Brain(union, covered, source)


def box_of(flags: Bool[np.ndarray, "H W D"]) -> tuple[slice, slice, slice]:
    """Return the smallest box around the flagged voxels; an empty one if there are none."""
    used = (np.flatnonzero(flags.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    x, y, z = (slice(int(along[0]), int(along[-1]) + 1) if len(along) else slice(0) for along in used)
    return x, y, z


def _leaves_zeros(box: Bool[np.ndarray, "H W D"]) -> bool:
    return int(np.count_nonzero(~box)) >= ZERO_SHARE * int(box.size)


def scanned_voxels(volume: Voxels) -> Bool[np.ndarray, "H W D"]:
    """Return where an image has data: a zero of a head inside its box is a dark voxel."""
    scanned: Array = np.asarray(volume != 0)
    box = box_of(scanned)
    if not _leaves_zeros(scanned[box]):
        scanned[box] = True
    return scanned


def head_foreground(volume: Float[np.ndarray, "H W D"]) -> Bool[np.ndarray, "H W D"]:
    """Return the largest connected region brighter than the background, its holes filled."""
    low, high = np.percentile(volume, (1, 99))
    scaled = np.clip((volume - low) / max(float(high - low), 1e-12), 0, 1)
    bright = scaled > otsu_threshold(scaled) / 2  # half: dim tissue must not be lost to bright fat
    labels, count = ndimage.label(ndimage.binary_opening(bright))
    if count == 0:
        return np.asarray(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()))


def otsu_threshold(values: Float[np.ndarray, "H W D"]) -> float:
    """Return the threshold in (0, 1) that best separates two classes of values in [0, 1] (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=128, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = np.nan_to_num(below * above * gap**2)
    return float(centres[int(between.argmax())])

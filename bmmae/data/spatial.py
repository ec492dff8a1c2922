"""Rotate and zoom a sample in one interpolation, with everything it holds kept aligned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from bmmae.arrays import Array, Bool, Float
from bmmae.patches import Triple

BITS = 24
"""Whole numbers of this many bits are exact in float32."""


@dataclass(frozen=True)
class Turn:
    """A rotation and a zoom about the centre of a window.

    Attributes:
        matrix: Offsets from the centre of the window that is wanted, to offsets in the one it is cut from (voxels).
    """

    matrix: Float[np.ndarray, "3 3"]

    def source(self, start: Triple, size: Triple) -> tuple[Triple, Triple]:
        """Return first voxel and extent of the window that has all of a turned window in it."""
        reach = np.abs(self.matrix) @ np.asarray(size)
        margin = [max(1, int(np.ceil((far - own) / 2 - 1e-6)) + 1) for far, own in zip(reach, size, strict=True)]
        (a, b, c), (x, y, z), (i, j, k) = start, size, margin
        return (a - i, b - j, c - k), (x + 2 * i, y + 2 * j, z + 2 * k)


def turn_matrix(
    degrees: Float[np.ndarray, " 3"], zoom: float, spacing: tuple[float, float, float]
) -> Float[np.ndarray, "3 3"]:
    """Return the matrix of a `Turn`: rotations in millimetres, and anatomy `zoom` times as large."""
    out = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, two = (other for other in range(3) if other != axis)
        rotation = np.eye(3)
        rotation[[one, one, two, two], [one, two, one, two]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        out = out @ rotation
    millimetres = np.asarray(spacing)
    return np.asarray(out * millimetres / millimetres[:, None] / zoom)


def turn_sample(sample: dict[str, Array], turn: Turn, size: Triple) -> dict[str, Array]:
    """Return the turned window at the centre of a larger one.

    Images are interpolated linearly over their tissue alone, so that background never bleeds into it, chances of
    lesion over everything; coverage, brain and labels take the nearest voxel's.

    Args:
        sample: Of the extent that `turn.source` says; `images`, `available`, `valid`, `brain`, perhaps `label`,
            perhaps `lesion`.
        turn: The rotation and the zoom.
        size: Voxels of the window that is wanted.
    """
    grid = _grid(turn, size, sample["brain"].shape)
    stack = [sample["brain"][None], sample["valid"], *([sample["label"]] if "label" in sample else [])]
    flags = _nearest(np.concatenate(stack), grid)
    count = len(sample["images"])
    out = {**sample, "brain": flags[0], "valid": flags[1 : 1 + count]}
    if "label" in sample:
        out["label"] = flags[1 + count :]
    if "lesion" in sample:
        out["lesion"] = _sample(sample["lesion"], grid, "bilinear")
    out["images"] = np.zeros((count, *size), np.float32)
    slots = np.flatnonzero(sample["available"])
    inside = sample["valid"][slots] & sample["brain"]
    out["images"][slots] = _linear(sample["images"][slots], inside, grid) * (out["valid"][slots] & out["brain"])
    return out


def _grid(turn: Turn, size: Triple, extent: tuple[int, ...]) -> torch.Tensor:
    """Where each wanted voxel lies in the source, in the convention of `grid_sample`: -1 to 1, last axis first."""
    theta = turn.matrix * (np.asarray(size) - 1) / (np.asarray(extent) - 1)[:, None]
    flipped = np.concatenate([theta[::-1, ::-1], np.zeros((3, 1))], axis=1)
    return affine_grid(torch.from_numpy(flipped).float()[None], [1, 1, *size], align_corners=True)


def _sample(channels: Float[np.ndarray, "C H W D"], grid: torch.Tensor, mode: str) -> Array:
    tensor = torch.from_numpy(np.ascontiguousarray(channels))[None]
    return np.asarray(grid_sample(tensor, grid, mode=mode, align_corners=True)[0].numpy())


def _nearest(flags: Bool[np.ndarray, "C H W D"], grid: torch.Tensor) -> Bool[np.ndarray, "C h w d"]:
    """Take the nearest voxel's flags; many travel in one number, because each channel costs the same."""
    groups = [flags[first : first + BITS] for first in range(0, len(flags), BITS)]
    out = []
    for group in groups:
        packed = np.zeros(group.shape[1:], np.int32)
        for bit, flag in enumerate(group):
            packed |= flag.astype(np.int32) << bit
        moved = _sample(packed.astype(np.float32)[None], grid, "nearest")[0].astype(np.int32)
        out += [(moved >> bit & 1).astype(bool) for bit in range(len(group))]
    return np.stack(out)


def _linear(
    images: Float[np.ndarray, "K H W D"], inside: Bool[np.ndarray, "K H W D"], grid: torch.Tensor
) -> Float[np.ndarray, "K h w d"]:
    """Average over the neighbours inside; where a voxel's nearest neighbour is inside, they weigh an eighth or more."""
    alike = all(bool((flags == inside[0]).all()) for flags in inside[1:])
    weights = inside[:1] if alike else inside
    moved = _sample(np.concatenate([np.where(inside, images, 0), weights]).astype(np.float32), grid, "bilinear")
    return np.asarray(moved[: len(images)] / np.maximum(moved[len(images) :], 0.1))

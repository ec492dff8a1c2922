"""How far the surfaces of predicted and true regions lie apart, in millimetres.

A surface is made of the voxels of a mask that have one of their six neighbours outside it (beyond the image is
outside), as in MONAI. Distances are between centres of surface voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.metrics.flags import require_flags, require_spacing

ROUNDING = 1e-4
"""Millimetres by which a distance may exceed a limit: headers round, so that 1 mm along a turned axis is 1.00000002."""


def surface_distances(
    predicted: Bool[np.ndarray, "H W D"], truth: Bool[np.ndarray, "H W D"], spacing: Sequence[float]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " T"]]:
    """Return, for each voxel of one surface, the millimetres to the nearest voxel of the other.

    Args:
        predicted: Predicted mask, not empty.
        truth: True mask, not empty.
        spacing: Millimetres between voxels along each axis.

    Returns:
        Those of the predicted surface and those of the true one.
    """
    box = _box(predicted | truth)
    edges = [_surface(mask[box]) for mask in (predicted, truth)]
    away = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return np.asarray(away[1])[edges[0]], np.asarray(away[0])[edges[1]]


def hd95(predicted: Bool[np.ndarray, "H W D"], truth: Bool[np.ndarray, "H W D"], spacing: Sequence[float]) -> float:
    """Return the 95 % Hausdorff distance in millimetres; lower is better, 0 is best.

    The larger of the two surfaces' 95th percentiles of distance to the other. Both empty: NaN (left out of means and
    counted). One empty: the image's diagonal, the largest distance that could be, so that a miss costs and a mean
    stays finite.

    Args:
        predicted: Predicted mask.
        truth: True mask.
        spacing: Millimetres between voxels along each axis.

    Raises:
        ValueError: If they are no masks of one shape, or spacings are missing.
    """
    require_flags(predicted, truth)
    require_spacing(spacing, truth)
    some = (bool(predicted.any()), bool(truth.any()))
    if not any(some):
        return math.nan
    if not all(some):
        return diagonal(truth.shape, spacing)
    return max(float(np.percentile(part, 95)) for part in surface_distances(predicted, truth, spacing))


def surface_dice(
    predicted: Bool[np.ndarray, "H W D"],
    truth: Bool[np.ndarray, "H W D"],
    spacing: Sequence[float],
    tolerance: float = 1.0,
) -> float:
    """Return the share of both surfaces that lies within a tolerance of the other; higher is better, 0 to 1.

    Also called normalised surface distance (Nikolov 2021), here over surface voxels. Both empty: NaN. One empty: 0.

    Args:
        predicted: Predicted mask.
        truth: True mask.
        spacing: Millimetres between voxels along each axis.
        tolerance: Millimetres that count as the same place.

    Raises:
        ValueError: If they are no masks of one shape, or spacings are missing.
    """
    require_flags(predicted, truth)
    require_spacing(spacing, truth)
    some = (bool(predicted.any()), bool(truth.any()))
    if not any(some):
        return math.nan
    if not all(some):
        return 0.0
    near, true_near = (part <= tolerance + ROUNDING for part in surface_distances(predicted, truth, spacing))
    return float(near.sum() + true_near.sum()) / (len(near) + len(true_near))


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the millimetres between the centres of an image's opposite corner voxels."""
    return math.hypot(*((voxels - 1) * step for voxels, step in zip(shape, spacing, strict=True)))


def _surface(mask: Array) -> Array:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def _box(mask: Array) -> tuple[slice, ...]:
    """Return the smallest box around a mask: outside it there is no surface."""
    return tuple(ndimage.find_objects(mask.astype(np.uint8))[0])

"""Closed polygons on a voxel grid, by the even-odd rule."""

from __future__ import annotations

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.errors import ImageError
from bmmae.patches import Triple

PLANE_TOLERANCE = 0.3
"""Voxels that a contour may lie off its slice. More means that it was drawn on other slices, several of which could
fall onto one of this series and cancel each other."""


def inside_polygon(points: Float[np.ndarray, "P 2"], shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the voxels whose centres lie inside a polygon: a ray from them crosses its edges an odd number of times.

    A polygon that runs around a hole and back through the same channel leaves the hole out, as does any that crosses
    itself.

    Args:
        points: Corners in voxel indices of the plane; the last is joined to the first.
        shape: Voxels of the plane.
    """
    mask = np.zeros(shape, dtype=bool)
    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, 0, shape)
    rows, columns = np.arange(low[0], high[0]), np.arange(low[1], high[1])[None, :]
    window = mask[low[0] : high[0], low[1] : high[1]]
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        # Half-open, so that a ray through a corner counts it once.
        crossed = (start[0] <= rows) != (end[0] <= rows)
        if crossed.any():
            share = (rows[crossed] - start[0]) / (end[0] - start[0])
            window[crossed] ^= columns < (start[1] + share * (end[1] - start[1]))[:, None]
    return mask


def fill_contours(
    contours: list[Float[np.ndarray, "P 3"]], shape: Triple, affine: Float[Array, "4 4"]
) -> Bool[np.ndarray, "H W D"]:
    """Return the voxels inside planar contours; within a slice they join by exclusive or, so that inner ones are holes.

    Args:
        contours: Corners in millimetres (RAS).
        shape: The image's voxels.
        affine: Its voxel indices to millimetres (RAS).

    Raises:
        ImageError: If a contour does not lie in a slice of the image.
    """
    mask = np.zeros(shape, dtype=bool)
    inverse = np.linalg.inv(affine)
    for contour in contours:
        points = contour @ inverse[:3, :3].T + inverse[:3, 3]
        axis = _slice_axis(contours, inverse)
        place = round(float(points[:, axis].mean()))
        if np.abs(points[:, axis] - place).max() > PLANE_TOLERANCE:
            raise ImageError(
                "a contour does not lie in a slice of the series it refers to: expected planar contours drawn on that "
                f"series, got one that leaves its slice by {np.abs(points[:, axis] - place).max():.2g} voxels"
            )
        if 0 <= place < shape[axis]:
            plane = [index for index in range(3) if index != axis]
            slab = np.moveaxis(mask, axis, 0)[place]
            slab ^= inside_polygon(np.ascontiguousarray(points[:, plane]), (shape[plane[0]], shape[plane[1]]))
    return mask


def _slice_axis(contours: list[Float[np.ndarray, "P 3"]], inverse: Float[Array, "4 4"]) -> int:
    """Return the voxel axis along which no contour extends."""
    extents = [np.ptp(contour @ inverse[:3, :3].T, axis=0) for contour in contours]
    return int(np.argmin(np.max(extents, axis=0)))

"""Volumes on their grids in space, and the one interpolation that takes a volume from its own grid to another.

Transforms are matrices [4, 4] from millimetres of the target to millimetres of the source (RAS), so that composing
them is a product and undoing them an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Float, Shaped
from bmmae.data.geometry import same_grid, sheared, turned_like
from bmmae.data.raw.extras import require
from bmmae.errors import ImageError
from bmmae.patches import Triple

Interpolation = Literal["linear", "label"]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS to ITK's millimetres, which run left, posterior, superior; and back."""


@dataclass(frozen=True)
class Grid:
    """Where voxels are.

    Attributes:
        shape: Voxels along the three axes.
        affine: Voxel indices to millimetres (RAS).
    """

    shape: Triple
    affine: Float[Array, "4 4"]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each axis, mm."""
        x, y, z = (float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)

    def same(self, other: Grid) -> bool:
        """Tell whether voxels coincide."""
        return same_grid(self.shape, self.affine, other.shape, other.affine)

    def at_spacing(self, spacing: float) -> Grid:
        """Return the grid with cubic voxels over the same field of view; its outer edges stay."""
        old = np.array(self.spacing)
        shape = np.maximum(1, np.rint(np.array(self.shape) * old / spacing - 1e-3)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] *= spacing / old
        shift = (np.full(3, spacing) / old - 1) / 2
        affine[:3, 3] += self.affine[:3, :3] @ shift
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def reoriented(self) -> Grid:
        """Return the same voxels with axes as near to left, posterior, superior as they can be, as in BraTS."""
        import nibabel as nib

        wanted = nib.orientations.axcodes2ornt(("L", "P", "S"))
        change = nib.orientations.ornt_transform(nib.io_orientation(self.affine), wanted)
        # Entry i of `change` says where voxel axis i goes.
        order = np.argsort(change[:, 0])
        shape = tuple(int(self.shape[axis]) for axis in order)
        affine = self.affine @ nib.orientations.inv_ornt_aff(change, self.shape)
        return Grid((shape[0], shape[1], shape[2]), np.asarray(affine, dtype=np.float64))

    def at_right_angles(self) -> Grid:
        """Return the grid itself, or where it is sheared the nearest one that is not, around all of its voxels."""
        if not sheared(self.affine):
            return self
        spacing = np.array(self.spacing)
        left, _, right = np.linalg.svd(self.affine[:3, :3] / spacing)
        axes = left @ right * spacing
        edges = np.array(list(product(*((-0.5, size - 0.5) for size in self.shape))))
        places = (edges @ self.affine[:3, :3].T + self.affine[:3, 3]) @ np.linalg.inv(axes).T
        low = places.min(axis=0)
        shape = np.ceil(np.ptp(places, axis=0) - 1e-3).astype(int)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes, axes @ (low + 0.5)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are."""

    array: Shaped[np.ndarray, "H W D"]
    affine: Float[Array, "4 4"]

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        x, y, z = self.array.shape
        return Grid((x, y, z), self.affine)

    def turned_like(self, grid: Grid) -> Volume:
        """Return the same voxels with their axes as a grid's, as nearly as they can."""
        return Volume(*turned_like(self.array, self.affine, grid.affine))


def resample(
    volume: Volume, matrix: Float[Array, "4 4"], grid: Grid, how: Interpolation = "linear"
) -> Shaped[np.ndarray, "H W D"]:
    """Interpolate a volume once onto a grid; 0 outside what was scanned.

    Args:
        volume: The source.
        matrix: Millimetres of the grid to millimetres of the source (RAS).
        grid: The target.
        how: `linear` (blurred first, by what the coarser grid cannot hold), or `label`: each label is interpolated as
            a map of its own and the largest wins, so that borders are smooth and no label is invented. Of a lesion too
            small for that, such as a single voxel, the nearest voxels are kept.

    Returns:
        float32 for `linear`, the source's type for `label`.

    Raises:
        ImageError: If it fails, most likely for want of memory.
    """
    try:
        return _resampled(volume, matrix, grid, how)
    except RuntimeError as error:  # SimpleITK's only one
        reason = str(error).strip().splitlines()[-1].strip()
        size = " x ".join(map(str, grid.shape))
        raise ImageError(
            f"interpolation onto a grid of {size} voxels failed ({reason}): is the spacing right?"
        ) from error


def _resampled(
    volume: Volume, matrix: Float[Array, "4 4"], grid: Grid, how: Interpolation
) -> Shaped[np.ndarray, "H W D"]:
    sitk = require("SimpleITK", "Resampling")
    if how == "linear":
        source = _blurred(to_sitk(Volume(volume.array.astype(np.float32), volume.affine)), volume.grid, grid)
        kind = sitk.sitkLinear
    else:
        source, kind = to_sitk(volume), sitk.sitkLabelLinear

    def moved(kind: int) -> Array:
        image = sitk.Resample(source, frame(grid), itk_transform(matrix), kind, 0.0, source.GetPixelID())
        return np.asarray(sitk.GetArrayFromImage(image)).T

    return moved(kind) if how == "linear" else _with_small(moved(kind), moved(sitk.sitkNearestNeighbor))


def _with_small(smooth: Shaped[np.ndarray, "H W D"], nearest: Shaped[np.ndarray, "H W D"]) -> Array:
    """Add the lesions of one resampling that another has nothing of."""
    lesions, _ = ndimage.label(nearest, np.ones((3, 3, 3)))
    lost = (nearest != 0) & ~np.isin(lesions, np.unique(lesions[smooth != 0]))
    return np.where(lost, nearest, smooth)


def coverage(source: Grid, matrix: Float[Array, "4 4"], grid: Grid) -> Shaped[np.ndarray, "H W D"]:
    """Return Bool[H, W, D]: the target's voxels whose centres lie in the source's field of view."""
    to_voxel = np.linalg.inv(source.affine) @ matrix @ grid.affine
    inside = np.ones(grid.shape, dtype=bool)
    axes = np.ogrid[tuple(slice(size) for size in grid.shape)]
    for axis, size in enumerate(source.shape):
        # One axis of the source at a time: the indices of a whole grid would fill the memory.
        place = sum((to_voxel[axis, k] * axes[k] for k in range(3)), start=to_voxel[axis, 3])
        inside &= (place >= -0.5) & (place <= size - 0.5)
    return inside


def to_sitk(volume: Volume) -> Any:
    """Return the volume as an ITK image."""
    sitk = require("SimpleITK", "Resampling")
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T))
    return _placed(image, volume.grid)


def frame(grid: Grid) -> Any:
    """Return a grid as an ITK image without meaningful voxels."""
    sitk = require("SimpleITK", "Resampling")
    return _placed(sitk.Image(list(grid.shape), sitk.sitkUInt8), grid)


def itk_transform(matrix: Float[Array, "4 4"]) -> Any:
    """Return a matrix in millimetres (RAS) as an ITK transform."""
    sitk = require("SimpleITK", "Resampling")
    lps = LPS @ matrix @ LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def matrix_of(transform: Any) -> Float[Array, "4 4"]:
    """Return a linear ITK transform as a matrix in millimetres (RAS), by what it does to four points."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(point))) - origin for point in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack(columns)
    matrix[:3, 3] = origin
    return np.asarray(LPS @ matrix @ LPS)


def _placed(image: Any, grid: Grid) -> Any:
    lps = LPS @ grid.affine
    image.SetSpacing(grid.spacing)
    image.SetDirection((lps[:3, :3] / np.array(grid.spacing)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def _blurred(image: Any, source: Grid, target: Grid) -> Any:
    """Blur each axis to the resolution of the coarser of the two grids."""
    sitk = require("SimpleITK", "Resampling")
    finest = min(target.spacing)
    missing = [max(0.0, finest**2 - size**2) for size in source.spacing]
    if max(missing) < (0.1 * finest) ** 2:
        return image
    # A voxel's width is the full width at half maximum of a Gaussian: 2.355 standard deviations.
    variances = [gap / 2.355**2 for gap in missing]
    return sitk.DiscreteGaussian(image, variances, 32, 0.01, True)

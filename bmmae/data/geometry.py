"""The way from an image's own grid to the model's grid and back: reorient, resample once, crop.

Everything happens along the voxel axes, so that a grid that already has the model's spacing is never interpolated.
Resampling is linear and anti-aliased (a triangle as wide as the coarser of the two spacings), as one small matrix
per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np

from bmmae.arrays import Array, Bool, Float, Shaped
from bmmae.data.millimetres import qform_of
from bmmae.errors import ImageError
from bmmae.patches import Triple

FEWEST_SLICES = 8
"""Fewer along an axis do not cover a brain: localisers, single slices, screen shots, exports that broke off."""
GRID_TOLERANCE = 1e-3
"""Affines of one grid may differ by this much, beside a hundred-thousandth of each entry (numpy's `allclose`)."""
SHEAR_TOLERANCE = 5e-3
"""Cosine between two axes that count as at right angles: a head of 200 mm is a millimetre askew at most."""
FINEST_STEP = 2.0**-16
"""Millimetres to whose multiples voxel sizes are rounded: a header's own rounding, as of 1.00000002 mm along a turned
axis, would else decide where a mask is exactly a half. Usual sizes, such as 220 / 512 mm, stay as they are."""


@lru_cache(maxsize=64)
def interpolation_matrix(source: int, target: int, ratio: float) -> Array:
    """Return the weights [target, source] that resample one axis by linear, anti-aliased interpolation.

    Args:
        source: Voxels before.
        target: Voxels after.
        ratio: Spacing after over spacing before. The outer edges of both first voxels coincide.
    """
    centres = (np.arange(target) + 0.5) * ratio - 0.5
    distance = np.abs(np.clip(centres, 0, source - 1)[:, None] - np.arange(source)[None, :])
    weights = np.clip(1 - distance / max(1.0, ratio), 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def resample(
    volume: Float[np.ndarray, "H W D"] | Bool[np.ndarray, "H W D"],
    shape: Triple,
    ratios: tuple[float, float, float],
) -> Float[np.ndarray, "H2 W2 D2"]:
    """Resample a volume or mask to `shape`, where `ratios` are the spacings after over those before."""
    out = volume.astype(np.float32, copy=False)
    for axis, (target, ratio) in enumerate(zip(shape, ratios, strict=True)):
        if ratio == 1 and target == out.shape[axis]:
            continue
        matrix = interpolation_matrix(out.shape[axis], target, ratio)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def same_grid(
    shape: Sequence[int], affine: Float[Array, "4 4"], other_shape: Sequence[int], other_affine: Float[Array, "4 4"]
) -> bool:
    """Tell whether two images have their voxels in the same places, but for what headers lose by rounding."""
    return tuple(shape) == tuple(other_shape) and bool(np.allclose(affine, other_affine, atol=GRID_TOLERANCE))


def turned_like(
    array: Shaped[np.ndarray, "H W D"], affine: Float[Array, "4 4"], like: Float[Array, "4 4"]
) -> tuple[Shaped[np.ndarray, "H2 W2 D2"], Float[Array, "4 4"]]:
    """Permute and flip an image's axes until they point, as nearly as they can, as another's do: no voxel is changed.

    Args:
        array: Its voxels.
        affine: Its affine.
        like: The other's affine.

    Returns:
        A view of the voxels, and the affine that goes with it.
    """
    turn = nib.io_orientation(np.linalg.inv(like) @ affine)
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def sheared(affine: Float[Array, "4 4"]) -> bool:
    """Tell whether the axes are not at right angles to each other."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE)


def axes_of(affine: Float[Array, "4 4"]) -> str:
    """Return where each axis points, such as `LPS`."""
    return "".join(map(str, nib.orientations.aff2axcodes(affine)))


def unsure_axes(raw: Any, affine: Float[Array, "4 4"] | None = None) -> str:
    """Say why a header leaves open which way an image's axes point; nothing if it does not.

    Args:
        raw: The format's own header (nibabel).
        affine: The image's, which a file beside it may state (SPM's .mat); by default the header's.
    """
    if not isinstance(raw, nib.analyze.AnalyzeHeader):  # which NIfTI's is a kind of
        return ""
    if not isinstance(raw, nib.Nifti1Header):
        own = raw.get_best_affine()
        stated = affine is not None and not np.allclose(affine, own)
        return "" if stated else f"its format, Analyze, does not say; {axes_of(own)} is assumed"
    qform, sform = qform_of(raw)[0], raw.get_sform(coded=True)[0]
    if qform is None and sform is None:
        return f"its header does not say (qform and sform codes are 0); {axes_of(raw.get_best_affine())} is assumed"
    if qform is None or sform is None or axes_of(qform) == axes_of(sform):
        return ""
    return f"its header says {axes_of(qform)} by the qform and {axes_of(sform)} by the sform, which is used"


def grid_difference(
    shape: Sequence[int], affine: Float[Array, "4 4"], other_shape: Sequence[int], other_affine: Float[Array, "4 4"]
) -> str:
    """Say in brackets what two grids differ in beside the number of voxels; nothing if it is that alone."""
    axes, others = axes_of(affine), axes_of(other_affine)
    if axes != others:
        return f" (axes point to {axes} here and {others} there)"
    if tuple(shape) != tuple(other_shape):
        return ""
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))])
    apart = np.linalg.norm(corners @ (affine - other_affine).T, axis=1).max()
    return f" (by the headers, up to {apart:.3g} mm lie between the same voxels)"


@dataclass(frozen=True)
class Geometry:
    """A native grid, a crop of the model's grid, and how one follows from the other.

    Attributes:
        native_shape: Voxels of the image as stored.
        native_affine: Its affine [4, 4], to millimetres.
        spacing: Millimetres between voxels of the model's grid, along right, anterior, superior.
        start: First voxel of the crop on the resampled grid.
        shape: Voxels of the crop.
    """

    native_shape: Triple
    native_affine: Float[np.ndarray, "4 4"]
    spacing: tuple[float, float, float]
    start: Triple = (0, 0, 0)
    shape: Triple = (0, 0, 0)

    @classmethod
    def of(cls, shape: Triple, affine: Array, spacing: tuple[float, float, float]) -> Geometry:
        """Return the geometry of an uncropped image.

        Raises:
            ImageError: If the affine has no direction for some axis.
        """
        affine = np.asarray(affine, dtype=np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ImageError(f"the affine {affine.tolist()} cannot be inverted: repair the image's header")
        whole = cls(shape, affine, spacing)
        return whole.cropped((0, 0, 0), whole.resampled_shape)

    def cropped(self, start: Triple, shape: Triple) -> Geometry:
        """Return the same geometry with another crop, given on the resampled grid."""
        return Geometry(self.native_shape, self.native_affine, self.spacing, start, shape)

    @property
    def _orientation(self) -> Array:
        return np.asarray(nib.io_orientation(self.native_affine))

    @property
    def canonical_spacing(self) -> tuple[float, float, float]:
        """Millimetres between native voxels, along right, anterior, superior."""
        exact = np.linalg.norm(self.native_affine[:3, :3], axis=0)
        sizes = np.maximum(1, np.rint(exact / FINEST_STEP)) * FINEST_STEP
        axes = self._orientation[:, 0].astype(int)
        ordered = [float(sizes[list(axes).index(axis)]) for axis in range(3)]
        return (ordered[0], ordered[1], ordered[2])

    @property
    def canonical_shape(self) -> Triple:
        """Native voxels along right, anterior, superior."""
        axes = list(self._orientation[:, 0].astype(int))
        ordered = [self.native_shape[axes.index(axis)] for axis in range(3)]
        return (ordered[0], ordered[1], ordered[2])

    @property
    def ratios(self) -> tuple[float, float, float]:
        """The model's spacing over the native one, exactly 1 where they agree to a thousandth."""
        pairs = zip(self.spacing, self.canonical_spacing, strict=True)
        found = [1.0 if abs(new / old - 1) < 1e-3 else new / old for new, old in pairs]
        return (found[0], found[1], found[2])

    @property
    def resampled_shape(self) -> Triple:
        """Voxels of the whole image at the model's spacing."""
        pairs = zip(self.canonical_shape, self.ratios, strict=True)
        sizes = [max(1, round(size / ratio)) for size, ratio in pairs]
        return (sizes[0], sizes[1], sizes[2])

    def to_canonical(self, volume: Array) -> Array:
        """Flip and permute a native volume to right, anterior, superior."""
        return np.ascontiguousarray(nib.apply_orientation(volume, self._orientation))

    def from_canonical(self, volume: Array) -> Array:
        """Undo `to_canonical`."""
        orientation = self._orientation
        inverse = np.empty_like(orientation)
        for native_axis, (canonical_axis, flip) in enumerate(orientation):
            inverse[int(canonical_axis)] = (native_axis, flip)
        return np.ascontiguousarray(nib.apply_orientation(volume, inverse))

    def to_model(self, volume: Array) -> Float[np.ndarray, "H W D"]:
        """Resample a canonical volume to the model's spacing and crop it."""
        whole = resample(volume, self.resampled_shape, self.ratios)
        return whole[self.window]

    def to_native_spacing(self, volume: Array) -> Float[np.ndarray, "H W D"]:
        """Put a cropped volume back into the whole and resample it to the canonical native grid (zero outside)."""
        whole = np.zeros(self.resampled_shape, dtype=np.float32)
        whole[self.window] = volume
        inverse = tuple(1 / ratio for ratio in self.ratios)
        return resample(whole, self.canonical_shape, (inverse[0], inverse[1], inverse[2]))

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The crop as slices of the resampled grid."""
        spans = [slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True)]
        return (spans[0], spans[1], spans[2])

"""Affines in millimetres, whatever unit a header says: a wrong unit, or voxels of an impossible size, is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.location import File
from bmmae.errors import ImageError

FINEST, COARSEST = 0.05, 20.0
"""Millimetres between voxels; a header that says less or more is wrong."""

UNITS = {1: 1000.0, 3: 0.001}
"""Millimetres in the other units that NIfTI has codes for: metre, micrometre."""


def spacing_of(affine: Float[Array, "4 4"]) -> tuple[float, ...]:
    """Return the voxel size along each array axis, in mm."""
    return tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0))


def usable_affine(path: File, raw: Any, affine: Array | None) -> Float[Array, "4 4"]:
    """Return an affine in millimetres.

    Args:
        path: The file it is of, for messages.
        raw: The file's own header, whose unit counts.
        affine: As the header has it; None if it has none.

    Raises:
        ImageError: If it cannot be inverted, or gives voxels of an impossible size.
    """
    if affine is not None:
        affine = np.asarray(affine, dtype=np.float64)
        volume = np.prod(np.linalg.norm(affine[:3, :3], axis=0))
        if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * volume > 0:
            affine = scaled(affine, unit_of(raw, affine))
            if _plausible(affine):
                return affine
            size = " x ".join(f"{side:.4g}" for side in spacing_of(affine))
            raise ImageError(
                f"{path} has voxels of {size} mm by its header: expected {FINEST:g} to {COARSEST:g} mm along each "
                "axis; correct the header's affine and unit (xyzt_units), or convert the image again from DICOM"
            )
    raise ImageError(
        f"{path} has a singular affine: expected an invertible map from voxels to mm, got "
        f"{None if affine is None else affine[:3].tolist()}; convert it again from DICOM or repair its header"
    )


def unit_of(raw: Any, affine: Float[Array, "4 4"]) -> float:
    """Return how many millimetres a header's unit is; 1 where that gives impossible voxels: such units are mistakes.

    The limits are less than a factor of 1000 apart, so no affine is possible in two units. A NIfTI file without qform
    and sform has no place that results could share with it: its unit is not converted.
    """
    import nibabel as nib

    if not isinstance(raw, nib.Nifti1Header) or not (raw["qform_code"] or raw["sform_code"]):
        return 1.0
    unit = UNITS.get(int(raw["xyzt_units"]) % 8, 1.0)
    return unit if _plausible(scaled(affine, unit)) else 1.0


def qform_of(raw: Any) -> tuple[Float[Array, "4 4"] | None, int]:
    """Return a NIfTI header's qform and its code; none if its quaternion is no rotation, as rounding may make it."""
    try:
        matrix, code = raw.get_qform(coded=True)
    except ValueError:
        return None, 0
    return matrix, int(code)


def _plausible(affine: Float[Array, "4 4"]) -> bool:
    # Headers store float32: 0.05 comes back a little smaller.
    return all(FINEST * (1 - 1e-4) <= size <= COARSEST * (1 + 1e-4) for size in spacing_of(affine))


def scaled(affine: Float[Array, "4 4"], factor: float) -> Float[Array, "4 4"]:
    """Return an affine to world coordinates that are `factor` times as large."""
    return np.asarray(np.diag([factor, factor, factor, 1.0]) @ affine)

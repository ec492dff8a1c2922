"""N4 bias-field correction (Tustison 2010), by SimpleITK."""

from __future__ import annotations

import numpy as np

from bmmae.arrays import Bool
from bmmae.data.brain import head_foreground
from bmmae.data.raw.extras import require
from bmmae.data.raw.registration import THREADS
from bmmae.data.raw.resampling import Volume, to_sitk
from bmmae.errors import ImageError

FIELD_SPACING = 6.0
"""The field is smooth: it is estimated on voxels of about this size, mm."""

UNBIASED = ("adc", "ct")
"""Modalities without a bias field: coils do not shade CT, and their shade cancels out of ADC. Their values are measures
(mm2/s, Hounsfield units) that a correction would spoil."""

ITERATIONS = (30, 30, 20)


def corrected(volume: Volume, mask: Bool[np.ndarray, "H W D"] | None = None) -> Volume:
    """Return the volume divided by its bias field, on its own grid.

    Args:
        volume: A raw scan.
        mask: Where to estimate the field; by default the head. Voxels that are not positive are left out.

    Raises:
        ImageError: If the field cannot be estimated.
    """
    sitk = require("SimpleITK", "Bias-field correction")
    inside = (head_foreground(volume.array) if mask is None else mask) & (volume.array > 0)
    if not inside.any():
        raise ImageError("N4 needs positive voxels: the scan has none inside its brain mask")
    image = to_sitk(Volume(volume.array.astype(np.float32), volume.affine))
    factors = [
        max(1, min(round(FIELD_SPACING / spacing), size // 4))
        for spacing, size in zip(volume.grid.spacing, volume.array.shape, strict=True)
    ]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(THREADS)
    n4.SetMaximumNumberOfIterations(ITERATIONS)
    try:
        small_mask = sitk.Shrink(to_sitk(Volume(inside.astype(np.uint8), volume.affine)), factors)
        n4.Execute(sitk.Shrink(image, factors), small_mask)
        field = sitk.Exp(sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ImageError(f"N4 failed ({reason}): expected a scan with tissue in most of its brain mask") from error
    bias = np.asarray(sitk.GetArrayFromImage(field)).T
    return Volume(volume.array / np.maximum(bias, 1e-3), volume.affine)

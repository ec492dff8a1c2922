"""What scanners do to intensities: field, contrast, resolution, blur and noise, for one modality at a time.

All take z-scores, a mask of the tissue, a strength and the sample's generator, and are defined inside the tissue alone.
MONAI is imported only by those that use it: that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from scipy import ndimage

from bmmae.arrays import Bool, Float

Volume: TypeAlias = Float[np.ndarray, "H W D"]
Flags: TypeAlias = Bool[np.ndarray, "H W D"]
Effect: TypeAlias = Callable[[Volume, Flags, float, np.random.Generator], Volume]

MEAN_IN_DEVIATIONS = 3.0
"""How many deviations the tissue's mean lies above zero signal, because a field multiplies signal, not z-scores.

Between 1.8 and 4.8 in stripped scans of glioma patients."""


def bias_field(image: Volume, inside: Flags, strength: float, rng: np.random.Generator) -> Volume:
    """Multiply the signal by a smooth field: the exponential of a cubic with coefficients up to `strength`."""
    from monai.transforms.intensity.array import RandBiasField

    field = RandBiasField(prob=1.0, degree=3, coeff_range=(-strength, strength))
    # MONAI knows no other generator.
    field.set_random_state(state=np.random.RandomState(int(rng.integers(2**32))))
    signal = np.where(inside, image + MEAN_IN_DEVIATIONS, 0)[None].astype(np.float32)
    return np.asarray(field(torch.from_numpy(signal))[0].numpy() - np.float32(MEAN_IN_DEVIATIONS))


def gamma(image: Volume, inside: Flags, strength: float, rng: np.random.Generator) -> Volume:
    """Raise intensities, or half of the times their negative, to a power; mean and deviation stay.

    A single voxel has no deviation, and stays as it is.
    """
    from monai.transforms.intensity.array import AdjustContrast

    adjust = AdjustContrast(strength, invert_image=bool(rng.random() < 0.5), retain_stats=True)
    out = image.copy()
    if np.count_nonzero(inside) > 1:
        out[inside] = adjust(torch.from_numpy(image[inside])[None])[0].numpy()
    return out


def low_resolution(image: Volume, inside: Flags, strength: float, _rng: np.random.Generator) -> Volume:
    """Keep a share `strength` of the samples along each axis, and interpolate between them."""
    from monai.transforms.spatial.array import RandSimulateLowResolution

    # By default samples are taken from one side, which shifts the image by half a voxel and more.
    reduce = RandSimulateLowResolution(prob=1.0, downsample_mode="trilinear", zoom_range=(strength, strength))
    pair = np.stack([np.where(inside, image, 0), inside]).astype(np.float32)
    values, weights = reduce(torch.from_numpy(pair)).numpy()
    # Where no sample of tissue is near, there is nothing to interpolate.
    return np.where(weights > 0.1, values / np.maximum(weights, 0.1), image).astype(np.float32)


def blur(image: Volume, inside: Flags, strength: float, _rng: np.random.Generator) -> Volume:
    """Smooth over the tissue by a Gaussian of `strength` voxels; background has no weight."""
    values, weights = (
        ndimage.gaussian_filter(array.astype(np.float32), strength, mode="constant", truncate=3)
        for array in (np.where(inside, image, 0), inside)
    )
    return np.asarray(values / np.maximum(weights, 1e-6))


def noise(image: Volume, inside: Flags, strength: float, rng: np.random.Generator) -> Volume:
    """Add Gaussian noise of deviation `strength`."""
    out = image.copy()
    out[inside] += np.float32(strength) * rng.standard_normal(int(inside.sum()), dtype=np.float32)
    return out


EFFECTS: dict[str, Effect] = {
    "bias": bias_field,
    "gamma": gamma,
    "low_resolution": low_resolution,
    "blur": blur,
    "noise": noise,
}
"""By the name of their key, in the order that they arise in: noise comes last, and is not smoothed."""

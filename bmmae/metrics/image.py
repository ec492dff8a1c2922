"""How close a synthesised image is to the real one."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.metrics.flags import require_flags, require_one_shape

SIGMA = 1.5
TRUNCATE = 3.5
"""The Gaussian window of SSIM: its deviation in voxels, and after how many deviations it ends (Wang 2004)."""
STABLE = (0.01, 0.03)
"""The constants K1 and K2 of SSIM (Wang 2004)."""
PERCENTILES = (0.5, 99.5)
"""Between which the range of an image is taken, so that a few bright voxels do not decide."""


def affine_fit(predicted: Float[Array, " N"], truth: Float[Array, " N"]) -> tuple[float, float]:
    """Return slope and offset of the least-squares map from predicted to true intensities (MR has no scale).

    A constant prediction maps to the mean of the truth (slope 0).
    """
    x, y = predicted.astype(np.float64), truth.astype(np.float64)
    spread = float(((x - x.mean()) ** 2).mean())
    if spread <= 1e-20:
        return 0.0, float(y.mean())
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread
    return slope, float(y.mean()) - slope * float(x.mean())


def intensity_range(values: Float[Array, " N"]) -> float:
    """Return the distance between the 0.5 and 99.5 percentiles, the range that `psnr` and `ssim` refer to.

    No values: NaN.
    """
    if not len(values):
        return math.nan
    low, high = np.percentile(values, PERCENTILES)
    return float(high - low)


def psnr(
    predicted: Float[Array, "*axes"],
    truth: Float[Array, "*axes"],
    inside: Bool[Array, "*axes"],
    *,
    fit: bool = False,
    data_range: float | None = None,
) -> float:
    """Return the peak signal-to-noise ratio inside a mask in dB; higher is better.

    The range is that between the 0.5 and 99.5 percentiles of the truth inside the mask. A perfect prediction gives
    infinity; an empty mask or a constant truth gives NaN.

    Args:
        predicted: Predicted intensities.
        truth: True intensities.
        inside: Voxels that count.
        fit: Map the prediction onto the truth by `affine_fit` first.
        data_range: Another range: a lesion is judged by the range of the whole brain.

    Raises:
        ValueError: If `inside` is no mask, or shapes differ.
    """
    require_flags(inside)
    require_one_shape(predicted, truth, inside)
    x, y = predicted[inside].astype(np.float64), truth[inside].astype(np.float64)
    if not len(y):
        return math.nan
    span = intensity_range(y) if data_range is None else data_range
    if not span > 0:
        return math.nan
    if fit:
        slope, offset = affine_fit(x, y)
        x = slope * x + offset
    error = float(((x - y) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(span**2 / error)


def ssim_map(
    predicted: Float[Array, "H W D"], truth: Float[Array, "H W D"], data_range: float
) -> Float[Array, "H W D"]:
    """Return the structural similarity around each voxel, -1 to 1; higher is better (Wang 2004, in three dimensions).

    Moments are those of a Gaussian window of deviation 1.5 voxels, without Bessel's correction; at the border the
    image is mirrored. The luminance term depends on where zero is: give intensities, not z-scores.

    Args:
        predicted: Predicted intensities, in the unit of the truth.
        truth: True intensities.
        data_range: What differences are measured against; see `intensity_range`.
    """
    centre = float(truth.mean())  # moments about it: small numbers lose nothing in single precision
    x, y = predicted.astype(np.float32) - np.float32(centre), truth.astype(np.float32) - np.float32(centre)
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    variance_x, variance_y = _smoothed(x * x) - mean_x**2, _smoothed(y * y) - mean_y**2
    covariance = _smoothed(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + centre, mean_y + centre
    c1, c2 = ((k * data_range) ** 2 for k in STABLE)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return np.asarray(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))


def _smoothed(volume: Array) -> Array:
    """A Gaussian filter as one small matrix product an axis: many times faster than shifting and adding."""
    for axis, length in enumerate(volume.shape):
        weights = ndimage.gaussian_filter1d(np.eye(length, dtype=np.float64), SIGMA, axis=0, truncate=TRUNCATE)
        volume = np.moveaxis(np.tensordot(weights.astype(volume.dtype), volume, axes=(1, axis)), 0, axis)
    return volume


def ssim(
    predicted: Float[Array, "H W D"],
    truth: Float[Array, "H W D"],
    inside: Bool[Array, "H W D"],
    *,
    data_range: float | None = None,
) -> float:
    """Return the mean of `ssim_map` over the voxels of a mask; higher is better, -1 to 1.

    Windows reach beyond the mask: what lies there should be background in both. An empty mask or a constant truth
    gives NaN.

    Args:
        predicted: Predicted intensities, in the unit of the truth.
        truth: True intensities.
        inside: Voxels that count.
        data_range: Default: `intensity_range` of the truth inside the mask.

    Raises:
        ValueError: If `inside` is no mask, or shapes differ.
    """
    require_flags(inside)
    require_one_shape(predicted, truth, inside)
    span = intensity_range(truth[inside]) if data_range is None else data_range
    if not inside.any() or not span > 0:
        return math.nan
    return float(ssim_map(predicted, truth, span)[inside].mean())

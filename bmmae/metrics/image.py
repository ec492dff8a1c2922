"""How close a synthesised image is to the real one."""

from __future__ import annotations

import math

import numpy as np

from bmmae.arrays import Array, Bool, Float


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


def psnr(
    predicted: Float[Array, "*axes"],
    truth: Float[Array, "*axes"],
    inside: Bool[Array, "*axes"],
    *,
    fit: bool = False,
) -> float:
    """Return the peak signal-to-noise ratio inside a mask in dB; higher is better.

    The range is that between the 0.5 and 99.5 percentiles of the truth inside the mask. A perfect prediction gives
    infinity; an empty mask or a constant truth gives NaN.

    Args:
        predicted: Predicted intensities.
        truth: True intensities.
        inside: Voxels that count.
        fit: Map the prediction onto the truth by `affine_fit` first.
    """
    x, y = predicted[inside].astype(np.float64), truth[inside].astype(np.float64)
    if not len(y):
        return math.nan
    low, high = np.percentile(y, (0.5, 99.5))
    if high <= low:
        return math.nan
    if fit:
        slope, offset = affine_fit(x, y)
        x = slope * x + offset
    error = float(((x - y) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(float(high - low) ** 2 / error)

"""How close a synthesised image is to the real one, where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Bool, Float
from bmmae.metrics import affine_fit, psnr, ssim


@dataclass(frozen=True)
class Agreement:
    """Figures over the brain's voxels that the real image has; NaN where there is nothing to judge.

    The brain is that of the given images, outside which nothing is made. `bmmae.evaluation.native_synthesis` counts the
    real image's whole brain, so it gives lower figures where the given images cover a part of it, and else the same.

    Attributes:
        psnr: dB as written; higher is better.
        psnr_fitted: dB after the least-squares affine map onto the truth, as MR has no scale; higher is better.
        ssim: Mean structural similarity after that map; higher is better.
        covered: Share of the real image's voxels that are not 0 that these are; 1 where the given images' brain covers
            all of it. The lower it is, the less the others say of the whole.
    """

    psnr: float
    psnr_fitted: float
    ssim: float
    covered: float


def agreement(
    made: Float[np.ndarray, "X Y Z"], truth: Float[np.ndarray, "X Y Z"], brain: Bool[np.ndarray, "X Y Z"]
) -> Agreement:
    """Return how close a synthesised image is to the real one.

    Args:
        made: Synthesised intensities.
        truth: Real intensities; exactly 0 where nothing was scanned.
        brain: The brain.
    """
    mapped, inside = fitted(made, truth, brain)
    there = int(np.count_nonzero(truth))
    return Agreement(
        psnr=psnr(made, truth, inside),
        psnr_fitted=psnr(mapped, truth, inside),
        ssim=ssim(mapped, truth, inside),
        covered=int(np.count_nonzero(inside)) / there if there else np.nan,
    )


def fitted(
    made: Float[np.ndarray, "X Y Z"], truth: Float[np.ndarray, "X Y Z"], brain: Bool[np.ndarray, "X Y Z"]
) -> tuple[Float[np.ndarray, "X Y Z"], Bool[np.ndarray, "X Y Z"]]:
    """Map a synthesised image onto the real one by least squares.

    Returns:
        The mapped image, which is the real one outside the voxels compared: no window of SSIM at the brain's rim is
        judged by background. And the voxels compared.
    """
    inside = np.asarray(brain & (truth != 0))
    if not inside.any():
        return truth, inside
    slope, offset = affine_fit(made[inside], truth[inside])
    return np.where(inside, slope * made + offset, truth).astype(np.float32), inside

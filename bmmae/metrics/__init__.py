"""Metrics. Each states its sign, its unit, and what it does with an empty case."""

from bmmae.metrics.image import affine_fit, psnr
from bmmae.metrics.overlap import dice

__all__ = ["affine_fit", "dice", "psnr"]

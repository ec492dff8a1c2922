"""What may be done to predicted regions afterwards, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool
from bmmae.errors import ConfigError
from bmmae.metrics.lesions import TOUCHING


@dataclass(frozen=True)
class PostprocessConfig:
    """Cleaning of predicted regions.

    Attributes:
        fill_holes: Fill what a region encloses on all sides.
        smallest_mm3: Remove components smaller than this.
    """

    fill_holes: bool = True
    smallest_mm3: float = 20.0

    def __post_init__(self) -> None:
        if self.smallest_mm3 < 0:
            raise ConfigError(f"the smallest component must have zero or more mm3, got {self.smallest_mm3}")


@dataclass(frozen=True)
class Cleaned:
    """What postprocessing changed in one region.

    Attributes:
        filled_mm3: Volume of the holes that were filled.
        removed: Components that were removed.
        removed_mm3: Their volume.
    """

    filled_mm3: float
    removed: int
    removed_mm3: float

    def __str__(self) -> str:
        """As it is printed."""
        return (
            f"{self.filled_mm3 / 1000:.2f} ml of holes filled, {self.removed} components "
            f"({self.removed_mm3 / 1000:.2f} ml) removed"
        )


def clean_regions(
    masks: Bool[np.ndarray, "R X Y Z"], regions: Sequence[str], spacing: Sequence[float], config: PostprocessConfig
) -> tuple[Bool[np.ndarray, "R X Y Z"], Mapping[str, Cleaned]]:
    """Fill holes, then remove small components, region by region.

    Args:
        masks: Predicted regions, on a grid of known spacing; not changed.
        regions: Their names.
        spacing: Millimetres between voxels along each axis.
        config: What to do.

    Returns:
        The cleaned regions, and what changed in each.
    """
    voxel = prod(spacing)
    pairs = [_clean(mask, voxel, config) for mask in masks]
    return np.stack([mask for mask, _ in pairs]), dict(zip(regions, (told for _, told in pairs), strict=True))


def _clean(mask: Array, voxel: float, config: PostprocessConfig) -> tuple[Array, Cleaned]:
    if not mask.any():
        return mask, Cleaned(0.0, 0, 0.0)
    box = tuple(ndimage.find_objects(mask.astype(np.uint8))[0])
    inner = mask[box]
    filled = ndimage.binary_fill_holes(inner) if config.fill_holes else inner
    components, count = ndimage.label(filled, structure=TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    keep = sizes * voxel >= config.smallest_mm3
    keep[0] = False
    out = np.zeros_like(mask)
    out[box] = keep[components]
    gone = sizes[1:][~keep[1:]]
    return out, Cleaned(float(filled.sum() - inner.sum()) * voxel, len(gone), float(gone.sum()) * voxel)

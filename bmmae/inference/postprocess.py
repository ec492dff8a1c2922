"""What may be done to predicted regions afterwards, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool
from bmmae.data.labels import Coding
from bmmae.errors import ConfigError
from bmmae.metrics.lesions import TOUCHING

ROUNDING = 1e-6
"""Share of the least volume that a component may lack: of 1 mm3 along turned axes a rounded header makes 0.99999998."""


@dataclass(frozen=True)
class PostprocessConfig:
    """Cleaning of predicted regions.

    Attributes:
        fill_holes: Fill what a region encloses on all sides and no other region claims. A region inside another that
            holds none itself is left as it is: the hole in a ring of enhancing tumour is its necrosis.
        smallest_mm3: Remove components smaller than this.
    """

    fill_holes: bool = True
    smallest_mm3: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.smallest_mm3 < inf:
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
    masks: Bool[np.ndarray, "R X Y Z"], coding: Coding, spacing: Sequence[float], config: PostprocessConfig
) -> tuple[Bool[np.ndarray, "R X Y Z"], Mapping[str, Cleaned]]:
    """Fill holes, then remove small components, region by region.

    What a region inside another holds is the outer one's too, as in the labels that are written: oedema beside a core
    is one component with it, though the outer region's own mask may leave the core out.

    Args:
        masks: Predicted regions, on a grid of known spacing; not changed.
        coding: Names the regions, in the order of the masks, and says which lie inside which.
        spacing: Millimetres between voxels along each axis.
        config: What to do.

    Returns:
        The cleaned regions, and what changed in each.
    """
    parts = {name: set(values) for name, values in coding.regions.items()}
    given = dict(zip(parts, masks, strict=True))
    masks_of = {name: np.any([given[part] for part in parts if parts[part] <= parts[name]], axis=0) for name in parts}
    voxel, cleaned, told = prod(spacing), [], {}
    for name, mask in masks_of.items():
        outer = [other for other in parts if parts[other] > parts[name]]
        inner = [other for other in parts if parts[other] < parts[name]]
        fillable = config.fill_holes and not (outer and not inner)
        claims = [masks_of[other] for other in parts if other not in (name, *inner)]
        out, told[name] = _clean(mask, claims, voxel, config.smallest_mm3, fill=fillable)
        cleaned.append(out)
    return np.stack(cleaned), told


def _clean(mask: Array, claims: Sequence[Array], voxel: float, smallest: float, *, fill: bool) -> tuple[Array, Cleaned]:
    """Clean one region; voxels of the other regions in `claims` are theirs, not holes of this one."""
    if not mask.any():
        return mask, Cleaned(0.0, 0, 0.0)
    box = tuple(ndimage.find_objects(mask.astype(np.uint8))[0])
    inside = mask[box]
    filled = inside
    if fill:
        taken = np.any([other[box] for other in claims], axis=0) if claims else np.zeros_like(inside)
        filled = inside | (ndimage.binary_fill_holes(inside) & ~taken)
    components, count = ndimage.label(filled, structure=TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    keep = sizes * voxel >= smallest * (1 - ROUNDING)
    keep[0] = False
    out = np.zeros_like(mask)
    out[box] = keep[components]
    gone = sizes[1:][~keep[1:]]
    return out, Cleaned(float(filled.sum() - inside.sum()) * voxel, len(gone), float(gone.sum()) * voxel)

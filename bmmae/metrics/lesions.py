"""How many lesions are found, and how many are found where there are none.

A lesion is a connected component; voxels that touch by a face, an edge or a corner are connected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bmmae.arrays import Bool, Int
from bmmae.metrics.flags import require_flags

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a face, an edge or a corner are one lesion."""

LEAST_OVERLAP = 0.1
"""Share of a lesion that has to be predicted for it to count as found (Commowick 2018 uses the same)."""


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one study and region.

    Attributes:
        true: Lesions that are there.
        found: Those of which at least the least overlap is predicted.
        predicted: Predicted components.
        false: Those of which less than the least overlap lies in a lesion.
    """

    true: int
    found: int
    predicted: int
    false: int

    @property
    def sensitivity(self) -> float:
        """Share of the lesions that are found; higher is better. No lesion: NaN."""
        return self.found / self.true if self.true else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted components that lie in a lesion; higher is better. Nothing predicted: NaN."""
        return 1 - self.false / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision; higher is better, 0 to 1.

        No lesion and nothing predicted: NaN. One of the two: 0.
        """
        if not self.true and not self.predicted:
            return math.nan
        if not self.true or not self.predicted or not self.found:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def count_lesions(
    predicted: Bool[np.ndarray, "H W D"], truth: Bool[np.ndarray, "H W D"], least_overlap: float = LEAST_OVERLAP
) -> LesionCounts:
    """Count true, found, predicted and false lesions.

    Args:
        predicted: Predicted mask.
        truth: True mask.
        least_overlap: Share of a component's voxels that has to lie in the other mask, above 0 and at most 1.

    Raises:
        ValueError: If they are no masks of one shape.
    """
    _, found = match_lesions(truth, predicted, least_overlap)
    _, right = match_lesions(predicted, truth, least_overlap)
    return LesionCounts(
        true=len(found), found=int(found.sum()), predicted=len(right), false=int(len(right) - right.sum())
    )


def match_lesions(
    mask: Bool[np.ndarray, "H W D"], other: Bool[np.ndarray, "H W D"], least_overlap: float = LEAST_OVERLAP
) -> tuple[Int[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
    """Return the voxels of each of a mask's components, and whether enough of it lies in another mask.

    Args:
        mask: Whose components are asked about.
        other: Where they may lie.
        least_overlap: Share of a component's voxels that has to lie there, above 0 and at most 1; one voxel at least.

    Raises:
        ValueError: If they are no masks of one shape.
    """
    require_flags(mask, other)
    components, count = ndimage.label(mask, structure=TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    inside = np.bincount(components[other], minlength=count + 1)[1:]
    return sizes, inside >= np.maximum(least_overlap * sizes, 1)

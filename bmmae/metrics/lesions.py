"""How many lesions are found, and how many are found where there are none.

A lesion is a connected component; voxels that touch by a face, an edge or a corner are connected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool

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
    """
    there, true = _covered(truth, predicted, least_overlap)
    right, components = _covered(predicted, truth, least_overlap)
    return LesionCounts(true=true, found=there, predicted=components, false=components - right)


def _covered(mask: Array, other: Array, least: float) -> tuple[int, int]:
    """Return how many of a mask's components are covered by the other, and how many there are."""
    components, count = ndimage.label(mask, structure=TOUCHING)
    if not count:
        return 0, 0
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(components[other], minlength=count + 1)[1:]
    return int((covered >= np.maximum(least * sizes, 1)).sum()), int(count)

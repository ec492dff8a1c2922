"""All that is said about one region of one study: in volume, at its surface, and by lesion.

What is not defined is NaN, left out of means and counted:

| truth | prediction | Dice, surface Dice, F1 | HD95 | sensitivity | volume error (relative) | false lesions |
|---|---|---|---|---|---|---|
| empty | empty | NaN | NaN | NaN | 0 ml (NaN) | 0 |
| empty | something | 0 | the image's diagonal | NaN | its volume (NaN) | its components |
| something | empty | 0 | the image's diagonal | 0 | minus its volume (-1) | 0 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Bool
from bmmae.metrics.lesions import count_lesions
from bmmae.metrics.overlap import dice, relative_volume_error, volume_error
from bmmae.metrics.surface import hd95, surface_dice


@dataclass(frozen=True)
class RegionMetrics:
    """Metrics of one region of one study, on the whole volume.

    Attributes:
        dice: Dice coefficient; higher is better.
        hd95: 95 % Hausdorff distance in mm; lower is better.
        surface_dice: Share of the surfaces within the tolerance; higher is better.
        lesion_f1: F1 by lesion; higher is better.
        lesion_sensitivity: Share of the lesions found; higher is better.
        false_lesions: Predicted components where there is no lesion; lower is better.
        lesions: Lesions that are there.
        volume_error_ml: Predicted minus true volume; 0 is best.
        volume_error_relative: The same over the true volume; 0 is best.
        true_ml: True volume.
    """

    dice: float
    hd95: float
    surface_dice: float
    lesion_f1: float
    lesion_sensitivity: float
    false_lesions: int
    lesions: int
    volume_error_ml: float
    volume_error_relative: float
    true_ml: float


def region_metrics(
    predicted: Bool[np.ndarray, "H W D"],
    truth: Bool[np.ndarray, "H W D"],
    spacing: Sequence[float],
    *,
    tolerance: float = 1.0,
) -> RegionMetrics:
    """Compare a predicted region with the true one.

    Args:
        predicted: Predicted mask, the whole volume.
        truth: True mask on the same grid.
        spacing: Millimetres between voxels along each axis.
        tolerance: Of the surface Dice, in millimetres.

    Raises:
        ValueError: If they are no masks of one shape, or spacings are missing.
    """
    lesions = count_lesions(predicted, truth)
    nothing = np.zeros_like(truth)
    return RegionMetrics(
        dice=dice(predicted, truth),
        hd95=hd95(predicted, truth, spacing),
        surface_dice=surface_dice(predicted, truth, spacing, tolerance),
        lesion_f1=lesions.f1,
        lesion_sensitivity=lesions.sensitivity,
        false_lesions=lesions.false,
        lesions=lesions.true,
        volume_error_ml=volume_error(predicted, truth, spacing),
        volume_error_relative=relative_volume_error(predicted, truth),
        true_ml=volume_error(truth, nothing, spacing),
    )

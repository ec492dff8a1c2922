"""How well predicted and true regions agree in volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bmmae.arrays import Bool
from bmmae.metrics.flags import require_flags, require_spacing


def dice(predicted: Bool[np.ndarray, "*axes"], truth: Bool[np.ndarray, "*axes"]) -> float:
    """Return the Dice coefficient; higher is better, 0 to 1.

    Both empty: NaN (nothing to find, nothing found; such cases are left out of means and counted). One empty: 0.

    Raises:
        ValueError: If they are no masks of one shape.
    """
    require_flags(predicted, truth)
    total = int(predicted.sum()) + int(truth.sum())
    if total == 0:
        return math.nan
    return 2 * int((predicted & truth).sum()) / total


def volume_error(
    predicted: Bool[np.ndarray, "*axes"], truth: Bool[np.ndarray, "*axes"], spacing: Sequence[float]
) -> float:
    """Return the predicted volume minus the true one in millilitres; 0 is best, defined for empty masks too.

    Args:
        predicted: Predicted mask.
        truth: True mask.
        spacing: Millimetres between voxels along each axis.

    Raises:
        ValueError: If they are no masks of one shape, or spacings are missing.
    """
    require_flags(predicted, truth)
    require_spacing(spacing, truth)
    return (int(predicted.sum()) - int(truth.sum())) * math.prod(spacing) / 1000


def relative_volume_error(predicted: Bool[np.ndarray, "*axes"], truth: Bool[np.ndarray, "*axes"]) -> float:
    """Return the predicted volume over the true one, minus 1; 0 is best, -1 where nothing is predicted.

    Empty truth: NaN, whatever is predicted; `volume_error` says how much that is.

    Raises:
        ValueError: If they are no masks of one shape.
    """
    require_flags(predicted, truth)
    true = int(truth.sum())
    return math.nan if true == 0 else int(predicted.sum()) / true - 1

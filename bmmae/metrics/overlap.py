"""How well predicted and true regions agree."""

from __future__ import annotations

import math

import numpy as np

from bmmae.arrays import Bool


def dice(predicted: Bool[np.ndarray, "*axes"], truth: Bool[np.ndarray, "*axes"]) -> float:
    """Return the Dice coefficient; higher is better, 0 to 1.

    Both empty: NaN (nothing to find, nothing found; such cases are left out of means and counted). One empty: 0.
    """
    total = int(predicted.sum()) + int(truth.sum())
    if total == 0:
        return math.nan
    return 2 * int((predicted & truth).sum()) / total

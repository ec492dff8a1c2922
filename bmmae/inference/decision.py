"""From probabilities to regions: where to cut."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np

from bmmae.arrays import Bool, Float
from bmmae.errors import ConfigError

Cut: TypeAlias = float | Literal["dice"]
"""A probability, or `dice`: each region of each study where its expected Dice is largest."""

NEGLIGIBLE = 1e-4
"""Probabilities below are never part of a region: there are millions of such voxels, and sorting them takes seconds."""


def parse_cut(text: str) -> Cut:
    """Read `dice` or a probability.

    Raises:
        ConfigError: If it is neither.
    """
    if text == "dice":
        return "dice"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ConfigError(f"regions are cut at a probability between 0 and 1, or at 'dice'; got '{text}'")
    return value


def regions_of(
    probabilities: Float[np.ndarray, "R X Y Z"], cut: Cut
) -> tuple[Bool[np.ndarray, "R X Y Z"], tuple[float, ...]]:
    """Return the regions, and the probability that each was cut at."""
    cuts = tuple(best_cut(part) if cut == "dice" else cut for part in probabilities)
    return probabilities > np.array(cuts, dtype=np.float32)[:, None, None, None], cuts


def best_cut(probabilities: Float[np.ndarray, "X Y Z"]) -> float:
    """Return the probability above which the expected Dice is largest; 1 if that of nothing at all is larger still.

    Voxels are taken as independent and the sum over them as known, as in RankSEG (Dai and Li, JMLR 2023); with nothing
    predicted Dice is 1 if nothing is there, and 0 else. The better the probabilities, the better the cut.
    """
    total = float(probabilities.sum(dtype=np.float64))
    ranked = np.sort(probabilities[probabilities > NEGLIGIBLE])[::-1].astype(np.float64)
    if not len(ranked):
        return 1.0
    expected = 2 * np.cumsum(ranked) / (np.arange(1, len(ranked) + 1) + total)
    count = int(expected.argmax()) + 1
    if math.exp(-total) >= expected[count - 1]:
        return 1.0
    below = ranked[count] if count < len(ranked) else NEGLIGIBLE
    return float((ranked[count - 1] + below) / 2)

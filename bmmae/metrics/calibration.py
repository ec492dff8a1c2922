"""Do predicted probabilities mean what they say? As module `classification`: one row a patient, NaN if not defined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int

BINS = 10
ROUNDING = 1e-6
"""By which a probability may leave 0 to 1."""


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed, in bins of equal width that hold somebody.

    Attributes:
        predicted: Mean predicted probability of each bin.
        observed: Share of the bin's patients to whom it happened.
        count: Patients of the bin.
    """

    predicted: Float[Array, " K"]
    observed: Float[Array, " K"]
    count: Int[Array, " K"]


def calibration_outcome(
    probabilities: Float[Array, "N C"], label: Int[Array, " N"]
) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """Return the probability whose calibration is judged, and whether it came true.

    With two classes that is the probability of class 1, as clinical reports draw it; with more, that of the likeliest
    class (Guo et al., ICML 2017).
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], label == 1
    likeliest = probabilities.argmax(axis=1)
    return probabilities.max(axis=1), likeliest == label


def reliability(predicted: Float[Array, " N"], happened: Bool[Array, " N"], bins: int = BINS) -> Reliability:
    """Bin predicted probabilities of an event and return what was predicted and what happened in each bin.

    Args:
        predicted: 0 to 1.
        happened: Whether the event came true.
        bins: How many bins between 0 and 1; a value on an edge belongs to the upper bin, 1 to the last.

    Raises:
        ValueError: If a value is not from 0 to 1.
    """
    if not ((predicted >= -ROUNDING) & (predicted <= 1 + ROUNDING)).all():
        raise ValueError(f"expected probabilities from 0 to 1, got {predicted.min():.3g} to {predicted.max():.3g}")
    index = np.minimum((predicted * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    held = count > 0
    sums = (np.bincount(index, weights=values, minlength=bins)[held] for values in (predicted, happened))
    means = [total / count[held] for total in sums]
    return Reliability(means[0], means[1], count[held])


def expected_calibration_error(predicted: Float[Array, " N"], happened: Bool[Array, " N"], bins: int = BINS) -> float:
    """Return the mean distance of predicted from observed over bins, weighted by patients; lower is better, 0 to 1.

    It depends on the number of bins and is biased upwards in few patients. NaN without patients.

    Raises:
        ValueError: If a value is not from 0 to 1.
    """
    if not len(predicted):
        return math.nan
    found = reliability(predicted, happened, bins)
    return float((np.abs(found.predicted - found.observed) * found.count).sum() / len(predicted))


def brier_score(probabilities: Float[Array, "N C"], label: Int[Array, " N"]) -> float:
    """Return the mean squared error of the probabilities; lower is better. NaN without patients.

    With two classes it is that of class 1, 0 to 1; with more it is summed over the classes, 0 to 2 (Brier, 1950).
    """
    if not len(label):
        return math.nan
    if probabilities.shape[1] == 2:
        return float(((probabilities[:, 1] - (label == 1)) ** 2).mean())
    truth = label[:, None] == np.arange(probabilities.shape[1])
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())

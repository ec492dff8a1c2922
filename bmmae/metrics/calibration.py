"""Do predicted probabilities mean what they say? As module `classification`: one row a patient, NaN if not defined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.metrics.flags import require_flags, require_one_shape

BINS = 10
ROUNDING = 1e-6
"""By which a probability may leave 0 to 1."""
CERTAIN = 1e-6
"""Probabilities nearer to 0 or 1 count as this near: the logit of certainty is infinite."""
STEPS = 200
"""Of Newton's method at most, each of 1 or less along every coefficient."""
TINY = 1e-12
"""Added to a curvature that may have vanished."""


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
    _require_probabilities(predicted)
    index = np.minimum((predicted * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    held = count > 0
    sums = (np.bincount(index, weights=values, minlength=bins)[held] for values in (predicted, happened))
    means = [total / count[held] for total in sums]
    return Reliability(means[0], means[1], count[held])


def _require_probabilities(predicted: Float[Array, " N"]) -> None:
    if not ((predicted >= -ROUNDING) & (predicted <= 1 + ROUNDING)).all():
        raise ValueError(f"expected probabilities from 0 to 1, got {predicted.min():.3g} to {predicted.max():.3g}")


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


def calibration_slope(predicted: Float[Array, " N"], happened: Bool[Array, " N"]) -> float:
    """Return by how much the logits of the predicted probabilities have to be multiplied to fit what happened best.

    1 is best; below 1, predictions are too extreme (as of a model that has learned its patients by heart), above 1 too
    cautious. NaN where it is not defined: one kind of patient alone, one value for all, or kinds that do not overlap.
    Source: Cox, Biometrika 45 (1958); logistic regression without a penalty, by Newton's method.

    Raises:
        ValueError: If a value is not from 0 to 1, `happened` is no array of bools, or lengths differ.
    """
    score = _logits(predicted, happened)
    if _one_kind(happened):
        return math.nan
    yes, no = score[happened], score[~happened]
    if yes.min() >= no.max() or no.min() >= yes.max():
        return math.nan
    design = np.stack([np.ones_like(score), (score - score.mean()) / score.std()])
    return float(_most_likely(design, np.zeros_like(score), happened)[1] / score.std())


def calibration_in_the_large(predicted: Float[Array, " N"], happened: Bool[Array, " N"]) -> float:
    """Return what has to be added to the logits of the predicted probabilities so that their mean is what happened.

    0 is best; above 0 it happened more often than predicted (say, in a hospital of graver cases), below 0 less often.
    NaN where it happened to all or to nobody.

    Raises:
        ValueError: If a value is not from 0 to 1, `happened` is no array of bools, or lengths differ.
    """
    score = _logits(predicted, happened)
    if _one_kind(happened):
        return math.nan
    return float(_most_likely(np.ones((1, len(score))), score, happened)[0])


def _most_likely(
    design: Float[Array, "K N"], score: Float[Array, " N"], happened: Bool[Array, " N"]
) -> Float[Array, " K"]:
    """Return the coefficients of a logistic regression without a penalty, beside a score; NaN if none are found."""
    found = np.zeros(len(design))
    for _ in range(STEPS):
        now = expit(found @ design + score)
        curvature = (design * (now * (1 - now))) @ design.T
        step = np.linalg.solve(curvature + TINY * np.eye(len(design)), design @ (happened - now))
        found += step / max(1.0, np.abs(step).max())  # longer steps can leap past the maximum, and never come back
        if np.abs(step).max() < CERTAIN:
            return found
    return np.full(len(design), math.nan)


def net_benefit(
    predicted: Float[Array, " N"], happened: Bool[Array, " N"], thresholds: Float[Array, " T"]
) -> Float[Array, " T"]:
    """Return what treating all patients at or above a probability gains, in true positives a patient.

    A false positive costs `threshold / (1 - threshold)` of a true one: who treats from that probability on says that it
    weighs so much. To compare with: 0 of treating nobody, and treating all, as if all probabilities were 1.
    Source: Vickers and Elkin, Medical Decision Making 26 (2006). NaN without patients.

    Args:
        predicted: 0 to 1.
        happened: Whether the event came true.
        thresholds: Probabilities, from 0 to below 1.

    Raises:
        ValueError: If a value is not from 0 to 1, a threshold is not below 1, `happened` is no array of bools, or
            lengths differ.
    """
    _require_judged(predicted, happened)
    if not ((thresholds >= 0) & (thresholds < 1)).all():
        raise ValueError("expected thresholds from 0 to below 1")
    if not len(predicted):
        return np.full(len(thresholds), math.nan)
    treated = predicted[None] >= thresholds[:, None]
    right, wrong = (treated & happened).mean(axis=1), (treated & ~happened).mean(axis=1)
    return np.asarray(right - wrong * thresholds / (1 - thresholds))


def _one_kind(happened: Bool[Array, " N"]) -> bool:
    return not len(happened) or bool(happened.all() or not happened.any())


def _require_judged(predicted: Float[Array, " N"], happened: object) -> None:
    require_flags(happened)
    require_one_shape(predicted, happened)
    _require_probabilities(predicted)


def _logits(predicted: Float[Array, " N"], happened: object) -> Float[Array, " N"]:
    _require_judged(predicted, happened)
    return np.asarray(logit(np.clip(predicted.astype(np.float64), CERTAIN, 1 - CERTAIN)))

"""How well predicted classes and probabilities agree with the truth.

Every function takes one row a patient and visit, and returns plain numbers. Classes are numbered from 0; where there
are two, class 1 is the positive one. They equal scikit-learn's functions of the same name, but take a tenth of their
time, as intervals call them thousands of times. What is not defined (a class that nobody has, nobody at all) is NaN,
so that a caller can leave it out and count it; no other value ever stands for "not defined".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.metrics.calibration import (
    brier_score,
    calibration_in_the_large,
    calibration_outcome,
    calibration_slope,
    expected_calibration_error,
)
from bmmae.metrics.flags import require_flags, require_one_shape

Figure: TypeAlias = Callable[[Array, Array], float]
"""A number from predictions and truth, one row a patient each."""


def require_numbers(score: Float[Array, " N"]) -> None:
    """Refuse scores that are no numbers: sorted or compared, they would pass for chance.

    Raises:
        ValueError: If one is NaN.
    """
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN: nothing was predicted there")


def require_scored(positive: object, *scores: Float[Array, " N"]) -> None:
    """Refuse what cannot be ranked against a truth.

    Raises:
        ValueError: If a score is NaN, `positive` is no array of bools, or lengths differ.
    """
    for score in scores:
        require_numbers(score)
    require_flags(positive)
    require_one_shape(*scores, positive)


def auc(score: Float[Array, " N"], positive: Bool[Array, " N"]) -> float:
    """Return the area under the receiver operating characteristic; higher is better, 0.5 is chance.

    It is the probability that a positive scores higher than a negative; ties count half. NaN without both kinds.

    Raises:
        ValueError: If a score is NaN, `positive` is no array of bools, or their lengths differ.
    """
    require_scored(positive, score)
    cases, controls = score[positive], np.sort(score[~positive])
    if not len(cases) or not len(controls):
        return math.nan
    beaten = np.searchsorted(controls, cases, "left") + np.searchsorted(controls, cases, "right")
    return float(beaten.sum()) / (2 * len(cases) * len(controls))


def average_precision(score: Float[Array, " N"], positive: Bool[Array, " N"]) -> float:
    """Return the step-wise area under precision over recall; higher is better, chance is the share of positives.

    NaN without positives or without negatives (then every score is perfect).

    Raises:
        ValueError: If a score is NaN, `positive` is no array of bools, or their lengths differ.
    """
    require_scored(positive, score)
    positives = int(positive.sum())
    if not positives or positives == len(positive):
        return math.nan
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # a difference of two infinite scores is none
    found = np.cumsum(positive[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / positives)


def pair_auc(probabilities: Float[Array, "N C"], label: Int[Array, " N"], pair: tuple[int, int]) -> float:
    """Return the AUC of two classes among the patients of the two: Hand and Till's, the mean of both directions.

    Source: Hand and Till, Machine Learning 45 (2001), section 2. NaN where one of the two has nobody.
    """
    one, two = pair
    inside = (label == one) | (label == two)
    scores, truth = probabilities[inside], label[inside]
    return (auc(scores[:, one], truth == one) + auc(scores[:, two], truth == two)) / 2


def confusion_matrix(predicted: Int[Array, " N"], label: Int[Array, " N"], classes: int) -> Int[Array, "C C"]:
    """Return how many patients of each true class (row) were given each class (column).

    Raises:
        ValueError: If a number is none of a class: it would be counted elsewhere.
    """
    for numbers in (predicted, label):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(
                f"expected numbers of {classes} classes, 0 to {classes - 1}, got {numbers.min()} to {numbers.max()}"
            )
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def accuracy(matrix: Int[Array, "C C"]) -> float:
    """Return the share of patients given their class, of a confusion matrix; higher is better. NaN without patients."""
    return _share(float(np.trace(matrix)), float(matrix.sum()))


def sensitivities(matrix: Int[Array, "C C"]) -> Float[Array, " C"]:
    """Return each class's recall, of a confusion matrix; higher is better. NaN for a class that nobody has."""
    return _shares(np.diag(matrix), matrix.sum(axis=1))


def specificities(matrix: Int[Array, "C C"]) -> Float[Array, " C"]:
    """Return the share of the other classes' patients not given a class. NaN for a class that everybody has."""
    others = matrix.sum() - matrix.sum(axis=1)
    return _shares(others - (matrix.sum(axis=0) - np.diag(matrix)), others)


def precisions(matrix: Int[Array, "C C"]) -> Float[Array, " C"]:
    """Return the share of the patients given a class who have it; higher is better. NaN for a class never given."""
    return _shares(np.diag(matrix), matrix.sum(axis=0))


def _macro_precisions(matrix: Int[Array, "C C"]) -> Float[Array, " C"]:
    """Return what a mean is taken of: of several classes, 0 for one that somebody has and nobody is given."""
    found = precisions(matrix)
    return found if len(matrix) == 2 else np.where(np.isnan(found) & (matrix.sum(axis=1) > 0), 0.0, found)


def f1_scores(matrix: Int[Array, "C C"]) -> Float[Array, " C"]:
    """Return each class's harmonic mean of precision and recall; NaN for a class neither had nor given."""
    return _shares(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1))


def balanced_accuracy(matrix: Int[Array, "C C"]) -> float:
    """Return the mean recall over the classes that somebody has; higher is better. NaN without patients."""
    return defined_mean(sensitivities(matrix))


def macro_f1(matrix: Int[Array, "C C"]) -> float:
    """Return the mean F1 over the classes that somebody has or is given; higher is better. NaN without patients."""
    return defined_mean(f1_scores(matrix))


def top_k(probabilities: Float[Array, "N C"], label: Int[Array, " N"], k: int) -> float:
    """Return the share of patients whose class is among the k likeliest; higher is better. NaN without patients.

    A class that ties with the k-th counts as below it: a constant prediction gains nothing.

    Raises:
        ValueError: If a probability is NaN.
    """
    require_numbers(probabilities.max(axis=1))
    own = np.take_along_axis(probabilities, label[:, None], axis=1)
    return _share(float(((probabilities >= own).sum(axis=1) <= k).sum()), float(len(label)))


def classification_figures(classes: Sequence[str]) -> dict[str, Figure]:
    """Return every figure of this module and of `calibration` by name; the class given is the (first) likeliest.

    With two classes, `auc`, `average_precision`, `precision`, `sensitivity` and `specificity` are those of class 1, and
    there are `calibration_slope` and `calibration_in_the_large`; with more they are means over the classes, and
    `auc_<class>` and `auc_<class>_<class>` are listed too. A mean AUC or average precision over classes one of which
    nobody has would be another quantity: it is NaN.

    Args:
        classes: Names of the classes, in the order of their numbers.

    Returns:
        Functions of probabilities Float[N, C] and labels Int[N].
    """
    count = len(classes)
    kept = range(1, 2) if count == 2 else range(count)

    def of_matrix(figure: Callable[[Array], float]) -> Figure:
        return lambda given, label: figure(confusion_matrix(given.argmax(axis=1), label, count))

    def over_classes(figure: Figure) -> Figure:
        return lambda given, label: float(np.mean([figure(given[:, index], label == index) for index in kept]))

    found: dict[str, Figure] = {
        "auc": over_classes(auc),
        "average_precision": over_classes(average_precision),
        "accuracy": of_matrix(accuracy),
        "balanced_accuracy": of_matrix(balanced_accuracy),
        "macro_f1": of_matrix(macro_f1),
        "precision": of_matrix(lambda matrix: defined_mean(_macro_precisions(matrix)[kept])),
        "sensitivity": of_matrix(lambda matrix: defined_mean(sensitivities(matrix)[kept])),
        "specificity": of_matrix(lambda matrix: defined_mean(specificities(matrix)[kept])),
        "ece": lambda given, label: expected_calibration_error(*calibration_outcome(given, label)),
        "brier": brier_score,
    }
    return found | (_calibration_of_two() if count == 2 else _figures_of_many(classes))


def _calibration_of_two() -> dict[str, Figure]:
    return {
        "calibration_slope": lambda given, label: calibration_slope(given[:, 1], label == 1),
        "calibration_in_the_large": lambda given, label: calibration_in_the_large(given[:, 1], label == 1),
    }


def _figures_of_many(classes: Sequence[str]) -> dict[str, Figure]:
    def of_class(index: int) -> Figure:
        return lambda given, label: auc(given[:, index], label == index)

    def of_pair(pair: tuple[int, int]) -> Figure:
        return lambda given, label: pair_auc(given, label, pair)

    pairs = combinations(range(len(classes)), 2)
    return {
        "top_2": lambda given, label: top_k(given, label, 2),
        **{f"auc_{name}": of_class(index) for index, name in enumerate(classes)},
        **{f"auc_{classes[one]}_{classes[two]}": of_pair((one, two)) for one, two in pairs},
    }


def classification_metrics(
    probabilities: Float[Array, "N C"], label: Int[Array, " N"], classes: Sequence[str]
) -> dict[str, float]:
    """Return the values of all `classification_figures`.

    Args:
        probabilities: Of each class; rows sum to 1.
        label: Number of the true class.
        classes: Names of the classes.
    """
    return {name: figure(probabilities, label) for name, figure in classification_figures(classes).items()}


def defined_mean(values: Float[Array, " C"]) -> float:
    """Return the mean of the values that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _shares(parts: Array, wholes: Array) -> Float[Array, " C"]:
    return np.asarray(np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0))

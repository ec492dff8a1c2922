"""How well predicted classes and probabilities agree with the truth.

Every function takes one row a patient and visit, and returns plain numbers. Classes are numbered from 0; where there
are two, class 1 is the positive one. They equal scikit-learn's functions of the same name, but take a tenth of their
time, as intervals call them thousands of times. What is not defined (a class that nobody has, nobody at all) is NaN,
so that a caller can leave it out and count it; no other value ever stands for "not defined".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.metrics.calibration import brier_score, calibration_outcome, expected_calibration_error


def auc(score: Float[Array, " N"], positive: Bool[Array, " N"]) -> float:
    """Return the area under the receiver operating characteristic; higher is better, 0.5 is chance.

    It is the probability that a positive scores higher than a negative; ties count half. NaN without both kinds.
    """
    cases, controls = score[positive], np.sort(score[~positive])
    if not len(cases) or not len(controls):
        return math.nan
    beaten = np.searchsorted(controls, cases, "left") + np.searchsorted(controls, cases, "right")
    return float(beaten.sum()) / (2 * len(cases) * len(controls))


def average_precision(score: Float[Array, " N"], positive: Bool[Array, " N"]) -> float:
    """Return the step-wise area under precision over recall; higher is better, chance is the share of positives.

    NaN without positives or without negatives (then every score is perfect).
    """
    positives = int(positive.sum())
    if not positives or positives == len(positive):
        return math.nan
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    found = np.cumsum(positive[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / positives)


def class_aucs(probabilities: Float[Array, "N C"], label: Int[Array, " N"]) -> tuple[float, ...]:
    """Return each class's AUC against all others; NaN for a class that nobody or everybody has."""
    return tuple(auc(probabilities[:, index], label == index) for index in range(probabilities.shape[1]))


def pair_aucs(probabilities: Float[Array, "N C"], label: Int[Array, " N"]) -> dict[tuple[int, int], float]:
    """Return the AUC of each pair of classes among the patients of the two: Hand and Till's, both directions' mean.

    Source: Hand and Till, Machine Learning 45 (2001), section 2. NaN where one of the two has nobody.
    """
    found = {}
    for one, two in combinations(range(probabilities.shape[1]), 2):
        inside = (label == one) | (label == two)
        scores, truth = probabilities[inside], label[inside]
        found[one, two] = (auc(scores[:, one], truth == one) + auc(scores[:, two], truth == two)) / 2
    return found


def confusion_matrix(predicted: Int[Array, " N"], label: Int[Array, " N"], classes: int) -> Int[Array, "C C"]:
    """Return how many patients of each true class (row) were given each class (column)."""
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
    """
    own = np.take_along_axis(probabilities, label[:, None], axis=1)
    return _share(float(((probabilities >= own).sum(axis=1) <= k).sum()), float(len(label)))


def classification_metrics(
    probabilities: Float[Array, "N C"], label: Int[Array, " N"], classes: Sequence[str]
) -> dict[str, float]:
    """Return every figure of this module and of `calibration` by name; the class given is the (first) likeliest.

    With two classes, `auc`, `average_precision`, `precision`, `sensitivity` and `specificity` are those of class 1;
    with more they are means over the classes, and `auc_<class>` and `auc_<class>_<class>` are listed too. A mean AUC
    or average precision over classes one of which nobody has would be another quantity: it is NaN.

    Args:
        probabilities: Of each class; rows sum to 1.
        label: Number of the true class.
        classes: Names of the classes.
    """
    count = len(classes)
    matrix = confusion_matrix(probabilities.argmax(axis=1), label, count)
    each = class_aucs(probabilities, label)
    areas = [average_precision(probabilities[:, index], label == index) for index in range(count)]
    kept = slice(1, 2) if count == 2 else slice(None)
    found = {
        "auc": float(np.mean(each[kept])),
        "average_precision": float(np.mean(areas[kept])),
        "accuracy": accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "precision": defined_mean(precisions(matrix)[kept]),
        "sensitivity": defined_mean(sensitivities(matrix)[kept]),
        "specificity": defined_mean(specificities(matrix)[kept]),
        "ece": expected_calibration_error(*calibration_outcome(probabilities, label)),
        "brier": brier_score(probabilities, label),
    }
    if count > 2:
        found["top_2"] = top_k(probabilities, label, 2)
        found |= {f"auc_{name}": value for name, value in zip(classes, each, strict=True)}
        pairs = pair_aucs(probabilities, label)
        found |= {f"auc_{classes[one]}_{classes[two]}": value for (one, two), value in pairs.items()}
    return found


def defined_mean(values: Float[Array, " C"]) -> float:
    """Return the mean of the values that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _shares(parts: Array, wholes: Array) -> Float[Array, " C"]:
    return np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)

"""How good are predicted classes? For every model and subset, beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bmmae.arrays import Array, Int
from bmmae.errors import CohortError
from bmmae.evaluation.comparison import Comparison, corrected_t, delong, paired_bootstrap
from bmmae.evaluation.intervals import DRAWS
from bmmae.evaluation.pairing import Pairing, pairings
from bmmae.evaluation.predictions import ClassPredictions
from bmmae.evaluation.scores import Score, score_folds
from bmmae.metrics import auc, classification_figures, confusion_matrix


def evaluate_classes(predictions: ClassPredictions, *, draws: int = DRAWS, seed: int = 0) -> list[Score]:
    """Return every figure of `classification_figures` for every model, subset and fold, and their mean over folds.

    Rows whose class is not known are left out.

    Args:
        predictions: Of patients whom their fold's model has not seen.
        draws: Bootstrap draws of patients for the intervals.
        seed: Of the draws.

    Raises:
        CohortError: If no class is known.
    """
    known = predictions.known
    if not known.keys:
        raise CohortError(f"none of {len(predictions.keys)} predictions has a known class: expected a column 'label'")

    figures = classification_figures(known.classes)

    def statistic(rows: Int[Array, " R"]) -> Mapping[str, float]:
        given, label = known.probabilities[rows], known.label[rows]
        return {name: figure(given, label) for name, figure in figures.items()}

    return score_folds(known.keys, lambda _: statistic, draws=draws, seed=seed)


def confusion(predictions: ClassPredictions, model: str, subset: str) -> Int[Array, "C C"]:
    """Return how many known patients of each class (row) a model gave each class (column), summed over folds."""
    known = predictions.known
    rows = [i for i, key in enumerate(known.keys) if (key.model, key.subset) == (model, subset)]
    chosen = known.take(np.array(rows, int))
    return confusion_matrix(chosen.probabilities.argmax(axis=1), chosen.label, len(known.classes))


def compare_classes(
    predictions: ClassPredictions, reference: str, *, metric: str = "auc", draws: int = DRAWS, seed: int = 0
) -> list[tuple[str, str, Comparison]]:
    """Compare each model, from each subset, with a reference model on the patients that both have predicted.

    Over two folds or more: the corrected t-test over folds, and the paired bootstrap of patients. In one fold of two
    classes: DeLong's test of the AUC (left out if a patient has several rows), and the paired bootstrap.

    Args:
        predictions: Of all models; their rows are paired by fold and study.
        reference: Name of the model to compare with: say, the clinical-only one.
        metric: Name of the figure.
        draws: Bootstrap draws.
        seed: Of the draws.

    Returns:
        Model, subset and comparison (model minus reference).

    Raises:
        CohortError: If there is no such figure or model, or a model shares no study with it.
    """
    known = predictions.known
    figures = classification_figures(known.classes)
    if metric not in figures:
        raise CohortError(f"no figure '{metric}': expected one of {', '.join(figures)}")

    def value(rows: Int[Array, " R"]) -> float:
        return figures[metric](known.probabilities[rows], known.label[rows])

    found = []
    for pair in pairings(known.keys, reference):
        gain = pair.mean_difference(lambda _, rows: value(rows))
        tests = [paired_bootstrap(gain, pair.groups, pair.folds.tolist(), draws=draws, seed=seed)]
        if len(pair.each_fold) > 1:
            folds = [value(one) - value(two) for one, two in pair.each_fold.values()]
            tests.append(corrected_t(folds, pair.test_share))
        elif metric == "auc" and len(known.classes) == 2 and len(set(pair.groups)) == len(pair.groups):
            tests.append(_delong(known, pair))
        found += [(pair.model, pair.subset, test) for test in tests]
    return found


def _delong(known: ClassPredictions, pair: Pairing) -> Comparison:
    one, two = (known.probabilities[rows, 1] for rows in (pair.one, pair.two))
    return delong(one, two, known.label[pair.one] == 1)


def roc_curve(predictions: ClassPredictions, positive: int) -> tuple[Array, Array, float]:
    """Return false and true positive rates over all thresholds, and the AUC, of one class against all others.

    Give it the rows of one model, subset and fold: scores of different models do not rank together.
    """
    score, truth = predictions.probabilities[:, positive], predictions.label == positive
    area = auc(score, truth)
    if math.isnan(area):
        return np.zeros(0), np.zeros(0), area
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    found, wrong = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    return np.append(0, wrong / wrong[-1]), np.append(0, found / found[-1]), area

"""Classification and calibration metrics: hand-computed cases, scikit-learn's values, and what is not defined."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from bmmae.arrays import Array
from bmmae.metrics import (
    auc,
    average_precision,
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    pair_auc,
    reliability,
    top_k,
)

NAMES = ("lung", "breast", "skin", "kidney")


def drawn(classes: int, seed: int, patients: int = 80) -> tuple[Array, Array]:
    """Probabilities, many of them tied, and labels that go with them."""
    draw = np.random.default_rng(seed)
    label = draw.integers(classes, size=patients)
    scores = np.round(draw.normal(size=(patients, classes)) + np.eye(classes)[label], 1)
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), label


def test_auc_by_hand() -> None:
    # Positives 0.9 and 0.4 against negatives 0.5 and 0.4: won, won, lost, tied.
    assert auc(np.array([0.9, 0.4, 0.5, 0.4]), np.array([True, True, False, False])) == 2.5 / 4


@pytest.mark.parametrize("metric", [auc, average_precision])
def test_scores_that_are_no_numbers_are_refused(metric: Callable[[Array, Array], float]) -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        metric(np.array([math.nan, 0.5]), np.array([True, False]))


def test_average_precision_by_hand() -> None:
    # Found at ranks 1 and 3: half of 1/1 plus half of 2/3.
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == pytest.approx(0.5 + 1 / 3)


@pytest.mark.parametrize("first", [True, False])
def test_infinite_scores_that_tie_are_found_together(first: bool) -> None:
    positive = np.array([first, not first, False])
    assert average_precision(np.array([np.inf, np.inf, 0.0]), positive) == 0.5
    assert average_precision(np.array([0.0, -np.inf, -np.inf]), np.array([False, first, not first])) == 1 / 3


def test_confusion_rows_are_the_truth() -> None:
    assert confusion_matrix(np.array([1, 1, 0]), np.array([0, 1, 1]), 2).tolist() == [[0, 1], [1, 1]]


def test_calibration_error_by_hand() -> None:
    # Bins [0, .5) and [.5, 1]: 0.2 predicted, 0 of 1 happened; 0.7 predicted, 1 of 2 happened.
    predicted, happened = np.array([0.2, 0.6, 0.8]), np.array([False, True, False])
    assert expected_calibration_error(predicted, happened, 2) == pytest.approx(0.2 / 3 + 0.2 * 2 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_equal_scikit_learn(seed: int) -> None:
    probabilities, label = drawn(2, seed)
    found = classification_metrics(probabilities, label, ("benign", "malignant"))
    positive, given = probabilities[:, 1], probabilities.argmax(axis=1)
    expected = {
        "auc": reference.roc_auc_score(label, positive),
        "average_precision": reference.average_precision_score(label, positive),
        "accuracy": reference.accuracy_score(label, given),
        "balanced_accuracy": reference.balanced_accuracy_score(label, given),
        "macro_f1": reference.f1_score(label, given, average="macro"),
        "precision": reference.precision_score(label, given),
        "sensitivity": reference.recall_score(label, given),
        "specificity": reference.recall_score(label, given, pos_label=0),
        "brier": reference.brier_score_loss(label, positive),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert set(found) == {*expected, "ece", "calibration_slope", "calibration_in_the_large"}


@pytest.mark.parametrize("seed", range(3))
def test_four_classes_equal_scikit_learn(seed: int) -> None:
    probabilities, label = drawn(4, seed)
    found = classification_metrics(probabilities, label, NAMES)
    given = probabilities.argmax(axis=1)
    rest = reference.multilabel_confusion_matrix(label, given)
    expected = {
        "auc": reference.roc_auc_score(label, probabilities, multi_class="ovr"),
        "average_precision": reference.average_precision_score(np.eye(4)[label], probabilities, average="macro"),
        "balanced_accuracy": reference.balanced_accuracy_score(label, given),
        "macro_f1": reference.f1_score(label, given, average="macro"),
        "precision": reference.precision_score(label, given, average="macro"),
        "sensitivity": reference.recall_score(label, given, average="macro"),
        "specificity": np.mean(rest[:, 0, 0] / rest[:, 0].sum(axis=1)),
        "brier": reference.brier_score_loss(label, probabilities, labels=range(4)),
        "auc_skin": reference.roc_auc_score(label == 2, probabilities[:, 2]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    pairs = {pair: pair_auc(probabilities, label, pair) for pair in combinations(range(4), 2)}
    assert np.mean(list(pairs.values())) == pytest.approx(
        reference.roc_auc_score(label, probabilities, multi_class="ovo")
    )
    assert found["auc_lung_kidney"] == pairs[0, 3]


def test_reliability_equals_scikit_learn() -> None:
    probabilities, label = drawn(2, 5)
    found = reliability(probabilities[:, 1], label == 1)
    observed, predicted = calibration_curve(label, probabilities[:, 1], n_bins=10)
    assert found.observed == pytest.approx(observed)
    assert found.predicted == pytest.approx(predicted)
    assert found.count.sum() == len(label)


def test_one_class_alone_is_not_defined_and_never_a_score() -> None:
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4]])
    found = classification_metrics(probabilities, np.array([1, 1]), ("benign", "malignant"))
    assert math.isnan(found["auc"])
    assert math.isnan(found["average_precision"])
    assert math.isnan(found["specificity"])
    assert found["sensitivity"] == 0.5


def test_a_class_that_nobody_has_leaves_the_mean_auc_undefined() -> None:
    probabilities, label = drawn(3, 0)
    known = label < 2
    found = classification_metrics(probabilities[known], label[known], NAMES[:3])
    assert [math.isnan(found[f"auc_{name}"]) for name in NAMES[:3]] == [False, False, True]
    assert math.isnan(found["auc"])
    assert math.isnan(found["auc_breast_skin"])
    assert not math.isnan(found["auc_lung_breast"])


def test_nobody_gives_nothing() -> None:
    found = classification_metrics(np.empty((0, 3)), np.empty(0, int), NAMES[:3])
    assert all(math.isnan(value) for value in found.values())


def test_top_k_without_ties_equals_scikit_learn() -> None:
    probabilities, label = np.random.default_rng(1).dirichlet(np.ones(4), 60), np.arange(60) % 4
    for k in (1, 2, 3):
        expected = reference.top_k_accuracy_score(label, probabilities, k=k)
        assert top_k(probabilities, label, k) == pytest.approx(expected)


def test_a_constant_prediction_gains_no_place_among_the_likeliest() -> None:
    assert top_k(np.full((6, 3), 1 / 3), np.array([0, 1, 2, 0, 1, 2]), 2) == 0


def test_a_class_that_is_never_given_lowers_the_precision_of_several() -> None:
    label = np.array([0, 0, 0, 0, 1, 2])
    always = np.tile([0.8, 0.1, 0.1], (6, 1))
    found = classification_metrics(always, label, ("a", "b", "c"))["precision"]
    assert found == pytest.approx(reference.precision_score(label, always.argmax(1), average="macro", zero_division=0))

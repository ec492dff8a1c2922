"""Whatever is fitted is fitted to training rows alone: planted leaks must not move the score."""

from __future__ import annotations

import sys
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from bmmae.baselines.feature_table import hide
from bmmae.baselines.loss_weights import HIGHEST, LOWEST, search_loss_weights
from bmmae.baselines.preparation import BlockPreparation, BorderlineOversampling, MissingFlags
from bmmae.baselines.tabular import METHODS, NETWORKS, prepared_blocks, table_classifier
from bmmae.errors import ConfigError, LabelError, ModalityError

BLOCKS = {"t1": tuple(range(100)), "flair": tuple(range(100, 200))}
SMALL = {"t1": (0, 1, 2), "flair": (3, 4)}
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)


def noise(count: int = 80, columns: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, columns)), (np.arange(count) % 4 == 0).astype(int)


def small(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X, y = noise(count, 5, seed)
    return X + 2 * y[:, None], y


def out_of_fold(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    return float(roc_auc_score(y, cross_val_predict(model, X, y, cv=FOLDS, method="predict_proba")[:, 1]))


def test_columns_chosen_on_all_patients_leak_and_inside_the_fold_they_do_not() -> None:
    X, y = noise()
    best = np.argsort(-f_classif(X, y)[0])[:20]
    assert out_of_fold(LogisticRegression(C=0.1), X[:, best], y) > 0.75
    scores = []
    for seed in range(3):
        X, y = noise(seed=seed)
        scores.append(out_of_fold(table_classifier("logistic_regression", BLOCKS, BLOCKS, keep=10), X, y))
    assert abs(np.mean(scores) - 0.5) < 0.12


def test_labels_hidden_in_test_rows_are_not_found() -> None:
    """A column that tells the class in the rows of one fold alone: nothing fitted to the others can know it."""
    X, y = noise()
    train, test = next(FOLDS.split(X, y))
    X[test, 7] = 100.0 * y[test]
    model = table_classifier("logistic_regression", BLOCKS, BLOCKS, keep=10).fit(X[train], y[train])
    assert 7 not in model["prepare"].kept_["t1"]


def test_preparation_is_not_moved_by_rows_it_was_not_fitted_to() -> None:
    X, y = small()
    model = table_classifier("random_forest", SMALL, SMALL).fit(X[:30], y[:30])
    alone = model.predict_proba(X[30:31])
    crowd = np.concatenate([X[30:31], X[31:] * 1000])
    np.testing.assert_array_equal(model.predict_proba(crowd)[:1], alone)


class Counting(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Remembers how many rows of each class it was fitted to."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Counting:
        self.classes_, self.counts_ = np.unique(y, return_counts=True)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X), dtype=int)


def test_only_training_rows_are_oversampled() -> None:
    X, y = small()
    model = table_classifier("logistic_regression", SMALL, SMALL)
    model.steps[-1] = ("model", Counting())
    model.fit(X[:30], y[:30])
    assert model["model"].counts_.tolist() == [(y[:30] == 0).sum()] * 2
    assert len(model.predict(X[30:])) == 10
    plain = table_classifier("logistic_regression", SMALL, SMALL, oversample=False)
    plain.steps[-1] = ("model", Counting())
    assert plain.fit(X[:30], y[:30])["model"].counts_.sum() == 30


def test_oversampling_keeps_the_rows_given() -> None:
    X, y = small()
    rows, labels = BorderlineOversampling().fit_resample(X, y)
    np.testing.assert_array_equal(rows[:40], X)
    np.testing.assert_array_equal(labels[:40], y)
    assert (labels[40:] == 1).all()


def test_columns_kept_of_a_modality_do_not_depend_on_the_others() -> None:
    X, y = noise()
    both = BlockPreparation(BLOCKS, 5).fit(X, y)
    alone = BlockPreparation({"flair": BLOCKS["flair"]}, 5).fit(X, y)
    assert both.kept_["flair"] == alone.kept_["flair"]
    np.testing.assert_array_equal(both.transform(X)[:, 5:], alone.transform(X))
    assert dict(prepared_blocks(BLOCKS, 5)) == {"t1": (0, 1, 2, 3, 4), "flair": (5, 6, 7, 8, 9)}


def test_gaps_are_filled_and_absent_modalities_are_not() -> None:
    X, y = small()
    X[0, 0] = np.nan
    prepared = BlockPreparation(SMALL).fit(X, y).transform(hide(X, SMALL, ["t1"]))
    assert np.isfinite(prepared[:, :3]).all()
    assert np.isnan(prepared[:, 3:]).all()


@pytest.mark.parametrize("train", [np.nan, 3.0])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "missing_flags"])
def test_a_column_that_tells_training_nothing_moves_no_test_patient(method: str, train: float) -> None:
    X, y = small()
    X[:, 1] = train
    model = table_classifier(method, SMALL, SMALL).fit(X, y)
    strange = X[:4].copy()
    strange[:, 1] = 1e6
    np.testing.assert_array_equal(model.predict_proba(strange), model.predict_proba(X[:4]))


@pytest.mark.parametrize("method", ["logistic_regression", "random_forest", "gradient_boosting"])
def test_plain_models_refuse_patients_without_their_modalities(method: str) -> None:
    X, y = small()
    model = table_classifier(method, SMALL, SMALL).fit(X, y)
    with pytest.raises(ModalityError, match="a patient lacks t1, which all training patients had"):
        model.predict_proba(hide(X, SMALL, ["flair"]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_predicts_from_the_modalities_present(method: str) -> None:
    X, y = small()
    X[y == 1, 0] = np.nan
    model = clone(table_classifier(method, SMALL, ["t1"], random_state=1)).fit(X, y)
    given = model.predict_proba(hide(X, SMALL, ["t1"]))
    np.testing.assert_allclose(given.sum(axis=1), 1)
    assert roc_auc_score(y, given[:, 1]) > 0.8
    np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(hide(X, SMALL, ["t1"])), given)


@pytest.mark.parametrize("method", METHODS)
def test_a_table_with_a_column_more_or_no_array_is_refused(method: str) -> None:
    X, y = small()
    model = table_classifier(method, SMALL, tuple(SMALL), oversample=False).fit(X, y)
    jaxtyping.config.update("jaxtyping_disable", True)  # tests refuse other types by themselves
    try:
        for wrong in (np.concatenate([y[:, None], X], axis=1), pd.DataFrame(X)):
            with pytest.raises(ModalityError, match="expected an array of 5 columns, as in training, got"):
                model.predict(wrong)
        with pytest.raises(ConfigError, match="expected the table as a NumPy array, got DataFrame"):
            model.fit(pd.DataFrame(X), y)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_flags_know_nothing_but_gaps() -> None:
    X, y = small()
    assert not MissingFlags(SMALL).fit(X, y).transform(X).any()
    assert not table_classifier("missing_flags", SMALL, SMALL).fit(X, y).predict(X).any()  # the larger class
    X[3, 4] = np.nan
    assert MissingFlags({"flair": (4,)}).fit(X, y).transform(X).tolist() == [[float(row == 3)] for row in range(40)]
    score = table_classifier("missing_flags", SMALL, SMALL).fit(X, y).predict_proba(X[:3])[:, 1]
    assert len(set(score)) == 1


def test_prepared_rows_can_be_kept_in_a_folder(tmp_path: Any) -> None:
    X, y = small()
    first, second = (
        table_classifier("logistic_regression", SMALL, SMALL, memory=memory).fit(X, y).predict_proba(X)
        for memory in (None, str(tmp_path))
    )
    np.testing.assert_array_equal(first, second)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_fitted_is_refused(method: str) -> None:
    X, y = small()
    with pytest.raises(LabelError, match="two classes or more, got only \\[0\\]"):
        table_classifier(method, SMALL, SMALL).fit(X, 0 * y)
    with pytest.raises(LabelError, match="one label for each of 40 patients, got 39"):
        table_classifier(method, SMALL, SMALL).fit(X, y[1:])
    with pytest.raises(ModalityError, match="modality 'flair' has no columns"):
        table_classifier(method, {**SMALL, "flair": ()}, SMALL).fit(X, y)
    with pytest.raises(ModalityError, match="unknown modality 'swi': expected one of t1, flair"):
        table_classifier(method, SMALL, ["swi"])
    with pytest.raises(ModalityError, match="expected one modality or more"):
        table_classifier(method, SMALL, [])


def test_what_cannot_be_prepared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = small()
    with pytest.raises(ModalityError, match="no training patient has modality 'flair'"):
        BlockPreparation(SMALL).fit(hide(X, SMALL, ["t1"]), y)
    with pytest.raises(ConfigError, match="keep must be 1 or more"):
        BlockPreparation(SMALL, 0).fit(X, y)
    with pytest.raises(ModalityError, match="needs training patients with every modality"):
        BorderlineOversampling().fit_resample(hide(X, SMALL, ["t1"]), y)
    with pytest.raises(LabelError, match="two patients of each class"):
        BorderlineOversampling().fit_resample(X, (np.arange(40) == 0).astype(int))
    with pytest.raises(ConfigError, match="unknown method 'svm': expected one of missing"):
        table_classifier("svm", SMALL, SMALL)
    with pytest.raises(ConfigError, match="'random_forest' has no loss weights"):
        table_classifier("random_forest", SMALL, SMALL, weights={"classification": 1.0})
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(ConfigError, match=r"needs imbalanced-learn.*pip install 'bmmae\[tables\]'"):
        BorderlineOversampling().fit_resample(X, y)


@pytest.mark.slow
@pytest.mark.parametrize("method", NETWORKS)
def test_loss_weights_are_found_in_range_and_again(method: str) -> None:
    X, y = small()
    search = lambda: search_loss_weights(method, SMALL, X, y, trials=3, folds=2)  # noqa: E731
    found = search()
    assert found == search()
    assert found.loss == min(found.losses)
    assert len(found.losses) == 3
    assert sum(found.importances.values()) == pytest.approx(1)
    flat = [
        found.weights["classification"],
        *dict(found.weights.get("reconstruction") if method == NETWORKS[0] else {}).values(),
    ]
    assert all(LOWEST <= weight <= HIGHEST for weight in flat)
    if method == NETWORKS[0]:
        assert set(found.weights["reconstruction"]) == set(SMALL)
        assert set(found.importances) == {"classification", "reconstruction_t1", "reconstruction_flair"}
    table_classifier(method, SMALL, ["t1"], weights=found.weights).fit(X, y)


def test_impossible_searches_are_refused() -> None:
    X, y = small()
    with pytest.raises(ConfigError, match="'random_forest' has no loss weights"):
        search_loss_weights("random_forest", SMALL, X, y)
    with pytest.raises(ConfigError, match="two trials or more"):
        search_loss_weights("mfn_vae", SMALL, X, y, trials=1)
    with pytest.raises(LabelError, match="11 inner folds need 11 patients of each class or more, got 10"):
        search_loss_weights("mfn_vae", SMALL, X, y, folds=11)

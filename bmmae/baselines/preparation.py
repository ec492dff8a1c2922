"""What is fitted to a feature table before any model: filling gaps, scaling, choosing columns, oversampling.

Each is a step of a pipeline, so that it is fitted to the training rows of a fold and to nothing else. A modality that a
patient lacks altogether stays NaN: it is absent, and no average is put in its place.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_selection import f_classif
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import QuantileTransformer

from bmmae.arrays import Array, Bool, Float
from bmmae.baselines.feature_table import Blocks
from bmmae.errors import ConfigError, LabelError, ModalityError

EXTRAS = {
    "imblearn": ("imbalanced-learn", "tables"),
    "optuna": ("optuna", "tables"),
    "radiomics": ("pyradiomics", "radiomics"),
    "SimpleITK": ("SimpleITK", "radiomics"),
}
"""Import name to package and to the extra of bmmae that brings it."""


class BlockPreparation(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Fill gaps with the median, map each column to a normal distribution, and keep the best columns of each modality.

    Columns are ranked within their modality by the F statistic between the classes, so that what is kept of one
    modality does not depend on which others are present. Each modality keeps the same number of columns in each fold;
    where too few vary among the training rows, the rest are 0 for everybody: nothing could be learned of them.

    Args:
        blocks: Positions of columns by modality.
        keep: Columns kept of each modality, at most.
        whole: Refuse patients who lack a modality that all training patients had, for models that know no absence.

    Attributes:
        kept_: By modality, the positions kept, best first.
        widths_: By modality, how many; the columns of the result are those of the first modality, then the second ...
    """

    def __init__(self, blocks: Blocks, keep: int = 16, whole: bool = False) -> None:
        self.blocks = blocks
        self.keep = keep
        self.whole = whole

    def fit(self, X: Float[Array, "patients columns"], y: Array) -> BlockPreparation:
        """Fit to training rows; a modality's own columns are fitted to the patients who have it.

        Raises:
            LabelError: If there are fewer than two classes.
            ModalityError: If a modality has no column, or no training patient has it.
            ConfigError: If no column is to be kept.
        """
        check_training(X, y, self.blocks)
        if self.keep < 1:
            raise ConfigError(f"keep must be 1 or more, got {self.keep}")
        self.n_features_in_ = X.shape[1]
        self._needed = ~absent(X, self.blocks).any(axis=0) & self.whole
        self._fitted = {name: self._fit_block(name, X, y) for name in self.blocks}
        self.kept_ = {name: tuple(self.blocks[name][best] for best in fit[2]) for name, fit in self._fitted.items()}
        self.widths_ = {name: len(kept) for name, kept in self.kept_.items()}
        return self

    def transform(self, X: Float[Array, "patients columns"]) -> Array:
        """Return the kept columns, filled and scaled; NaN where a patient lacks the modality.

        Raises:
            ModalityError: If that is refused (`whole`), or the table has another number of columns than in training.
        """
        require_columns(X, self.n_features_in_)
        lacking = np.flatnonzero((absent(X, self.blocks) & self._needed).any(axis=0))
        if len(lacking):
            names = [list(self.blocks)[place] for place in lacking]
            raise ModalityError(
                f"a patient lacks {', '.join(names)}, which all training patients had: predict those who have all of "
                f"{', '.join(self.blocks)}, or make a model of fewer"
            )
        parts = []
        for name, (imputer, scaler, best, varies) in self._fitted.items():
            part = X[:, list(self.blocks[name])]
            prepared = np.full((len(part), len(best)), np.nan)
            present = ~np.isnan(part).all(axis=1)
            if present.any():
                prepared[present] = (scaler.transform(imputer.transform(part[present])) * varies)[:, best]
            parts.append(prepared)
        return np.concatenate(parts, axis=1)

    def _fit_block(self, name: str, X: Array, y: Array) -> tuple[SimpleImputer, QuantileTransformer, Array, Array]:
        """Fitted steps, the columns kept, and which columns vary."""
        part = X[:, list(self.blocks[name])]
        present = ~np.isnan(part).all(axis=1)
        if not present.any():
            raise ModalityError(
                f"no training patient has modality '{name}': expected some, or leave it out of the blocks"
            )
        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        scaler = QuantileTransformer(n_quantiles=int(min(present.sum(), 1000)), output_distribution="normal")
        scaled = scaler.fit_transform(imputer.fit_transform(part[present]))
        order = np.argsort(-_f_statistic(scaled, y[present]), kind="stable")
        return imputer, scaler, order[: self.keep], np.ptp(scaled, axis=0) > 0


class MissingFlags(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Which cells are empty, and nothing else: what a model can learn from gaps alone.

    Args:
        blocks: Positions of columns by modality; cells of other columns do not count.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def fit(self, X: Float[Array, "patients columns"], y: Array) -> MissingFlags:
        """Remember the number of columns; nothing is learned.

        Raises:
            LabelError: If there are fewer than two classes.
            ModalityError: If a modality has no column.
        """
        check_training(X, y, self.blocks)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: Float[Array, "patients columns"]) -> Array:
        """Return 1 where a cell is empty and 0 where it is filled.

        Raises:
            ModalityError: If the table has another number of columns than in training.
        """
        require_columns(X, self.n_features_in_)
        columns = [column for block in self.blocks.values() for column in block]
        return np.isnan(X[:, columns]).astype(float)


class BorderlineOversampling(BaseEstimator):  # type: ignore[misc]
    """Borderline-SMOTE: new patients of the smaller classes, between real ones near the border to another class.

    Pipelines of imbalanced-learn apply it in `fit` only. Neighbours are limited to what the smallest class offers; a
    class of one patient cannot be oversampled.

    Args:
        random_state: Of the draws.

    Source: Han, Wang and Mao (2005), as imbalanced-learn implements it.
    """

    def __init__(self, random_state: int | None = 0) -> None:
        self.random_state = random_state

    def fit_resample(self, X: Float[Array, "patients columns"], y: Array) -> tuple[Array, Array]:
        """Return the rows given and new ones of the smaller classes, as many as the largest class has.

        Raises:
            ModalityError: If a patient lacks a modality: between a row and one with gaps there is nothing.
            LabelError: If a class has fewer than two patients.
            ConfigError: If imbalanced-learn is not installed.
        """
        if np.isnan(X).any():
            raise ModalityError("oversampling needs training patients with every modality: leave the others out, or it")
        smallest = int(np.unique(y, return_counts=True)[1].min())
        if smallest < 2:
            raise LabelError("oversampling needs two patients of each class or more, got one of a class")
        oversampling = require("imblearn.over_sampling", "Oversampling").BorderlineSMOTE(
            k_neighbors=min(5, smallest - 1), m_neighbors=min(10, len(y) - 1), random_state=self.random_state
        )
        rows, labels = oversampling.fit_resample(X, y)
        return np.asarray(rows), np.asarray(labels)


def check_training(X: Float[Array, "patients columns"], y: Array, blocks: Blocks) -> None:
    """Refuse what nothing can be fitted to.

    Raises:
        LabelError: If there are fewer than two classes, or not one label a row.
        ModalityError: If a modality has no column, or a block lies outside the table.
        ConfigError: If the table is no array.
    """
    if not isinstance(X, np.ndarray):
        raise ConfigError(f"expected the table as a NumPy array, got {type(X).__name__}: columns go by their place")
    if len(y) != len(X):
        raise LabelError(f"expected one label for each of {len(X)} patients, got {len(y)}")
    classes = np.unique(y)
    if len(classes) < 2:
        raise LabelError(f"expected patients of two classes or more, got only {classes.tolist()}")
    for name, block in blocks.items():
        if not len(block):
            raise ModalityError(f"modality '{name}' has no columns: expected one or more")
        if max(block) >= X.shape[1] or min(block) < 0:
            raise ModalityError(f"modality '{name}' has column {max(block)}, but the table has {X.shape[1]} columns")
    if not blocks:
        raise ModalityError("expected one modality or more, got no blocks")


def require_columns(X: Float[Array, "patients columns"], count: int) -> None:
    """Refuse a table whose columns stand elsewhere than in training.

    Raises:
        ModalityError: If it is no array of that many columns.
    """
    if not isinstance(X, np.ndarray) or X.shape[1:] != (count,):
        raise ModalityError(
            f"expected an array of {count} columns, as in training, got {type(X).__name__} {np.shape(X)}: hidden "
            "modalities keep their columns, as NaN"
        )


def absent(X: Float[Array, "patients columns"], blocks: Blocks) -> Bool[Array, "patients modalities"]:
    """Return which modalities each patient lacks: all of their columns are NaN."""
    return np.stack([np.isnan(X[:, list(block)]).all(axis=1) for block in blocks.values()], axis=1)


def require(module: str, purpose: str) -> Any:
    """Import an optional library.

    Args:
        module: Its import name, submodules included.
        purpose: What needs it, as the start of a sentence.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package, extra = EXTRAS[module.partition(".")[0]]
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed: run `pip install 'bmmae[{extra}]'`"
        ) from error


def _f_statistic(X: Array, y: Array) -> Array:
    """F between the classes, 0 for a constant column."""
    constant = np.ptp(X, axis=0) == 0
    statistic = np.zeros(X.shape[1])
    if len(np.unique(y)) > 1 and not constant.all():
        statistic[~constant] = f_classif(X[:, ~constant], y)[0]
    return np.nan_to_num(statistic, nan=0.0, posinf=np.finfo(float).max)

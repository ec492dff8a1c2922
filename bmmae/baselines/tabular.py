"""Classifiers of feature tables for a subset of modalities, from table to class, as pipelines.

Whatever is fitted (gaps, scaling, choice of columns, oversampling, model) is a step, so that cross-validation of the
pipeline fits it to training folds alone. Plain models see the present modalities only; the Missing Modality Transformer
also sees the others of training patients, as targets of reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from bmmae.baselines.feature_table import Blocks, chosen
from bmmae.baselines.mfn_vae import MFNVAE
from bmmae.baselines.missing_modality_transformer import MissingModalityTransformer
from bmmae.baselines.preparation import BlockPreparation, BorderlineOversampling, MissingFlags, require
from bmmae.baselines.table_network import Subsets
from bmmae.errors import ConfigError

NETWORKS: Final = ("missing_modality_transformer", "mfn_vae")
PLAIN: Final = ("logistic_regression", "random_forest", "gradient_boosting", "missing_flags")
METHODS: Final = NETWORKS + PLAIN
KEEP: Final = 16
"""Columns kept of each modality."""


def table_classifier(
    method: str,
    blocks: Blocks,
    present: Iterable[str],
    *,
    keep: int = KEEP,
    oversample: bool = True,
    weights: Mapping[str, Any] | None = None,
    random_state: int = 0,
    memory: str | None = None,
) -> Any:
    """Return an untrained pipeline with `fit`, `predict` and `predict_proba`.

    Tables given to `predict` may hold the columns of absent modalities as NaN (`hide`); those given to `fit` of the
    Missing Modality Transformer hold them. Plain models and networks refuse to predict patients without the modalities
    that they were made for, where all training patients had them.

    Args:
        method: One of `METHODS`. `missing_flags` is a logistic regression on which cells are empty: what it reaches, no
            model has earned.
        blocks: Positions of columns by modality.
        present: Modalities that patients have.
        keep: Columns kept of each modality, at most.
        oversample: Whether Borderline-SMOTE evens out the classes; needs imbalanced-learn. Flags are left as they are.
        weights: Loss weights of a network, as `search_loss_weights` finds them.
        random_state: Of whatever is random.
        memory: Folder in which prepared rows are kept, so that several models of the same rows prepare them once.

    Raises:
        ConfigError: If the method is unknown, or imbalanced-learn is needed and not installed.
        ModalityError: If a modality is unknown, or none is present.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
    names = chosen(present, tuple(blocks))
    visible = {name: tuple(blocks[name]) for name in names}
    if method == "missing_flags":
        # Not weighted by class: without gaps everyone is then given the larger class, which a model has to beat.
        model = LogisticRegression(max_iter=2000)
        return Pipeline([("prepare", MissingFlags(visible)), ("model", model)])
    used = dict(blocks) if method == "missing_modality_transformer" else visible
    final = _model(method, prepared_blocks(used, keep), (names,), dict(weights or {}), random_state)
    steps: list[tuple[str, BaseEstimator]] = [
        ("prepare", BlockPreparation(used, keep, whole=method in PLAIN)),
        ("model", final),
    ]
    if not oversample:
        return Pipeline(steps, memory=memory)
    steps.insert(1, ("oversample", BorderlineOversampling(random_state)))
    return require("imblearn.pipeline", "Oversampling").Pipeline(steps, memory=memory)


def network(method: str, blocks: Blocks, subsets: Subsets | None, weights: Mapping[str, Any], seed: int) -> Any:
    """Return an untrained network for prepared columns.

    Raises:
        ConfigError: If the method is no network.
    """
    if method not in NETWORKS:
        raise ConfigError(f"'{method}' is no network with loss weights: expected one of {', '.join(NETWORKS)}")
    kind = MissingModalityTransformer if method == "missing_modality_transformer" else MFNVAE
    return kind(blocks, subsets, random_state=seed, **weights)


def prepared_blocks(blocks: Blocks, keep: int = KEEP) -> Blocks:
    """Return where the columns of each modality are after `BlockPreparation`."""
    found, start = {}, 0
    for name, block in blocks.items():
        width = min(keep, len(block))
        found[name] = tuple(range(start, start + width))
        start += width
    return found


def _model(method: str, blocks: Blocks, subsets: Subsets, weights: dict[str, Any], seed: int) -> BaseEstimator:
    if method in NETWORKS:
        return network(method, blocks, subsets, weights, seed)
    if weights:
        raise ConfigError(f"'{method}' has no loss weights: expected none, got {', '.join(weights)}")
    if method == "logistic_regression":
        return LogisticRegression(C=0.1, max_iter=2000)
    if method == "random_forest":
        return RandomForestClassifier(200, random_state=seed)
    return GradientBoostingClassifier(random_state=seed)

"""Search for the loss weights of networks on tables, with Optuna, inside a training fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from bmmae.arrays import Array, Float
from bmmae.baselines.feature_table import Blocks
from bmmae.baselines.preparation import BlockPreparation, BorderlineOversampling, check_training, require
from bmmae.baselines.tabular import KEEP, network, prepared_blocks
from bmmae.errors import ConfigError, LabelError

LOWEST, HIGHEST = 0.1, 1.0
"""Range of each weight, as in the paper."""


@dataclass(frozen=True)
class WeightSearch:
    """What a search found.

    Attributes:
        weights: The best, as keyword arguments of the network.
        loss: Cross-entropy of the best on the inner folds, lower is better.
        losses: Of each trial, in order.
        importances: Share of each weight in the variance of the loss between trials (functional ANOVA; they sum to 1).
    """

    weights: Mapping[str, Any]
    loss: float
    losses: tuple[float, ...]
    importances: Mapping[str, float]


def search_loss_weights(
    method: str,
    blocks: Blocks,
    X: Float[Array, "patients columns"],
    y: Array,
    *,
    trials: int = 20,
    folds: int = 3,
    keep: int = KEEP,
    random_state: int = 0,
) -> WeightSearch:
    """Search the loss weights of a network on patients who have every modality.

    The Missing Modality Transformer has a reconstruction weight for each modality, and where nothing is missing there
    is nothing to reconstruct. So it trains with subsets drawn at random here; it is judged with all modalities present.
    The result is meant for every subset.

    Args:
        method: `missing_modality_transformer` or `mfn_vae`.
        blocks: Positions of columns by modality.
        X: The training rows of one outer fold.
        y: Their labels.
        trials: Weights tried; the first are the network's defaults.
        folds: Inner folds; columns are chosen, gaps filled and classes evened out in each anew.
        keep: Columns kept of each modality, at most.
        random_state: Of folds, trials and networks.

    Raises:
        ConfigError: If the method has no loss weights, fewer than two trials are asked for, or Optuna is not installed.
        LabelError: If a class has fewer patients than there are folds.

    Source: importances as in Hutter, Hoos and Leyton-Brown (2014).
    """
    optuna = require("optuna", "The search for loss weights")
    suggest, first = _space(method, tuple(blocks))
    if trials < 2:
        raise ConfigError(f"expected two trials or more, got {trials}")
    parts = _inner_parts(blocks, X, y, folds=folds, keep=keep, seed=random_state)
    subsets = None if method == "missing_modality_transformer" else (tuple(blocks),)

    def objective(trial: Any) -> float:
        model = network(method, prepared_blocks(blocks, keep), subsets, suggest(trial), random_state)
        return float(np.mean([_inner_loss(model, *part) for part in parts]))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=random_state))
        study.enqueue_trial(first)
        study.optimize(objective, n_trials=trials)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=random_state)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return WeightSearch(
        weights=suggest(optuna.trial.FixedTrial(study.best_params)),
        loss=float(study.best_value),
        losses=tuple(float(trial.value) for trial in study.trials),
        importances={name: float(share) for name, share in importances.items()},
    )


def _space(method: str, names: tuple[str, ...]) -> tuple[Callable[[Any], dict[str, Any]], dict[str, float]]:
    """What a trial tries, and the first trial's values."""

    def draw(trial: Any, name: str) -> float:
        return float(trial.suggest_float(name, LOWEST, HIGHEST))

    if method == "missing_modality_transformer":
        return (
            lambda trial: {
                "classification": draw(trial, "classification"),
                "reconstruction": {name: draw(trial, f"reconstruction_{name}") for name in names},
            },
            {"classification": 1.0, **{f"reconstruction_{name}": 0.5 for name in names}},
        )
    if method == "mfn_vae":
        parts = {"classification": 1.0, "reconstruction": 0.5, "divergence": 0.1}
        return lambda trial: {name: draw(trial, name) for name in parts}, parts
    raise ConfigError(f"'{method}' has no loss weights: expected missing_modality_transformer or mfn_vae")


def _inner_parts(
    blocks: Blocks, X: Array, y: Array, *, folds: int, keep: int, seed: int
) -> list[tuple[Array, Array, Array, Array]]:
    check_training(X, y, blocks)
    smallest = int(np.unique(y, return_counts=True)[1].min())
    if smallest < folds:
        raise LabelError(f"{folds} inner folds need {folds} patients of each class or more, got {smallest} of a class")
    parts = []
    for train, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(X, y):
        preparation = BlockPreparation(blocks, keep).fit(X[train], y[train])
        rows, labels = BorderlineOversampling(seed).fit_resample(preparation.transform(X[train]), y[train])
        parts.append((rows, labels, preparation.transform(X[held]), y[held]))
    return parts


def _inner_loss(model: Any, rows: Array, labels: Array, held: Array, truth: Array) -> float:
    fitted = model.fit(rows, labels)
    return float(log_loss(truth, fitted.predict_proba(held), labels=fitted.classes_))

"""Predictions of made-up patients by made-up models, of known quality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmmae.arrays import Array
from bmmae.evaluation.predictions import ClassPredictions, PredictionKey, SurvivalPredictions

SUBSETS = ("t1ce", "t1ce+flair")


def keys(models: Sequence[str], subsets: Sequence[str] = SUBSETS, patients: int = 60) -> tuple[PredictionKey, ...]:
    """One row a model, subset and patient; patients in three folds."""
    return tuple(
        PredictionKey(f"p{number:03}", "", f"p{number:03}", model, subset, number % 3)
        for model in models
        for subset in subsets
        for number in range(patients)
    )


def classes(gains: dict[str, float], *, names: Sequence[str] = ("low", "high"), seed: int = 0) -> ClassPredictions:
    """Models that know the truth up to noise; the higher the gain, the better."""
    draw = np.random.default_rng(seed)
    rows = keys(tuple(gains))
    truth = draw.integers(len(names), size=60)
    label = np.array([truth[int(key.subject[1:])] for key in rows])
    gain = np.array([gains[key.model] for key in rows])
    scores = np.eye(len(names))[label] * gain[:, None] + draw.normal(size=(len(rows), len(names)))
    odds = np.exp(scores)
    return ClassPredictions(rows, tuple(names), label, odds / odds.sum(axis=1, keepdims=True))


def survival(gains: dict[str, float], *, seed: int = 0) -> SurvivalPredictions:
    """Risks that follow the true one up to noise, each fold's on a scale of its own."""
    draw = np.random.default_rng(seed)
    rows = keys(tuple(gains))
    hazard = draw.normal(size=60)
    death, end = 20 * np.exp(-hazard) * draw.weibull(3, size=60), draw.uniform(10, 60, size=60)
    patient = np.array([int(key.subject[1:]) for key in rows])
    gain, fold = np.array([gains[key.model] for key in rows]), np.array([key.fold for key in rows])
    risk = hazard[patient] * gain + draw.normal(size=len(rows))
    at = np.array([6.0, 12.0, 24.0])
    curve: Array = np.exp(-at / 20 * np.exp(np.clip(risk, -3, 3))[:, None])
    return SurvivalPredictions(
        rows,
        np.minimum(death, end)[patient],
        (death <= end)[patient],
        risk * 10.0**fold + 100 * fold,
        curve,
        at,
        np.full(len(rows), np.nan),
    )

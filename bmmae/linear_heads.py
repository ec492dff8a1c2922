"""Linear heads on frozen features, by scikit-learn: a first answer in minutes, and the plain baseline beside it.

Features are means and deviations over the tokens of an encoder that is not trained. The result is a patient model like
any other: the coefficients become the weights of its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.data.cohort import Study
from bmmae.data.loaders import collate
from bmmae.data.patients import Columns
from bmmae.losses import cox_partial_likelihood
from bmmae.model.patient import PatientModel
from bmmae.targets import UNKNOWN, Target, censoring_weights, survival_classes
from bmmae.tasks.patient import PatientTask, label_columns

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Inverse strengths of the ridge penalty that validation chooses from."""
INTERVAL_SCALE = 10.0
"""Intercepts of the hazard's intervals are penalised a hundredth as much as coefficients."""


@dataclass(frozen=True)
class Rows:
    """Features of studies, each from one or several subsets.

    Attributes:
        studies: One a row.
        features: Of the images.
        design: Of what is known beside them.
        whole: Rows that show all that their study has; each study has one.
    """

    studies: tuple[Study, ...]
    features: Float[np.ndarray, "N F"]
    design: Float[np.ndarray, "N W"]
    whole: Bool[np.ndarray, " N"]

    @property
    def weights(self) -> Float[np.ndarray, " N"]:
        """One a study, shared by its rows."""
        keys = [study.key for study in self.studies]
        counts = {key: keys.count(key) for key in set(keys)}
        return np.array([1 / counts[key] for key in keys])

    def taken(self, chosen: Bool[np.ndarray, " N"]) -> Rows:
        """Return the rows that are flagged."""
        studies = tuple(study for study, keep in zip(self.studies, chosen, strict=True) if keep)
        return Rows(studies, self.features[chosen], self.design[chosen], self.whole[chosen])


@dataclass(frozen=True)
class _Fit:
    """Coefficients on standardised columns, Float[K, X], and intercepts, Float[K]."""

    slopes: Array
    intercepts: Array


@dataclass(frozen=True)
class _Outcome:
    """The truth: of all targets as the task takes it; a target's own labels, and the follow-up, as arrays."""

    batch: dict[str, Any]
    label: Int[np.ndarray, "N _"]
    time: Float[np.ndarray, " N"]
    event: Bool[np.ndarray, " N"]


@torch.no_grad()
def fit_linear_heads(
    model: PatientModel, train: Rows, validation: Rows, columns: Columns, *, images: bool = True
) -> None:
    """Fit every head of a model, in place.

    The penalty is the one with the lowest loss on the validation rows; nothing else is taken from them. Cox targets,
    whose risk sets must hold each patient once, are fitted on whole studies only.

    Args:
        model: Whose features the rows hold; without fusion.
        train: Training studies.
        validation: Of the inner validation fold.
        columns: How the studies' rows become labels.
        images: Use the images; else only what is known beside them.
    """
    for index, target in enumerate(model.config.targets):
        own, held = (rows.taken(rows.whole) if target.kind == "cox" else rows for rows in (train, validation))
        inputs = _inputs(own, images=images)
        mean, scale = inputs.mean(0), inputs.std(0)
        scale = np.where(scale > 1e-8, scale, 1.0)
        standard, check = (inputs - mean) / scale, (_inputs(held, images=images) - mean) / scale
        outcome, truth = _outcome(own, columns, target), _outcome(held, columns, target)
        task = PatientTask(model.config)
        fits = [_fit(target, standard, outcome, own.weights, strength) for strength in STRENGTHS]
        best = min(fits, key=lambda fit: _loss(task, target, check @ fit.slopes.T + fit.intercepts, truth))
        slopes = best.slopes / scale
        _set(model, index, slopes, best.intercepts - slopes @ mean, images=images)


def _inputs(rows: Rows, *, images: bool) -> Array:
    return np.concatenate([rows.features, rows.design], axis=1) if images else rows.design


def _outcome(rows: Rows, columns: Columns, target: Target) -> _Outcome:
    wanted = ("label", "time", "event")
    encoded = [columns.encode(study) for study in rows.studies]
    batch: dict[str, Any] = dict(collate([{name: sample[name] for name in wanted} for sample in encoded]))
    label, time, event = (batch[name].numpy() for name in wanted)
    places = label_columns(columns.targets)
    own = [places[f"{target.name}/{column}"] for column in target.columns]
    return _Outcome(batch, label[:, own], time.astype(float), event)


def _loss(task: PatientTask, target: Target, logits: Array, truth: _Outcome) -> float:
    """Mean loss of one target; infinite if it cannot be known (no label among the rows)."""
    others = {t.name: torch.zeros(len(logits), t.outputs) for t in task.config.targets}
    outputs = {**others, target.name: torch.from_numpy(logits).float()}
    total, count = task.judge(outputs, truth.batch, metrics=True).metrics[f"loss_{target.name}"]
    value = float(total / count) if float(count) else float("inf")
    return value if np.isfinite(value) else float("inf")


def _set(model: PatientModel, index: int, slopes: Array, intercepts: Array, *, images: bool) -> None:
    head: Any = model.heads[index]
    width = head.in_features if images else 0
    head.weight.zero_()
    head.weight[:, :width] = torch.from_numpy(slopes[:, :width]).float()
    head.bias.copy_(torch.from_numpy(intercepts))
    if len(model.direct):
        direct: Any = model.direct[index]
        direct.weight.copy_(torch.from_numpy(slopes[:, width:]))


def _fit(target: Target, inputs: Array, outcome: _Outcome, weights: Array, strength: float) -> _Fit:
    if target.kind == "cox":
        return _cox(inputs, outcome, strength)
    if target.kind == "hazard":
        return _hazard(target, inputs, outcome, weights, strength)
    if target.kind == "survival_classes":
        label = survival_classes(outcome.time, outcome.event, target.edges)
        return _logistic(inputs, label, weights * censoring_weights(target, outcome.time, outcome.event), strength)
    labels = outcome.label
    factors = np.array(target.weights).reshape(labels.shape[1], -1) if target.weights else None
    fits = [
        _logistic(inputs, label, weights * (1 if factors is None else factors[place][np.maximum(label, 0)]), strength)
        for place, label in enumerate(labels.T)
    ]
    return _Fit(np.concatenate([f.slopes for f in fits]), np.concatenate([f.intercepts for f in fits]))


def _logistic(inputs: Array, label: Array, weights: Array, strength: float) -> _Fit:
    from sklearn.linear_model import LogisticRegression

    known = (label != UNKNOWN) & (weights > 0)
    model = LogisticRegression(C=strength, max_iter=5000)
    model.fit(inputs[known], label[known], sample_weight=weights[known])
    return _Fit(np.asarray(model.coef_), np.asarray(model.intercept_))


def _hazard(target: Target, inputs: Array, outcome: _Outcome, weights: Array, strength: float) -> _Fit:
    """Logistic regression on one row for each interval that a patient was at risk in (Singer and Willett 1993)."""
    edges = np.array(target.edges)
    known = ~np.isnan(outcome.time)
    time, event = outcome.time[known], outcome.event[known]
    within = np.searchsorted(edges, time)
    survived = np.where(event, within, np.searchsorted(edges, time, side="right"))
    interval = np.arange(len(edges))
    fell = (event[:, None]) & (interval == within[:, None])
    person, period = ((interval < survived[:, None]) | fell).nonzero()
    steps = np.eye(len(edges))[period] * INTERVAL_SCALE
    rows = np.concatenate([inputs[known][person], steps], axis=1)
    fit = _logistic(rows, fell[person, period].astype(int), weights[known][person], strength)
    slopes, levels = fit.slopes[0, : inputs.shape[1]], fit.slopes[0, inputs.shape[1] :] * INTERVAL_SCALE
    return _Fit(np.tile(slopes, (len(edges), 1)), levels + fit.intercepts[0])


@torch.enable_grad()
def _cox(inputs: Array, outcome: _Outcome, strength: float) -> _Fit:
    """Ridge-penalised partial likelihood, by L-BFGS."""
    design, time = torch.from_numpy(inputs).float(), torch.from_numpy(outcome.time)
    event = torch.from_numpy(outcome.event)
    slopes = torch.zeros(design.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([slopes], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss, _ = cox_partial_likelihood(design @ slopes, time.float(), event)
        total = strength * loss + slopes.square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return _Fit(slopes.detach().double().numpy()[None], np.zeros(1))


def collect(studies: Sequence[Study], subsets: Sequence[tuple[str, ...]], features: Array, design: Array) -> Rows:
    """Return rows, those flagged whole that show the largest subset of their study."""
    sizes: dict[tuple[str, str], int] = {}
    for study, subset in zip(studies, subsets, strict=True):
        sizes[study.key] = max(sizes.get(study.key, 0), len(subset))
    whole = np.array([len(subset) == sizes[study.key] for study, subset in zip(studies, subsets, strict=True)])
    return Rows(tuple(studies), features, design, whole)

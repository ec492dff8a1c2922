"""Linear heads on frozen features, by scikit-learn: a first answer in minutes, and the plain baseline beside it.

Features are means and deviations over the tokens of an encoder that is not trained. The result is a patient model like
any other: the coefficients become the weights of its heads.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.data.cohort import Study
from bmmae.data.loaders import collate
from bmmae.data.patients import Columns
from bmmae.losses import partial_likelihood, risk_sets
from bmmae.model.patient import PatientModel
from bmmae.targets import UNKNOWN, Target, censoring_weights, survival_classes
from bmmae.tasks.patient import PatientTask, label_columns

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Inverse strengths of the ridge penalty that validation chooses from."""
COMPONENTS = (32,)
"""Principal components of the images' features that validation chooses from, beside all and none."""
FOLDS = 5
PATIENCE = 1
"""Weaker penalties are tried until the loss has been above the lowest more often than this in a row."""
SMALLEST = 1e-8
ABSENT = -8.0
"""Log-odds of a class that no patient has, against one without slopes."""
INTERVAL_SCALE = 10.0
"""Intercepts of the hazard's intervals are penalised a hundredth as much as coefficients."""


_Truths: TypeAlias = dict[int, dict[str, Any]]
"""What a study's row says of label and follow-up, by the study's identity: rows of several subsets share it."""


@dataclass(frozen=True)
class Rows:
    """Features of studies, each from one or several subsets.

    Attributes:
        studies: One a row.
        features: Of the images.
        design: Of what is known beside them.
        subsets: Which modalities each row shows.
    """

    studies: tuple[Study, ...]
    features: Float[np.ndarray, "N F"]
    design: Float[np.ndarray, "N W"]
    subsets: tuple[tuple[str, ...], ...]

    @property
    def weights(self) -> Float[np.ndarray, " N"]:
        """One a study, shared by its rows."""
        keys = [study.key for study in self.studies]
        counts = Counter(keys)
        return np.array([1 / counts[key] for key in keys])

    def taken(self, chosen: Bool[np.ndarray, " N"]) -> Rows:
        """Return the rows that are flagged."""
        places = np.flatnonzero(chosen)
        studies = tuple(self.studies[place] for place in places)
        subsets = tuple(self.subsets[place] for place in places)
        return Rows(studies, self.features[chosen], self.design[chosen], subsets)

    def strata(self) -> list[Bool[np.ndarray, " N"]]:
        """Return which rows are from each subset: they hold a study once."""
        places = {subset: place for place, subset in enumerate(dict.fromkeys(self.subsets))}
        numbers = np.array([places[subset] for subset in self.subsets])
        return [numbers == number for number in range(len(places))]


@dataclass(frozen=True)
class _Fit:
    """Coefficients, Float[K, X], and intercepts, Float[K]."""

    slopes: Array
    intercepts: Array


@dataclass(frozen=True)
class _Basis:
    """How raw columns become what is fitted: `(raw - mean) @ matrix`.

    Attributes:
        mean: Float[X].
        matrix: Float[X, C].
    """

    mean: Array
    matrix: Array

    def apply(self, raw: Array) -> Array:
        """Return Float[N, C]."""
        return np.asarray((raw - self.mean) @ self.matrix)

    def undo(self, fit: _Fit) -> _Fit:
        """Return the same fit in terms of the raw columns."""
        slopes = fit.slopes @ self.matrix.T
        return _Fit(slopes, fit.intercepts - slopes @ self.mean)


@dataclass(frozen=True)
class _Outcome:
    """The truth: of all targets as the task takes it; a target's own labels, and the follow-up, as arrays."""

    batch: dict[str, Any]
    label: Int[np.ndarray, "N _"]
    time: Float[np.ndarray, " N"]
    event: Bool[np.ndarray, " N"]


@torch.no_grad()
def fit_linear_heads(
    model: PatientModel, train: Rows, validation: Rows | None, columns: Columns, *, images: bool = True
) -> dict[str, str]:
    """Fit every head of a model, in place.

    The penalty and the number of principal components of the images' features (all; or none of them, where there is
    something beside the images) are those with the lowest loss on the validation rows, or in a cross-validation by
    patient within the training rows; nothing else is taken from them. Risk sets of Cox targets are those of rows from
    the same subset, so that each holds a patient once: a stratified partial likelihood.

    Args:
        model: Whose features the rows hold; without fusion.
        train: Training studies.
        validation: Of the inner validation fold; None chooses by cross-validation, and then fits to all of `train`.
        columns: How the studies' rows become labels.
        images: Use the images; else only what is known beside them.

    Returns:
        What was chosen for each target, in words.
    """
    chosen = {}
    truths = _truths([*train.studies, *(validation.studies if validation else ())], columns)
    for index, target in enumerate(model.config.targets):
        parts = _inner_folds(train) if validation is None else [(train, validation)]
        search = _Search(PatientTask(model.config), target, truths, images)
        count, strength, loss = search.best(parts)
        if validation is not None and not np.isfinite(loss):
            warnings.warn(
                f"no validation study has a label (or a death) of '{target.name}': its penalty is chosen by "
                "cross-validation within the training studies",
                stacklevel=2,
            )
            count, strength, loss = search.best(_inner_folds(train))
        if not np.isfinite(loss):
            warnings.warn(
                f"no part of the training studies that could judge it has a label (or a death) of '{target.name}': its "
                "penalty is the strongest of those tried, chosen by nothing",
                stacklevel=2,
            )
        fit = search.fit(train, search.basis(train, count), strength)
        _set(model, index, fit.slopes, fit.intercepts, images=images)
        taken = "all features of the images" if count is None else f"{count} components of the images"
        taken = "the images are not used, as the loss was lower without them" if count == 0 else taken
        chosen[target.name] = f"{taken}; inverse penalty {strength:g}"
    return chosen


def _inner_folds(rows: Rows) -> list[tuple[Rows, Rows]]:
    """Divide rows by patient."""
    groups = [study.group for study in rows.studies]
    names = sorted(set(groups))
    count = min(FOLDS, len(names))  # none of them empty
    place = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % count, strict=True))
    folds = np.array([place[group] for group in groups])
    return [(rows.taken(folds != fold), rows.taken(folds == fold)) for fold in range(count)]


@dataclass(frozen=True)
class _Search:
    """One target's fits, and which of them is best."""

    task: PatientTask
    target: Target
    truths: _Truths
    images: bool

    def best(self, parts: Sequence[tuple[Rows, Rows]]) -> tuple[int | None, float, float]:
        """Return components and inverse penalty of the lowest loss over pairs of training and held-out rows, and it.

        Pairs whose held-out rows have no label (or no death) judge nothing; if none does, the loss is infinite.
        """
        rows = parts[0][0]
        parts = [(own, held) for own, held in parts if self.judges(held)] or parts[:1]
        counts: list[int | None] = [n for n in COMPONENTS if n < rows.features.shape[1]] if self.images else []
        counts += [None] if self.images else []
        counts += [0] if rows.design.shape[1] else []
        losses: dict[tuple[int | None, float], float] = {}
        for count in counts:
            bases = [self.basis(own, count) for own, _ in parts]
            worse, lowest = 0, float("inf")
            for strength in STRENGTHS:
                pairs = zip(parts, bases, strict=True)
                loss = sum(self.loss(held, self.fit(own, basis, strength)) for (own, held), basis in pairs)
                losses[count, strength] = loss
                worse, lowest = (worse + 1, lowest) if loss > lowest else (0, loss)
                if worse > PATIENCE:
                    break
        count, strength = min(losses, key=lambda setting: losses[setting])
        return count, strength, losses[count, strength]

    def basis(self, rows: Rows, count: int | None) -> _Basis:
        """Standardise columns; features are turned to so many principal components, the first of deviation one."""
        raw = _inputs(rows, images=self.images)
        width = rows.features.shape[1] if self.images else 0
        mean, scale = raw.mean(0), raw.std(0)
        scale = np.where(scale > SMALLEST, scale, 1.0)
        block = np.eye(width)
        if count is not None and width:
            standard = (raw[:, :width] - mean[:width]) / scale[:width]
            values, vectors = np.linalg.eigh(standard.T @ standard / len(raw))
            block = vectors[:, ::-1][:, :count] / max(float(values[-1]), SMALLEST) ** 0.5
        matrix = np.zeros((len(scale), block.shape[1] + len(scale) - width))
        matrix[:width, : block.shape[1]] = block
        matrix[width:, block.shape[1] :] = np.eye(len(scale) - width)
        return _Basis(mean, matrix / scale[:, None])

    def fit(self, rows: Rows, basis: _Basis, strength: float) -> _Fit:
        """Fit on rows; the result is in terms of the raw columns."""
        if self.target.kind == "cox":
            strata = [(rows.taken(chosen), float(rows.weights[chosen].mean())) for chosen in rows.strata()]
            parts = [(self._inputs_of(part, basis), self._outcome(part), weight) for part, weight in strata]
            return basis.undo(_cox(parts, strength))
        return basis.undo(_fit(self.target, self._inputs_of(rows, basis), self._outcome(rows), rows.weights, strength))

    def judges(self, rows: Rows) -> bool:
        """Tell whether rows have what a loss needs, whatever is fitted."""
        width = _inputs(rows, images=self.images).shape[1]
        outputs = self.target.outputs
        return bool(np.isfinite(self.loss(rows, _Fit(np.zeros((outputs, width)), np.zeros(outputs)))))

    def loss(self, rows: Rows, fit: _Fit) -> float:
        """Return the mean loss on rows, of a Cox target over the deaths of all strata; infinite if none is known."""
        cox = self.target.kind == "cox"
        parts = [rows.taken(chosen) for chosen in rows.strata()] if cox else [rows]
        # A rare subset may have no death: the others judge all the same.
        total, count = np.sum([self._loss(part, fit) for part in parts], axis=0)
        return float(total / count) if count and np.isfinite(total) else float("inf")

    def _loss(self, rows: Rows, fit: _Fit) -> tuple[float, float]:
        logits = _inputs(rows, images=self.images) @ fit.slopes.T + fit.intercepts
        return _loss(self.task, self.target, logits, self._outcome(rows))

    def _inputs_of(self, rows: Rows, basis: _Basis) -> Array:
        return basis.apply(_inputs(rows, images=self.images))

    def _outcome(self, rows: Rows) -> _Outcome:
        return _outcome([self.truths[id(study)] for study in rows.studies], self.task, self.target)


def _inputs(rows: Rows, *, images: bool) -> Array:
    return np.concatenate([rows.features, rows.design], axis=1) if images else rows.design


def _truths(studies: Sequence[Study], columns: Columns) -> _Truths:
    plain = replace(columns, clinical=(), vector=None)
    return {key: plain.encode(study) for key, study in {id(study): study for study in studies}.items()}


def _outcome(truths: Sequence[dict[str, Any]], task: PatientTask, target: Target) -> _Outcome:
    batch: dict[str, Any] = dict(collate(list(truths)))
    label, time, event = (batch[name].numpy() for name in ("label", "time", "event"))
    places = label_columns(task.config.targets)
    own = [places[f"{target.name}/{column}"] for column in target.columns]
    return _Outcome(batch, label[:, own], time.astype(float), event)


def _loss(task: PatientTask, target: Target, logits: Array, truth: _Outcome) -> tuple[float, float]:
    """One target's loss, and of how many labels (or deaths) it is the sum."""
    others = {t.name: torch.zeros(len(logits), t.outputs) for t in task.config.targets}
    outputs = {**others, target.name: torch.from_numpy(logits).float()}
    total, count = task.judge(outputs, truth.batch, metrics=True).metrics[f"loss_{target.name}"]
    return float(total), float(count)


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
    if target.kind == "hazard":
        return _hazard(target, inputs, outcome, weights, strength)
    if target.kind == "survival_classes":
        label = survival_classes(outcome.time, outcome.event, target.edges)
        weights = weights * censoring_weights(target, outcome.time, outcome.event)
        return _logistic(inputs, label, weights, strength, len(target.classes))
    labels = outcome.label
    factors = np.array(target.weights).reshape(labels.shape[1], -1) if target.weights else None
    classes = len(target.classes) if target.kind == "multiclass" else 2
    shares = [1 if factors is None else factors[place][np.maximum(label, 0)] for place, label in enumerate(labels.T)]
    fits = [
        _logistic(inputs, label, weights * share, strength, classes)
        for label, share in zip(labels.T, shares, strict=True)
    ]
    return _Fit(np.concatenate([f.slopes for f in fits]), np.concatenate([f.intercepts for f in fits]))


def _logistic(inputs: Array, label: Array, weights: Array, strength: float, classes: int = 2) -> _Fit:
    """Multinomial logistic regression; two classes have one output. A class without patients gets a low level."""
    from sklearn.linear_model import LogisticRegression

    known = (label != UNKNOWN) & (weights > 0)
    present = np.unique(label[known])
    slopes, levels = np.zeros((classes, inputs.shape[1])), np.full(classes, ABSENT)
    levels[present] = 0.0
    if len(present) > 1:
        model = LogisticRegression(C=strength, max_iter=5000)
        model.fit(inputs[known], label[known], sample_weight=weights[known])
        pair = np.array([[-0.5], [0.5]]) if len(present) == 2 else 1.0
        slopes[present], levels[present] = pair * model.coef_, (pair * model.intercept_[:, None])[..., 0]
    if classes > 2:
        return _Fit(slopes, levels)
    return _Fit(slopes[1:] - slopes[:1], levels[1:] - levels[:1])


def _hazard(target: Target, inputs: Array, outcome: _Outcome, weights: Array, strength: float) -> _Fit:
    """Logistic regression on one row for each interval that a patient was at risk in (Singer and Willett 1993)."""
    edges = np.array(target.edges, np.float32)  # as the months of a batch: edges are months of death
    known = ~np.isnan(outcome.time)
    time, event = outcome.time[known].astype(np.float32), outcome.event[known]
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
def _cox(strata: Sequence[tuple[Array, _Outcome, float]], strength: float) -> _Fit:
    """Ridge-penalised partial likelihood of strata with a weight each, by L-BFGS."""
    parts = [
        (
            torch.from_numpy(inputs).float(),
            risk_sets(torch.from_numpy(o.time).float(), torch.from_numpy(o.event)),
            weight,
        )
        for inputs, o, weight in strata
    ]
    slopes = torch.zeros(parts[0][0].shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([slopes], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = sum(weight * partial_likelihood(own @ slopes, *sets) for own, sets, weight in parts)
        total = strength * loss + slopes.square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return _Fit(slopes.detach().double().numpy()[None], np.zeros(1))


def collect(studies: Sequence[Study], subsets: Sequence[tuple[str, ...]], features: Array, design: Array) -> Rows:
    """Return rows."""
    return Rows(tuple(studies), features, design, tuple(subsets))

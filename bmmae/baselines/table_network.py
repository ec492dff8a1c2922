"""What networks on feature tables share: the scikit-learn interface, the choice of subsets, and the training loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Final

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from bmmae.arrays import Array, Bool, Float, Int, Tensor
from bmmae.baselines.feature_table import Blocks, chosen
from bmmae.baselines.preparation import absent, check_training, require_columns
from bmmae.errors import ConfigError, ModalityError, TrainingError

Subsets = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class TableTraining:
    """How a network on a table is trained.

    Attributes:
        epochs: Times that every patient is seen.
        batch_size: Patients a step.
        learning_rate: Of AdamW at its highest; it falls to zero along a cosine.
        weight_decay: Of AdamW.
    """

    epochs: int = 25
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"expected 1 epoch or more and batches of 2 or more, got {self.epochs} and {self.batch_size}"
            )
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"expected a positive learning rate and a weight decay of 0 or more, got {self.learning_rate} and "
                f"{self.weight_decay}"
            )


TRAINING: Final = TableTraining()


@dataclass(frozen=True)
class Rows:
    """Patients as a network sees them.

    Attributes:
        features: Absent cells are 0, and `available` says so.
        available: Which modalities the network may see, in the order of the blocks.
        known: Which modalities were measured at all; a hidden one that is known can be a target.
        labels: Index of the class; empty at prediction.
    """

    features: Float[Tensor, "B F"]
    available: Bool[Tensor, "B M"]
    known: Bool[Tensor, "B M"]
    labels: Int[Tensor, " N"]


class TableNetwork(nn.Module):
    """A network from the features of some modalities to classes."""

    @abstractmethod
    def logits(self, features: Float[Tensor, "B F"], available: Bool[Tensor, "B M"]) -> Float[Tensor, "B C"]:
        """Return unnormalised class scores; features of modalities that are not available have no influence."""

    @abstractmethod
    def loss(self, rows: Rows) -> Tensor:
        """Return the loss of a batch, a scalar with a graph."""


class TableNetworkClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators: fit and predict_proba on tables whose absent modalities are NaN.

    Subclasses take `blocks`, `subsets`, `training` and `random_state`, and build their network.

    Attributes:
        classes_: The labels, sorted.
        network_: The trained network, in eval mode.
    """

    blocks: Blocks
    subsets: Subsets | None
    training: TableTraining
    random_state: int
    name: ClassVar[str]

    def fit(self, X: Float[Array, "patients columns"], y: Array) -> TableNetworkClassifier:
        """Train on patients; modalities outside the subset drawn are hidden from the network, and may be its targets.

        Raises:
            LabelError: If there are fewer than two classes.
            ModalityError: If a subset names an unknown modality, no training patient has a subset's modalities, or
                one has none at all.
            TrainingError: If the loss is not finite.
        """
        check_training(X, y, self.blocks)
        self.n_features_in_ = X.shape[1]
        self.classes_, labels = np.unique(y, return_inverse=True)
        shown = self._shown()
        known = torch.from_numpy(~absent(X, self.blocks))
        if not known.any(dim=1).all():
            raise ModalityError("a training patient has no modality at all: leave such patients out")
        if not (known[:, None] >= shown[None]).all(dim=2).any(dim=0).all():
            raise ModalityError("a subset to train on has no patient with all of its modalities: train on others")
        rows = Rows(_as_tensor(X), known, known, torch.from_numpy(labels))
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(self.random_state)
            self.network_ = self._build(len(self.classes_))
            self._train(rows, shown)
        self.network_.eval()
        return self

    def predict_proba(self, X: Float[Array, "patients columns"]) -> Array:
        """Return the probability of each class, from the modalities that each patient has.

        Raises:
            ModalityError: If a patient has a subset that the network was not trained on, or the table has another
                number of columns.
        """
        require_columns(X, self.n_features_in_)
        available = torch.from_numpy(~absent(X, self.blocks))
        unknown = ~(available[:, None] == self._shown()[None]).all(dim=2).any(dim=1)
        if unknown.any():
            row = available[int(unknown.nonzero()[0, 0])].tolist()
            has = [name for name, there in zip(self.blocks, row, strict=True) if there]
            raise ModalityError(
                f"a patient has {'+'.join(has) or 'no modality'}, which is none of the subsets that this model was "
                "trained on: hide modalities (their columns NaN), or train on that subset"
            )
        with torch.inference_mode():
            logits = self.network_.logits(_as_tensor(X), available)
        return np.asarray(logits.double().softmax(dim=1).numpy())

    def predict(self, X: Float[Array, "patients columns"]) -> Array:
        """Return the most probable class."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    @abstractmethod
    def _build(self, classes: int) -> TableNetwork:
        """Return the network, with random weights."""

    def _shown(self) -> Bool[Tensor, "S M"]:
        """Which modalities each subset shows."""
        names = tuple(self.blocks)
        listed = all_subsets(names) if self.subsets is None else [chosen(one, names) for one in self.subsets]
        if not listed:
            raise ModalityError("expected one subset or more to train on, got none")
        return torch.tensor([[name in subset for name in names] for subset in listed])

    def _train(self, rows: Rows, shown: Bool[Tensor, "S M"]) -> None:
        plan, count = self.training, len(rows.features)
        batches = [list(part) for part in np.array_split(range(count), max(1, round(count / plan.batch_size)))]
        optimiser = torch.optim.AdamW(
            self.network_.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )
        steps = plan.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        self.network_.train()
        for _ in range(plan.epochs):
            order, subset = torch.randperm(count), torch.randint(len(shown), (count,))
            for batch in batches:
                chosen_rows = order[batch]
                loss = self.network_.loss(_hidden(rows, chosen_rows, shown[subset[chosen_rows]]))
                if not torch.isfinite(loss):
                    raise TrainingError(f"{self.name}: the loss is {loss.item()}; lower the learning rate")
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()


def all_subsets(modalities: tuple[str, ...]) -> Subsets:
    """Return every non-empty subset, small ones first."""
    return tuple(one for size in range(1, len(modalities) + 1) for one in combinations(modalities, size))


def positions(blocks: Blocks) -> dict[str, Int[Tensor, " K"]]:
    """Return the columns of each modality, to index features with."""
    return {name: torch.tensor(block) for name, block in blocks.items()}


def weight_of(weights: Mapping[str, float] | float, modality: str) -> float:
    """Return the weight of a modality, from one for all or one for each.

    Raises:
        ModalityError: If weights are given for others, but not for this one.
    """
    if not isinstance(weights, Mapping):
        return weights
    if modality not in weights:
        raise ModalityError(f"no weight for modality '{modality}': got those of {', '.join(weights)}")
    return weights[modality]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hidden(rows: Rows, chosen_rows: Int[Tensor, " B"], shown: Bool[Tensor, "B M"]) -> Rows:
    known = rows.known[chosen_rows]
    available = known & shown
    # A patient who has nothing of the subset drawn shows what there is.
    available = torch.where(available.any(dim=1, keepdim=True), available, known)
    return Rows(rows.features[chosen_rows], available, known, rows.labels[chosen_rows])


def _as_tensor(X: Array) -> Tensor:
    return torch.from_numpy(np.nan_to_num(X)).float()

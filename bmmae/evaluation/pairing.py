"""Which rows of two models are of the same study in the same fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array, Int
from bmmae.errors import CohortError
from bmmae.evaluation.predictions import PredictionKey
from bmmae.metrics.classification import defined_mean


@dataclass(frozen=True)
class Pairing:
    """Rows of a model from a subset, and of the reference, on the studies that both have predicted.

    Attributes:
        model: The model.
        subset: Its subset.
        one: Its rows.
        two: The reference's rows of the same studies, in the same order.
        folds: The fold of each.
        groups: The patient of each.
        test_share: Patients that a fold tests over all others: its training and validation patients.
    """

    model: str
    subset: str
    one: Int[Array, " R"]
    two: Int[Array, " R"]
    folds: Int[Array, " R"]
    groups: tuple[str, ...]
    test_share: float

    @property
    def each_fold(self) -> dict[int, tuple[Array, Array]]:
        """Rows of both by fold."""
        return {int(f): (self.one[self.folds == f], self.two[self.folds == f]) for f in np.unique(self.folds)}

    def mean_difference(self, value: Callable[[int, Int[Array, " R"]], float]) -> Callable[[Int[Array, " R"]], float]:
        """Return how to compute, from places among the pairs, the mean over folds of the difference of a figure.

        Args:
            value: The figure, from a fold's number and rows of the table.
        """
        numbers = np.unique(self.folds).tolist()

        def difference(places: Int[Array, " P"]) -> float:
            gains = []
            for fold in numbers:
                inside = places[self.folds[places] == fold]
                gains.append(value(fold, self.one[inside]) - value(fold, self.two[inside]))
            return defined_mean(np.array(gains))

        return difference


def pairings(keys: Sequence[PredictionKey], reference: str) -> list[Pairing]:
    """Pair each model and subset with a reference: with its rows of the same subset, or of its only one.

    Raises:
        CohortError: If there is no such model, or no study in common.
    """
    subsets = {key.subset for key in keys if key.model == reference}
    if not subsets:
        names = ", ".join(sorted({key.model for key in keys}))
        raise CohortError(f"no predictions of '{reference}' to compare with: there are those of {names}")
    others = dict.fromkeys((key.model, key.subset) for key in keys if key.model != reference)
    return [
        _pair(keys, model, subset, reference, subset if subset in subsets else min(subsets))
        for model, subset in others
        if subset in subsets or len(subsets) == 1
    ]


def _pair(keys: Sequence[PredictionKey], model: str, subset: str, reference: str, other: str) -> Pairing:
    rows = {key.study: row for row, key in enumerate(keys) if (key.model, key.subset) == (model, subset)}
    theirs = {key.study: row for row, key in enumerate(keys) if (key.model, key.subset) == (reference, other)}
    common = [study for study in rows if study in theirs]
    if not common:
        raise CohortError(
            f"'{model}' from {subset} and '{reference}' have no study of one fold in common: expected predictions "
            "over the same folds"
        )
    groups = tuple(keys[rows[study]].group for study in common)
    folds = np.array([study[0] for study in common])
    everyone = len(set(groups))
    members = [{group for group, own in zip(groups, folds, strict=True) if own == fold} for fold in np.unique(folds)]
    tested = sum(map(len, members)) / len(members)
    return Pairing(
        model,
        subset,
        np.array([rows[study] for study in common]),
        np.array([theirs[study] for study in common]),
        folds,
        groups,
        tested / max(everyone - tested, 1),
    )

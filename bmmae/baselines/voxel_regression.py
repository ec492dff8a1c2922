"""Per-voxel quadratic ridge regression: what anyone would try first, and hard to beat.

Each voxel of the absent modality is a linear and quadratic function of the available modalities at the same voxel.
All sums that any such regression needs are those of products of two monomials, added up once over all training
voxels; then each subset and target is solved from rows and columns of that one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig
from bmmae.errors import ModalityError, TrainingError
from bmmae.modalities import STANDARD

CHUNK = 2**18
"""Voxels that are expanded into monomials at a time."""
Monomial = tuple[int, ...]


class VoxelRegression:
    """Quadratic ridge regression by voxel, for any subset of modalities and any absent one.

    A voxel where a modality was not scanned counts as one without that modality, in fitting and predicting.

    Args:
        modalities: The modalities it knows.
        penalty: Ridge penalty on all terms but the constant, a share of the number of voxels.
        preprocess: By default 1 mm, where every voxel of most studies is taken as it is.
    """

    def __init__(
        self,
        modalities: Sequence[str] = STANDARD,
        *,
        penalty: float = 1e-4,
        preprocess: PreprocessConfig | None = None,
    ) -> None:
        self.modalities = tuple(modalities)
        self.penalty = penalty
        self.preprocess = preprocess or PreprocessConfig()
        self.monomials = monomials(range(len(self.modalities)))
        self.moments: dict[frozenset[int], Array] = {}

    def fit(self, studies: Iterable[PreparedStudy]) -> None:
        """Add up the moments of the training studies' brain voxels, apart for each pattern of what was scanned."""
        self.moments = {}
        for study in studies:
            self._add(study)

    def _add(self, study: PreparedStudy) -> None:
        slots = [self.modalities.index(name) for name in study.names]
        for present, voxels in _patterns(study):
            key = frozenset(slots[index] for index in present)
            values = np.zeros((len(self.modalities), int(voxels.sum())))
            for index in present:
                values[slots[index]] = study.images[index][voxels]
            self.moments[key] = self.moments.get(key, 0) + second_moments(values, self.monomials)

    def coefficients(self, given: Sequence[str], wanted: str) -> tuple[list[Monomial], Float[np.ndarray, " K"]]:
        """Solve for one subset and target.

        Returns:
            The terms, as indices into `modalities`, and their coefficients.

        Raises:
            ModalityError: If the target is given, or one is not known.
            TrainingError: If no training voxel has all of them.
        """
        unknown = [name for name in (*given, wanted) if name not in self.modalities]
        if unknown or wanted in given or not given:
            raise ModalityError(f"cannot predict '{wanted}' from {', '.join(given) or 'nothing'}")
        slots = sorted(self.modalities.index(name) for name in given)
        target = self.modalities.index(wanted)
        total = sum(matrix for key, matrix in self.moments.items() if key >= {*slots, target})
        if not isinstance(total, np.ndarray):
            raise TrainingError(f"no training voxel has {', '.join(given)} and {wanted}: it cannot be fitted")
        terms = monomials(slots)
        rows = [self.monomials.index(term) for term in terms]
        penalty = self.penalty * total[0, 0] * np.diag([float(bool(term)) for term in terms])
        right = total[rows, self.monomials.index((target,))]
        return terms, np.linalg.solve(total[np.ix_(rows, rows)] + penalty, right)

    def predict(self, study: PreparedStudy, wanted: str) -> Float[np.ndarray, "H W D"]:
        """Return z-scores of a modality; see `Comparator`."""
        out = np.zeros(study.shape, dtype=np.float32)
        slots = [self.modalities.index(name) for name in study.names]
        for present, voxels in _patterns(study):
            values = {slots[index]: study.images[index][voxels].astype(np.float64) for index in present}
            terms, weights = self.coefficients([study.names[index] for index in present], wanted)
            out[voxels] = sum(
                weight * np.prod([values[slot] for slot in term], axis=0)
                for term, weight in zip(terms, weights, strict=True)
            )
        return out


def monomials(slots: Iterable[int]) -> list[Monomial]:
    """Return the constant, the linear and the quadratic terms of some variables: 15 of four."""
    listed = list(slots)
    return [term for degree in range(3) for term in combinations_with_replacement(listed, degree)]


def second_moments(values: Float[np.ndarray, "M N"], terms: Sequence[Monomial]) -> Float[np.ndarray, "K K"]:
    """Return the sums over voxels of the products of each two terms."""
    total = np.zeros((len(terms), len(terms)))
    for start in range(0, values.shape[1], CHUNK):
        part = values[:, start : start + CHUNK]
        expanded = np.ones((len(terms), part.shape[1]))
        for row, term in enumerate(terms):
            for slot in term:
                expanded[row] *= part[slot]
        total += expanded @ expanded.T
    return total


def _patterns(study: PreparedStudy) -> Iterable[tuple[list[int], Array]]:
    """Brain voxels by which of the study's modalities were scanned there: indices, and Bool[H, W, D]."""
    covered = study.valid & study.brain
    code = np.tensordot(2 ** np.arange(len(covered)), covered, axes=1)
    for value in np.flatnonzero(np.bincount(code.ravel())):
        if value:
            yield [index for index in range(len(covered)) if value >> index & 1], np.asarray(code == value)

"""The mean of the available modalities, each brought to the histogram of the absent one: no learning but histograms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig
from bmmae.errors import ModalityError, TrainingError
from bmmae.modalities import STANDARD

LEVELS = np.linspace(0, 1, 257)
"""Shares of the brain's voxels at which histograms are compared."""


class HistogramMatching:
    """Matches the quantiles of each available modality to those of the absent one, and averages.

    Args:
        modalities: The modalities it knows.
        preprocess: By default 1 mm.
    """

    def __init__(self, modalities: Sequence[str] = STANDARD, *, preprocess: PreprocessConfig | None = None) -> None:
        self.modalities = tuple(modalities)
        self.preprocess = preprocess or PreprocessConfig()
        self.quantiles: dict[str, Array] = {}

    def fit(self, studies: Iterable[PreparedStudy]) -> None:
        """Take the mean quantiles of each modality over the studies that have it."""
        found: dict[str, list[Array]] = {}
        for study in studies:
            for index, name in enumerate(study.names):
                inside = study.valid[index] & study.brain
                if inside.any():
                    found.setdefault(name, []).append(np.quantile(study.images[index][inside], LEVELS))
        self.quantiles = {name: np.mean(each, axis=0) for name, each in found.items()}

    def predict(self, study: PreparedStudy, wanted: str) -> Float[np.ndarray, "H W D"]:
        """Return z-scores of a modality; see `Comparator`.

        Raises:
            ModalityError: If the study has it: the mean would hold the truth.
            TrainingError: If no training study had it.
        """
        if wanted in study.names:
            raise ModalityError(f"cannot predict '{wanted}' from {', '.join(study.names)}")
        if wanted not in self.quantiles:
            raise TrainingError(f"no training study has {wanted}: its histogram is not known")
        total = np.zeros(study.shape, dtype=np.float32)
        count = np.zeros(study.shape, dtype=np.float32)
        for index in range(len(study.names)):
            inside = study.valid[index] & study.brain
            if inside.any():
                total[inside] += matched(study.images[index][inside], self.quantiles[wanted])
                count[inside] += 1
        return np.asarray(total / np.maximum(count, 1))


def matched(values: Float[np.ndarray, " N"], quantiles: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " N"]:
    """Return the values with the given quantiles (at `LEVELS`), their order kept."""
    own = np.quantile(values, LEVELS)
    return np.asarray(np.interp(values, own, quantiles), dtype=np.float32)

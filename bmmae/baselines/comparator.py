"""What every comparator of synthesis offers: fit on prepared studies, predict an absent modality of another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from bmmae.arrays import Float
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig
from bmmae.errors import ModalityError


class Comparator(Protocol):
    """Predicts an absent modality from any subset of the others.

    Attributes:
        preprocess: How studies have to be prepared, for fitting and predicting.
    """

    preprocess: PreprocessConfig

    def fit(self, studies: Iterable[PreparedStudy]) -> None:
        """Learn from training studies, whatever modalities each has."""
        ...

    def predict(self, study: PreparedStudy, wanted: str) -> Float[np.ndarray, "H W D"]:
        """Return z-scores of a modality, from those that the study has; 0 outside the brain.

        Args:
            study: The available volumes by name, none of them `wanted`.
            wanted: The absent modality.
        """
        ...


def restricted(study: PreparedStudy, names: Sequence[str]) -> PreparedStudy:
    """Return a study as if it had some of its modalities only: the others say nothing about where the brain is.

    The grid stays that of the whole study.

    Raises:
        ModalityError: If the study has none of them.
    """
    kept = [index for index, name in enumerate(study.names) if name in names]
    if not kept:
        raise ModalityError(f"expected some of {', '.join(study.names)}, got {', '.join(names) or 'none'}")
    covered = study.valid[kept] & study.brain
    brain = np.asarray(covered.any(axis=0))
    return replace(
        study,
        names=tuple(study.names[index] for index in kept),
        images=study.images[kept],
        valid=study.valid[kept] | ~brain,
        brain=brain,
        scales=tuple(study.scales[index] for index in kept),
        native_brain=None,
        content={name: digest for name, digest in study.content.items() if name in names},
    )

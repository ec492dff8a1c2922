"""What may happen to a training sample besides its crop and its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array
from bmmae.errors import ConfigError


@dataclass(frozen=True)
class AugmentConfig:
    """What may happen to a training window, drawn anew for every address.

    Attributes:
        flip: Chance of a left-right flip.
        scale: Intensities of each modality are multiplied by 1 plus up to this much, either way.
        shift: And shifted by up to this many standard deviations.
        modality_dropout: Chance that a random non-empty subset of the available modalities is kept.
        lesion_share: Chance that the window is placed so that it holds a labelled voxel, if there is one.
    """

    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.1
    modality_dropout: float = 0.0
    lesion_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "modality_dropout", "lesion_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} must lie in [0, 1], got {getattr(self, name)}")

    @property
    def changes_something(self) -> bool:
        """Whether a window can come out otherwise than it went in."""
        return any((self.flip, self.scale, self.shift, self.modality_dropout))


NO_AUGMENTATION = AugmentConfig(flip=0.0, scale=0.0, shift=0.0)


def augment_sample(sample: dict[str, Array], config: AugmentConfig, rng: np.random.Generator) -> dict[str, Array]:
    """Return the sample flipped left-right, its intensities jittered inside the brain, some modalities dropped."""
    out = dict(sample)
    if rng.random() < config.flip:
        for key in set(out) - {"available"}:
            out[key] = np.flip(out[key], axis=-3)
    count = len(out["available"])
    gain = 1 + config.scale * rng.uniform(-1, 1, (count, 1, 1, 1))
    offset = config.shift * rng.uniform(-1, 1, (count, 1, 1, 1))
    inside = out["valid"] & out["brain"] & out["available"][:, None, None, None]
    out["images"] = np.where(inside, out["images"] * gain + offset, 0).astype(np.float32)
    if rng.random() < config.modality_dropout:
        out["available"] = keep_random_subset(out["available"], rng)
        gone = ~out["available"]
        out["images"][gone] = 0
        out["valid"] = out["valid"] & out["available"][:, None, None, None]
    return out


def keep_random_subset(available: Array, rng: np.random.Generator) -> Array:
    """Return a non-empty subset of the available modalities, all sizes equally likely."""
    present = np.flatnonzero(available)
    kept = rng.permutation(present)[: rng.integers(1, len(present) + 1)]
    out = np.zeros_like(available)
    out[kept] = True
    return out

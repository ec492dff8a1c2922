"""From images of one study to arrays on the model's grid, and what is needed to go back."""

from __future__ import annotations

from dataclasses import dataclass

from bmmae.errors import ConfigError


@dataclass(frozen=True)
class PreprocessConfig:
    """How images become model input. Travels with the weights.

    Attributes:
        spacing: Millimetres between voxels along the canonical axes (right, anterior, superior).
        clip: Z-scores beyond this many deviations are clipped.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    clip: float = 8.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise ConfigError(f"preprocess.spacing must be three positive millimetres, got {self.spacing}")
        if self.clip <= 0:
            raise ConfigError(f"preprocess.clip must be positive, got {self.clip}")

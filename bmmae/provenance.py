"""Where weights come from: what is written beside them, in config.json and in the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bmmae.schema import from_dict, to_dict


@dataclass(frozen=True)
class Metric:
    """A figure of merit with its interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval, if one was computed.
        high: Upper end.
        unit: Unit and sign, as people read it (`"dB, higher is better"`).
        n: Patients that it was measured on.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    n: int | None = None


@dataclass(frozen=True)
class Population:
    """What the training images look like: how unlike ones are known, and whose intensities results can take.

    Attributes:
        studies: How many studies the figures below come from, evenly spread over the training studies.
        levels: Shares of the brain's voxels, ascending.
        quantiles: By modality, the z-scores below which these shares lie: means over the studies.
        distances: By modality, how far the most unusual study's own quantiles are from these: the mean absolute
            difference, in deviations.
        brain_ml: The smallest and the largest brain, millilitres.
        subsets: How many of all training studies have each subset (`"t1+flair"`).
    """

    studies: int = 0
    levels: tuple[float, ...] = ()
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)
    brain_ml: tuple[float, float] = (0.0, 0.0)
    subsets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What a model was trained on and how.

    Attributes:
        data: The training data in words.
        subjects: How many patients it was trained on.
        content_hashes: SHA-256 of image content, one an image; never of identifiers, which are easily reversed.
        synthetic: Whether the training data were made by the synthetic cohort's generator.
        generator: That generator's version.
        command: The command that made the weights.
        metrics: Figures of merit by name.
        licence: The weights' licence, as an SPDX name.
        limits: What the model should not be used for, one sentence each.
        parent: The weights that training started from.
        parent_hashes: SHA-256 of the images that these weights, and those before them, were trained on.
        population: What the training images look like, if that was recorded.
        extra: Whatever else a task wants to record.
    """

    data: str = ""
    subjects: int | None = None
    content_hashes: tuple[str, ...] = ()
    synthetic: bool = False
    generator: str | None = None
    command: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    licence: str | None = None
    limits: tuple[str, ...] = ()
    parent: str | None = None
    parent_hashes: tuple[str, ...] = ()
    population: Population | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seen(self) -> tuple[str, ...]:
        """SHA-256 of every image that these weights or those before them were trained on, sorted."""
        return tuple(sorted({*self.content_hashes, *self.parent_hashes}))

    def as_dict(self) -> dict[str, Any]:
        """Return it as config.json holds it."""
        values: dict[str, Any] = to_dict(self)
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Provenance:
        """Read it from what config.json holds.

        Raises:
            ConfigError: If a key is unknown or a value has the wrong type.
        """
        return from_dict(cls, values, "provenance")

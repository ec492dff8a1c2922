"""Where weights come from: what is written beside them, in config.json and in the model card."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
        selection_hashes: The same of the images whose scores chose among its weights: those of the validation part.
        synthetic: Whether the training data were made by the synthetic cohort's generator, or its encoder, left as it
            was, comes from a model of which this is true.
        generator: That generator's version.
        command: The command that made the weights, its paths without their folders.
        metrics: Figures of merit by name.
        licence: The weights' licence, as an SPDX name.
        limits: What the model should not be used for, one sentence each.
        parent: The weights that training started from: a hub name, or the last part of a path.
        parent_hashes: SHA-256 of the images that these weights, and those before them, were trained on.
        parent_synthetic: Whether these weights, or some before them, were trained on synthetic data.
        parent_licences: Their licences, as SPDX names.
        parent_limits: What they should not be used for, one sentence each.
        changes: What was done to the weights since their training.
        population: What the training images look like, if that was recorded.
        extra: Whatever else a task wants to record.
    """

    data: str = ""
    subjects: int | None = None
    content_hashes: tuple[str, ...] = ()
    selection_hashes: tuple[str, ...] = ()
    synthetic: bool = False
    generator: str | None = None
    command: str | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    licence: str | None = None
    limits: tuple[str, ...] = ()
    parent: str | None = None
    parent_hashes: tuple[str, ...] = ()
    parent_synthetic: bool = False
    parent_licences: tuple[str, ...] = ()
    parent_limits: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    population: Population | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seen(self) -> tuple[str, ...]:
        """SHA-256 of every image that these weights or those before them were trained on, sorted."""
        return tuple(sorted({*self.content_hashes, *self.parent_hashes}))

    def inherit(self, parent: Provenance) -> Provenance:
        """Return it with what holds of the weights that training started from, and of those before them.

        What it has inherited from others stays: a head may have come from other weights than its encoder.
        """
        licences = (*self.parent_licences, *([parent.licence] if parent.licence else []), *parent.parent_licences)
        limits = (*self.parent_limits, *parent.limits, *parent.parent_limits)
        return replace(
            self,
            parent_hashes=tuple(sorted({*self.parent_hashes, *parent.seen})),
            parent_synthetic=self.parent_synthetic or parent.synthetic or parent.parent_synthetic,
            parent_licences=tuple(dict.fromkeys(licences)),
            parent_limits=tuple(dict.fromkeys(limit for limit in limits if limit not in self.limits)),
        )

    def origin(self, kind: str) -> str:
        """Return in words what a model of this provenance is."""
        return f"a {kind} model trained on {self.data or 'data that are not recorded'}"

    def changed(self, kind: str, change: str) -> Provenance:
        """Return that of a model made from this one without training: it was never measured.

        Args:
            kind: The model's.
            change: What was done to it.
        """
        before = f", which started from {self.parent}" if self.parent else ""
        origin = self.origin(kind) + before
        complete = self.parent is None or bool(self.parent_hashes)
        return replace(
            self,
            metrics={},
            parent=self.parent if self.changes else origin,
            # None at all says that some are not known.
            parent_hashes=self.seen if complete else (),
            changes=(*self.changes, change),
        )

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


def base_name(text: str) -> str:
    """Return the last part of a path or an address, without the query that may hold a key; other text as it is."""
    bare = text.partition("?")[0] if "://" in text else text
    return re.split(r"[/\\]", bare.rstrip("/\\"))[-1]


def command_line(arguments: Iterable[str], keep: str | None = None) -> str:
    """Return a command as people type it, with the last part of each path alone: folders name people and places.

    Args:
        arguments: The program and its arguments.
        keep: A value with a slash that is no path.
    """
    return shlex.join(_without_folders(argument, keep) for argument in arguments)


def _without_folders(argument: str, keep: str | None) -> str:
    option, sign, value = argument.partition("=")
    if not sign or base_name(option) != option:
        option, sign, value = "", "", argument
    return option + sign + (value if value == keep else base_name(value))

"""Exceptions. Each message says what was expected, what came, and what to do next.

The command line prints the message of any `BmmaeError` as one line and exits with code 2; everything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class BmmaeError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(BmmaeError):
    """A configuration value or key is wrong."""


class ModalityError(BmmaeError):
    """A modality is unknown, absent where it is needed, or given twice."""


class CohortError(BmmaeError):
    """A cohort table is malformed, empty or contradicts itself."""


class ImageError(BmmaeError):
    """An image cannot be used: unreadable, truncated, of the wrong dimensionality, without content."""


class GeometryError(ImageError):
    """Images that must share a grid do not."""


class LabelError(BmmaeError):
    """Segmentation values fit no known coding, or labels are missing or malformed."""


class CheckpointError(BmmaeError):
    """Weights or their config cannot be loaded, or do not fit each other."""


class HubError(CheckpointError):
    """A model cannot be fetched from or sent to a hub."""


class OutputError(BmmaeError):
    """A result cannot be written where it was asked for."""


class OccupiedError(OutputError):
    """A file that no earlier run has made is where a result would go."""


class TrainingError(BmmaeError):
    """Training cannot start or go on (non-finite loss, no data, resume mismatch)."""


def few(names: Iterable[str], most: int = 5, quote: str = "'") -> str:
    """Return the first names, and how many more there are: for a sentence about any number of them."""
    listed = [f"{quote}{name}{quote}" for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")

"""Where metrics go besides metrics.jsonl. The default does nothing, so the loop asks nobody whether to log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from bmmae.data.location import replace_whole
from bmmae.errors import ConfigError

TrackerKind: TypeAlias = Literal["none", "wandb", "tensorboard"]
"""As `train.tracker` names them; the libraries have the same names."""

_ID_FILE = "wandb.json"


@runtime_checkable
class Tracker(Protocol):
    """Receives scalars by name. Called in the main process only."""

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Record values after `step` optimiser steps."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class NoTracker:
    """Does nothing."""

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WandbTracker:
    """Weights & Biases; `WANDB_MODE=offline` works. A resumed run continues its own page.

    Raises:
        ConfigError: wandb is not installed, or does not start: nobody is logged in, or there is no network.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb", "wandb") from error
        id_file = run_dir / _ID_FILE
        known = _known_id(id_file)
        try:
            self._run = wandb.init(
                dir=str(run_dir), name=run_dir.name, config=dict(config), id=known, resume="allow" if known else None
            )
        except wandb.Error as error:
            raise ConfigError(
                f"train.tracker is wandb, which does not start: {' '.join(str(error).split())} Run `wandb login`, set "
                "WANDB_MODE=offline to send the metrics later, or set train.tracker to none."
            ) from error
        replace_whole(id_file, json.dumps({"id": self._run.id}).encode())

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Send values; wandb ignores steps it has already seen, as after a resume."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()


def _known_id(id_file: Path) -> str | None:
    """The page of the run's earlier part; None if there is none, or its note is torn: a new page then."""
    try:
        return str(json.loads(id_file.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class TensorboardTracker:
    """TensorBoard event files in the run folder; after a resume, events past the resumed step are hidden.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard", "tensorboard") from error
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Write values as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def make_tracker(kind: TrackerKind, run_dir: Path, config: Mapping[str, Any], step: int) -> Tracker:
    """The tracker called `kind`, for a run that stands at `step`.

    Raises:
        ConfigError: Its library is not installed or does not start.
    """
    if kind == "wandb":
        return WandbTracker(run_dir, config)
    if kind == "tensorboard":
        return TensorboardTracker(run_dir, step)
    return NoTracker()


def require_tracker(kind: TrackerKind) -> None:
    """Find out whether a tracker can be made, before there is anything to track.

    Raises:
        ConfigError: Its library is not installed.
    """
    if kind != "none" and find_spec(kind) is None:
        raise _not_installed(kind, kind)


def _not_installed(library: str, extra: str) -> ConfigError:
    return ConfigError(
        f"train.tracker is {library}, which is not installed: run `pip install 'bmmae[{extra}]'`, or set "
        "train.tracker to none."
    )

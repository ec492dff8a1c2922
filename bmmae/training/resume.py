"""What training needs to go on where it stopped, and the check that it is the same training."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn

from bmmae.data.location import replace_whole
from bmmae.errors import CheckpointError, OutputError, TrainingError
from bmmae.masking import MaskingConfig
from bmmae.model.config import ModelConfig
from bmmae.model.pretrained import PretrainedModel
from bmmae.schema import flatten, to_dict
from bmmae.training.checkpointing import checkpoint_folder, find_checkpoint, list_checkpoints, read_state

CONFIG = "config.yaml"
MOST_CHANGES = 6
"""Differences that are named where a run is refused; another kind of training has dozens."""
_START = "encoder at the start (--model)"
"""A key of the settings in saved runs, of pretrainings too, whose option is `--start`."""
_LATER: dict[str, Any] = {"model.synthesis.robust": []}
"""Settings of a masked autoencoder whose weights trained before there were these mean something else with others."""
# Changing these between two parts of a run is what resuming is for; of the rest one is told.
_FREE = (
    "train.resume",
    "train.workers",
    "train.progress",
    "train.time_limit_hours",
    "train.tracker",
    "train.keep",
    "out",
)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimiser steps done.
        evaluated: Step of the last complete evaluation.
        saved: Step of the last checkpoint.
        best_step: Step of the best checkpoint.
        best_value: Its selection metric.
        worse: Evaluations in a row without a new best.
        skipped: Steps left out because they were not finite.
    """

    step: int = 0
    evaluated: int = 0
    saved: int = 0
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0
    skipped: int = 0


def find_start(run_dir: Path, resume: bool | Literal["auto"]) -> Path | None:
    """The checkpoint to go on from; None for a fresh start.

    Raises:
        TrainingError: As `refuse_other_start`.
        CheckpointError: All checkpoints are damaged.
    """
    return find_checkpoint(run_dir, "last") if refuse_other_start(run_dir, resume) else None


def refuse_other_start(run_dir: Path, resume: bool | Literal["auto"]) -> bool:
    """Return whether there is a run to go on with; checkpoints are not looked into.

    Raises:
        TrainingError: There is a run where a fresh start was asked for, or none where one was to be resumed.
    """
    exists = bool(list_checkpoints(run_dir))
    if exists and resume is False:
        raise TrainingError(
            f"{run_dir} already holds a run: set train.resume=true to continue it, or choose another run folder."
        )
    if not exists and resume is True:
        raise TrainingError(
            f"train.resume=true, but {run_dir} holds no checkpoint: check the path, or set train.resume=auto to "
            "start afresh where there is none."
        )
    return exists


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: nn.Module | None,
    *,
    progress: Progress,
    window: Mapping[str, tuple[float, float]],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a resumed run needs. No random state: that is drawn anew in every step, from its address.

    The weights are here as well as in the model's own files, which may be cast, renamed or averaged for their readers.
    """
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averaged": None if averaged is None else averaged.state_dict(),
        "progress": asdict(progress),
        "window": dict(window),
        "identity": dict(identity),
    }


def settings_of(model: nn.Module, masking: MaskingConfig | None = None) -> dict[str, Any]:
    """Settings of model, preprocessing and masking that a resumed run must share, by their keys in the configuration.

    Of lists and tables beside the `ModelConfig` only what was chosen counts: names, classes, label values. The weights
    that training starts from are known by their encoder's hash, wherever they lie.

    Args:
        model: As training starts, before a checkpoint is loaded.
        masking: Of its tokens.
    """
    tree: dict[str, Any] = {} if masking is None else {"masking": to_dict(masking)}
    if not isinstance(model, PretrainedModel):
        return flatten(tree)
    own = to_dict({"model": model.config} if isinstance(model.config, ModelConfig) else vars(model.config))
    listed = {key: own.pop(key) for key in list(own) if key != "model" and isinstance(own[key], list | dict)}
    tree |= {**own, "preprocess": model.metadata.preprocessing}
    chosen = (pair for key, value in listed.items() for pair in _chosen(key, value))
    return {**flatten(tree), **dict(chosen), _START: _start_of(model)}


def _chosen(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a list or a table says, without what is fitted to the data: counts, and fractions that machines round."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name != "counts":
                yield from _chosen(f"{key}.{name}", item)
    elif isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        yield key, [item["name"] for item in value]
        for item in value:
            yield from _chosen(f"{key}.{item['name']}", item)
    elif isinstance(value, str | int) or (isinstance(value, list) and all(isinstance(i, str | int) for i in value)):
        yield key, value


def _start_of(model: PretrainedModel) -> str | None:
    """A hash of the encoder that training starts from, in words; None for random weights."""
    encoder = getattr(model, "encoder", None)
    if model.metadata.provenance.get("parent") is None or not isinstance(encoder, nn.Module):
        return None
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return f"SHA-256 {digest.hexdigest()[:16]}"


def restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: nn.Module | None,
    identity: Mapping[str, Any],
) -> tuple[Progress, dict[str, tuple[float, float]]]:
    """Load a checkpoint into model and optimiser.

    Returns:
        The progress, and the sums of the metrics since the last log line.

    Raises:
        TrainingError: The configuration differs in something that makes it another training, or nothing was trained.
        CheckpointError: The weights do not fit the model.
    """
    state = read_state(folder)
    if "identity" not in state:
        raise TrainingError(
            f"{folder.parents[1]} holds linear heads, which were fitted at once and cannot go on in steps: choose "
            "another run folder (`out`)."
        )
    pretrains = isinstance(model, PretrainedModel) and isinstance(model.config, ModelConfig)
    option = "--start" if pretrains else "--model"
    before = (_LATER if pretrains else {}) | state["identity"]
    _refuse_differences(folder, before, identity, option)
    try:
        model.load_state_dict(state["model"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"], strict=True)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} does not fit the model as configured now: {told} Restore the model's settings (the run's "
            f"{CONFIG} has them), or start a new run in another folder."
        ) from error
    progress = Progress(**state["progress"])
    run_dir = folder.parents[1]
    if progress.best_step is not None and not checkpoint_folder(run_dir, progress.best_step).exists():
        if progress.best_step != progress.step:
            warnings.warn(
                f"The best checkpoint (step {progress.best_step}) is gone; the search for the best starts again.",
                stacklevel=2,
            )
        progress.best_step = progress.best_value = None
        progress.worse = 0
    return progress, dict(state["window"])


def _refuse_differences(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], option: str) -> None:
    """Refuse another training; `option` is what names the weights that this one starts from."""
    known = now.keys() & before.keys()  # a checkpoint of an earlier version does not tell everything
    changed = [
        f"{key.replace('--model', option)} was {before[key]!r} and is now {now[key]!r}"
        for key in now
        if key in known and before[key] != now[key]
    ]
    if changed:
        more = [f"and {len(changed) - MOST_CHANGES} more"] if len(changed) > MOST_CHANGES else []
        raise TrainingError(
            f"{folder} cannot be resumed with another configuration: {'; '.join([*changed[:MOST_CHANGES], *more])}. "
            "Restore these, or start a new run in another folder."
        )


def write_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved configuration into the run folder; warns of what changed since the run was started.

    One that is damaged is replaced: what must not change is known from the checkpoint.

    Raises:
        OutputError: The folder cannot be written.
    """
    path = run_dir / CONFIG
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))  # no tuples, paths or enums
    before = flatten(_read_config(path)) if path.exists() else {}
    if before:
        now = flatten(plain)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in _FREE)
        if changed:
            told = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed)
            warnings.warn(f"The configuration has changed since {run_dir} was started: {told}.", stacklevel=2)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_whole(path, yaml.safe_dump(plain, sort_keys=False).encode())
    except OSError as error:
        raise OutputError(f"The run folder {run_dir} cannot be written: {error}. Choose another one.") from error


def _read_config(path: Path) -> dict[str, Any]:
    """Read a run's configuration; empty, with a warning, if it is damaged."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
    if isinstance(found, dict):
        return found
    warnings.warn(f"{path} does not hold a run's configuration ({found}): it is written anew.", stacklevel=3)
    return {}

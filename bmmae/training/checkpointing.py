"""Checkpoints that survive a kill at any moment.

    run_dir/checkpoints/step-00000100/   the model as `save_model` writes it, training_state.pt, manifest.json
    run_dir/checkpoints/index.json       which is last, which is best, and how the run stands

A checkpoint is written under a temporary name, flushed to disk and renamed, so a folder with a final name is complete;
older ones go only after that. The manifest holds sizes and hashes, and reading verifies them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn

from bmmae.errors import CheckpointError, OutputError

SaveModel: TypeAlias = Callable[[nn.Module, Path], None]

FOLDER = "checkpoints"
INDEX = "index.json"
MANIFEST = "manifest.json"
STATE = "training_state.pt"
_PREFIX = "step-"
_TEMPORARY = ".writing-"
_ASIDE = f"{_TEMPORARY}old-"
_NAME = re.compile(rf"({re.escape(_ASIDE)})?{_PREFIX}\d{{8,}}")
_TORCH_WRITER = "inline_container"
"""Stands in the message of the RuntimeError by which `torch.save` says that it cannot write."""


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimiser steps."""
    return run_dir / FOLDER / f"{_PREFIX}{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """Number of optimiser steps a checkpoint folder stands for."""
    return int(folder.name.removeprefix(_ASIDE).removeprefix(_PREFIX))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first; not verified. Others beside them are the user's own.

    One that a kill left put aside, with nothing in its place yet, is still that step's.
    """
    found = {path.name: path for path in (run_dir / FOLDER).glob(f"*{_PREFIX}*") if _NAME.fullmatch(path.name)}
    standing = [path for name, path in found.items() if name[0] != "." or name.removeprefix(_ASIDE) not in found]
    return sorted(standing, key=checkpoint_step, reverse=True)


def write_checkpoint(run_dir: Path, step: int, model: nn.Module, state: dict[str, Any], save_model: SaveModel) -> Path:
    """Write one checkpoint, complete or not at all.

    Args:
        run_dir: The run's folder.
        step: Optimiser steps done.
        model: What `save_model` takes.
        state: What training needs to go on: tensors, numbers, strings and containers of these.
        save_model: Writes the model's own files into a folder.

    Returns:
        The checkpoint's folder.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    final = checkpoint_folder(run_dir, step)
    temporary = final.with_name(f"{_TEMPORARY}{final.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_model(model, temporary)
        torch.save(state, temporary / STATE)
        _write_json(temporary / MANIFEST, {"files": _describe(temporary)})
        _flush_tree(temporary)
        _put_in_place(temporary, final)
    except (OSError, OutputError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
            raise  # nothing of the disk's
        told = "the disk may be full" if isinstance(error, RuntimeError) else error  # torch tells positions in a file
        raise OutputError(
            f"Checkpoint {final} cannot be written: {told}. Free some space or choose another run folder; the "
            "earlier checkpoints are untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _put_in_place(temporary: Path, final: Path) -> None:
    # A folder of this step exists where an abandoned continuation left it, or where the step was evaluated after its
    # checkpoint was written; a rename cannot replace it.
    if final.exists():
        old = final.with_name(f"{_ASIDE}{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    _flush(final.parent)


def write_index(run_dir: Path, index: dict[str, Any]) -> None:
    """Replace the index of checkpoints atomically.

    Raises:
        OutputError: It cannot be written.
    """
    path = run_dir / FOLDER / INDEX
    try:
        _write_json(path.with_suffix(".tmp"), index)
        path.with_suffix(".tmp").replace(path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error


def read_index(run_dir: Path) -> dict[str, Any]:
    """The index of checkpoints; empty if there is none, or none that can be read."""
    try:
        index: dict[str, Any] = json.loads((run_dir / FOLDER / INDEX).read_text())
    except (OSError, ValueError):
        return {}
    return index


def remove_old_checkpoints(run_dir: Path, step: int, best_step: int | None, keep: int) -> None:
    """Keep the best and the newest `keep` up to `step`; the rest, and what a kill left half-written, goes.

    Folders beyond `step` belong to a continuation that was given up (its checkpoints were damaged).
    """
    folders = list_checkpoints(run_dir)
    past = [folder for folder in folders if checkpoint_step(folder) <= step]
    kept = {*past[:keep], *(folder for folder in folders if checkpoint_step(folder) == best_step)}
    # With two dots: the draft that `save_model` writes beside the folder it is given.
    torn = (path for dots in ("", ".") for path in (run_dir / FOLDER).glob(f"{dots}{_TEMPORARY}*"))
    for folder in {*folders, *torn} - kept:
        shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(run_dir: Path, which: Literal["best", "last"] = "best") -> Path:
    """Folder of a run's best or last checkpoint whose files are all there and unharmed.

    If the wanted one is damaged, warns and falls back to the newest that is not. A run that has never been evaluated
    has no best checkpoint: its last one is taken.

    Raises:
        CheckpointError: The run has no intact checkpoint.
    """
    candidates = list_checkpoints(run_dir)
    best = read_index(run_dir).get("best")
    if which == "best" and best is not None:
        candidates.sort(key=lambda folder: folder.name != best)  # stable: the others stay newest first
    for folder in candidates:
        problem = find_damage(folder)
        if problem is None:
            return folder
        warnings.warn(f"Checkpoint {folder} is damaged ({problem}); looking for another one.", stacklevel=2)
    raise CheckpointError(
        f"No intact checkpoint in {run_dir / FOLDER} ({len(candidates)} folders looked at): expected one folder "
        f"{_PREFIX}XXXXXXXX written by training. Check the path of the run."
    )


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, by its manifest; None if nothing is."""
    try:
        expected: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, facts in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['size']}"
        if _sha256(path) != facts["sha256"]:
            return f"{name} has changed since it was written"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's training state, onto the CPU.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, depending on where the file breaks
        raise CheckpointError(f"{folder / STATE} cannot be read: {error}") from error
    return state


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

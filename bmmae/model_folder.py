"""A saved model on disk: `config.json`, `model.safetensors` and `README.md` in one folder, written all or nothing."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmmae._version import __version__
from bmmae.arrays import Tensor
from bmmae.errors import CheckpointError, ConfigError, OutputError
from bmmae.schema import from_dict, to_dict

FORMAT = 1
"""The layout that this library writes; it reads this and all before."""

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)

_POINTER = b"version https://git-lfs"

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
"""Endings of PyTorch's own files, such as published weights."""


@dataclass(frozen=True)
class SavedConfig:
    """What `config.json` holds.

    Attributes:
        format: Layout of the folder.
        bmmae_version: The library that wrote it.
        kind: Which model class the weights belong to (`mae`, `segmentation` ...).
        model: That class's config.
        preprocessing: How images become its input.
        provenance: What it was trained on and how; see `bmmae.provenance.Provenance`.
    """

    kind: str
    model: Mapping[str, Any]
    format: int = FORMAT
    bmmae_version: str = __version__
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_folder(folder: Path, config: SavedConfig, weights: Mapping[str, Tensor], card: str) -> None:
    """Write a model folder; until all of it is on disk, nothing appears under its name.

    Args:
        folder: Where to; a model that is already there is replaced.
        config: The contents of config.json.
        weights: The state dict.
        card: The model card, in Markdown.

    Raises:
        ConfigError: If the config holds what JSON cannot.
        OutputError: If the folder holds anything but a saved model, or cannot be written.
    """
    from safetensors import SafetensorError

    folder = folder.expanduser().resolve()  # `.` has no name, and of a link it is the target that is replaced
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, and a model is saved as a folder: choose another name")
    foreign = sorted({path.name for path in folder.iterdir()} - set(FILES)) if folder.is_dir() else []
    if foreign:
        raise OutputError(
            f"{folder} holds other files than a saved model ({', '.join(foreign[:5])}): choose a new or empty folder"
        )
    text = _as_json(config)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.mkdir(parents=True)
        _write_files(draft, text, weights, card)
        _put_in_place(draft, folder)
    except (OSError, SafetensorError) as error:  # the latter where safetensors meets a full disk
        told = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write the model to {folder}: {told}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _as_json(config: SavedConfig) -> str:
    try:
        return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise ConfigError(
            f"the model's config or what describes it cannot be saved as JSON: {error}. Expected numbers, texts, "
            "lists, tuples, mappings and dataclasses of these"
        ) from error


def _write_files(folder: Path, config: str, weights: Mapping[str, Tensor], card: str) -> None:
    """Write the three files into an existing folder and wait until they are on disk."""
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share storage, as slices and tied weights do.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
    save_file(state, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    # safetensors writes files that only their owner can read; shared folders need the usual permissions.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    for path in [folder / name for name in FILES] + [folder]:
        _sync(path)


def _put_in_place(draft: Path, folder: Path) -> None:
    """Rename the draft to its name; what stood there is moved aside first and removed last."""
    old = draft.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(draft, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    # Not every file system can sync a folder; the rename is then as durable as it gets.
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_config(folder: Path) -> SavedConfig:
    """Read a model folder's config.json.

    Raises:
        CheckpointError: If it is absent, no JSON, written by a newer library, or holds unknown keys.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no saved model: expected {', '.join(FILES)} in it, and found no {CONFIG}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Save or download the model again.") from error
    _check_format(path, values)
    try:
        return from_dict(SavedConfig, values)
    except ConfigError as error:
        writer = values.get("bmmae_version", "an unknown version")
        raise CheckpointError(
            f"{path}, written by bmmae {writer}, does not fit bmmae {__version__}: {error}"
        ) from error


def _check_format(path: Path, values: object) -> None:
    number = values.get("format") if isinstance(values, dict) else None
    if not isinstance(values, dict) or not isinstance(number, int):
        raise CheckpointError(f'{path} was not written by bmmae: expected "format": {FORMAT}, found no such number')
    if number > FORMAT:
        writer = values.get("bmmae_version", "a newer version")
        raise CheckpointError(
            f"{path} has format {number}, written by bmmae {writer}; this is bmmae {__version__}, which reads up to "
            f"format {FORMAT}. Upgrade with: pip install --upgrade bmmae"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: If it is absent, truncated or otherwise unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks its weights: expected a file {path.name} in it") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot read {path}: {pointer_told(path) or f'it is truncated or no safetensors file ({error})'}. "
            "Download or save it again."
        ) from error
    return state


def pointer_told(path: Path) -> str:
    """Say so if a file is what stands for a large one in a clone without Git LFS; else nothing."""
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    return "it is a Git LFS pointer, not the weights: run `git lfs pull` in the clone" if pointer else ""

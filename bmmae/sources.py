"""Where a model comes from: a name that a user gives, turned into a model folder or a file of published weights."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from bmmae.errors import CheckpointError
from bmmae.hub import check_sha256, fetch_file, fetch_model
from bmmae.model_folder import CONFIG, PICKLES, WEIGHTS
from bmmae.provenance import base_name

INDEX = Path("checkpoints") / "index.json"
"""What makes a folder a run folder: `{"best": NAME, "last": NAME}`, names of model folders beside the file."""

MANIFEST = "README.md"
"""Beside model folders and weight files: may hold a table with the columns `name` and `sha256`."""

RUN_MANIFEST = "manifest.json"
"""In a run's checkpoints: `{"files": {NAME: {"sha256": ...}}}`."""


def locate(source: str | Path, filename: str | None = None, revision: str | None = None) -> Path:
    """Return the model folder or the published weights' file that a source means; fetch it if need be.

    Args:
        source: A folder, a run folder (`RUN`, `RUN@last`, `RUN@best`, `RUN@step-...`), a file, or a hub repository
            (`org/name`, `org/name@revision`).
        filename: A file in the folder or repository.
        revision: Branch, tag or commit of a hub repository.

    Raises:
        CheckpointError: If there is nothing of the kind, a manifest lists another hash, a revision is asked of what is
            no hub repository, the folder may not be read, or the source is no text and no path.
        HubError: If it cannot be fetched.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"a model goes by its name or path, got a {type(source).__name__}")
    text = _expanded(source)
    try:
        return _located(text, filename, revision)
    except PermissionError as error:
        raise CheckpointError(
            f"the model '{text}' may not be read: {error.strerror} ({error.filename}). Ask the owner of the folder for "
            "the permission, or for a copy"
        ) from error


def _located(text: str, filename: str | None, revision: str | None) -> Path:
    name, tag = _tagged(text)
    if Path(text).exists():
        path = _in_folder(Path(text), filename, None)
    elif tag and Path(name).is_dir():
        path = _in_folder(Path(name), filename, tag)
    elif Path(text).suffix in (*PICKLES, ".safetensors"):
        raise CheckpointError(_nothing(text))
    elif (beside := _models_in(Path(name).parent)) or not _may_be_hub(name):
        # A slip: a run's name is not to be asked for in public.
        near = difflib.get_close_matches(Path(name).name, beside, n=1)
        raise CheckpointError(_nothing(text) + (f". Did you mean '{Path(name).parent / near[0]}'?" if near else ""))
    else:
        return _on_hub(name, filename, _one_revision(text, tag, revision))
    if revision is not None:
        raise CheckpointError(f"{text} is on this machine and has no revision '{revision}': leave revision out")
    _check_manifest(path)
    return path


def unfinished(source: str | Path) -> str | None:
    """Return how a run folder stands that has not finished (`running, step 8 of 400`); None of all else."""
    text = _expanded(source)
    run = Path(text if Path(text).exists() else _tagged(text)[0])
    if not (run / INDEX).is_file():
        return None
    index = _json(run / INDEX)
    status = index.get("status", "finished")
    return None if status == "finished" else f"{status}, step {index.get('step')} of {index.get('steps')}"


def public_name(source: str | Path) -> str:
    """Return what a model may be called in public: its hub name, else the last part of its path."""
    text = str(source)
    name = _tagged(text)[0]
    local = Path(text).exists() or Path(name).is_dir()
    return base_name(text) if local or not _may_be_hub(name) else text


def _expanded(source: str | Path) -> str:
    return str(Path(source).expanduser()) if str(source).startswith("~") else str(source)


def _tagged(text: str) -> tuple[str, str]:
    """Divide a source into name and tag at its last @: folders may have one in their names as well."""
    name, at, tag = text.rpartition("@")
    return (name, tag) if at else (text, "")


def _may_be_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _models_in(folder: Path) -> list[str]:
    """Names of the models and runs that a folder holds."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    # Not `Path.is_file`, which fails in folders that others have closed.
    return sorted(
        place.name for place in folder.iterdir() if os.path.isfile(place / CONFIG) or os.path.isfile(place / INDEX)
    )


def _nothing(text: str) -> str:
    return (
        f"there is no model '{text}': expected a model folder ({CONFIG} and {WEIGHTS}), a run folder, a .pth file of "
        "published weights, or a hub name (org/name or org/name@revision)"
    )


def _one_revision(text: str, tag: str, revision: str | None) -> str | None:
    if tag and revision and tag != revision:
        raise CheckpointError(f"two revisions are asked for: '{tag}' in '{text}', and '{revision}'")
    return tag or revision


def _on_hub(name: str, filename: str | None, revision: str | None) -> Path:
    if filename is None:
        return fetch_model(name, revision)
    _check_name(Path(filename))
    path = fetch_file(name, filename, revision)
    return path if path.suffix in PICKLES else path.parent


def _in_folder(path: Path, filename: str | None, tag: str | None) -> Path:
    if path.is_file():
        return _of_file(path)
    if filename is not None:
        return _named_file(path, filename)
    if tag is None and (path / CONFIG).is_file() and not (path / INDEX).is_file():
        return path
    if (path / INDEX).is_file():
        return _of_run(path, tag or "best")
    if tag is not None:
        raise CheckpointError(f"{path} is no run folder, so '@{tag}' means nothing: expected {INDEX} in it")
    raise CheckpointError(_no_model(path))


def _named_file(folder: Path, filename: str) -> Path:
    path = folder / filename
    if not path.is_file():
        raise CheckpointError(f"{folder} has no file {filename}: it has {_files(folder)}")
    return _of_file(path)


def _of_file(path: Path) -> Path:
    _check_name(path)
    return path if path.suffix in PICKLES else path.parent


def _check_name(path: Path) -> None:
    if path.suffix == ".safetensors" and path.name != WEIGHTS:
        raise CheckpointError(
            f"cannot load {path}: a model's weights are called {WEIGHTS}, with {CONFIG} beside them; put it into a "
            "folder of its own under that name"
        )


def _no_model(folder: Path) -> str:
    told = f"{folder} is no saved model: expected {CONFIG} and {WEIGHTS}, or a run's {INDEX}; it has {_files(folder)}"
    weights = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if not weights:
        return told
    return f"{told}. Name a file of published weights by its path ({weights[0]}), or in Python with filename=..."


def _files(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def _of_run(run: Path, tag: str) -> Path:
    """Return the checkpoint of a run that a tag means: what the index calls so, or a folder of that name."""
    index = _json(run / INDEX)
    name = index.get(tag) or tag
    # A run that was never validated has no best checkpoint: what is there is then its last.
    if tag == "best" and not index.get("best"):
        name = index.get("last") or tag
    folder = run / INDEX.parent / str(name)
    if not (folder / CONFIG).is_file():
        present = sorted(path.parent.name for path in (run / INDEX.parent).glob(f"*/{CONFIG}"))
        tags = [known for known in ("best", "last") if index.get(known)]
        raise CheckpointError(
            f"the run {run} has no checkpoint '{tag}': it has {', '.join([*tags, *present]) or 'none'}"
        )
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a mapping, got {values!r}")
    return values


def _check_manifest(path: Path) -> None:
    """Compare the weights with the hash that a manifest lists: beside the folder or file, or in a run's checkpoint."""
    weights = path / WEIGHTS if path.is_dir() else path
    named = Path(os.path.abspath(path))  # `.` has no name and no parent
    expected = [_table_hashes(named.parent / MANIFEST).get(named.name)]
    if path.is_dir() and (path / RUN_MANIFEST).is_file():
        files = _json(path / RUN_MANIFEST).get("files", {})
        expected.append(files.get(WEIGHTS, {}).get("sha256"))
    for digest in filter(None, expected):
        check_sha256(weights, digest)


def _table_hashes(readme: Path) -> dict[str, str]:
    """Read the hashes by name from the Markdown table that has both columns; nothing where there is none."""
    # Not every README is ours; names and hashes are plain letters in any encoding.
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines() if readme.is_file() else []
    columns: list[str] = []
    hashes = {}
    for line in lines:
        cells = [cell.strip(" `") for cell in line.strip().strip("|").split("|")]
        if {"name", "sha256"} <= set(cells):
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            hashes[row["name"]] = row["sha256"]
        else:
            columns = []
    return {name: digest for name, digest in hashes.items() if re.fullmatch(r"[0-9a-fA-F]{64}", digest)}

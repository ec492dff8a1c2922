"""Models on a hub: fetching files, checking what arrived, and what to say when that fails."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bmmae.errors import CheckpointError, HubError
from bmmae.model_folder import CONFIG, PICKLES, WEIGHTS, read_config

_OFFLINE = (
    "To work without a network, fetch it once with one and set HF_HUB_OFFLINE=1 (the cache is then used), or pass the "
    "folder of a copy of the model"
)
_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_CLIENTS = {"huggingface_hub", "httpx", "httpx2", "requests", "urllib3"}


def fetch_model(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch a saved model, both files from one commit.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; by default the main branch.
        **options: Those of `huggingface_hub.hf_hub_download`.

    Returns:
        The folder in the cache.

    Raises:
        HubError: If it cannot be fetched, or is not what the hub says it is.
        CheckpointError: If it is no model of this library; its weights, which may be large, are then left there.
    """
    config = fetch_file(repo_id, CONFIG, revision, **options)
    read_config(config.parent)
    # The cache names a snapshot's folder by its commit: a push between the two requests changes nothing.
    fetch_file(repo_id, WEIGHTS, config.parent.name, **options)
    return config.parent


def fetch_file(repo_id: str, filename: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch one file of a repository, or find it in the cache.

    Raises:
        HubError: If it cannot be fetched, or is not what the hub says it is.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(repo_id, filename, revision):
        path = Path(hf_hub_download(repo_id, filename, revision=revision, **options))
    _check_blob(path, repo_id)
    return path


def _check_blob(path: Path, repo_id: str) -> None:
    """Compare a large file with its own name in the cache, which is the hub's SHA-256 of it."""
    expected = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", expected) and sha256_of(path) != expected:
        raise HubError(
            f"{path.name} of {repo_id} is damaged: its SHA-256 is not the hub's ({expected[:12]}...). Delete "
            f"{path.resolve()} and load again"
        )


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with the hash that a manifest gives.

    Raises:
        CheckpointError: If they differ, or the file is gone.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}, which a manifest lists: {error.strerror or error}. Fetch or make it again; of a run "
            "under way, load again, for a newer checkpoint may have taken its place"
        ) from error
    if found != expected.lower():
        raise CheckpointError(
            f"{path} is not the file that the manifest lists: expected SHA-256 {expected}, got {found}. Fetch or make "
            "it again, or correct the manifest"
        )


@contextmanager
def hub_errors(
    repo_id: str, filename: str | None = None, revision: str | None = None, *, pushing: bool = False
) -> Iterator[None]:
    """Turn the hub client's errors into one sentence each, with the way out.

    Args:
        repo_id: `org/name`.
        filename: What is fetched of it.
        revision: Branch, tag or commit.
        pushing: Whether something is sent, not fetched.

    Raises:
        HubError: In place of any error of the client or its transport.
    """
    try:
        yield
    except Exception as error:
        if not _of_client(error):
            raise
        told = _explain_push(error, repo_id) if pushing else None
        raise HubError(told or _explain(error, repo_id, filename, revision)) from error


def _of_client(error: BaseException | None) -> bool:
    """Whether an error is the client's or its transport's, or was caused by one (an upload's is a RuntimeError)."""
    if error is None or isinstance(error, OSError):
        return error is not None
    # The client's HTTP library changed twice: its errors are recognised by where they were defined.
    homes = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not homes.isdisjoint(_CLIENTS) or _of_client(error.__cause__)


def _explain_push(error: Exception, repo_id: str) -> str | None:
    """Say why nothing was sent; None where that is as in fetching: the mode without a network, a name that is none."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"OfflineModeIsEnabled", "HFValidationError"}:
        return None
    if _status(error) in (401, 403, 404):
        return (
            f"the hub does not let you write to {repo_id}: log in with `hf auth login` and a token that may write, of "
            "an account that may write there, and check the name"
        )
    return f"{repo_id} was not pushed: {_reason(error)}. Push again: a model appears there as a whole or not at all"


def _status(error: BaseException | None) -> int | None:
    """Return the hub's answer, which an upload's error holds in its cause."""
    if error is None:
        return None
    number = getattr(getattr(error, "response", None), "status_code", None)
    return _status(error.__cause__) if number is None else int(number)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _explain(error: Exception, repo_id: str, filename: str | None, revision: str | None) -> str:
    at = f"{repo_id}@{revision}" if revision else repo_id
    what = f"{filename} of {at}" if filename else at
    reason = _reason(error)
    # Order matters: the client's gated is a kind of its not found, and its not cached of its no such entry.
    causes = {
        "GatedRepoError": f"{repo_id} is gated: accept its terms on the hub's page and log in with `hf auth login`",
        "LocalEntryNotFoundError": (
            f"there is no folder '{repo_id}' here, the hub cannot be reached for {what}, and the cache does not have "
            f"it. {_OFFLINE}"
        ),
        "OfflineModeIsEnabled": f"HF_HUB_OFFLINE is set, so the hub cannot be asked about {what}: unset it",
        "RevisionNotFoundError": f"{repo_id} has no revision '{revision}': expected a branch, a tag or a commit hash",
        "RepositoryNotFoundError": _no_repository(repo_id),
        "HFValidationError": f"'{repo_id}' is neither a folder here nor a hub name (org/name): {reason}",
    }
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, message in causes.items():
        if name in names:
            return message
    if "EntryNotFoundError" in names:
        return f"{at} has no file {filename}{_listing(repo_id, revision)}"
    if _status(error) in (401, 403):
        return _no_repository(repo_id)
    if isinstance(error, OSError) and error.errno in _OF_DISK:
        return (
            f"{what} cannot be kept in the hub client's cache: {reason}. Make room there, or name another place with "
            "HF_HOME"
        )
    return f"the transfer of {what} failed: {reason}. Try again. {_OFFLINE}"


def _no_repository(repo_id: str) -> str:
    return (
        f"the hub has no model '{repo_id}' that you may use, and there is no folder '{repo_id}' here either: check the "
        "name; if it is private, log in with `hf auth login` and an account that has access"
    )


def _listing(repo_id: str, revision: str | None) -> str:
    """Say which files a repository has instead, and how to load published weights; nothing if it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        files = [name for name in HfApi().list_repo_files(repo_id, revision=revision) if not name.startswith(".")]
    except Exception:  # This only decorates another error.
        return ""
    if not files:
        return ": it is empty"
    listing = f": it has {', '.join(files[:20])}"
    weights = next((name for name in files if name.endswith(PICKLES)), None)
    if weights is None:
        return listing
    at = f" --revision {revision}" if revision else ""
    return (
        f"{listing}. Name one with filename='{weights}' in Python; for a command, fetch it with "
        f"`hf download {repo_id} {weights}{at}` and name the file that this prints"
    )

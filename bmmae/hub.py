"""Models on a hub: fetching, and what to say when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bmmae.errors import HubError
from bmmae.model_folder import CONFIG, WEIGHTS


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn the hub client's errors into one sentence with the way out."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(f"cannot fetch {repo_id}: {error}") from error


def fetch_model(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """Fetch the files of a saved model and return their folder in the cache."""
    from huggingface_hub import hf_hub_download

    with hub_errors(repo_id):
        paths = [hf_hub_download(repo_id, name, revision=revision, **options) for name in (CONFIG, WEIGHTS)]
    return Path(paths[0]).parent

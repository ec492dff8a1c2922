"""Where a file is: on this machine, or at any address fsspec can read (https, s3, gs, hf, memory ...).

A cell of a cohort table with `://` in it is an address. `file://` ones become paths; the others are read whole through
fsspec, into the same decoders as local files.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from bmmae.errors import ImageError, OutputError

T = TypeVar("T")

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
STAMPS = (
    "ETag",
    "etag",
    "Content-MD5",
    "md5",
    "generation",
    "Last-Modified",
    "LastModified",
    "mtime",
    "updated",
    "created",
)
"""What file systems call that which changes when a file's content does."""

ATTEMPTS = 3
PAUSE = 0.5
"""Seconds before the second attempt; doubled for each further one."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address.

    Attributes:
        url: As fsspec takes it, with whatever credentials it carries.
    """

    url: str

    def __str__(self) -> str:
        """The address without credentials: what stands before an @, and after a question mark."""
        bare = self.url.partition("?")[0]
        return re.sub(r"(?<=://)[^/@]*@", "", bare)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return str(self).rstrip("/").rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            ImageError: If it cannot be read, after three attempts where that can help.
        """
        return self._try(lambda system, path: bytes(system.cat_file(path)))

    def stamp(self) -> tuple[int | None, str]:
        """Return its size, and what its file system says of its version.

        Raises:
            ImageError: If the file system does not know the file.
        """
        info = self._try(lambda system, path: dict(system.info(path)))
        return info.get("size"), "; ".join(f"{name} {info[name]}" for name in STAMPS if info.get(name) is not None)

    def _try(self, ask: Callable[[Any, str], T]) -> T:
        for attempt in range(ATTEMPTS):
            try:
                return ask(*self._system())
            except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError, ValueError) as error:
                raise self._explained(error) from error
            except Exception as error:  # whatever a file system's own library raises for a network in trouble
                if attempt == ATTEMPTS - 1:
                    raise self._explained(error) from error
            time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _system(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        # Listings are not kept: a file may be replaced while a process runs.
        system, path = url_to_fs(self.url, use_listings_cache=False)
        return system, path

    def _explained(self, error: Exception) -> ImageError:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        reason = (reason or type(error).__name__).replace(self.url, str(self))
        if isinstance(error, ImportError):
            return ImageError(f"{self} cannot be read: {reason}; install what its file system needs (bmmae[remote])")
        return ImageError(f"{self} cannot be read: {reason}; check the address, the network and your permissions")


File: TypeAlias = Path | RemoteFile


def locate(text: str | File, folder: Path | None = None) -> File:
    """Return the file that a path or an address names.

    Args:
        text: A path, which may begin with `~/`, an address, or what is located already.
        folder: What relative paths start from; by default the working directory.
    """
    if isinstance(text, RemoteFile):
        return text
    plain = os.fspath(text)
    if plain.startswith("~/"):
        return Path(plain).expanduser()
    if not ADDRESS.match(plain):
        return folder / plain if folder else Path(plain)
    parts = urlsplit(plain)
    if parts.scheme == "file" and "::" not in plain:
        return Path(unquote(parts.path))
    return RemoteFile(plain)


def file_name(name: str) -> str:
    """Return a name as a part of a file's, with hyphens for what no file may hold: `1p/19q` is no folder."""
    return re.sub(r'[\\/:*?"<>|]', "-", name)


def fingerprint(file: File) -> tuple[str, int | None, int | str]:
    """Return what changes when a file does: its place, size, and modification time or version.

    A remote file is asked once a process: for the network's sake, and because training reads it all the time.

    Raises:
        ImageError: If it is gone.
    """
    if isinstance(file, RemoteFile):
        return _remote_fingerprint(file)
    try:
        status = file.stat()
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror}. Run `bmmae check` on the cohort") from error
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def as_seen_from(folder: Path, file: File) -> str:
    """Return a file's path relative to a folder; absolute where no way leads there (another drive, an address)."""
    if isinstance(file, RemoteFile):
        return file.url
    here = folder.resolve()
    try:
        found = Path(os.path.relpath(file.absolute(), folder.absolute()))
        # The system goes up from where a link leads, not from where it lies.
        if (here / found).parent.resolve() != file.parent.resolve():
            found = Path(os.path.relpath(file.parent.resolve() / file.name, here))
        return found.as_posix()
    except ValueError:
        return str(file.absolute())


def refuse_overwriting(written: Iterable[Path], given: Iterable[File]) -> None:
    """Refuse to write over a file that is read.

    Args:
        written: Where something is going to be written.
        given: Images, masks, segmentations and tables that it is made from.

    Raises:
        OutputError: Naming the file.
    """
    # Not `Path.resolve`, which fails where a link leads to itself.
    read = {os.path.realpath(file) for file in given if not isinstance(file, RemoteFile)}
    for path in written:
        if os.path.realpath(path) in read:
            raise OutputError(f"{path} is one of the files given, and would be written over: choose another --out")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old one or the whole new one, never a part.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error


def replace_whole(path: Path, content: bytes) -> None:
    """Write a file in a folder that is there, in one step; where that fails, with an `OSError`, nothing has changed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@lru_cache(maxsize=2**14)
def _remote_fingerprint(file: RemoteFile) -> tuple[str, int | None, str]:
    return file.url, *file.stamp()

"""One run at a time in a run folder: two would overwrite each other's metrics and checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path
from types import TracebackType

from bmmae.errors import TrainingError

NAME = ".lock"


class RunLock:
    """Keeps other processes from training in a run folder; a context manager, which holds from when it is made.

    It is the system's lock on a file: it goes with the process, however that ends, and data workers do not inherit it.
    Where the file system has no locks, or the folder cannot be written, there is none.

    Args:
        run_dir: The run's folder; made if it is not there.

    Raises:
        TrainingError: Another process trains there.
    """

    _descriptor: int | None = None

    def __init__(self, run_dir: Path) -> None:
        with contextlib.suppress(OSError):  # told by who writes the first file
            run_dir.mkdir(parents=True, exist_ok=True)
        self._descriptor = _lock(run_dir, os.O_RDWR | os.O_CREAT)
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let others train in the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def refuse_running(run_dir: Path) -> None:
    """Refuse a run folder in which another process trains; changes nothing.

    Raises:
        TrainingError: One does.
    """
    descriptor = _lock(run_dir, os.O_RDWR)
    if descriptor is not None:
        os.close(descriptor)


def _lock(run_dir: Path, flags: int) -> int | None:
    """Open and lock the file; None where that cannot be done."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(run_dir / NAME, flags, 0o666)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = b""
        with contextlib.suppress(OSError):  # of a network
            holder = os.read(descriptor, 200)
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None
        raise TrainingError(
            f"{run_dir} holds a run under way, of {holder.decode(errors='replace') or 'another process'}: wait until "
            "it has ended, or choose another run folder (`out`)."
        ) from error
    return descriptor

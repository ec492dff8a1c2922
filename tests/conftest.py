"""Fixtures of the whole suite. One thread a process: two processes on two cores beat two threads in one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Array shapes in signatures are enforced here, and only here.
install_import_hook("bmmae", "beartype.beartype")

import pytest

REAL = Path(__file__).parents[2] / "shared" / "real"


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real studies; skips where it is absent, fails in CI (which has it)."""
    if REAL.is_dir():
        return REAL
    if os.environ.get("CI"):
        pytest.fail(f"{REAL} is absent in CI")
    pytest.skip("the real studies (../shared/real) are not on this machine")


@pytest.fixture
def hears_hangups() -> Iterator[None]:
    """SIGHUP as a process gets it from a terminal, for this process and those that it starts: not as under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder into which one may not look: for root, who may look anywhere, `os.stat` says so."""
    folder, look = tmp_path / "closed", os.stat
    folder.mkdir()

    def stat(path: str | Path, **given: bool) -> os.stat_result:
        if folder in Path(path).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, **given)

    monkeypatch.setattr("os.stat", stat)
    return folder

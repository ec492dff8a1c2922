"""Of two processes that would train in one run folder, the second is refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_training import settings, train_toy

from bmmae.errors import TrainingError
from bmmae.training import OptimConfig, look_ahead
from bmmae.training.lock import RunLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks nothing there")

HOLDER = """
import os, sys, time
from pathlib import Path
from bmmae.training.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    time.sleep(100)  # as a data worker that outlives its parent for a while
print(worker, flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains in the folder `run`, with a worker."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(worker, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    run = tmp_path / "run"
    told = rf"run holds a run under way, of process {holder.pid} on .+: wait .* another run folder \(`out`\)"
    for resume in (False, "auto"):
        with pytest.raises(TrainingError, match=told):
            train_toy(run, resume=resume)
        with pytest.raises(TrainingError, match=told):
            look_ahead(settings(resume=resume), OptimConfig(), run)
    assert [path.name for path in run.iterdir()] == [".lock"]
    assert not os.access(run / ".lock", os.X_OK)
    holder.kill()
    holder.wait()  # its worker lives on
    _, result = train_toy(run, steps=2)
    assert result.status == "finished"


def test_a_file_system_without_locks_stops_nobody(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", lockf)
    _, result = train_toy(tmp_path / "run", steps=2)
    assert result.status == "finished"


def test_a_folder_that_cannot_be_written_is_left_to_who_writes_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with RunLock(tmp_path / "file" / "run"):
        pass
    assert not (tmp_path / "file").is_dir()

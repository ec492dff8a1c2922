"""The Slurm script: a signalled run saves and goes back into the queue, a finished one does not."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "pretrain" / "slurm.sbatch"
TOY = ROOT / "tests" / "training" / "toy_training.py"


# As Slurm writes it, but for the lines between.
JOB = "JobId=7 JobName=bmmae\n   JobState={} Dependency=(null)\n   SuspendTime=None PreemptTime={}\n"


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A `srun` that runs one task here, a `scontrol` that takes notes, and the toy instead of the training script.

    Of the job `scontrol` tells what the file `job` says.
    """
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    write_program(bin_folder / "srun", '#!/bin/bash\nshift\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"\n')
    told = f'[ "$*" = "show job 7" ] && exec cat {tmp_path}/job'
    write_program(bin_folder / "scontrol", f'#!/bin/bash\n{told}\necho "$@" >> {tmp_path}/scontrol.log\n')
    (tmp_path / "job").write_text(JOB.format("RUNNING Reason=None", "None"))
    words = 'shift\nset -- "${@/--train.resume/--resume}"\nset -- "${@/auto/\\"auto\\"}"\n'
    write_program(bin_folder / "toy", f'#!/bin/bash\n{words}exec {sys.executable} {TOY} {tmp_path}/run "$@"\n')
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    names = {"PATH": path, "PYTHON": "toy", "SLURM_JOB_ID": "7", "MASTER_ADDR": "localhost"}
    return {**os.environ, **names, "ACCELERATE_USE_CPU": "true"}


def start(cluster: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", str(SCRIPT), *options], env=cluster, cwd=ROOT)


@pytest.mark.slow
def test_a_signalled_job_saves_and_is_requeued_and_then_finishes(tmp_path: Path, cluster: dict[str, str]) -> None:
    job = start(cluster, "--slow", "0.05", "--steps", "40")
    journal = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    index = tmp_path / "run" / "checkpoints" / "index.json"
    assert json.loads(index.read_text())["status"] == "stopped"

    assert start(cluster, "--steps", "40").wait(90) == 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    assert json.loads(index.read_text())["status"] == "finished"


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_job_signalled_before_python_listens_is_requeued(tmp_path: Path, cluster: dict[str, str], name: str) -> None:
    write_program(tmp_path / "bin" / "toy", f"#!/bin/bash\nkill -{name} $$\n")
    assert start(cluster).wait(30) == 128 + signal.Signals[f"SIG{name}"]
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


def test_a_job_that_fails_is_not_requeued(tmp_path: Path, cluster: dict[str, str]) -> None:
    write_program(tmp_path / "bin" / "toy", "#!/bin/bash\nexit 2\n")
    assert start(cluster).wait(30) == 2
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize(
    ("state", "preempted", "again"),
    [
        ("COMPLETING Reason=None", "None", False),
        ("CANCELLED Reason=None", "None", False),
        ("COMPLETING Reason=None", "2026-01-01T00:00:00", True),
        ("COMPLETING Reason=TimeLimit", "None", True),  # of a job that was not signalled before
    ],
)
def test_a_job_that_was_cancelled_stays_away_and_one_that_was_preempted_does_not(
    tmp_path: Path, cluster: dict[str, str], state: str, preempted: str, again: bool
) -> None:
    (tmp_path / "job").write_text(JOB.format(state, preempted))
    write_program(tmp_path / "bin" / "toy", "#!/bin/bash\nexit 75\n")
    assert start(cluster).wait(30) == 75
    assert (tmp_path / "scontrol.log").exists() == again


def test_a_job_that_its_time_limit_ended_is_requeued_however_late_it_saved(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    (tmp_path / "job").write_text(JOB.format("COMPLETING Reason=None", "None"))
    words = f"trap 'exit 75' USR1\ntouch {tmp_path}/listens\nwhile true; do sleep 0.1; done\n"
    write_program(tmp_path / "bin" / "toy", f"#!/bin/bash\n{words}")
    job = start(cluster)
    deadline = time.monotonic() + 30
    while not (tmp_path / "listens").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


def test_each_task_gets_its_cores_and_the_script_that_was_asked_for(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Since Slurm 22.05 `srun` takes the cores of a task from SRUN_CPUS_PER_TASK alone."""
    told = 'echo "$SRUN_CPUS_PER_TASK $1"'
    write_program(tmp_path / "bin" / "toy", f"#!/bin/bash\n{told} >> {tmp_path}/told\n")
    assert start(cluster | {"SLURM_CPUS_PER_TASK": "8"}).wait(30) == 0
    assert start(cluster | {"SCRIPT": "finetune/segmentation.py"}).wait(30) == 0
    assert (tmp_path / "told").read_text() == "8 pretrain/train.py\n1 finetune/segmentation.py\n"

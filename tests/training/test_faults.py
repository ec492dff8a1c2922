"""Signals and kills, delivered to real training processes: of one and of two ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from toy_training import rows, train_toy

from bmmae.training import find_checkpoint

pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).with_name("toy_training.py"))
QUIET = {"steps": 20, "checkpoint_every": 3, "evaluate_every": 5, "resume": "auto"}
PATIENCE = 120


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be cleared away, whatever happens."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def options(run_dir: Path, changes: dict[str, object]) -> list[str]:
    pairs = ((f"--{key}", json.dumps(value)) for key, value in (QUIET | changes).items())
    return [SCRIPT, str(run_dir), *(part for pair in pairs for part in pair)]


def start(
    started: list[subprocess.Popen[str]], *run_dirs: Path, ranks: int = 1, **changes: object
) -> list[subprocess.Popen[str]]:
    """Start the ranks as a scheduler does: one process each, told who they are by the environment.

    They have one run folder, unless there is one given for each.
    """
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    own: list[subprocess.Popen[str]] = []
    for rank in range(ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
        own.append(
            subprocess.Popen(
                [sys.executable, *options(run_dirs[rank % len(run_dirs)], changes)],
                env=environment | (meeting | place if ranks > 1 else {}),
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    started += own
    return own


def end(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Exit codes; what a process said is shown if the test fails."""
    for process in processes:
        print(process.communicate(timeout=PATIENCE)[1])
    return [process.returncode for process in processes]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    journal, given_up = run_dir / "metrics.jsonl", time.monotonic() + PATIENCE
    while time.monotonic() < given_up and process.poll() is None:
        if journal.exists() and f'{{"step": {step},' in journal.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was never reached: {process.communicate()[1]}")


def weights(run_dir: Path) -> list[torch.Tensor]:
    return list(torch.load(find_checkpoint(run_dir, "last") / "weights.bin").values())


def histories(run_dir: Path) -> list[list[tuple[int, float]]]:
    return [rows(run_dir, key) for key in ("train/loss", "grad_norm", "lr", "val/error")]


def test_a_killed_run_equals_one_that_was_not(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    train_toy(tmp_path / "whole", **QUIET)
    (process,) = start(started, tmp_path / "killed", slow=0.01)
    wait_for_step(tmp_path / "killed", 8, process)
    process.kill()
    process.wait(timeout=PATIENCE)
    assert find_checkpoint(tmp_path / "killed", "last").name >= "step-00000006"
    assert end(start(started, tmp_path / "killed")) == [0]
    assert histories(tmp_path / "killed") == histories(tmp_path / "whole")


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_whole_job_saves_and_asks_to_be_resumed(
    tmp_path: Path, started: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    (process,) = start(started, tmp_path, steps=10_000, slow=0.01, workers=1)
    wait_for_step(tmp_path, 4, process)
    os.killpg(process.pid, number)  # the data workers get it too
    assert end([process]) == [75]
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert index["status"] == "stopped"
    assert find_checkpoint(tmp_path, "last").name == index["last"]


def test_a_killed_run_leaves_no_workers_behind(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    (process,) = start(started, tmp_path, steps=10_000, slow=0.01, workers=1)
    wait_for_step(tmp_path, 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


# Not `--cpu --num_processes=2`: without MPI, Accelerate takes that for one process, silently.
LAUNCH_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: 'no'
"""


def launch(run_dir: Path) -> None:
    """Train on two ranks as users do."""
    config = run_dir.with_suffix(".yaml")
    config.write_text(LAUNCH_CONFIG)
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}"]
    command += [f"--main_process_port={free_port()}", *options(run_dir, {})]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_two_ranks_stopped_killed_and_resumed_equal_two_uninterrupted_and_one(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    launch(tmp_path / "whole")
    parts = tmp_path / "parts"

    ranks = start(started, parts, ranks=2, slow=0.02)
    wait_for_step(parts, 4, ranks[0])
    ranks[1].send_signal(signal.SIGTERM)  # one rank is told, and all stop at the same step
    assert end(ranks) == [75, 75]
    stopped_at = json.loads((parts / "checkpoints" / "index.json").read_text())["step"]

    ranks = start(started, parts, ranks=2, slow=0.02)
    wait_for_step(parts, stopped_at + 4, ranks[0])
    for process in ranks:
        process.kill()
    end(ranks)
    assert end(start(started, parts, ranks=2)) == [0, 0]
    assert histories(parts) == histories(tmp_path / "whole")
    assert all(map(torch.equal, weights(parts), weights(tmp_path / "whole")))

    train_toy(tmp_path / "one", accumulate=2, **QUIET)
    for two, one in zip(histories(parts), histories(tmp_path / "one"), strict=True):
        assert dict(two) == pytest.approx(dict(one), rel=1e-5)


def test_ranks_that_do_not_share_the_run_folder_all_end_with_an_error(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    train_toy(own, **QUIET | {"accumulate": 2})
    ranks = start(started, own, other, ranks=2)
    said = [process.communicate(timeout=PATIENCE)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert all("process 0 starts at step 20, process 1 at step 0" in text for text in said), said

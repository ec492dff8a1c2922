"""The shipped launch configurations start what they say, and processes that do not find each other are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bmmae.errors import ConfigError
from bmmae.training.devices import start_accelerator

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would take the GPUs")
def test_two_processes_on_the_cpu_are_one_run(tmp_path: Path) -> None:
    config = ROOT / "configs" / "accelerate" / "cpu_two.yaml"
    toy = ROOT / "tests" / "training" / "toy_training.py"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--main_process_port=0"]
    done = subprocess.run(
        [*launch, str(toy), str(tmp_path), "--steps", "2"],
        env={**{k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["samples"] == 2 * 4


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmmae.training.devices._start", lambda cpu: type("Alone", (), {"num_processes": 1})())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started, but they do not find each other \(each sees 1\)"):
        start_accelerator()


@pytest.mark.parametrize(("error", "code"), [("ValueError('torn')", 1), ("KeyboardInterrupt", 130)])
def test_a_process_of_several_that_fails_ends_before_threads_of_the_group_can_abort_it(error: str, code: int) -> None:
    script = f"""
import atexit, os, types
from bmmae.training import devices
atexit.register(os.abort)  # in the place of those threads, which run until the interpreter is gone
kind = types.SimpleNamespace(value="MULTI_CPU")
devices._start = lambda cpu: types.SimpleNamespace(num_processes=2, distributed_type=kind)
devices.start_accelerator()
print("said before")
raise {error}
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == code
    assert done.stdout == "said before\n"
    assert error.partition("(")[0] in done.stderr.splitlines()[-1]


def test_a_script_of_several_processes_ends_as_it_says_whatever_runs_on() -> None:
    script = """
import atexit, os
from bmmae.config import script
class RunsOn:
    def __del__(self):
        os.abort()
threads = RunsOn()  # in the place of a process group that something refers to
atexit.register(print, "cleared away")
script(lambda: print("done") or 75)
"""
    several = os.environ | {"WORLD_SIZE": "2"}
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=200, env=several)
    assert (done.returncode, done.stdout) == (75, "done\ncleared away\n"), done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_what_accelerate_reads(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.num_processes == values["num_processes"]
    assert config.mixed_precision == "no"
    assert f"configs/accelerate/{path.name} " in path.read_text().splitlines()[0]

"""Trackers: nothing by default; wandb and TensorBoard when asked, with a clear word if they are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bmmae.errors import ConfigError
from bmmae.training.tracking import NoTracker, Tracker, make_tracker


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.id, self.logged, self.finished = arguments, arguments["id"] or "abc", [], False

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return runs


def test_by_default_nothing_is_tracked(tmp_path: Path) -> None:
    tracker = make_tracker("none", tmp_path, {}, 0)
    tracker.log({"a": 1.0}, 1)
    tracker.close()
    assert isinstance(tracker, NoTracker)
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_config_and_values(tmp_path: Path, wandb_runs: list[FakeRun]) -> None:
    tracker = make_tracker("wandb", tmp_path, {"lr": 1}, 0)
    tracker.log({"train/loss": 0.5}, 3)
    tracker.close()
    assert isinstance(tracker, Tracker)
    assert wandb_runs[0].arguments["config"] == {"lr": 1}
    assert wandb_runs[0].logged == [(3, {"train/loss": 0.5})]
    assert wandb_runs[0].finished


def test_a_resumed_wandb_run_continues_its_page(tmp_path: Path, wandb_runs: list[FakeRun]) -> None:
    make_tracker("wandb", tmp_path, {}, 0)
    make_tracker("wandb", tmp_path, {}, 5)
    assert [run.arguments["id"] for run in wandb_runs] == [None, "abc"]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": "abc"}


@pytest.mark.parametrize(("kind", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard.writer")])
def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, kind: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"train.tracker is {kind}, .*pip install 'bmmae\[{kind}\]'"):
        make_tracker(kind, tmp_path, {}, 0)


@pytest.mark.slow
def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = make_tracker("tensorboard", tmp_path, {}, 0)
    tracker.log({"train/loss": 0.5}, 1)
    tracker.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("torn", ["", "[]", "{"])
def test_a_torn_note_of_the_wandb_page_costs_a_new_page_and_no_run(
    tmp_path: Path, wandb_runs: list[FakeRun], torn: str
) -> None:
    (tmp_path / "wandb.json").write_text(torn)
    make_tracker("wandb", tmp_path, {}, 0)
    assert wandb_runs[0].arguments["id"] is None
    make_tracker("wandb", tmp_path, {}, 0)
    assert wandb_runs[1].arguments["id"] == "abc"


@pytest.mark.slow
def test_importing_the_loop_imports_no_tracker() -> None:
    code = "import sys, bmmae.training; print({'wandb', 'tensorboard'} & {n.split('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_wandb_that_does_not_start_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UsageError(Exception):
        pass

    def init(**_: Any) -> FakeRun:
        raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=UsageError))
    with pytest.raises(
        ConfigError, match=r"No API key configured\. Use .* WANDB_MODE=offline .* train\.tracker to none"
    ):
        make_tracker("wandb", tmp_path, {}, 0)

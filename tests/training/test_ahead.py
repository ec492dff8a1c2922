"""What needs no data to be refused is refused before data are prepared."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path

import pytest
from toy_training import settings, train_toy

from bmmae.errors import ConfigError, OutputError, TrainingError
from bmmae.training import OptimConfig, look_ahead

PLAIN = OptimConfig()


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ConfigError, match=rf"train.tracker is {kind}, .*pip install 'bmmae\[{kind}\]'"):
        look_ahead(settings(tracker=kind), PLAIN, tmp_path)


def test_a_tracker_that_is_installed_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmmae.training.tracking.find_spec", lambda _: util.find_spec("json"))
    look_ahead(settings(tracker="wandb"), PLAIN, tmp_path)


def test_a_warm_up_longer_than_the_run_is_refused_where_both_are_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"warm-up \(50 steps\) must be shorter than the schedule \(12 steps\)"):
        look_ahead(settings(), OptimConfig(warmup_steps=50), tmp_path)
    look_ahead(settings(), OptimConfig(warmup_epochs=50), tmp_path)
    look_ahead(settings(steps=None, epochs=1), OptimConfig(warmup_steps=50), tmp_path)


def test_a_batch_size_is_not_looked_for_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.find_batch_size tries .* needs a GPU; training runs on cpu"):
        look_ahead(settings(find_batch_size=True), PLAIN, tmp_path)


def test_a_folder_of_another_run_is_refused_unless_it_is_resumed(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", steps=2)
    with pytest.raises(TrainingError, match=r"run already holds a run: set train\.resume=true"):
        look_ahead(settings(), PLAIN, tmp_path / "run")
    with pytest.raises(TrainingError, match="other holds no checkpoint"):
        look_ahead(settings(resume=True), PLAIN, tmp_path / "other")
    for resume, name in ((True, "run"), ("auto", "run"), ("auto", "other"), (False, "other")):
        look_ahead(settings(resume=resume), PLAIN, tmp_path / name)
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run cannot be written: .*file is not a folder"):
        look_ahead(settings(), PLAIN, tmp_path / "file" / "run")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match=r"new/run cannot be written: .* Choose another one \(`out`\)"):
        look_ahead(settings(), PLAIN, tmp_path / "new" / "run")


def test_a_folder_that_may_not_be_looked_into_is_refused(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != closed)
    with pytest.raises(OutputError, match=r"closed/run cannot be written: .*closed is not a folder that you may write"):
        look_ahead(settings(), PLAIN, closed / "run")


def test_only_the_process_that_writes_and_tracks_has_to_be_able_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("RANK", "1")
    look_ahead(settings(tracker="wandb"), PLAIN, tmp_path)


@pytest.mark.parametrize("script", ["pretrain/train.py", "finetune/segmentation.py"])
def test_scripts_look_ahead_before_they_open_anything(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    main = runpy.run_path(str(Path(__file__).parents[2] / script))["main"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = ["--data.cohort", "gone.csv", "--train.steps", "1", "--train.tracker", "wandb", "--out", str(tmp_path)]
    weights = ["--start"] if script.startswith("pretrain") else ["--model"]
    monkeypatch.setattr(sys, "argv", [script, *given, *weights, "gone"])
    with pytest.raises(ConfigError, match=r"train\.tracker is wandb"):
        main()


@pytest.mark.parametrize("mode", ["full", "features"])
@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_patient_scripts_look_ahead_where_they_train_in_steps(
    tmp_path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    script = f"finetune/{kind}.py"
    main = runpy.run_path(str(Path(__file__).parents[2] / script))["main"]
    monkeypatch.setitem(main.__globals__, "fine_tune", lambda _: 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = ["--data.cohort", "gone.csv", "--train.steps", "1", "--train.tracker", "wandb", "--out", str(tmp_path)]
    targets = ["--targets.labels", "[a]"] if kind == "classification" else ["--targets.survival", "[hazard]"]
    monkeypatch.setattr(sys, "argv", [script, *given, *targets, "--model", "gone", "--mode", mode])
    if mode == "features":
        assert main() == 0
    else:
        with pytest.raises(ConfigError, match=r"train\.tracker is wandb"):
            main()

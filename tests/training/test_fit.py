"""The laws of the loop, in one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_training import ToyDataset, ToyModel, ToyTask, rows, save_toy, settings, train_toy

from bmmae.data.loaders import Batch
from bmmae.errors import CheckpointError, ConfigError, OutputError, TrainingError
from bmmae.tasks.task import StepOutput, Task
from bmmae.training import OptimConfig, TrainConfig, find_checkpoint, fit
from bmmae.training.devices import explained_out_of_memory, uses_bf16
from bmmae.training.plan import make_plan
from bmmae.training.resume import Progress


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


class StopsAt(ToyTask):
    """Behaves as if a signal came during a step, or during an evaluation."""

    def __init__(self, step: int, during: str = "step", number: signal.Signals = signal.SIGTERM) -> None:
        self.left, self.during, self.number = step, during, number

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        if self.during == "step":
            self._count()
        return super().step(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        if self.during == "evaluation":
            self._count()
        return super().step(model, batch)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_toy_task_is_a_task() -> None:
    assert isinstance(ToyTask(), Task)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, steps=150, dropout=0.0, evaluate_every=50, checkpoint_every=150)
    losses = [value for _, value in rows(tmp_path, "val/loss")]
    assert losses[-1] < 0.5 * losses[0]
    assert (result.status, result.exit_code, result.steps) == ("finished", 0, 150)


@pytest.mark.parametrize("at", [1, 5, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    whole, straight = train_toy(tmp_path / "whole")
    _, first = train_toy(tmp_path / "parts", task=StopsAt(at))
    assert (first.status, first.exit_code, first.steps) == ("stopped", 75, at)
    resumed, second = train_toy(tmp_path / "parts", resume=True)
    assert second == straight
    assert same_weights(whole, resumed)
    for key in ("train/loss", "train/error", "val/error", "lr", "grad_norm"):
        assert rows(tmp_path / "parts", key) == rows(tmp_path / "whole", key)


def test_a_stop_between_log_lines_loses_nothing(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", log_every=6)
    train_toy(tmp_path / "parts", log_every=6, task=StopsAt(8))
    train_toy(tmp_path / "parts", log_every=6, resume=True)
    assert dict(rows(tmp_path / "parts")) == pytest.approx(dict(rows(tmp_path / "whole")))


def test_an_evaluation_that_was_cut_short_is_made_after_the_resume(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole")
    _, first = train_toy(tmp_path / "parts", task=StopsAt(2, during="evaluation"))
    assert (first.status, first.steps) == ("stopped", 4)
    assert rows(tmp_path / "parts", "val/error") == []
    train_toy(tmp_path / "parts", resume=True)
    assert rows(tmp_path / "parts", "val/error") == rows(tmp_path / "whole", "val/error")


def test_the_last_evaluation_cut_short_is_not_a_finished_run(tmp_path: Path) -> None:
    _, first = train_toy(tmp_path, steps=4, task=StopsAt(1, during="evaluation"))
    assert (first.status, first.steps) == ("stopped", 4)
    _, second = train_toy(tmp_path, steps=4, resume="auto")
    assert (second.status, second.best_step) == ("finished", 4)


def test_an_interrupt_from_the_keyboard_saves_too(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, task=StopsAt(3, number=signal.SIGINT))
    assert (result.status, result.exit_code) == ("interrupted", 130)
    assert find_checkpoint(tmp_path, "last").name == "step-00000003"


def test_the_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, time_limit_hours=1e-9)
    assert (result.status, result.steps) == ("stopped", 1)
    assert find_checkpoint(tmp_path, "last").name == "step-00000001"


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path)
    again, result = train_toy(tmp_path, resume="auto")
    assert same_weights(whole, again)
    assert result.status == "finished"
    assert len(rows(tmp_path)) == 12


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    train_toy(tmp_path / "wide", steps=20, batch_size=8, dropout=0.0, validate=False)
    train_toy(tmp_path / "narrow", steps=20, batch_size=2, accumulate=4, dropout=0.0, validate=False)
    wide, narrow = (dict(rows(tmp_path / name)) for name in ("wide", "narrow"))
    assert narrow == pytest.approx(wide, rel=1e-5)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    alone, _ = train_toy(tmp_path / "alone", workers=0)
    helped, _ = train_toy(tmp_path / "helped", workers=1)
    assert same_weights(alone, helped)


def test_how_often_one_evaluates_changes_nothing(tmp_path: Path) -> None:
    often, _ = train_toy(tmp_path / "often", evaluate_every=1)
    never, _ = train_toy(tmp_path / "never", validate=False)
    assert same_weights(often, never)


def test_the_best_checkpoint_is_the_best_not_the_last(tmp_path: Path) -> None:
    class Worsens(ToyTask):
        """The validation metric is best at the second of its evaluations."""

        values = iter((3.0, 1.0, 2.0))

        def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
            value = torch.tensor(next(self.values))
            return StepOutput(value, torch.ones(()), {"error": (value, torch.ones(()))})

    _, result = train_toy(tmp_path, task=Worsens(), batch_size=8, keep=1)
    assert (result.best_step, result.best_value) == (8, 1.0)
    assert find_checkpoint(tmp_path, "best").name == "step-00000008"
    assert find_checkpoint(tmp_path, "last").name == "step-00000012"


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    with pytest.raises(TrainingError, match=r"already holds a run: set train.resume=true"):
        train_toy(tmp_path, steps=2)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no checkpoint.*train.resume=auto"):
        train_toy(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "train.seed was 3 and is now 4"),
        ({"batch_size": 2}, r"global batch .* was 4 and is now 2"),
        ({"steps": 20}, r"schedule steps .* was 4 and is now 20"),
        ({"dataset": ToyDataset(30)}, "number of training samples was 22 and is now 30"),
        ({"optim": OptimConfig(lr=2.0, warmup_steps=1)}, "optim.lr was 0.01 and is now 2.0"),
    ],
)
def test_another_training_cannot_be_resumed(tmp_path: Path, change: dict[str, object], message: str) -> None:
    train_toy(tmp_path, steps=4)
    with pytest.raises(TrainingError, match=message):
        train_toy(tmp_path, **({"steps": 4, "resume": True} | change))  # type: ignore[arg-type]


def test_the_same_global_batch_may_be_cut_differently_on_resume(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=4, task=StopsAt(1))
    with pytest.warns(UserWarning, match=r"train.accumulate: 1 -> 2; train.batch_size: 4 -> 2"):
        _, result = train_toy(tmp_path, steps=4, batch_size=2, accumulate=2, resume=True)
    assert result.status == "finished"


def test_another_model_cannot_be_resumed(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"does not fit the model as configured now.*config.yaml"):
        fit(
            nn.Linear(2, 2),
            ToyTask(),
            ToyDataset(),
            None,
            train=settings(steps=2, resume=True),
            optim=OptimConfig(lr=1e-2, warmup_steps=1),
            run_dir=tmp_path,
            save_model=save_toy,
        )


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path: Path) -> None:
    whole, _ = train_toy(tmp_path / "whole")
    train_toy(tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "step-00000012" / "training_state.pt").write_text("torn")
    with pytest.warns(UserWarning, match="step-00000012 is damaged"):
        resumed, _ = train_toy(tmp_path / "parts", resume=True)
    assert same_weights(whole, resumed)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_best_checkpoint_that_is_gone_is_looked_for_anew(tmp_path: Path) -> None:
    _, first = train_toy(tmp_path, task=StopsAt(6))
    shutil.rmtree(tmp_path / "checkpoints" / f"step-{first.best_step:08d}")
    with pytest.warns(UserWarning, match=r"best checkpoint \(step 4\) is gone"):
        _, second = train_toy(tmp_path, resume=True)
    assert find_checkpoint(tmp_path, "best").name == f"step-{second.best_step:08d}"


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"run folder .*file.run cannot be written"):
        train_toy(tmp_path / "file" / "run")


def test_the_bar_shows_loss_rate_and_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_toy(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "samples/s" in shown
    assert "waiting for data" in shown


def test_a_nan_stops_with_step_sample_and_checkpoint(tmp_path: Path) -> None:
    message = (
        r"NaN or infinite at step \d+, from samples \['patient-5 \(0, 5\)'.*last healthy checkpoint: .*step-0000000"
    )
    with pytest.raises(TrainingError, match=message):
        train_toy(tmp_path, dataset=ToyDataset(8, infected=5), batch_size=1, checkpoint_every=1)


def test_a_nan_is_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    model, result = train_toy(tmp_path, dataset=ToyDataset(8, infected=5), on_nonfinite="skip", steps=8)
    assert 1 <= result.skipped < 8
    assert all(value.isfinite().all() for value in model.parameters())
    assert rows(tmp_path, "skipped_steps")[-1] == (8, result.skipped)


def test_nothing_but_nans_stops_even_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="20 steps in a row"):
        train_toy(tmp_path, dataset=ToyDataset(1, infected=0), on_nonfinite="skip", steps=30, validate=False)


def test_a_loss_without_count_is_no_error(tmp_path: Path) -> None:
    class Nothing(ToyTask):
        def step(self, model: nn.Module, batch: Batch) -> StepOutput:
            output = super().step(model, batch)
            return StepOutput(output.loss_sum * 0, output.loss_count * 0)

    _, result = train_toy(tmp_path, task=Nothing(), validate=False, steps=2)
    assert result.status == "finished"


def test_a_broken_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"Sample 3 \(epoch 0\) cannot be loaded: ValueError: the file is torn"):
        train_toy(tmp_path, dataset=ToyDataset(broken=3))


def test_an_empty_validation_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="validation dataset is empty"):
        fit(
            ToyModel(),
            ToyTask(),
            ToyDataset(),
            ToyDataset(length=0),
            train=settings(),
            optim=OptimConfig(),
            run_dir=tmp_path,
            save_model=save_toy,
        )


def test_a_selection_metric_that_is_not_there_is_named(tmp_path: Path) -> None:
    class Selects(ToyTask):
        selection = ("dice", "max")

    with pytest.raises(TrainingError, match=r"'dice' selects the best checkpoint.*\['error', 'loss'\]"):
        train_toy(tmp_path, task=Selects())


def test_bf16_trains(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Looks(ToyTask):
        def step(self, model: nn.Module, batch: Batch) -> StepOutput:
            x = batch["x"]
            assert isinstance(x, Tensor)
            seen.append(model(x).dtype)
            return super().step(model, batch)

    model, _ = train_toy(tmp_path, task=Looks(), precision="bf16", steps=4)
    assert set(seen) == {torch.bfloat16}
    assert next(model.parameters()).dtype == torch.float32


def test_precision_is_what_was_asked() -> None:
    cpu = torch.device("cpu")
    assert uses_bf16("bf16", cpu)
    assert not uses_bf16("no", cpu)
    assert isinstance(uses_bf16("auto", cpu), bool)
    assert not uses_bf16("auto", torch.device("mps"))


def test_running_out_of_memory_says_what_to_lower() -> None:
    with (
        pytest.raises(TrainingError, match=r"Out of memory at step 7: lower train.batch_size \(now 4; .*bf16"),
        explained_out_of_memory(Progress(step=7), settings()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_other_errors_keep_their_form() -> None:
    with pytest.raises(RuntimeError, match="a bug"), explained_out_of_memory(Progress(), settings()):
        raise RuntimeError("a bug")


def test_the_configuration_is_saved_with_the_run(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    text = (tmp_path / "config.yaml").read_text()
    assert "lr: 0.01" in text
    assert "steps: 2" in text


def test_the_index_says_how_the_run_stands(tmp_path: Path) -> None:
    train_toy(tmp_path, task=StopsAt(5))
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert (index["status"], index["step"], index["last"]) == ("stopped", 5, "step-00000005")
    assert index["best_metric"]["name"] == "error"


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({}, "exactly one of train.steps and train.epochs"),
        ({"steps": 1, "epochs": 1}, "exactly one of train.steps and train.epochs"),
        ({"steps": 0}, "train.steps"),
        ({"steps": 1, "workers": -1}, "train.workers"),
        ({"steps": 1, "seed": -1}, "train.seed"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_epochs_are_rounded_up_to_steps() -> None:
    plan = make_plan(TrainConfig(epochs=3, batch_size=4), OptimConfig(), length=10, world=1)
    assert plan.steps == 8
    assert (plan.evaluate_every, plan.checkpoint_every) == (3, 3)


def test_steps_of_more_processes_are_fewer() -> None:
    plan = make_plan(TrainConfig(epochs=4, batch_size=2, accumulate=2), OptimConfig(), length=16, world=2)
    assert plan.steps == 8


@pytest.mark.slow
def test_a_compiled_model_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile
    # Without the code generator, which takes a third of a minute and is not ours.
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    train_toy(tmp_path / "plain", dropout=0.0, validate=False)
    train_toy(tmp_path / "compiled", dropout=0.0, validate=False, compile=True)
    plain, compiled = (dict(rows(tmp_path / name)) for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert "layers.0.weight" in torch.load(
        tmp_path / "compiled" / "checkpoints" / "step-00000012" / "weights.bin", weights_only=True
    )

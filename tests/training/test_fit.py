"""The laws of the loop, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_training import ToyDataset, ToyModel, ToyTask, rows, same_weights, save_toy, settings, train_toy

from bmmae.data.loaders import Batch
from bmmae.errors import OutputError, TrainingError
from bmmae.tasks.task import StepOutput, Task
from bmmae.training import OptimConfig, find_checkpoint, fit
from bmmae.training.devices import explained_failures, uses_bf16
from bmmae.training.resume import Progress


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_the_toy_task_is_a_task() -> None:
    assert isinstance(ToyTask(), Task)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, steps=150, dropout=0.0, evaluate_every=50, checkpoint_every=150)
    losses = [value for _, value in rows(tmp_path, "val/loss")]
    assert losses[-1] < 0.5 * losses[0]
    assert (result.status, result.exit_code, result.steps) == ("finished", 0, 150)


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


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"run folder .*file.run cannot be written"):
        train_toy(tmp_path / "file" / "run")


def test_the_bar_shows_loss_rate_and_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = train_toy(tmp_path, progress=True)
    said = capsys.readouterr()
    assert "12/12" in said.err
    assert "samples/s" in said.err
    assert "waiting for data" in said.err
    best = f"of step {result.best_step} ({result.best_value:.4g} in validation)"
    assert said.out == f"finished: {tmp_path} holds the best model, {best}\n"


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


@pytest.mark.parametrize(
    ("tiles", "avx512_bf16", "vendor", "expected"),
    [
        (True, True, "GenuineIntel", True),
        (False, True, "AuthenticAMD", True),
        (False, True, "GenuineIntel", False),  # bf16 at half float32's rate
        (False, True, "", False),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_auto_takes_bf16_on_cpus_that_are_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, *, tiles: bool, avx512_bf16: bool, vendor: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("bmmae.training.devices._cpu_vendor", lambda: vendor)
    assert uses_bf16("auto", torch.device("cpu")) is expected


def test_running_out_of_memory_says_what_to_lower() -> None:
    with (
        pytest.raises(TrainingError, match=r"Out of memory at step 7: lower train.batch_size \(now 4; .*bf16"),
        explained_failures(Progress(step=7), settings()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with (
        pytest.raises(TrainingError, match=r"torch\.compile failed at step 3: .*C\+\+ compiler.*train\.compile to fa"),
        explained_failures(Progress(step=3), settings(compile=True)),
    ):
        torch.compile(torch.sin)(torch.ones(17))


def test_other_errors_keep_their_form() -> None:
    with pytest.raises(RuntimeError, match="a bug"), explained_failures(Progress(), settings()):
        raise RuntimeError("a bug")


def test_the_configuration_is_saved_with_the_run(tmp_path: Path) -> None:
    train_toy(tmp_path, steps=2)
    text = (tmp_path / "config.yaml").read_text()
    assert "lr: 0.01" in text
    assert "steps: 2" in text


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

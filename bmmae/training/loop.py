"""The training loop: one function for pretraining and every fine-tuning."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bmmae.data.loaders import AddressedDataset, training_batches
from bmmae.tasks.task import Task
from bmmae.training.batch_size import fit_batch_size
from bmmae.training.checkpointing import SaveModel
from bmmae.training.devices import explained_failures, start_accelerator
from bmmae.training.lock import RunLock
from bmmae.training.optim import OptimConfig
from bmmae.training.plan import TrainConfig, make_plan
from bmmae.training.records import Records
from bmmae.training.resume import write_config
from bmmae.training.run import Picture, begin_run
from bmmae.training.signals import EXIT_CODES, Status, StopRequest
from bmmae.training.step import Stepper
from bmmae.training.tracking import Tracker, make_tracker


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        status: `finished`, `stopped` (a signal or the time limit; resumable) or `interrupted` (Ctrl-C; resumable).
        steps: Optimiser steps done, those before a resume included.
        best_step: Step of the best checkpoint; None if nothing was evaluated.
        best_value: The selection metric there.
        last_train: Training metrics of the last log line, `loss` among them.
        last_val: Metrics of the last evaluation in this process.
        skipped: Steps left out because loss or gradient was not finite.
    """

    status: Status
    steps: int
    best_step: int | None
    best_value: float | None
    last_train: dict[str, float]
    last_val: dict[str, float]
    skipped: int

    @property
    def exit_code(self) -> int:
        """What the script should exit with: 0 only if finished, 75 to be resumed, 130 after Ctrl-C."""
        return EXIT_CODES[self.status]

    def told(self, run_dir: Path, steps: int) -> str:
        """Return what to do with the run now, for its user: load it, or go on to its last step, `steps`."""
        if self.status != "finished":
            return f"{self.status} at step {self.steps} of {steps}: the same command with --train.resume auto goes on"
        if self.best_step is None or self.best_value is None:
            return f"finished: {run_dir} holds the model of step {self.steps}"
        return (
            f"finished: {run_dir} holds the best model, of step {self.best_step} ({self.best_value:.4g} in validation)"
        )


def fit(
    model: nn.Module,
    task: Task,
    train_dataset: AddressedDataset,
    val_dataset: AddressedDataset | None,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    run_dir: Path,
    save_model: SaveModel,
    resolved_config: Mapping[str, Any] | None = None,
    tracker: Tracker | None = None,
    picture: Picture | None = None,
) -> FitResult:
    """Train `model` in place.

    Args:
        model: Every trainable parameter must get a gradient in every step.
        task: Batch in, loss and metrics out.
        train_dataset: Samples by address (epoch, index).
        val_dataset: Samples to choose the best checkpoint by; None for no evaluation.
        train: Length, batch, precision, intervals ...
        optim: Optimiser and schedule.
        run_dir: Receives config.yaml, metrics.jsonl and checkpoints/.
        save_model: Writes the model's own files (config.json, model.safetensors) into a folder.
        resolved_config: The whole configuration of the run, to be saved with it.
        tracker: Receives metrics instead of the one that `train.tracker` names.
        picture: Called with model and step after each evaluation, in the main process; if it fails, one is warned.

    Returns:
        How it ended; the script should exit with its `exit_code`.

    Raises:
        TrainingError: No data, a sample that cannot be loaded, a non-finite loss, out of memory, a resume that does
            not fit, another process that trains in the folder, or processes that do not start from the same place.
        CheckpointError: There are only damaged checkpoints to resume from, or they do not fit the model.
        OutputError: The run folder cannot be written.
    """
    accelerator = start_accelerator()
    main = accelerator.is_main_process
    config = dict(resolved_config or {"train": asdict(train), "optim": asdict(optim)})
    if train.find_batch_size:
        train = fit_batch_size(accelerator, model, task, train_dataset, train)
        config["train"] = {**config["train"], "batch_size": train.batch_size, "accumulate": train.accumulate}
    plan = make_plan(train, optim, len(train_dataset), accelerator.num_processes)
    lock = RunLock(run_dir) if main else contextlib.nullcontext()
    run = begin_run(
        accelerator,
        model,
        task,
        val_dataset,
        plan=plan,
        train=train,
        optim=optim,
        run_dir=run_dir,
        save_model=save_model,
        data=getattr(train_dataset, "identity", None),
        masking=getattr(train_dataset, "masking", None),
    )
    if main:
        write_config(run_dir, config)
    if tracker is None:
        tracker = make_tracker(train.tracker if main else "none", run_dir, config, run.progress.step)
    batches = training_batches(
        train_dataset,
        plan.stream,
        rank=accelerator.process_index,
        first=run.progress.step,
        stop=plan.steps,
        workers=train.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    stepper = Stepper(run, iter(batches), optim)

    with (
        lock,
        StopRequest(train.time_limit_hours) as stop,
        Records(run_dir, plan, run.progress, tracker, peak=stepper.peak, main=main, bar=train.progress) as records,
        explained_failures(run.progress, train),
    ):
        while True:
            # Once in a while: evaluate, always on the same samples under the same seed.
            improved = False
            if run.evaluation_is_pending():
                values = run.evaluate(stop)
                improved = run.note_evaluation(values)
                if values:
                    run.draw(picture)
                records.write_validation(run.progress.step, values)

            # Once in a while, at a new best, and before leaving: save.
            if improved or run.save_is_due():
                run.save()

            if run.is_over():
                break

            # All the time: take a step, and agree with the other ranks whether to go on.
            report = stepper.take(run.progress.step, stop)
            run.note_step(report)
            records.note_step(report)

            # Once in a while: write down how it goes.
            if plan.log_is_due(run.progress.step):
                records.write_training(run.progress, report, run.close_window())

    progress, status = run.progress, run.end()
    result = FitResult(
        status=status,
        steps=progress.step,
        best_step=progress.best_step,
        best_value=progress.best_value,
        last_train=run.last_train,
        last_val=run.last_val,
        skipped=progress.skipped,
    )
    records.tell(result.told(run_dir, plan.steps))
    return result

"""A run under way: model, optimiser, data and progress, and how to evaluate and save them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from bmmae.data.loaders import AddressedDataset, Batches, evaluation_batches
from bmmae.errors import BmmaeError, ConfigError, TrainingError
from bmmae.masking import MaskingConfig
from bmmae.tasks.task import StepOutput, Task
from bmmae.training.checkpointing import (
    SaveModel,
    checkpoint_folder,
    remove_old_checkpoints,
    write_checkpoint,
    write_index,
)
from bmmae.training.devices import gather, uses_bf16
from bmmae.training.evaluation import evaluate, is_better, selected
from bmmae.training.optim import OptimConfig, make_optimizer
from bmmae.training.plan import Plan, TrainConfig, what_must_not_change
from bmmae.training.resume import Progress, find_start, restore, settings_of, training_state
from bmmae.training.sharding import (
    Sharded,
    asks_for_sharding,
    gathered,
    refuse_what_cannot_be_sharded,
    shard,
)
from bmmae.training.signals import Status, StopRequest, status_of
from bmmae.training.totals import Totals

Picture: TypeAlias = Callable[[nn.Module, int], object]
"""Draws the model, in eval mode, after so many steps."""
Start: TypeAlias = tuple[Progress, dict[str, tuple[float, float]]]
"""Where a run begins: its progress, and the sums of its metrics since the last log line."""


@dataclass(frozen=True)
class StepReport:
    """What came of one optimiser step, the same on every rank but for `outputs` and `waited`.

    Attributes:
        loss: Loss over the global batch.
        grad_norm: Norm of its gradient, before clipping.
        lr: Learning rate used.
        skipped: Whether the step was left out because loss or gradient was not finite.
        stop: The highest stop level asked of any rank.
        outputs: This rank's micro-batches, detached.
        waited: Seconds this rank waited for data.
    """

    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    stop: int
    outputs: list[StepOutput]
    waited: float


@dataclass
class Run:
    """The parts of a run.

    `model` is the model itself, `wrapped` what gradients are computed through, `average` the running mean of the
    weights if there is one, `sharded` the model as divided over the ranks if it is, and `judged` what is evaluated,
    drawn and saved.
    """

    accelerator: Any
    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    task: Task
    plan: Plan
    train: TrainConfig
    run_dir: Path
    save_model: SaveModel
    identity: Mapping[str, Any]
    progress: Progress
    window: Totals
    validation: Batches | None
    average: Any = None  # timm's ModelEmaV3 or None; untyped, as importing timm.utils loads wandb where it is installed
    sharded: Sharded | None = None
    stop_level: int = 0
    last_train: dict[str, float] = field(default_factory=dict)
    last_val: dict[str, float] = field(default_factory=dict)

    @property
    def judged(self) -> nn.Module:
        """The averaged model if there is one, else the model; of a divided one its whole copy."""
        if self.sharded is not None:
            return self.sharded.whole
        return self.model if self.average is None else self.average.module

    def note_step(self, report: StepReport) -> None:
        """Count a step that was taken."""
        self.progress.step += 1
        self.progress.skipped += report.skipped
        self.stop_level = report.stop
        if not report.skipped:
            if self.average is not None:
                self.average.update(self.model, step=self.progress.step)
            for output in report.outputs:
                self.window.add(output)

    def close_window(self) -> dict[str, float]:
        """Mean training metrics since the last call; all ranks must call this."""
        self.window.merge()
        self.last_train = self.window.means()
        self.window = Totals()
        return self.last_train

    def evaluation_is_pending(self) -> bool:
        """Whether an evaluation is due here and has not been made, perhaps because a stop cut it short."""
        done = self.progress.step
        due = self.validation is not None and self.plan.evaluation_is_due(done)
        return due and self.progress.evaluated != done and not self.stop_level

    def evaluate(self, stop: StopRequest) -> dict[str, float]:
        """Evaluate on the validation set.

        Returns:
            Metrics by name; empty if a stop cut the evaluation short, which leaves it to be made after the resume.
        """
        if self.sharded is not None:
            self.sharded.refresh()
        bf16 = uses_bf16(self.train.precision, self.accelerator.device)
        batches, seed = self.validation or (), self.train.seed
        values = evaluate(self.judged, self.task, batches, self.accelerator, stop, seed=seed, bf16=bf16)
        if values:
            self.last_val, self.progress.evaluated = values, self.progress.step
        else:
            self.stop_level = max(gather(stop.level))
        return values

    def draw(self, picture: Picture | None) -> None:
        """Let the main process draw a picture; the others go on, and no picture is worth a night's training."""
        if picture is None or not self.accelerator.is_main_process:
            return
        self.judged.eval()
        try:
            with torch.no_grad():
                picture(self.judged, self.progress.step)
        except Exception as error:  # whatever the script's function meets
            warnings.warn(f"No picture at step {self.progress.step}: {type(error).__name__}: {error}", stacklevel=2)
        finally:
            self.judged.train()

    def note_evaluation(self, values: dict[str, float]) -> bool:
        """Keep the best value of the selection metric.

        Returns:
            Whether these metrics are the best so far.
        """
        name, mode = self.task.selection
        progress = self.progress
        if not values:
            return False
        if not is_better(selected(values, name), progress.best_value, mode):
            progress.worse += 1
            return False
        progress.best_value, progress.best_step, progress.worse = values[name], progress.step, 0
        return True

    def is_out_of_patience(self) -> bool:
        """Whether so many evaluations in a row brought no new best that the run ends here."""
        progress, patience = self.progress, self.train.patience
        return patience is not None and progress.worse >= patience and progress.evaluated == progress.step

    def save_is_due(self) -> bool:
        """Whether a checkpoint is due here, by the plan or because the run is about to stop."""
        done = self.progress.step
        ends = self.stop_level > 0 or self.is_out_of_patience()
        return (ends or self.plan.checkpoint_is_due(done)) and self.progress.saved != done

    def save(self) -> None:
        """Write a checkpoint and tidy up; the main process writes, the others wait."""
        self.window.merge()
        self.progress.saved = self.progress.step
        progress = self.progress
        state = training_state(
            self.model,
            self.optimizer,
            None if self.average is None else self.average.module,
            progress=progress,
            window=self.window.merged,
            identity=self.identity,
        )
        if self.sharded is not None:  # all ranks take part
            self.sharded.refresh()
            state = gathered(state)
        if self.accelerator.is_main_process:
            write_checkpoint(self.run_dir, progress.step, self.judged, state, self.save_model)
            self.write_index("running")
            remove_old_checkpoints(self.run_dir, progress.step, progress.best_step, self.train.keep)
        self.accelerator.wait_for_everyone()

    def write_index(self, status: Status | Literal["running"]) -> None:
        """Say in the index of checkpoints how the run stands (main process only)."""
        progress, (metric, _) = self.progress, self.task.selection
        best = None if progress.best_step is None else checkpoint_folder(self.run_dir, progress.best_step).name
        index = {
            "status": status,
            "step": progress.step,
            "steps": self.plan.steps,
            "last": checkpoint_folder(self.run_dir, progress.saved).name,
            "best": best,
            "best_metric": None if best is None else {"name": metric, "value": progress.best_value},
        }
        write_index(self.run_dir, index)

    def is_over(self) -> bool:
        """Whether the loop ends here: all steps done, a stop agreed on, or no progress for long."""
        return self.stop_level > 0 or self.progress.step >= self.plan.steps or self.is_out_of_patience()

    def end(self) -> Status:
        """Close the run's books.

        Returns:
            How it ended: a run that was stopped is finished if nothing was left to do.
        """
        done = self.progress.step >= self.plan.steps or self.is_out_of_patience()
        evaluated = self.validation is None or self.progress.evaluated == self.progress.step
        status = status_of(0 if done and evaluated else self.stop_level)
        if self.accelerator.is_main_process:
            self.write_index(status)
        self.accelerator.wait_for_everyone()
        return status


def begin_run(
    accelerator: Any,
    model: nn.Module,
    task: Task,
    val_dataset: AddressedDataset | None,
    *,
    plan: Plan,
    train: TrainConfig,
    optim: OptimConfig,
    run_dir: Path,
    save_model: SaveModel,
    data: str | None = None,
    masking: MaskingConfig | None = None,
) -> Run:
    """Put the parts of a run together, fresh or as the last checkpoint left them; `data` tells its samples from others.

    Raises:
        TrainingError: The run folder holds a run that is not to be resumed, or one that is another training; or the
            ranks do not start from the same place.
        CheckpointError: The checkpoints are damaged or do not fit the model.
    """
    model.to(accelerator.device)
    optimizer = make_optimizer(model, optim)
    average = None if train.ema_decay is None else _running_mean(model, train.ema_decay)
    averaged = None if average is None else average.module
    chosen_by = getattr(val_dataset, "identity", None)
    identity = what_must_not_change(plan, train, optim, data, chosen_by) | settings_of(model, masking)

    def begin() -> Start:
        start = find_start(run_dir, train.resume)
        return restore(start, model, optimizer, averaged, identity) if start else (Progress(), {})

    progress, window = start_together(begin, identity)
    if train.recompute:
        keep_less(model)
    if train.compile:
        _compile(model)
    sharded = None
    if asks_for_sharding(accelerator):
        refuse_what_cannot_be_sharded(train)
        sharded = shard(model, optimizer, partial(make_optimizer, config=optim), accelerator)
    return Run(
        accelerator=accelerator,
        model=model,
        wrapped=model if sharded else accelerator.prepare_model(model),
        optimizer=sharded.optimizer if sharded else optimizer,
        task=task,
        plan=plan,
        train=train,
        run_dir=run_dir,
        save_model=save_model,
        identity=identity,
        progress=progress,
        window=Totals(window),
        validation=_validation_batches(val_dataset, train, accelerator),
        average=average,
        sharded=sharded,
    )


def start_together(begin: Callable[[], Start], identity: Mapping[str, Any]) -> Start:
    """Begin on all ranks or on none. Returns when all have looked at the run folder; until then nobody may change it.

    Args:
        begin: Finds out where this rank starts, and restores what is there.
        identity: What a resumed run must share with the interrupted one, and ranks with each other.

    Raises:
        BmmaeError: What `begin` raises.
        TrainingError: Another rank starts elsewhere, cannot start, or has another configuration or other data.
    """
    start: Start | BmmaeError
    try:
        start = begin()
        place = f"at step {start[0].step}"
    except BmmaeError as error:
        start, place = error, "not at all"
    told = gather((place, hashlib.sha256(json.dumps(dict(identity), default=str).encode()).hexdigest()))
    if isinstance(start, BmmaeError):
        raise start
    odd = next((rank for rank, other in enumerate(told) if other != told[0]), None)
    if odd is not None:
        what = f"process {odd} has another configuration or other data than process 0"
        if told[odd][0] != told[0][0]:
            what = f"process 0 starts {told[0][0]}, process {odd} {told[odd][0]}"
        raise TrainingError(
            f"The processes do not train the same: {what}. Start all with the same command and cohort, and with a run "
            "folder (`out`) on storage that they share."
        )
    return start


def _running_mean(model: nn.Module, decay: float) -> Any:
    """Return timm's running mean of the weights, which begins with those of the first step; buffers are copied."""
    from timm.utils import ModelEmaV3

    # The mean of two infinities, such as those of a mask for attention, would be NaN.
    return ModelEmaV3(model, decay=decay, use_warmup=True, exclude_buffers=True)


def _compile(model: nn.Module) -> None:
    """Compile a model's transformer blocks, for any number of tokens; models that have none, as a whole.

    The bookkeeping of tokens around the blocks has a new shape in almost every batch, and would be compiled anew.
    """
    stacks = [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    for block in (block for stack in stacks for block in stack.children()):
        block.compile(dynamic=True)
    if not stacks:
        model.compile()


def keep_less(model: nn.Module) -> None:
    """Let a model compute again what the backward pass needs, instead of keeping it.

    Raises:
        ConfigError: It cannot.
    """
    able: list[Any] = [module for module in model.modules() if hasattr(module, "set_grad_checkpointing")]
    if not able:
        raise ConfigError(f"train.recompute: {type(model).__name__} cannot do without what it keeps; set it to false.")
    for module in able:
        module.set_grad_checkpointing()


def _validation_batches(dataset: AddressedDataset | None, train: TrainConfig, accelerator: Any) -> Batches | None:
    if dataset is None:
        if train.patience is not None:
            raise ConfigError("train.patience waits for evaluations, and nobody validates: set it to null.")
        return None
    if not len(dataset):
        raise TrainingError("The validation dataset is empty: check the split, or give None to train without one.")
    return evaluation_batches(
        dataset,
        train.batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=min(train.workers, 2),
        pin_memory=accelerator.device.type == "cuda",
    )

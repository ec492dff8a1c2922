"""How long a run is and when things happen in it: the training configuration, laid over a dataset and processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from bmmae.data.loaders import SampleStream
from bmmae.errors import ConfigError
from bmmae.schema import to_dict
from bmmae.training.optim import OptimConfig, Schedule, make_schedule

MAX_SEED = 2**32
HOURS_A_YEAR = 8760
_LENGTHS = ("warmup_steps", "warmup_epochs", "schedule_steps", "schedule_epochs")
"""Settings of the schedule that are compared by what they come to."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop. One step is one optimiser step; the global batch is batch_size * accumulate * processes.

    Attributes:
        steps: Optimiser steps to run (give this or `epochs`).
        epochs: Passes over the training set to run, rounded up to whole steps.
        batch_size: Samples per process and micro-step.
        accumulate: Micro-steps per optimiser step.
        find_batch_size: Try on the GPU how few micro-steps do, and set `batch_size` and `accumulate` accordingly; their
            product, and with it the training, stays what it is.
        precision: `bf16` computes under autocast, `no` in float32; `auto` takes bf16 where the hardware has it.
        evaluate_every: Steps between evaluations; null for once an epoch. The end is always evaluated.
        patience: Stop after this many evaluations in a row without a new best; null for never.
        checkpoint_every: Steps between checkpoints; null for once an epoch. The end and the best are always saved.
        keep: Latest checkpoints to keep, besides the best one.
        workers: Data-loading processes per training process; 0 loads in the training process.
        seed: Seed of everything random.
        log_every: Steps between lines in metrics.jsonl.
        resume: true goes on from the run folder's last checkpoint, `auto` does so if there is one, false expects
            a folder without checkpoints.
        on_nonfinite: What to do when loss or gradients are NaN or infinite: `stop`, or `skip` the step and count it.
        recompute: Keep less for the backward pass and compute it again: about half the memory of activations and a
            third more time (activation checkpointing, in the encoder's blocks).
        ema_decay: Decay of a running mean of the weights (timm's ModelEmaV3), which is then what is evaluated and
            saved; lower in the first steps, whose weights are soon forgotten; null for none.
        compile: Compile the transformer blocks with torch.compile: the first step takes about a minute longer.
        time_limit_hours: Stop with a checkpoint so long after the script's start; null for no limit.
        tracker: Where metrics go besides metrics.jsonl: `none`, `wandb` or `tensorboard`.
        progress: Whether to show a progress bar.
    """

    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 2
    accumulate: int = 1
    find_batch_size: bool = False
    precision: Literal["auto", "no", "bf16"] = "auto"
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    workers: int = 2
    seed: int = 0
    log_every: int = 10
    resume: bool | Literal["auto"] = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    recompute: bool = False
    ema_decay: float | None = None
    compile: bool = False
    time_limit_hours: float | None = None
    tracker: Literal["none", "wandb", "tensorboard"] = "none"
    progress: bool = True

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            unset = "" if self.steps is None else " Where the config gives epochs, add --train.epochs null."
            raise ConfigError(
                f"Give exactly one of train.steps and train.epochs, got steps={self.steps}, epochs={self.epochs}."
                f"{unset}"
            )
        counted = ("steps", "epochs", "batch_size", "accumulate", "evaluate_every", "checkpoint_every", "keep")
        for name in (*counted, "log_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {value}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay must lie between 0 and 1, got {self.ema_decay}; null turns it off.")
        hours = self.time_limit_hours
        if hours is not None and not 0 < hours < HOURS_A_YEAR:
            raise ConfigError(
                f"train.time_limit_hours must be a number of hours above 0 and below {HOURS_A_YEAR} (a year), got "
                f"{hours}; null is no limit, and 24:00:00 is 24, where YAML reads 86400."
            )
        if self.workers < 0:
            raise ConfigError(f"train.workers must be 0 or more, got {self.workers}.")
        if not 0 <= self.seed < MAX_SEED:
            raise ConfigError(f"train.seed must be between 0 and {MAX_SEED - 1}, got {self.seed}.")


@dataclass(frozen=True)
class Plan:
    """A run in numbers: all that follows from configuration, dataset length and number of processes.

    Attributes:
        stream: Which samples each step trains on.
        steps: Optimiser steps of the whole run.
        schedule: Learning rate by step.
        evaluate_every: Steps between evaluations.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between log lines.
    """

    stream: SampleStream
    steps: int
    schedule: Schedule
    evaluate_every: int
    checkpoint_every: int
    log_every: int

    def evaluation_is_due(self, done: int) -> bool:
        """Whether to evaluate after `done` steps."""
        return done % self.evaluate_every == 0 or done == self.steps

    def checkpoint_is_due(self, done: int) -> bool:
        """Whether to save after `done` steps."""
        return done % self.checkpoint_every == 0 or done == self.steps

    def log_is_due(self, done: int) -> bool:
        """Whether to write a log line after `done` steps."""
        return done % self.log_every == 0 or done == self.steps

    def epoch(self, done: int) -> float:
        """Passes over the training set after `done` steps."""
        return done * self.stream.global_batch / self.stream.length


def make_plan(train: TrainConfig, optim: OptimConfig, length: int, world: int) -> Plan:
    """Lay a configuration over `length` training samples and `world` processes.

    Raises:
        ConfigError: The warm-up is longer than the schedule.
        TrainingError: There are no training samples.
    """
    stream = SampleStream(length, train.batch_size, train.seed, train.accumulate, world)
    steps_per_epoch = Fraction(length, stream.global_batch)  # a float's last digit could round up to a step too many
    steps = train.steps or math.ceil((train.epochs or 0) * steps_per_epoch)
    once_an_epoch = math.ceil(steps_per_epoch)
    return Plan(
        stream=stream,
        steps=steps,
        schedule=make_schedule(optim, steps, steps_per_epoch),
        evaluate_every=train.evaluate_every or once_an_epoch,
        checkpoint_every=train.checkpoint_every or once_an_epoch,
        log_every=train.log_every,
    )


def what_must_not_change(
    plan: Plan, train: TrainConfig, optim: OptimConfig, data: str | None = None, validation: str | None = None
) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one to be its continuation.

    Args:
        plan: The run's.
        train: Its configuration.
        optim: Its optimiser's.
        data: What tells its training samples from others, if they tell: another fold may have as many.
        validation: The same of its validation samples, by which the best checkpoint so far was chosen.
    """
    return {
        "train.seed": plan.stream.seed,
        "global batch (train.batch_size x train.accumulate x processes)": plan.stream.global_batch,
        "number of training samples": plan.stream.length,
        "training samples (data.cohort, data.splits, data.fold ...)": data,
        "validation samples (data.cohort, data.splits, data.fold ...)": validation,
        "train.ema_decay": train.ema_decay,
        **{f"optim.{name}": value for name, value in to_dict(optim).items() if name not in _LENGTHS},
        "optim.frozen_steps": optim.frozen_steps or None,  # None, as in runs from before it existed
        "warm-up steps (optim.warmup_steps)": plan.schedule.warmup,
        "schedule steps (optim.schedule_steps; train.steps if not set)": plan.schedule.horizon,
    }

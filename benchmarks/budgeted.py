"""Training within a budget of steps or of computing seconds (`bmmae.baselines.budget`), loading included.

The learning rate follows the share of the budget that is spent: every contestant, fast or slow, gets its whole warm-up
and its whole decay.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.data import default_collate

from bmmae.baselines.budget import Budget
from bmmae.data.loaders import AddressedDataset, Batch, SampleStream
from bmmae.tasks.task import Task
from bmmae.training.devices import uses_bf16
from bmmae.training.optim import OptimConfig, make_optimizer, set_learning_rate

WARMUP_SHARE = 0.05
Watch = Callable[[int, float], None]
"""Called after each step with the steps and the seconds so far, while the clock stands still."""


@dataclass(frozen=True)
class Training:
    """What became of a training.

    Attributes:
        steps: Optimiser steps taken.
        seconds: Processor seconds spent.
        loss: Mean over the last tenth of the steps.
    """

    steps: int
    seconds: float
    loss: float

    def row(self) -> dict[str, float]:
        """Return it as part of a cell's outcome."""
        rate = round(self.seconds / max(1, self.steps), 3)
        return {
            "steps": self.steps,
            "training_seconds": round(self.seconds, 1),
            "seconds_a_step": rate,
            "loss": self.loss,
        }


def device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    model: nn.Module,
    task: Task,
    dataset: AddressedDataset,
    budget: Budget,
    *,
    optim: OptimConfig,
    batch_size: int,
    seed: int = 0,
    warmup: float = WARMUP_SHARE,
    watch: Watch | None = None,
) -> Training:
    """Train `model` in place until the budget is spent; at least one step.

    Args:
        model: What is trained.
        task: How.
        dataset: Its samples.
        budget: How long.
        optim: The optimiser; its schedule is not used.
        batch_size: Samples a step.
        seed: Of the order of the samples, and of what is random in the model.
        warmup: Share of the budget in which the learning rate rises.
        watch: What looks at the model between steps.

    Raises:
        FloatingPointError: If loss or gradients are no longer finite.
    """
    where = device()
    model.to(where).train()
    optimizer = make_optimizer(model, optim)
    stream = SampleStream(len(dataset), batch_size, seed)
    bf16, losses, running = uses_bf16("auto", where), [], budget.start(where)
    torch.manual_seed(seed)
    while not losses or running.share(len(losses)) < 1:
        set_learning_rate(optimizer.param_groups, optim.lr * _rate(min(1.0, running.share(len(losses))), warmup))
        batch = on_device(default_collate([dataset[address] for address in stream.micro_batch(len(losses))]), where)
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            output = task.step(model, batch)
        loss = output.loss_sum / output.loss_count.clamp(min=1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or math.inf)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise FloatingPointError(f"step {len(losses)}: loss {float(loss)}, norm of the gradients {float(norm)}")
        optimizer.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            running.leave_out(partial(watch, len(losses), running.spent()))
    model.eval()
    return Training(len(losses), running.spent(), statistics.fmean(losses[-max(1, len(losses) // 10) :]))


def on_device(batch: Batch, where: torch.device) -> Batch:
    """Move a batch's tensors."""
    return {key: value.to(where) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _rate(share: float, warmup: float) -> float:
    """Return the share of the peak learning rate: a linear rise, then a cosine down to zero."""
    if share < warmup:
        return max(share / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))

"""Evaluation during training: the same samples under the same seed each time, each counted once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bmmae.data.loaders import Batch
from bmmae.errors import TrainingError
from bmmae.tasks.task import JudgesTogether, Mode, Task
from bmmae.training.devices import gather, seed_from_address, to_device
from bmmae.training.signals import StopRequest
from bmmae.training.totals import Totals


def evaluate(
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    accelerator: Any,
    stop: StopRequest,
    *,
    seed: int,
    bf16: bool,
) -> dict[str, float]:
    """Mean metrics over the validation set, `loss` among them.

    Args:
        model: The model itself, not wrapped: ranks may have different numbers of batches, and the wrapper's forward
            may wait for the others.
        task: Computes the metrics.
        batches: This rank's share.
        accelerator: Knows the device.
        stop: Asked between batches; a stop ends the evaluation early.
        seed: Seed of what is random in the model.
        bf16: Whether to compute under autocast.

    Returns:
        Metrics by name; empty if a stop was asked of any rank, for then they are incomplete.
    """
    totals, rows = Totals(), []
    device = accelerator.device
    model.eval()
    seed_from_address(seed)
    with torch.no_grad():
        for batch in batches:  # outside autocast: without workers, data are prepared in this loop
            if stop.level:
                break
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output = task.evaluate(model, to_device(batch, device))
            totals.add(output)
            if output.rows:
                rows.append({name: value.detach().float().cpu() for name, value in output.rows.items()})
        if isinstance(task, JudgesTogether):
            every = [each for own in gather(rows) for each in own]
            if every and accelerator.is_main_process:  # what ranks have found is added up: one of them says it
                totals.add(task.judge_together({name: torch.cat([each[name] for each in every]) for name in every[0]}))
    model.train()
    totals.merge()
    interrupted = any(gather(stop.level))
    return {} if interrupted else totals.means()


def is_better(value: float, best: float | None, mode: Mode) -> bool:
    """Whether a metric beats the best so far; NaN beats nothing, and anything else beats None."""
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


def selected(values: dict[str, float], name: str) -> float:
    """The metric that decides which checkpoint is best.

    Raises:
        TrainingError: The evaluation did not give it.
    """
    if name not in values:
        raise TrainingError(
            f"The validation metric {name!r} selects the best checkpoint, but the evaluation gave only "
            f"{sorted(values)}. Check that the validation set has what the metric needs."
        )
    return values[name]

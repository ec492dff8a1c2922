"""The largest batch that fits: tried on the device, with the global batch left as it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from bmmae.data.loaders import AddressedDataset, collate
from bmmae.errors import ConfigError, TrainingError
from bmmae.tasks.task import Task
from bmmae.training.devices import gather, to_device, uses_bf16
from bmmae.training.plan import TrainConfig
from bmmae.training.run import keep_less

SAMPLES = 8
"""Different samples that are tried; larger batches repeat them."""
SPARE = 0.05
"""Share of the device's memory left free: other batches have a few more tokens, and memory has gaps."""

Try = Callable[[int], None]


def fit_batch_size(
    accelerator: Any, model: nn.Module, task: Task, dataset: AddressedDataset, train: TrainConfig
) -> TrainConfig:
    """Divide `batch_size * accumulate` anew: into as few micro-steps as fit into every rank's memory.

    Args:
        accelerator: Knows device and ranks.
        model: Moved to its device; takes no step.
        task: Computes the loss.
        dataset: Its first samples are tried.
        train: The configuration as given.

    Returns:
        The configuration with other `batch_size` and `accumulate`, whose product is the same.

    Raises:
        ConfigError: The device's memory runs out without an error that could be caught (a CPU).
        TrainingError: Not even one sample fits.
    """
    require_gpu(accelerator.device.type)
    model.to(accelerator.device)
    if train.recompute:
        keep_less(model)
    return largest_fitting(train, trial(accelerator.device, model, task, dataset, train), lambda own: min(gather(own)))


def require_gpu(device: str) -> None:
    """Refuse to try batches on a device whose memory runs out without an error that could be caught.

    Raises:
        ConfigError: It is not a GPU.
    """
    if device != "cuda":
        raise ConfigError(
            f"train.find_batch_size tries batches until memory runs out, which needs a GPU; training runs on "
            f"{device}: set it to false and choose train.batch_size."
        )


def largest_fitting(train: TrainConfig, attempt: Try, agree: Callable[[int], int]) -> TrainConfig:
    """Try the divisors of `batch_size * accumulate` from the largest down.

    Args:
        train: The configuration as given.
        attempt: Takes a batch size, and raises torch's out-of-memory error if it does not fit.
        agree: Takes what fits here, and returns what fits on every rank.

    Raises:
        TrainingError: Not even one sample fits, here or on another rank.
    """
    total = train.batch_size * train.accumulate
    sizes = iter([size for size in range(total, 0, -1) if total % size == 0] + [0])
    size = next(sizes)

    def smaller() -> int:
        nonlocal size
        size = next(sizes)
        return size

    def found(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    try:
        own = find_executable_batch_size(found, starting_batch_size=size, reduce_batch_size_fn=smaller)()
    except RuntimeError as error:
        if "reached zero" not in str(error):
            raise
        own = 0
    fits = agree(own)
    if not fits:
        raise TrainingError(
            "Not even one sample fits into memory: set train.recompute=true and train.precision=bf16, or take a "
            "smaller recipe or crop."
        )
    return replace(train, batch_size=fits, accumulate=total // fits)


def trial(device: torch.device, model: nn.Module, task: Task, dataset: AddressedDataset, train: TrainConfig) -> Try:
    """Return what takes forward and backward pass of a batch, in the memory that a training step would have."""
    samples = [dataset[0, index] for index in range(min(SAMPLES, len(dataset)))]

    def attempt(batch_size: int) -> None:
        batch = to_device(collate([samples[number % len(samples)] for number in range(batch_size)]), device)
        kept = [value.clone() for value in model.buffers()]  # running means, if a layer has any
        trained = [value for value in model.parameters() if value.requires_grad]
        # What a step holds besides: the optimiser's two means of each value, and some room.
        spare = int(SPARE * _memory(device))
        held = [torch.empty_like(value) for value in trained for _ in range(2)]
        held.append(torch.empty(spare, dtype=torch.uint8, device=device))
        model.train()
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(train.precision, device)):
                loss = task.step(model, batch).loss_sum
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            model.zero_grad(set_to_none=True)
            for value, before in zip(model.buffers(), kept, strict=True):
                value.data.copy_(before)

    return attempt


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0

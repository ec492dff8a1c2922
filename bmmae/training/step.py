"""One optimiser step: micro-batches, one division by the global count, clipping, and a watch for NaN."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bmmae.data.loaders import Batch
from bmmae.errors import TrainingError
from bmmae.tasks.task import StepOutput
from bmmae.training.checkpointing import checkpoint_folder
from bmmae.training.devices import exact_dtype, gather, seed_from_address, to_device, uses_bf16
from bmmae.training.optim import OptimConfig, set_learning_rate
from bmmae.training.run import Run, StepReport
from bmmae.training.sharding import gathered, local_parts
from bmmae.training.signals import StopRequest
from bmmae.training.throughput import matrix_rate

MOST_SKIPS_IN_A_ROW = 20


class Stepper:
    """Takes the optimiser steps of a run, on batches drawn from `batches`."""

    def __init__(self, run: Run, batches: Iterator[Batch], optim: OptimConfig) -> None:
        self.run, self.batches = run, batches
        self.train, self.plan, self.accelerator = run.train, run.plan, run.accelerator
        self.clip_norm = float("inf") if optim.clip_norm is None else optim.clip_norm
        self.parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        self.bf16 = uses_bf16(run.train.precision, run.accelerator.device)
        self.skips_in_a_row = 0

    def take(self, step: int, stop: StopRequest) -> StepReport:
        """Take optimiser step `step` (from 0), and agree with the other ranks whether a stop was asked of any.

        Raises:
            TrainingError: Loss or gradient is not finite, and the configuration says to stop then.
        """
        outputs, names, waited = self._accumulate(step)
        loss, count, norm, level = self._finish_gradients(outputs, stop)
        finite = all(map(math.isfinite, (loss, count, norm)))
        lr = self.plan.schedule(step)
        if finite:
            set_learning_rate(self.run.optimizer.param_groups, lr, step)
            self.run.optimizer.step()
        else:
            self._meet_nonfinite(step, outputs, names)
        self.skips_in_a_row = 0 if finite else self.skips_in_a_row + 1
        self.run.optimizer.zero_grad(set_to_none=True)
        return StepReport(loss / count if count else 0.0, norm, lr, not finite, level, outputs, waited)

    def peak(self) -> float:
        """Measure the device's rate of matrix products in this run's precision, in operations a second."""
        return matrix_rate(self.accelerator.device, torch.bfloat16 if self.bf16 else torch.float32)

    def _accumulate(self, step: int) -> tuple[list[StepOutput], list[list[Any]], float]:
        """Add up the gradients of this rank's micro-batches; ranks are brought together with the last one."""
        outputs: list[StepOutput] = []
        names: list[list[Any]] = []
        waited = 0.0
        self.run.wrapped.train()
        for micro in range(self.train.accumulate):
            asked = time.perf_counter()
            batch = to_device(next(self.batches), self.accelerator.device)
            waited += time.perf_counter() - asked
            part = self.plan.stream.slice_number(self.accelerator.process_index, micro)
            seed_from_address(self.train.seed, step, part)
            last = micro == self.train.accumulate - 1
            together = last or self.run.sharded is not None
            with contextlib.nullcontext() if together else self.accelerator.no_sync(self.run.wrapped):
                output = self._forward(batch)
                output.loss_sum.backward()  # type: ignore[no-untyped-call]
            outputs.append(_detached(output))
            names.append(_names(batch))
        return outputs, names, waited

    def _forward(self, batch: Batch) -> StepOutput:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.bf16):
            return self.run.task.step(self.run.wrapped, batch)

    def _finish_gradients(self, outputs: list[StepOutput], stop: StopRequest) -> tuple[float, float, float, int]:
        """Divide the gradients by the global count and clip them.

        Returns:
            Loss sum, loss count, gradient norm before clipping, stop level; each over all ranks, and read from the
            device at once, because each read makes it wait.
        """
        device = self.accelerator.device
        sums = torch.stack([_total([o.loss_sum for o in outputs]), _total([o.loss_count for o in outputs])])
        level = stop.level
        flags = torch.tensor([level == 1, level == 2], dtype=sums.dtype, device=device)
        shared: Tensor = self.accelerator.reduce(torch.cat([sums, flags]), "sum")
        count = shared[1]
        # DDP and FSDP have averaged over the ranks: undo that. Without anything counted there is no gradient either.
        scale = torch.where(count > 0, self.accelerator.num_processes / count, torch.zeros_like(count))
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        torch._foreach_mul_(local_parts(gradients), scale.to(torch.float32))
        norm: Tensor = gathered(self.accelerator.clip_grad_norm_(self.parameters, self.clip_norm))
        loss, counted, stops, interrupts, size = torch.cat([shared, norm.detach().to(shared).view(1)]).tolist()
        return loss, counted, size, 2 if interrupts else int(stops > 0)

    def _meet_nonfinite(self, step: int, outputs: list[StepOutput], names: list[list[Any]]) -> None:
        own = list(zip(outputs, names, strict=True))
        bad = [name for output, batch in own if not output.loss_sum.isfinite() for name in batch]
        every_bad = list(chain.from_iterable(gather(bad)))
        every = list(chain.from_iterable(gather([name for batch in names for name in batch])))
        blamed = f"samples {every_bad}" if every_bad else f"the gradient of samples {every}"
        saved = self.run.progress.saved
        healthy = f"last healthy checkpoint: {checkpoint_folder(self.run.run_dir, saved) if saved else 'none yet'}"
        if self.train.on_nonfinite == "stop":
            raise TrainingError(
                f"Loss or gradient is NaN or infinite at step {step}, from {blamed}; {healthy}. Look at these "
                "samples, lower optim.lr, or set train.on_nonfinite=skip to leave such steps out."
            )
        if self.skips_in_a_row + 1 >= MOST_SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{MOST_SKIPS_IN_A_ROW} steps in a row (to step {step}) had a NaN or infinite loss or gradient; "
                f"the weights, not single samples, are at fault; {healthy}. Lower optim.lr."
            )


def _total(values: list[Tensor]) -> Tensor:
    return torch.stack(values).to(exact_dtype(values[0].device)).sum()


def _detached(output: StepOutput) -> StepOutput:
    return replace(output, loss_sum=output.loss_sum.detach(), loss_count=output.loss_count.detach())


def _names(batch: Batch) -> list[Any]:
    """How to call the samples of a batch: subject and address, as far as known."""
    known = [batch[key] for key in ("subject", "address") if key in batch]
    return [" ".join(map(str, parts)) for parts in zip(*known, strict=True)]

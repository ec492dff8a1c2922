"""Sums and counts of metrics: over micro-batches, steps and ranks, divided once at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bmmae.tasks.task import StepOutput
from bmmae.training.devices import exact_dtype, gather


class Totals:
    """Adds up step outputs. The loss counts as a metric called `loss`.

    Values stay on the device, unread, until `merge`: reading each of them would make the device wait.
    """

    def __init__(self, merged: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.merged = dict(merged or {})
        self._own: dict[str, Tensor] = {}

    def add(self, output: StepOutput) -> None:
        """Add one batch of this rank."""
        loss = {"loss": (output.loss_sum, output.loss_count)}
        for name, (total, count) in (loss | dict(output.metrics)).items():
            pair = torch.stack([part.detach().to(exact_dtype(part.device)) for part in (total, count)])
            self._own[name] = self._own[name] + pair if name in self._own else pair

    def merge(self) -> None:
        """Bring the ranks together; all of them must call this."""
        own = {name: tuple(pair.tolist()) for name, pair in self._own.items()}
        for by_name in gather(own):
            for name, (total, count) in by_name.items():
                before = self.merged.get(name, (0.0, 0.0))
                self.merged[name] = (before[0] + total, before[1] + count)
        self._own.clear()

    def means(self) -> dict[str, float]:
        """Sum / count by name, of what has been merged; what was never counted is left out."""
        return {name: total / count for name, (total, count) in sorted(self.merged.items()) if count}

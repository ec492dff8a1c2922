"""What a task is: batch in, loss and metrics out, as sums and counts.

A task knows nothing of devices, processes or accumulation. The loop adds the sums and the counts over micro-batches
and ranks and divides once, so that two processes equal one, and an average is never an average of averages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from bmmae.data.loaders import Batch

__all__ = ["Batch", "JudgesTogether", "Mode", "StepOutput", "Task", "tensors"]

Mode: TypeAlias = Literal["min", "max"]


@dataclass(frozen=True)
class StepOutput:
    """Loss and metrics of one batch, not yet divided.

    Attributes:
        loss_sum: Scalar with a graph in training; the sum of the loss over whatever is counted (voxels, patients ...).
        loss_count: Scalar; how many were counted. May be zero, and then `loss_sum` is zero too.
        metrics: By name, (sum, count), scalars both. Counts may be zero; the value shown is sum / count.
        operations: Of the forward pass, if the task can count them; 0 if not.
        rows: In evaluation, one value a sample by name: for what is no sum over batches, see `JudgesTogether`.
    """

    loss_sum: Tensor
    loss_count: Tensor
    metrics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    operations: float = 0.0
    rows: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """One way to train a model. The model is called as `model(...)` only: DDP synchronises gradients in that call."""

    @property
    def selection(self) -> tuple[str, Mode]:
        """The validation metric that chooses the best checkpoint (`loss` included), and whether low or high is good."""
        ...

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one training batch, with a graph from every trainable parameter to `loss_sum`."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute loss and metrics of one validation batch; gradients are off and the model is in eval mode."""
        ...


@runtime_checkable
class JudgesTogether(Protocol):
    """A task some of whose metrics need the whole validation set at once."""

    def judge_together(self, rows: Mapping[str, Tensor]) -> StepOutput:
        """Compute them from the `rows` of all batches and ranks, joined; they are added to what `evaluate` returned."""
        ...


def tensors(batch: Batch, *names: str) -> list[Tensor]:
    """Return entries of a batch that are tensors, in the order named.

    Raises:
        KeyError: If the batch lacks one: it is still packed, or the dataset and the task do not belong together.
        TypeError: If one is a list.
    """
    if missing := [name for name in names if name not in batch]:
        advice = "unpack it first, with bmmae.data.packing.unpack" if "flags" in batch else "give the task its dataset"
        raise KeyError(f"a batch without {', '.join(missing)}, of {', '.join(batch)}: {advice}")
    found = [batch[name] for name in names]
    if not all(isinstance(value, Tensor) for value in found):
        raise TypeError(f"expected tensors under {', '.join(names)}, got {[type(value).__name__ for value in found]}")
    return [value for value in found if isinstance(value, Tensor)]

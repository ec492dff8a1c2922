"""Segmentation: regions from any subset of modalities."""

from __future__ import annotations

from torch import Tensor, nn

from bmmae.arrays import Bool, Float
from bmmae.losses import dice_and_cross_entropy
from bmmae.model.segmentation import SegmentationConfig
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors


class SegmentationTask:
    """Half soft Dice, half cross-entropy, per region; the mean over samples.

    Args:
        config: The model's config.
    """

    selection: tuple[str, Mode] = ("dice", "max")

    def __init__(self, config: SegmentationConfig) -> None:
        self.config = config

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        (label,) = tensors(batch, "label")
        losses = dice_and_cross_entropy(self._logits(model, batch), label)
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)))

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute loss and Dice inside the validation windows.

        Metrics: `dice_<region>` and their mean `dice`, higher is better; a region that is neither there nor
        predicted is not counted.
        """
        logits = self._logits(model, batch)
        (label,) = tensors(batch, "label")
        losses = dice_and_cross_entropy(logits, label)
        scores, counts = region_dice(logits > 0, label)
        metrics = {f"dice_{n}": (scores[:, i].sum(), counts[:, i].sum()) for i, n in enumerate(self.config.regions)}
        metrics["dice"] = (scores.sum(), counts.sum())
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)), metrics)

    def _logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B R H W D"]:
        images, available, valid, brain = tensors(batch, "images", "available", "valid", "brain")
        tissue = brain[:, None] if self.config.model.tissue_only else None
        logits: Tensor = model(images, available, tissue, valid)
        return logits


def region_dice(
    predicted: Bool[Tensor, "B R H W D"], truth: Bool[Tensor, "B R H W D"]
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Return Dice per sample and region, and 1 where it is defined (0 where both are empty)."""
    axes = (-3, -2, -1)
    total = (predicted.sum(axes) + truth.sum(axes)).float()
    overlap = (predicted & truth).sum(axes).float()
    return 2 * overlap / total.clamp(min=1), (total > 0).float()

"""Segmentation: regions from any subset of modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bmmae.arrays import Bool, Float
from bmmae.data.augment import keep_random_subset
from bmmae.data.labels import Coding, find_coding, own_coding
from bmmae.data.loaders import sample_generator
from bmmae.errors import ConfigError
from bmmae.losses import agreement_with_teacher, dice_and_cross_entropy
from bmmae.model.segmentation import SegmentationConfig
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors


@dataclass(frozen=True)
class DistillConfig:
    """What hard subsets learn from the full set: the same model on all of a sample's modalities, without gradient.

    Attributes:
        weight: Of the distillation loss beside the supervised one; 0 for none.
        dropout: Chance that a sample keeps only a random subset of its modalities. The task draws the subset, because
            the teacher has to see the others: leave `augment.modality_dropout` at 0.
    """

    weight: float = 0.0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"distill.weight must be zero or more, got {self.weight}")
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"distill.dropout must lie in [0, 1], got {self.dropout}")


class SegmentationTask:
    """Half soft Dice, half cross-entropy, per region; the mean over samples.

    Coarser resolutions that the model supervises count half as much at each halving; a coarse voxel belongs to a region
    if any of its voxels does, so that small lesions are not lost.

    Args:
        config: The model's config.
        distill: What hard subsets learn from the full set.
        seed: The run's seed, for the subsets that are drawn here.
    """

    selection: tuple[str, Mode] = ("dice", "max")

    def __init__(self, config: SegmentationConfig, distill: DistillConfig | None = None, seed: int = 0) -> None:
        self.config = config
        self.distill = distill or DistillConfig()
        self.seed = seed

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        label, available = tensors(batch, "label", "available")
        kept = self._subsets(batch, available) if self.distill.weight else available
        scales = self._scales(model, batch, kept)
        losses = self._supervised(scales, label)
        metrics = {}
        hard = (kept != available).any(dim=1)
        if bool(hard.any()):
            told = self._distilled(model, batch, available, scales[0], hard)
            losses = losses + self.distill.weight * told
            metrics["distillation"] = (told.detach().sum(), hard.sum().float())
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)), metrics)

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute loss and Dice inside the validation windows.

        Metrics: `dice_<region>` and their mean `dice`, higher is better; a region that is neither there nor
        predicted is not counted.
        """
        label, available = tensors(batch, "label", "available")
        logits: Tensor = model(*self._inputs(batch, available))
        losses = dice_and_cross_entropy(logits, label)
        scores, counts = region_dice(logits > 0, label)
        metrics = {f"dice_{n}": (scores[:, i].sum(), counts[:, i].sum()) for i, n in enumerate(self.config.regions)}
        metrics["dice"] = (scores.sum(), counts.sum())
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)), metrics)

    def _inputs(self, batch: Batch, available: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        images, valid, brain = tensors(batch, "images", "valid", "brain")
        return images, available, brain[:, None] if self.config.model.tissue_only else None, valid

    def _scales(self, model: nn.Module, batch: Batch, available: Tensor) -> tuple[Tensor, ...]:
        """Logits of each supervised resolution, full resolution first."""
        inputs = self._inputs(batch, available)
        more: dict[str, object] = {"visible": ~tensors(batch, "mask")[0]} if "mask" in batch else {}
        if self.config.supervision:
            return cast(tuple[Tensor, ...], model(*inputs, every_scale=True, **more))
        return (cast(Tensor, model(*inputs, **more)),)

    def _supervised(self, scales: tuple[Tensor, ...], label: Tensor) -> Float[Tensor, " B"]:
        weights = [0.5**scale for scale in range(len(scales))]
        losses = dice_and_cross_entropy(scales[0], label)
        for scale in range(1, len(scales)):
            coarse = F.max_pool3d(label.to(torch.float32), 2**scale).bool()
            losses = losses + weights[scale] * dice_and_cross_entropy(scales[scale], coarse)
        return losses / sum(weights)

    def _subsets(self, batch: Batch, available: Bool[Tensor, "B M"]) -> Bool[Tensor, "B M"]:
        """Draw which modalities each sample keeps: a function of its address, as everything about a sample."""
        kept = available.clone()
        for index, (epoch, place) in enumerate(batch["address"]):
            rng = sample_generator(self.seed, int(epoch), int(place), purpose="distillation subset")
            if rng.random() < self.distill.dropout:
                drawn = keep_random_subset(available[index].cpu().numpy(), rng)
                kept[index] = torch.from_numpy(drawn).to(kept.device)
        return kept

    def _distilled(
        self, model: nn.Module, batch: Batch, available: Tensor, logits: Tensor, hard: Tensor
    ) -> Float[Tensor, " B"]:
        """The distance of the hard samples' predictions from those with all modalities; 0 for the others."""
        inputs = [None if part is None else part[hard] for part in self._inputs(batch, available)]
        with torch.no_grad():
            teacher: Tensor = model(*inputs).float().sigmoid()
        told = logits.new_zeros(len(logits), dtype=torch.float32)
        return told.index_put((hard.nonzero(as_tuple=True)[0],), agreement_with_teacher(logits[hard], teacher))


def label_coding(config: SegmentationConfig) -> Coding:
    """Return the label coding that a model's regions are defined by.

    Raises:
        LabelError: If there is none of its name, and the model carries none of its own.
    """
    if not config.classes:
        return find_coding(config.coding)
    coding = own_coding({value: name for name, value in config.classes.items()}, config.united)
    return Coding(config.coding, coding.classes, coding.regions)


def region_dice(
    predicted: Bool[Tensor, "B R H W D"], truth: Bool[Tensor, "B R H W D"]
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Return Dice per sample and region, and 1 where it is defined (0 where both are empty)."""
    axes = (-3, -2, -1)
    total = (predicted.sum(axes) + truth.sum(axes)).float()
    overlap = (predicted & truth).sum(axes).float()
    return 2 * overlap / total.clamp(min=1), (total > 0).float()

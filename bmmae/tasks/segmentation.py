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
        single_share: How often such a subset is one modality, as `augment.single_share`.
    """

    weight: float = 0.0
    dropout: float = 0.5
    single_share: float = 0.5

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigError(f"distill.weight must be zero or more, got {self.weight}")
        for name in ("dropout", "single_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"distill.{name} must lie in [0, 1], got {getattr(self, name)}")


class SegmentationTask:
    """Half soft Dice, half cross-entropy, per region; the mean over samples.

    Coarser resolutions that the model supervises count half as much at each halving; a coarse voxel belongs to a region
    if any of its voxels does, so that small lesions are not lost.

    Args:
        config: The model's config.
        distill: What hard subsets learn from the full set.
        seed: The run's seed, for the subsets that are drawn here.
        visible_share: Share of the tokens that the encoder sees of them, if batches hide tokens.
        hardest_share: Share of the voxels whose cross-entropy counts; see `bmmae.losses.dice_and_cross_entropy`.
    """

    selection: tuple[str, Mode] = ("dice_any", "max")

    def __init__(
        self,
        config: SegmentationConfig,
        distill: DistillConfig | None = None,
        seed: int = 0,
        visible_share: float = 1.0,
        *,
        hardest_share: float = 1.0,
    ) -> None:
        self.config = config
        self.distill = distill or DistillConfig()
        self.seed = seed
        self.visible_share = visible_share
        self.hardest_share = hardest_share

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        label, available = tensors(batch, "label", "available")
        visible = ~tensors(batch, "mask")[0] if "mask" in batch else None
        if not self.distill.weight:
            losses = self._supervised(self._scales(model, batch, available, visible), label)
            return StepOutput(losses.sum(), losses.new_tensor(len(losses)), {})
        kept = self._subsets(batch, available, self.distill.dropout, self.distill.single_share)
        hard = (kept != available).any(dim=1)
        scales = self._scales(model, batch, kept, self._seen_of_less(batch, visible, hard))
        losses = self._supervised(scales, label)
        told = self._distilled(model, batch, available, scales[0], hard)
        losses = losses + self.distill.weight * told
        metrics = {"distillation": (told.detach().sum(), hard.sum().float())} if bool(hard.any()) else {}
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)), metrics)

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute loss and Dice inside the validation windows, from all modalities and from some.

        Metrics: `dice_<region>` and their mean `dice` from all modalities of a sample; `dice_subset` from a random
        subset of them, the same in every evaluation; `dice_any`, of both together, by which checkpoints are chosen.
        Higher is better; a region that is neither there nor predicted is not counted.
        """
        label, available = tensors(batch, "label", "available")
        logits: Tensor = model(*self._inputs(batch, available))
        losses = self._loss(logits, label)
        scores, counts = region_dice(logits > 0, label)
        less: Tensor = model(*self._inputs(batch, self._subsets(batch, available, chance=1.0)))
        of_less, counts_of_less = (part.sum() for part in region_dice(less > 0, label))
        metrics = {f"dice_{n}": (scores[:, i].sum(), counts[:, i].sum()) for i, n in enumerate(self.config.regions)}
        metrics["dice"] = (scores.sum(), counts.sum())
        metrics["dice_subset"] = (of_less, counts_of_less)
        metrics["dice_any"] = (scores.sum() + of_less, counts.sum() + counts_of_less)
        return StepOutput(losses.sum(), losses.new_tensor(len(losses)), metrics)

    def _inputs(self, batch: Batch, available: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        images, valid, brain = tensors(batch, "images", "valid", "brain")
        return images, available, brain[:, None] if self.config.model.tissue_only else None, valid

    def _scales(self, model: nn.Module, batch: Batch, available: Tensor, visible: Tensor | None) -> tuple[Tensor, ...]:
        """Logits of each supervised resolution, full resolution first."""
        inputs = self._inputs(batch, available)
        more: dict[str, object] = {} if visible is None else {"visible": visible}
        if self.config.supervision:
            return cast(tuple[Tensor, ...], model(*inputs, every_scale=True, **more))
        return (cast(Tensor, model(*inputs, **more)),)

    def _supervised(self, scales: tuple[Tensor, ...], label: Tensor) -> Float[Tensor, " B"]:
        weights = [0.5**scale for scale in range(len(scales))]
        losses = self._loss(scales[0], label)
        for scale in range(1, len(scales)):
            coarse = F.max_pool3d(label.to(torch.float32), 2**scale).bool()
            losses = losses + weights[scale] * self._loss(scales[scale], coarse)
        return losses / sum(weights)

    def _loss(self, logits: Tensor, label: Tensor) -> Float[Tensor, " B"]:
        return dice_and_cross_entropy(logits, label, hardest_share=self.hardest_share)

    def _subsets(
        self, batch: Batch, available: Bool[Tensor, "B M"], chance: float, single_share: float = 0.0
    ) -> Bool[Tensor, "B M"]:
        """Draw which modalities each sample keeps, with what chance: a function of its address, as all about it."""
        kept = available.clone()
        for index, (epoch, place) in enumerate(batch["address"]):
            rng = sample_generator(self.seed, int(epoch), int(place), purpose="distillation subset")
            if rng.random() < chance:
                drawn = keep_random_subset(available[index].cpu().numpy(), rng, single_share)
                kept[index] = torch.from_numpy(drawn).to(kept.device)
        return kept

    def _seen_of_less(self, batch: Batch, visible: Tensor | None, hard: Tensor) -> Tensor | None:
        """Draw anew which tokens the encoder sees where a modality was taken away: as large a share of what is left."""
        if visible is None:
            return None
        visible = visible.clone()
        for index in hard.nonzero()[:, 0].tolist():
            epoch, place = batch["address"][index]
            rng = sample_generator(self.seed, int(epoch), int(place), purpose="distillation tokens")
            drawn = rng.random(tuple(visible.shape[1:])) < self.visible_share
            visible[index] = torch.from_numpy(drawn).to(visible.device)
        return visible

    def _distilled(
        self, model: nn.Module, batch: Batch, available: Tensor, logits: Tensor, hard: Tensor
    ) -> Float[Tensor, " B"]:
        """The distance of the hard samples' predictions from those with all modalities; 0 for the others."""
        # Where none is hard the teacher looks at one sample all the same: ranks that share the weights (FSDP) gather
        # them together, and one that stayed away would keep the others waiting for ever.
        chosen = hard if bool(hard.any()) else torch.arange(len(hard), device=hard.device) == 0
        inputs = [None if part is None else part[chosen] for part in self._inputs(batch, available)]
        with torch.no_grad():
            teacher: Tensor = model(*inputs).float().sigmoid()
        told = logits.new_zeros(len(logits), dtype=torch.float32)
        places = chosen.nonzero(as_tuple=True)[0]
        return told.index_put((places,), agreement_with_teacher(logits[chosen], teacher)) * hard


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

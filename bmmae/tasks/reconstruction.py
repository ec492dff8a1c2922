"""Pretraining: predict the hidden voxels of the available modalities."""

from __future__ import annotations

from torch import Tensor, nn

from bmmae.arrays import Int
from bmmae.losses import masked_squared_error
from bmmae.model.config import ModelConfig
from bmmae.model.mae import Prediction
from bmmae.model.operations import decoder_operations, encoder_operations
from bmmae.patches import gather_patches
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors


class ReconstructionTask:
    """Masked reconstruction. Loss: mean squared error, in z-units, over the scanned hidden voxels that are decoded.

    Metrics, all lower is better: `mse_<modality>`, and `padding_share` of the encoder's sequences.

    Args:
        config: The model's config; where `tissue_only`, only voxels inside the brain count.
    """

    selection: tuple[str, Mode] = ("loss", "min")

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        images, mask, decode, valid, brain = tensors(batch, "images", "mask", "decode", "valid", "brain")
        prediction: Prediction = model(images, ~mask, decode)
        target = self._gather(images, prediction)
        counted = self._gather(valid, prediction)
        if self.config.tissue_only:
            counted &= self._gather(brain[:, None].expand_as(valid), prediction)
        loss_sum, loss_count = masked_squared_error(prediction.values, target, counted)
        shown, asked = (~mask).sum((1, 2)), prediction.targets.counts
        metrics = self._by_modality(prediction, target, counted) | {"padding_share": _padding(shown)}
        return StepOutput(loss_sum, loss_count, metrics, self._operations(shown.tolist(), asked.tolist()))

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the same on a validation batch, whose masks are the same at every evaluation."""
        return self.step(model, batch)

    def _gather(self, volumes: Tensor, prediction: Prediction) -> Tensor:
        tokens = prediction.targets
        return gather_patches(volumes, self.config.patch, tokens.sample, tokens.modality, tokens.place)

    def _operations(self, visible: list[int], asked: list[int]) -> float:
        return encoder_operations(self.config, visible) + decoder_operations(self.config, visible, asked)

    def _by_modality(self, prediction: Prediction, target: Tensor, counted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The squared error of each modality, as sums and counts."""
        error = ((prediction.values.detach().float() - target) ** 2 * counted).sum(1)
        voxels = counted.sum(1).float()
        metrics = {}
        for index, name in enumerate(self.config.modalities):
            here = (prediction.targets.modality == index).float()
            metrics[f"mse_{name}"] = ((error * here).sum(), (voxels * here).sum())
        return metrics


def _padding(tokens: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
    """How much of the encoder's sequences is padding, the cost of mixing subsets; and how long they are together."""
    positions = tokens.max() * len(tokens)
    return (positions - tokens.sum()).float(), positions.float()

"""Pretraining: predict the hidden voxels of the available modalities."""

from __future__ import annotations

from torch import Tensor, nn

from bmmae.arrays import Bool
from bmmae.losses import masked_squared_error
from bmmae.model.config import ModelConfig
from bmmae.model.mae import Prediction
from bmmae.patches import gather_patches
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors


class ReconstructionTask:
    """Masked reconstruction. Loss: mean squared error, in z-units, over the scanned hidden voxels that are decoded.

    Args:
        config: The model's config; where `tissue_only`, only voxels inside the brain count.
    """

    selection: tuple[str, Mode] = ("loss", "min")

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; see `Task`."""
        images, mask, decode = tensors(batch, "images", "mask", "decode")
        prediction: Prediction = model(images, ~mask, decode)
        target = self._gather(images, prediction)
        counted = self._gather(self._counted_voxels(batch), prediction)
        loss_sum, loss_count = masked_squared_error(prediction.values, target, counted)
        return StepOutput(loss_sum, loss_count, self._by_modality(prediction, target, counted))

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the same on a validation batch, whose masks are the same at every evaluation."""
        return self.step(model, batch)

    def _gather(self, volumes: Tensor, prediction: Prediction) -> Tensor:
        tokens = prediction.targets
        return gather_patches(volumes, self.config.patch, tokens.sample, tokens.modality, tokens.place)

    def _counted_voxels(self, batch: Batch) -> Bool[Tensor, "B M H W D"]:
        valid, brain = tensors(batch, "valid", "brain")
        return valid & brain[:, None] if self.config.tissue_only else valid

    def _by_modality(self, prediction: Prediction, target: Tensor, counted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The squared error of each modality, as sums and counts."""
        error = ((prediction.values.detach().float() - target) ** 2 * counted).sum(1)
        voxels = counted.sum(1).float()
        metrics = {}
        for index, name in enumerate(self.config.modalities):
            here = (prediction.targets.modality == index).float()
            metrics[f"mse_{name}"] = ((error * here).sum(), (voxels * here).sum())
        return metrics

"""Pretraining: predict the hidden voxels of the available modalities, and perhaps what lies around visible patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from bmmae.arrays import Int
from bmmae.data.cohort import Study
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig, no_finer_than, prepare_study
from bmmae.data.reading import read_header
from bmmae.losses import masked_squared_error, standardised_squared_error
from bmmae.model.config import ModelConfig
from bmmae.model.mae import MAE, Prediction
from bmmae.model.operations import decoder_operations, encoder_operations
from bmmae.model.surroundings import moments_around
from bmmae.model.synthesis import Examples, VoxelSynthesis
from bmmae.model.tokens import TokenIndex
from bmmae.patches import as_triple, gather_patches
from bmmae.tasks.task import Batch, Mode, StepOutput, tensors

SURROUNDINGS_WEIGHT = 2
MOST_STUDIES, MOST_VOXELS = 32, 150_000
"""Studies and voxels that the voxel-wise regression is fitted to, apart from `RARE` studies."""
RARE = 2
"""So many studies more of each set of modalities that is not among those."""


@torch.no_grad()
def fit_synthesis(model: MAE, studies: Sequence[Study], preprocess: PreprocessConfig) -> None:
    """Fit a model's voxel-wise regression, if it has one, to training studies; it takes well under a minute.

    Args:
        model: Its regression is changed in place.
        studies: The training studies; of more than `MOST_STUDIES`, evenly spaced ones are taken, and some of each set
            of modalities that these lack. Every other patient judges the errors of those between.
        preprocess: How studies become model input, but for the spacing: the regression has one of its own, and is
            fitted to no finer grid than a study has.

    Raises:
        ImageError: If a study cannot be read.
    """
    if model.synthesis is None:
        return
    config = replace(preprocess, spacing=model.config.synthesis.spacing)
    names = model.config.modalities
    chosen = _representative(studies)
    found = []
    patients = list(dict.fromkeys(studies[index].group for index in chosen))
    for index in chosen:
        header = read_header(next(iter(studies[index].images.values())))
        prepared = prepare_study(
            studies[index], no_finer_than(config, as_triple(header.shape[:3]), header.affine), names
        )
        half = patients.index(studies[index].group) % 2 == 0
        found.append(_examples(model.synthesis, prepared, names, MOST_VOXELS // len(chosen), half=half))
    joined = (torch.cat([getattr(each, item.name) for each in found]) for item in fields(Examples))
    model.synthesis.fit(Examples(*joined))


def _representative(studies: Sequence[Study]) -> list[int]:
    """Return evenly spaced studies, then a few of each set of modalities that is not among them, set by set."""
    even = np.unique(np.linspace(0, len(studies) - 1, MOST_STUDIES).round().astype(int)).tolist()
    known = {frozenset(studies[index].images) for index in even}
    rare: dict[frozenset[str], list[int]] = {}
    for index, study in enumerate(studies):
        if frozenset(study.images) not in known:
            rare.setdefault(frozenset(study.images), []).append(index)
    return [*even, *(index for found in rare.values() for index in found[:RARE])]


def _examples(
    synthesis: VoxelSynthesis, prepared: PreparedStudy, names: Sequence[str], count: int, *, half: bool
) -> Examples:
    """Take evenly spaced brain voxels of a study."""
    images = torch.zeros(len(names), *prepared.shape)
    scanned = torch.zeros(len(names), *prepared.shape, dtype=torch.bool)
    for number, name in enumerate(prepared.names):
        images[names.index(name)] = torch.from_numpy(prepared.images[number])
        scanned[names.index(name)] = torch.from_numpy(prepared.valid[number] & prepared.brain)
    voxels = torch.from_numpy(prepared.brain).flatten().nonzero()[:, 0]
    voxels = voxels[:: max(1, len(voxels) // count)]
    looks = synthesis.look(images, scanned, prepared.geometry.spacing).flatten(2)[..., voxels].permute(2, 0, 1)
    given, truth = (each.flatten(1)[:, voxels].T for each in (scanned, images * scanned))
    return Examples(looks, given, torch.full((len(voxels),), half), truth)


class ReconstructionTask:
    """Masked reconstruction. Loss: mean squared error over the scanned hidden voxels that are decoded.

    It is in z-units, or standardised by patch if the model's config says so.

    If the model predicts surroundings, their squared errors are averaged along with those of the voxels: the
    surroundings of a visible token count as much as the voxels of `SURROUNDINGS_WEIGHT` patches.

    Metrics, all lower is better: `mse_<modality>`, `mse_surroundings`, and `padding_share` of the encoder's sequences.

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
        error_of = masked_squared_error if self.config.targets == "voxels" else standardised_squared_error
        loss_sum, loss_count = error_of(prediction.values, target, counted)
        shown, asked = (~mask).sum((1, 2)), prediction.targets.counts
        metrics = self._by_modality(prediction, target, counted) | {"padding_share": _padding(shown)}
        if prediction.surroundings is not None:
            counts = valid & brain[:, None] if self.config.tissue_only else valid
            error, count = self._surroundings(prediction.surroundings, prediction.visible, images, counts)
            metrics["mse_surroundings"] = (error.detach(), count)
            weight = SURROUNDINGS_WEIGHT * math.prod(self.config.patch)
            loss_sum, loss_count = loss_sum + weight * error, loss_count + weight * count
        return StepOutput(loss_sum, loss_count, metrics, self._operations(shown.tolist(), asked.tolist()))

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the same on a validation batch, whose masks are the same at every evaluation."""
        return self.step(model, batch)

    def _gather(self, volumes: Tensor, prediction: Prediction) -> Tensor:
        tokens = prediction.targets
        return gather_patches(volumes, self.config.patch, tokens.sample, tokens.modality, tokens.place)

    def _surroundings(
        self, predicted: Tensor, tokens: TokenIndex, images: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean squared error of each visible token's surroundings, summed; and how many tokens have any."""
        around, known = moments_around(images, counted, self.config.patch, self.config.surroundings)
        truth, there = (each.transpose(1, 2)[tokens.sample, tokens.place] for each in (around, known))
        number = there.sum((1, 2))
        errors = ((predicted.float() - truth) ** 2 * there).sum((1, 2)) / number.clamp(min=1)
        return errors.sum(), (number > 0).sum().to(errors.dtype)

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

"""Who competes in segmentation, and how each is trained: same data, same augmentation, same loss, last weights kept."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from budgeted import Training, train
from learning_data import WORK, OnlyModalities, Source
from torch import nn

from bmmae.baselines.budget import Budget
from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS, NetworkConfig, ZeroFilledNetwork
from bmmae.checkpoint import describe, load_encoder, load_model
from bmmae.config import SegmentConfig
from bmmae.data.augment import AugmentConfig
from bmmae.data.cohort import Study
from bmmae.masking import MaskingConfig
from bmmae.model.config import ModelConfig, recipe
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.provenance import Provenance
from bmmae.tasks.segmentation import SegmentationTask
from bmmae.training.optim import OptimConfig

DEDICATED = "dedicated:"
MASKED = "masked"
"""Our network from an encoder that was pretrained by masking alone."""
RELYING = "relying"
"""Ours, each region taken from no more modalities than have paid on other subjects."""
AUGMENT = AugmentConfig(modality_dropout=0.8, single_share=0.5, lesion_share=0.5)
"""The library's default, for all contestants."""
OPTIM = OptimConfig(kind="muon_convolutions", lr=1e-3, weight_decay=0.01)
NETWORK_OPTIM = replace(OPTIM, kind="adamw")
"""Of the comparators: with Muon, whose steps cost more for their many kernels, the U-Net learned less (LOG.md)."""
LAYER_DECAY = 0.5
BATCH = 2
MASKING = MaskingConfig(visible_share=SegmentConfig.visible_share)
"""What our encoder sees in training: the library's default."""


@dataclass(frozen=True)
class Start:
    """What the library's own model starts from.

    Attributes:
        shape: Of the encoder.
        weights: A model folder, or None for random weights; of a segmentation model the decoder is taken too.
        width: Half the channels of the decoder at half resolution.
        supervision: How many coarser resolutions predict the regions too.
    """

    shape: ModelConfig
    weights: Path | None
    width: int
    supervision: int = 0

    @classmethod
    def of(cls, weights: Path | None, window: tuple[int, int, int], width: int) -> Start:
        """Take the shape from pretrained weights, or the recipe `tiny`."""
        shape = recipe("tiny") if weights is None else load_model(weights).model_config
        return cls(replace(shape, size=window), weights, width)

    def model(self, source: Source, seed: int) -> SegmentationModel:
        """Return the model before any step of fine-tuning."""
        torch.manual_seed(seed)
        config = SegmentationConfig(self.shape, tuple(source.coding.regions), source.coding.name, self.width)
        model = SegmentationModel(replace(config, supervision=self.supervision))
        if self.weights is not None:
            donor = load_model(self.weights)
            load_encoder(model, donor)
            if isinstance(donor, SegmentationModel):
                model.take_decoder(donor)
        return model

    def scratch(self) -> Start:
        """Return the same without pretraining."""
        return replace(self, weights=None)


def digest(weights: Path) -> str:
    """Return what tells one model's weights from another's; stops as `weights_file`."""
    return hashlib.sha256(weights_file(weights).read_bytes()).hexdigest()[:12]


def weights_file(folder: Path) -> Path:
    """Return a model folder's file of weights; stops with a message where there is none."""
    file = folder / "model.safetensors"
    if not file.exists():
        sys.exit(f"error: no weights in {folder}: expected a model folder with model.safetensors")
    return file


@functools.cache
def form_of(window: tuple[int, int, int], width: int) -> str:
    """Return what tells one form of our decoder from another: cells of an earlier form are not today's."""
    model = SegmentationModel(SegmentationConfig(replace(recipe("tiny"), size=window), width=width))
    shapes = [(name, tuple(value.shape)) for name, value in model.named_parameters() if not name.startswith("encoder.")]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]


def fine_tune(
    start: Start,
    source: Source,
    studies: Sequence[Study],
    budget: Budget,
    *,
    seed: int,
    only: Sequence[str] | None = None,
    augment: AugmentConfig = AUGMENT,
    hardest_share: float = 1.0,
) -> tuple[nn.Module, Training]:
    """Train the library's own model.

    Args:
        start: What it starts from.
        source: The data.
        studies: Training studies.
        budget: How long.
        seed: Of weights and samples.
        only: Show it these modalities alone, always all of them: a dedicated model.
        augment: Of the training windows.
        hardest_share: Of the voxels, whose cross-entropy counts.
    """
    model = start.model(source, seed)
    augment = augment if only is None else replace(augment, modality_dropout=0.0)
    dataset = source.dataset(studies, start.shape, seed=seed, augment=augment)
    dataset.masking = MASKING
    shown = dataset if only is None else OnlyModalities(dataset, only)
    optim = OPTIM if start.weights is None else replace(OPTIM, layer_decay=LAYER_DECAY)
    task = SegmentationTask(model.config, hardest_share=hardest_share)
    return model, train(model, task, shown, budget, optim=optim, batch_size=BATCH, seed=seed)


def fit_network(
    name: str,
    shape: ModelConfig,
    source: Source,
    studies: Sequence[Study],
    budget: Budget,
    *,
    seed: int,
    augment: AugmentConfig = AUGMENT,
    hardest_share: float = 1.0,
) -> tuple[nn.Module, Training]:
    """Train a comparator; absent modalities are zero-filled channels, and dropout hides some as it does for ours."""
    torch.manual_seed(seed)
    regions = tuple(source.coding.regions)
    model = ZeroFilledNetwork(NetworkConfig(name, shape.modalities, regions, source.window))
    task = SegmentationTask(SegmentationConfig(shape, regions, source.coding.name), hardest_share=hardest_share)
    dataset = source.dataset(studies, shape, seed=seed, augment=augment)
    return model, train(model, task, dataset, budget, optim=NETWORK_OPTIM, batch_size=BATCH, seed=seed)


def kept_weights(source: Source, fold: int, seed: int = 0) -> Path:
    """Return where the model that `ours` became in a fold is kept, for further figures and pictures (git-ignored)."""
    return WORK / "segmentation" / f"{source.name}-fold{fold}-seed{seed}"


def kept_model(source: Source, fold: int, seed: int = 0) -> SegmentationModel:
    """Return the model that `ours` became in a fold; stops with a message where it is not kept."""
    folder = kept_weights(source, fold, seed)
    if not folder.is_dir():
        sys.exit(f"error: no weights of fold {fold}, seed {seed}: python benchmarks/segmentation.py --only ours first")
    model = load_model(folder)
    if not isinstance(model, SegmentationModel):
        sys.exit(f"error: {folder} holds no segmentation model")
    return model


def keep(model: nn.Module, source: Source, folder: Path) -> None:
    """Save a trained model of the library's own."""
    if isinstance(model, SegmentationModel):
        describe(model, source.cache.config, Provenance())
        model.save_pretrained(folder)


def methods(subsets: Sequence[str]) -> list[str]:
    """Return every contestant: the order in which cells are run, as equal steps refer to `ours`."""
    return ["ours", RELYING, "scratch", MASKED, *(DEDICATED + subset for subset in subsets), *SEGMENTATION_NETWORKS]


def describe_contestants() -> list[dict[str, Any]]:
    """Return a row for each comparator: where it comes from and how large it is."""
    rows = []
    for name, network in SEGMENTATION_NETWORKS.items():
        model = ZeroFilledNetwork(NetworkConfig(name))
        values = sum(parameter.numel() for parameter in model.parameters())
        rows.append({"method": name, "source": network.source, "parameters": values})
    return rows

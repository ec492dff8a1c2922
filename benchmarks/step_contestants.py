"""The contestants of the pretraining step: the published model and ours, in float32 and bf16, on the same study."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT
from published_model import PublishedMAE, fill, published_loss
from torch import Tensor, nn

from bmmae.config import PretrainConfig, parse
from bmmae.conversion import convert_state
from bmmae.data.cache import StudyCache
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.index import index_folder
from bmmae.data.loaders import Address, Batch, collate, sample_generator
from bmmae.masking import MaskingConfig, draw_tokens
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig, recipe
from bmmae.model.mae import MAE
from bmmae.model.operations import decoder_operations, encoder_operations
from bmmae.patches import any_in_patch
from bmmae.tasks.reconstruction import ReconstructionTask
from bmmae.training.optim import OptimConfig, make_optimizer

sys.path.append(str(ROOT / "tests"))
from published import published_state

warnings.filterwarnings("ignore", message="torch.meshgrid")

STUDY = ROOT.parent / "shared" / "real" / "brats18" / "Brats18_CBICA_ALU_1"
BATCH = 2
SMALL = ModelConfig(
    patch=(8, 8, 8),
    size=(32, 32, 32),
    encoder=EncoderConfig(dim=96, depth=2, heads=12, mlp_ratio=2.0),
    decoder=DecoderConfig(dim=48, depth=1, heads=12),
    tissue_only=False,
)
"""Stands in for the published shape with `--quick`."""


def shipped(quick: bool) -> PretrainConfig:
    """Return the shipped default, or with `quick` the one for small machines."""
    name = "tiny" if quick else "base"
    return parse(PretrainConfig, ["--config", f"{ROOT}/configs/pretrain/{name}.yaml", "--data.cohort", "cohort.csv"])


def published_config(quick: bool) -> ModelConfig:
    """Return the published shape, or with `quick` a small one of the same kind."""
    return SMALL if quick else recipe("published")


@dataclass
class Inputs:
    """What all contestants are given: some draws of windows, augmentation and masks of one study.

    Attributes:
        source: Where the study is from.
        background: Share of the windows' patches without tissue.
        ours: Batches of the shipped recipe.
        published: Batches masked as published: the same number of visible tokens in every sample.
    """

    source: str
    background: float
    ours: list[Batch]
    published: list[Batch]


def load_inputs(study: Path | None, quick: bool, draws: int) -> Inputs:
    """Prepare one study, real if its folder is there, and draw batches from it."""
    config = shipped(quick)
    real = study is not None and study.is_dir() and not quick
    samples = _real(study, config, draws) if real and study else _synthetic(config, draws)
    ours = [collate(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]
    tissue = np.mean([any_in_patch(s["brain"].numpy(), config.model.patch).mean() for s in samples])
    published = published_config(quick)
    shape = (len(published.modalities), int(np.prod([s // p for s, p in zip(published.size, published.patch)])))  # noqa: B905
    for batch in ours:
        batch.pop("subject", None)
    plain = [_masked_as_published(batch, shape, i, published) for i, batch in enumerate(ours)]
    return Inputs(f"real: {study.name}" if real and study else "synthetic", 1 - float(tissue), ours, plain)


def _real(study: Path, config: PretrainConfig, draws: int) -> list[dict[str, Any]]:
    found = index_folder(study).cohort.studies
    cache = StudyCache(None, config.preprocess, config.model.modalities)
    view = View.of(config.model)
    data = StudyDataset(found, view, cache, masking=config.masking, augment=config.augment)
    return [data[(epoch, 0)] for epoch in range(draws * BATCH)]


def _synthetic(config: PretrainConfig, draws: int) -> list[dict[str, Any]]:
    data = NoiseDataset(config.model, config.masking)
    return [data[(epoch, 0)] for epoch in range(draws * BATCH)]


@dataclass(frozen=True)
class NoiseDataset:
    """Noise in a ball that fills two thirds of the window, about as a head does."""

    config: ModelConfig
    masking: MaskingConfig = field(default_factory=lambda: MaskingConfig(drop_share=0.5, decode_share=0.25))
    length: int = 16

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, address: Address) -> dict[str, Any]:
        rng = sample_generator(0, *address)
        size, count = self.config.size, len(self.config.modalities)
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
        brain = sum(axis**2 for axis in axes) < 1.15
        images = (rng.standard_normal((count, *size)) * brain).astype(np.float32)
        sample = {"images": images, "available": np.ones(count, bool), "brain": brain}
        sample["valid"] = np.ones((count, *size), bool)
        draw = draw_tokens(rng, any_in_patch(sample["valid"] & brain, self.config.patch), self.masking)
        sample |= {"mask": draw.mask, "decode": draw.decode}
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in sample.items()}


def _masked_as_published(batch: Batch, shape: tuple[int, int], number: int, config: ModelConfig) -> Batch:
    images = batch["images"]
    assert isinstance(images, Tensor)
    images = images[..., : config.size[0], : config.size[1], : config.size[2]].contiguous()
    rng = sample_generator(1, 0, number)
    masks = [draw_tokens(rng, np.ones(shape, bool), MaskingConfig()).mask for _ in range(len(images))]
    mask = torch.from_numpy(np.stack(masks))
    everywhere = torch.ones_like(images, dtype=torch.bool)
    return {"images": images, "mask": mask, "decode": mask, "valid": everywhere, "brain": everywhere[:, 0]}


@dataclass
class Contestant:
    """A model, what one step of it is, and how many operations that takes; `cpu_seconds` by whether it was bf16."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]
    batches: Sequence[Batch]
    operations: Callable[[Batch], float]
    clip: bool
    taken: int = 0
    cpu_seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    def step(self, bf16: bool) -> None:
        """Take one whole step on the next batch: forward, backward, optimiser."""
        batch = self.batches[self.taken % len(self.batches)]
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cpu_seconds[bf16].append(time.process_time() - started)
        self.taken += 1


def published_contestant(inputs: Inputs, quick: bool) -> Contestant:
    """(a) and (b): MONAI blocks, plain AdamW."""
    config = published_config(quick)
    model = PublishedMAE(config)
    fill(model, published_state(config))
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.05)

    def loss(batch: Batch) -> Tensor:
        return published_loss(model, _tensor(batch, "images"), _tensor(batch, "mask"))

    return Contestant(model, optimizer, loss, inputs.published, _operations(config), clip=False)


def exact_contestant(inputs: Inputs, quick: bool) -> Contestant:
    """(c): our published decoder, on the same batches."""
    model = convert_state(published_state(published_config(quick)), "the reference").train()
    return _ours(model, inputs.published)


def best_contestant(inputs: Inputs, quick: bool) -> Contestant:
    """(d): the shipped default."""
    torch.manual_seed(0)
    return _ours(MAE(shipped(quick).model), inputs.ours)


def _ours(model: MAE, batches: Sequence[Batch]) -> Contestant:
    task = ReconstructionTask(model.config)

    def loss(batch: Batch) -> Tensor:
        output = task.step(model, batch)
        return output.loss_sum / output.loss_count

    optimizer = make_optimizer(model, OptimConfig())
    return Contestant(model, optimizer, loss, batches, _operations(model.config), clip=True)


CONTESTANTS = {"published": published_contestant, "exact": exact_contestant, "best": best_contestant}


def _operations(config: ModelConfig) -> Callable[[Batch], float]:
    def count(batch: Batch) -> float:
        visible = (~_tensor(batch, "mask")).sum((1, 2)).tolist()
        asked = _tensor(batch, "decode").sum((1, 2)).tolist()
        forward = encoder_operations(config, visible) + decoder_operations(config, visible, asked)
        return 3 * forward / len(visible)

    return count


def _tensor(batch: Batch, name: str) -> Tensor:
    value = batch[name]
    assert isinstance(value, Tensor)
    return value


@torch.no_grad()
def outputs_differ_by(published: Contestant, exact: Contestant) -> float:
    """Return the largest difference between the two models' predictions of the hidden patches, weights equal."""
    batch = published.batches[0]
    images, mask = _tensor(batch, "images"), _tensor(batch, "mask")
    theirs = published.model(images, mask)[mask]
    return float((theirs - exact.model(images, ~mask, mask).values).abs().max())

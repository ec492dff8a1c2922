"""What a pretrained model is judged by on patients that it has not seen: hidden tissue, absent modalities, a probe.

The first two are squared errors in z-units of the decoder's patches alone: the closed-form regression that writes
absent modalities is no part of what is learned in steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from budgeted import device, on_device
from learning_data import Source
from probe import Features, probe, probe_unseen
from real import Parts
from torch.utils.data import default_collate

from bmmae.data.cohort import Study
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.loaders import EVALUATION_EPOCH, Batch
from bmmae.masking import MaskingConfig
from bmmae.metrics import psnr
from bmmae.modalities import STANDARD
from bmmae.model.config import ModelConfig
from bmmae.model.mae import MAE
from bmmae.patches import any_in_patch, as_triple, patch_grid, spread
from bmmae.tasks.task import tensors

MASKS = MaskingConfig(visible_share=0.25, alpha=1.0, drop_share=0.0, decode_share=1.0)
"""The published masks, whatever a model was trained with."""
DRAWS = 2
"""Masks of each patient; their seeds are 0, 1 ..."""
PROBED = {"ap_all": STANDARD, "ap_t1": STANDARD[:1]}
PROBES = {"": probe, "_unseen": probe_unseen}

ByPatient = dict[str, float]


def reconstruction_scores(model: MAE, source: Source, studies: Sequence[Study]) -> dict[str, ByPatient]:
    """Return, by patient, `hidden`, `absent` (squared errors) and `absent_psnr` (dB)."""
    found: dict[str, ByPatient] = {"hidden": {}, "absent": {}, "absent_psnr": {}}
    where = device()
    model.to(where).eval()
    draws = [_dataset(model.config, source, studies, seed) for seed in range(DRAWS)]
    for index, study in enumerate(draws[0].studies):
        batches = [on_device(default_collate([draw[(EVALUATION_EPOCH, index)]]), where) for draw in draws]
        errors = [_error(model, batch, *_hidden(model.config, batch)) for batch in batches]
        found["hidden"][study.group] = statistics.fmean(errors)
        found["absent"][study.group], found["absent_psnr"][study.group] = _absent(model, batches[0])
    return found


def probe_scores(source: Source, parts: Parts, shape: ModelConfig, features: Features) -> dict[str, ByPatient]:
    """Return the average precision of the tumour probe by patient, for each of `PROBED` and `PROBES`."""
    return {
        label + on: fitted(source, parts, shape, names, features)["ap"]
        for (label, names), (on, fitted) in product(PROBED.items(), PROBES.items())
    }


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each score's mean over patients."""
    return {name: statistics.fmean(values.values()) for name, values in scores.items()}


def _dataset(config: ModelConfig, source: Source, studies: Sequence[Study], seed: int) -> StudyDataset:
    """Windows whose masks are drawn over all tokens, with tissue or without: the same masks for every recipe."""
    view = replace(View.of(config), size=source.window, tissue_only=False)
    return StudyDataset(studies, view, source.cache, seed=seed, masking=MASKS)


def _tissue(config: ModelConfig, batch: Batch) -> torch.Tensor:
    valid, brain = tensors(batch, "valid", "brain")
    return any_in_patch(valid & brain[:, None], config.patch)


def _hidden(config: ModelConfig, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are visible, of those that the model knows, and which tissue is asked for."""
    (mask,), tissue = tensors(batch, "mask"), _tissue(config, batch)
    return ~mask & tissue if config.tissue_only else ~mask, mask & tissue


@torch.inference_mode()
def _error(model: MAE, batch: Batch, visible: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the mean squared error over the tissue of the target patches."""
    images, valid, brain = tensors(batch, "images", "valid", "brain")
    made = model.place(model(images, visible, targets).values.float(), targets, as_triple(images.shape[-3:]))
    asked = spread(targets, patch_grid(images.shape[-3:], model.config.patch), model.config.patch)
    return float((made - images)[asked & valid & brain[:, None]].square().mean())


@torch.inference_mode()
def _absent(model: MAE, batch: Batch) -> tuple[float, float]:
    """Return squared error and PSNR after the affine map, the mean over modalities, each from all others."""
    images, valid, brain, available = tensors(batch, "images", "valid", "brain", "available")
    tissue, errors, decibels = _tissue(model.config, batch), [], []
    for index in available[0].nonzero()[:, 0].tolist():
        visible, targets = tissue.clone(), torch.zeros_like(tissue)
        visible[:, index] = False
        targets[:, index] = tissue[:, index]
        made = model.place(model(images, visible, targets).values.float(), targets, as_triple(images.shape[-3:]))
        inside = (valid[0, index] & brain[0]).cpu().numpy()
        predicted, truth = made[0, index].cpu().numpy(), images[0, index].cpu().numpy()
        errors.append(float(((predicted - truth)[inside] ** 2).mean()))
        decibels.append(psnr(predicted, truth, inside, fit=True))
    return statistics.fmean(errors), statistics.fmean(decibels)

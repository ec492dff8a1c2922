"""Segmentations of whole studies from every subset of their modalities, and their scores by patient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

import torch
from budgeted import device
from learning_data import Source
from torch import Tensor, nn

from bmmae.arrays import Array
from bmmae.data.cohort import Study
from bmmae.data.dataset import StudyDataset
from bmmae.data.loaders import EVALUATION_EPOCH, Sample
from bmmae.evaluation.subsets import CounterIntuitive, RegionScore, counter_intuitive
from bmmae.metrics import dice
from bmmae.metrics.regions import RegionMetrics
from bmmae.modalities import subset_label
from bmmae.model.config import ModelConfig
from bmmae.training.devices import uses_bf16

OVERLAP = 0.25
WINDOWS_AT_ONCE = 4

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Subset label, region, patient: Dice."""


def whole_study(source: Source, study: Study, shape: ModelConfig) -> Sample:
    """Return a study as one sample, at least as large as a window."""
    extent = source.cache.load(study).shape
    size = [max(side, wanted) for side, wanted in zip(extent, source.window, strict=True)]
    whole = source.dataset([study], shape)
    view = replace(whole.view, size=(size[0], size[1], size[2]))
    return StudyDataset([study], view, source.cache, coding=source.coding)[(EVALUATION_EPOCH, 0)]


@torch.inference_mode()
def predict_volume(
    model: nn.Module, sample: Sample, given: Tensor, shape: ModelConfig, window: tuple[int, int, int]
) -> Tensor:
    """Return region flags Bool[R, H, W, D] of a whole study from some of its modalities.

    Args:
        model: Called as `SegmentationModel` is.
        sample: From `whole_study`.
        given: Bool[M], those it may see.
        shape: Says whether background is left out.
        window: Voxels of a window; they overlap by a quarter and are blended with Gaussian weights.
    """
    from monai.inferers.utils import sliding_window_inference

    where, count = device(), len(shape.modalities)
    kept = given[:, None, None, None]
    channels = torch.cat([sample["images"] * kept, ~(sample["valid"] & kept), sample["brain"][None]]).float()[None]

    def on_windows(windows: Tensor) -> Tensor:
        images, unscanned, brain = torch.split(windows, [count, count, 1], dim=1)
        available, tissue = given.to(where).expand(len(windows), -1), brain > 0.5
        with torch.autocast(where.type, torch.bfloat16, enabled=uses_bf16("auto", where)):
            logits: Tensor = model(images, available, tissue if shape.tissue_only else None, unscanned < 0.5)
        return logits.float().sigmoid() * tissue

    blended = sliding_window_inference(
        channels, window, WINDOWS_AT_ONCE, on_windows, OVERLAP, mode="gaussian", sw_device=where, device="cpu"
    )
    return blended[0] > 0.5  # type: ignore[index,no-any-return,operator]


def score_volumes(
    model: nn.Module,
    source: Source,
    studies: Sequence[Study],
    shape: ModelConfig,
    subsets: Sequence[Sequence[str]],
) -> Scores:
    """Return the Dice of each subset, region and patient, on the whole volume at the model's spacing.

    A region that is absent and not predicted scores 1 (BraTS's rule): to leave it out would forgive a method that
    invents it where another does not.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for study, subset, predicted, truth in predicted_volumes(model, source, studies, shape, subsets):
        found = scores.setdefault(subset, {})
        for region, mask, there in zip(source.coding.regions, predicted, truth, strict=True):
            score = dice(mask, there)
            found.setdefault(region, {})[study.group] = 1.0 if math.isnan(score) else round(score, 4)
    return scores


def predicted_volumes(
    model: nn.Module,
    source: Source,
    studies: Sequence[Study],
    shape: ModelConfig,
    subsets: Sequence[Sequence[str]],
) -> Iterator[tuple[Study, str, Array, Array]]:
    """Yield a study, a subset that it has, and its predicted and true regions Bool[R, H, W, D]."""
    model.to(device()).eval()
    for study in studies:
        sample = whole_study(source, study, shape)
        for subset in subsets:
            given = torch.tensor([name in subset for name in shape.modalities])
            if bool((given & ~sample["available"]).any()):
                continue
            predicted = predict_volume(model, sample, given, shape, source.window)
            yield study, subset_label(subset), predicted.numpy(), sample["label"].numpy()


def flat(scores: Scores) -> Iterator[tuple[str, str, str, float]]:
    """Yield subset, region, patient and Dice."""
    for subset, regions in scores.items():
        for region, patients in regions.items():
            for patient, value in patients.items():
                yield subset, region, patient, value


def counter_intuitive_rate(scores: Iterable[Scores]) -> CounterIntuitive:
    """Return how often Dice falls by more than half a point when a modality is added, over all cells' patients."""
    return counter_intuitive(region_scores(scores))


def region_scores(scores: Iterable[Scores]) -> list[RegionScore]:
    """Return the scores as the library's functions take them."""
    return [
        RegionScore(patient, tuple(subset.split("+")), region, metrics_of({"dice": value}))
        for table in scores
        for subset, region, patient, value in flat(table)
    ]


def metrics_of(known: Mapping[str, float]) -> RegionMetrics:
    """Return some metrics as the library's functions take them; the others are not defined."""
    counts = {"false_lesions": 0, "lesions": 0}
    others = {field.name: math.nan for field in fields(RegionMetrics)}
    return RegionMetrics(**{**others, **counts, **known})  # type: ignore[arg-type]

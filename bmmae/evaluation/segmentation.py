"""How good is a segmentation model, and for which subsets?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmmae.arrays import Float
from bmmae.data.dataset import StudyDataset
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.evaluation.overlap import Overlap
from bmmae.metrics import dice
from bmmae.modalities import subset_label
from bmmae.model.segmentation import SegmentationModel


@dataclass(frozen=True)
class SubsetScore:
    """Mean Dice of one region from one subset of modalities.

    Attributes:
        subset: Label of the subset.
        region: Name of the region.
        dice: Mean over the studies where region or prediction is not empty; higher is better, 0 to 1.
        studies: How many these are.
    """

    subset: str
    region: str
    dice: float
    studies: int


@torch.inference_mode()
def score_subsets(model: SegmentationModel, test: StudyDataset, subsets: Sequence[Sequence[str]]) -> list[SubsetScore]:
    """Segment the evaluation window of each test study from each subset of its modalities.

    A study counts for a subset only if it has all of the subset's modalities.
    """
    names, regions = model.config.model.modalities, model.config.regions
    found: dict[tuple[str, str], list[float]] = {}
    for index in range(len(test)):
        sample = test[(EVALUATION_EPOCH, index)]
        for subset in subsets:
            given = torch.tensor([name in subset for name in names])
            if bool((given & ~sample["available"]).any()):
                continue
            tissue = sample["brain"][None, None] if model.config.model.tissue_only else None
            predicted = model(sample["images"][None], given[None], tissue, sample["valid"][None])[0] > 0
            for region, mask, truth in zip(regions, predicted, sample["label"], strict=True):
                score = dice(mask.numpy(), truth.numpy())
                found.setdefault((subset_label(subset), region), []).append(score)
    return [_mean_score(subset, region, np.array(scores)) for (subset, region), scores in found.items()]


def _mean_score(subset: str, region: str, scores: Float[np.ndarray, " N"]) -> SubsetScore:
    defined = scores[~np.isnan(scores)]
    return SubsetScore(subset, region, float(defined.mean()) if len(defined) else math.nan, len(defined))


def format_subsets(scores: Sequence[SubsetScore], seen: Overlap) -> str:
    """Return the scores as a table for the terminal, under what the model has seen of the test studies."""
    regions = list(dict.fromkeys(score.region for score in scores))
    by_key = {(score.subset, score.region): score for score in scores}
    subsets = dict.fromkeys(score.subset for score in scores)
    head = [str(seen), "Dice by the modalities given", f"{'':24}" + "".join(f"{region:>8}" for region in regions)]
    rows = (f"{s:24}" + "".join(f"{by_key[(s, region)].dice:>8.2f}" for region in regions) for s in subsets)
    return "\n".join([*head, *rows])

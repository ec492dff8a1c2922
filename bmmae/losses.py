"""Losses as sums and counts, so that they can be averaged over any split of a batch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bmmae.arrays import Bool, Float, Tensor


def masked_squared_error(
    predicted: Float[Tensor, "T P"], target: Float[Tensor, "T P"], counted: Bool[Tensor, "T P"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sum of squared errors over the counted voxels, and how many there are.

    Args:
        predicted: Voxels of the decoded patches.
        target: Their true values.
        counted: True = the voxel was scanned (and is tissue, if only tissue counts).
    """
    weights = counted.to(torch.float32)
    error = (predicted.float() - target.float()).square() * weights
    return error.sum(), weights.sum()


def dice_and_cross_entropy(
    logits: Float[Tensor, "B R H W D"], target: Bool[Tensor, "B R H W D"], smooth: float = 1.0
) -> Float[Tensor, " B"]:
    """Return, per sample, the mean over regions of soft Dice loss and binary cross-entropy, half each.

    Regions may overlap (whole tumour contains its core), so each has a sigmoid of its own. Dice is computed per sample
    and region; `smooth` makes a region that is absent and not predicted cost nothing.

    Args:
        logits: One channel a region.
        target: True inside a region.
        smooth: Added to numerator and denominator of the Dice coefficient, in voxels.
    """
    scores, truth = logits.float(), target.float()
    probability = scores.sigmoid()
    axes = (-3, -2, -1)
    overlap = (probability * truth).sum(axes)
    total = probability.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + smooth) / (total + smooth)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(axes)
    return (0.5 * dice + 0.5 * entropy).mean(dim=1)

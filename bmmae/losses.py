"""Losses as sums and counts, so that they can be averaged over any split of a batch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bmmae.arrays import Bool, Float, Int, Tensor

FLAT_VARIANCE = 0.05
"""Of z-scores in a patch of hardly any contrast: mostly noise."""


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


def standardised_squared_error(
    predicted: Float[Tensor, "T P"], target: Float[Tensor, "T P"], counted: Bool[Tensor, "T P"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the same sum with each patch's deviations from its mean in units of their own spread, and how many count.

    The mean of a patch stays in z-units, so that predictions are voxels all the same: per-patch normalised targets
    (MAE, arXiv 2111.06377) that can still be pictured. Flat patches are not blown up beyond `FLAT_VARIANCE`.

    Args:
        predicted: Voxels of the decoded patches.
        target: Their true values.
        counted: True = the voxel was scanned (and is tissue, if only tissue counts).
    """
    weights, truth = counted.to(torch.float32), target.float()
    number = weights.sum(1, keepdim=True).clamp(min=1)
    difference = predicted.float() - truth
    offset = (difference * weights).sum(1, keepdim=True) / number
    centre = (truth * weights).sum(1, keepdim=True) / number
    variance = ((truth - centre).square() * weights).sum(1, keepdim=True) / number
    error = (offset.square() + (difference - offset).square() / (variance + FLAT_VARIANCE)) * weights
    return error.sum(), weights.sum()


def dice_and_cross_entropy(
    logits: Float[Tensor, "B R H W D"],
    target: Bool[Tensor, "B R H W D"],
    smooth: float = 1.0,
    hardest_share: float = 1.0,
) -> Float[Tensor, " B"]:
    """Return, per sample, the mean over regions of soft Dice loss and binary cross-entropy, half each.

    Regions may overlap (whole tumour contains its core), so each has a sigmoid of its own. Dice is computed per sample
    and region; `smooth` makes a region that is absent and not predicted cost nothing.

    Args:
        logits: One channel a region.
        target: True inside a region.
        smooth: Added to numerator and denominator of the Dice coefficient, in voxels.
        hardest_share: Share of a region's voxels whose cross-entropy counts, those that are most wrong (Wu 2016's
            top-k loss): where lesions are a few voxels, the mean over all is one over background.
    """
    scores, truth = logits.float(), target.float()
    probability = scores.sigmoid()
    axes = (-3, -2, -1)
    overlap = (probability * truth).sum(axes)
    total = probability.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + smooth) / (total + smooth)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").flatten(2)
    if hardest_share < 1:
        entropy = entropy.topk(max(1, round(hardest_share * entropy.shape[2])), dim=2, sorted=False).values
    return (0.5 * dice + 0.5 * entropy.mean(2)).mean(dim=1)


def agreement_with_teacher(
    logits: Float[Tensor, "B R H W D"], teacher: Float[Tensor, "B R H W D"], smooth: float = 1.0
) -> Float[Tensor, " B"]:
    """Return, per sample, how far predictions are from a teacher's; 0 where they are equal.

    Half a soft Dice with squared denominators (whose best is the teacher's own probability, which the plain one's is
    not), half the Kullback-Leibler divergence of each voxel's region from the teacher's.

    Args:
        logits: One channel a region.
        teacher: Probabilities, without gradient.
        smooth: Added to numerator and denominator of the Dice coefficient, in voxels.
    """
    scores, truth = logits.float(), teacher.float()
    probability = scores.sigmoid()
    axes = (-3, -2, -1)
    overlap = (probability * truth).sum(axes)
    total = probability.square().sum(axes) + truth.square().sum(axes)
    dice = 1 - (2 * overlap + smooth) / (total + smooth)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(axes)
    least: Tensor = (torch.special.entr(truth) + torch.special.entr(1 - truth)).mean(axes)
    return (0.5 * dice + 0.5 * (entropy - least)).mean(dim=1)


def class_loss(
    logits: Float[Tensor, "B C"],
    label: Int[Tensor, " B"],
    weights: Float[Tensor, " C"] | None = None,
    focal: float = 0.0,
) -> Float[Tensor, " B"]:
    """Return the (focal) cross-entropy of each patient; 0, with a gradient of 0, where the label is unknown (below 0).

    Focal: `-(1 - p)^focal log p` of the true class (Lin 2017); 0 is plain cross-entropy.

    Args:
        logits: One a class.
        label: The class, or a negative number where it is not known.
        weights: Factor of each true class.
        focal: The exponent.
    """
    known = label >= 0
    truth = label.clamp(min=0)
    scores = F.log_softmax(logits.float(), dim=1).gather(1, truth[:, None])[:, 0]
    loss = -scores if focal == 0 else -((1 - scores.exp()).clamp(min=1e-6) ** focal) * scores
    weighted: Tensor = loss * known * (1 if weights is None else weights[truth])
    return weighted


def logistic_hazard(
    logits: Float[Tensor, "B K"],
    time: Float[Tensor, " B"],
    event: Bool[Tensor, " B"],
    edges: Float[Tensor, " K"],
) -> Float[Tensor, " B"]:
    """Return each patient's negative log-likelihood under a discrete-time logistic hazard (Gensheimer 2019).

    Interval k is (edges[k - 1], edges[k]], from month 0. Who died in it survived the intervals before, and then did
    not survive it. Who was censored counts as having survived those intervals that ended by then; the interval of the
    censoring itself says nothing. Deaths after the last edge count as survival of all intervals. Unknown follow-up
    (NaN) gives 0.

    Args:
        logits: Of the hazard in each interval: the chance to die in it, given survival until it.
        time: Months.
        event: True = died then.
        edges: Months where the intervals end.
    """
    known = ~time.isnan()
    month = time.nan_to_num().to(edges.dtype)
    within = torch.searchsorted(edges, month)
    died = event & known & (within < len(edges))
    survived = torch.where(event, within, torch.searchsorted(edges, month, right=True))
    index = torch.arange(len(edges), device=logits.device)
    at_risk = (index < survived[:, None]) | (died[:, None] & (index == within[:, None]))
    fell = died[:, None] & (index == within[:, None])
    entropy = F.binary_cross_entropy_with_logits(logits.float(), fell.float(), reduction="none")
    return (entropy * at_risk * known[:, None]).sum(1)


def cox_partial_likelihood(
    log_risk: Float[Tensor, " B"], time: Float[Tensor, " B"], event: Bool[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the negative log partial likelihood and the number of deaths; ties by Efron's formula (1977).

    The risk set of a death is whoever in the batch was still followed up then, so larger batches give a better
    estimate, and a batch without deaths says nothing.

    Args:
        log_risk: Higher = dies sooner.
        time: Months; NaN = not known, in no risk set.
        event: True = died then.
    """
    died, weights = risk_sets(time, event)
    return partial_likelihood(log_risk, died, weights), died.sum().to(torch.float32)


def risk_sets(time: Float[Tensor, " B"], event: Bool[Tensor, " B"]) -> tuple[Bool[Tensor, " B"], Float[Tensor, "B B"]]:
    """Return who died, and with which weight each patient is in the risk set of each death (a row); see above."""
    known = ~time.isnan()
    died = event & known
    tied = died[:, None] & died[None, :] & (time[:, None] == time[None, :])
    # Whoever comes later among the deaths of one month faces a risk set with a share of them gone.
    rank = tied.tril(-1).sum(1)
    share = rank / tied.sum(1).clamp(min=1)
    exists = known[None, :] & (time[None, :] >= time[:, None])
    return died, exists.float() - tied.float() * share[:, None]


def partial_likelihood(
    log_risk: Float[Tensor, " B"], died: Bool[Tensor, " B"], weights: Float[Tensor, "B B"]
) -> Float[Tensor, ""]:
    """Return the negative log partial likelihood for given risk sets."""
    scores = log_risk.float()
    # Row by row: beside one patient of a far higher risk, the exponentials of a whole later risk set would be 0.
    total = torch.logsumexp(scores + weights[died].log(), dim=1)
    return (total - scores[died]).sum()

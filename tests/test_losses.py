"""Losses equal their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import flags, volumes

from bmmae.losses import FLAT_VARIANCE, dice_and_cross_entropy, masked_squared_error, standardised_squared_error


def test_squared_error_counts_only_what_is_counted() -> None:
    predicted, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    counted = torch.tensor([[True, False], [True, False]])
    total, count = masked_squared_error(predicted, target, counted)
    assert (float(total), float(count)) == (5.0, 2.0)


def test_squared_error_of_nothing_is_zero_with_a_gradient() -> None:
    predicted = torch.ones(0, 8, requires_grad=True)
    total, count = masked_squared_error(predicted, torch.ones(0, 8), torch.ones(0, 8, dtype=torch.bool))
    total.backward()
    assert (float(total.detach()), float(count)) == (0.0, 0.0)
    assert predicted.grad is not None


def test_standardised_error_equals_its_formula() -> None:
    predicted, target = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)) * 2
    counted = flags(3, 8, seed=1)
    counted[2] = False
    total, count = standardised_squared_error(predicted, target, counted)
    expected = 0.0
    for row in range(2):
        y, t = predicted[row][counted[row]], target[row][counted[row]]
        shape = ((y - y.mean()) - (t - t.mean())).square().sum() / (t.var(correction=0) + FLAT_VARIANCE)
        expected += float(len(t) * (y.mean() - t.mean()) ** 2 + shape)
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(count) == float(counted.sum())


def test_scaling_contrast_within_patches_leaves_the_standardised_error() -> None:
    target, counted = 10 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), flags(4, 64)
    mean = (target * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
    weak = standardised_squared_error(mean.expand_as(target), target, counted)[0]
    strong = standardised_squared_error(mean.expand_as(target), mean + 10 * (target - mean), counted)[0]
    torch.testing.assert_close(weak, strong, rtol=1e-2, atol=0)


def test_the_hardest_voxels_alone_can_count() -> None:
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 3, 4, 4, 4) < 0.3
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").flatten(2)
    hardest = entropy.sort(dim=2, descending=True).values[:, :, :6].mean(2)
    expected = dice_and_cross_entropy(logits, target) + (0.5 * (hardest - entropy.mean(2))).mean(1)
    assert torch.allclose(dice_and_cross_entropy(logits, target, hardest_share=0.1), expected)


def test_a_small_lesion_is_not_outvoted_by_background() -> None:
    """Where nothing is predicted, all the pull on a lesion of one voxel is in its cross-entropy."""
    target = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    target[..., 8, 8, 8] = True
    pulls = []
    for share in (1.0, 0.01):
        logits = torch.full(target.shape, -9.0, requires_grad=True)
        dice_and_cross_entropy(logits, target, hardest_share=share).sum().backward()
        assert logits.grad is not None
        pulls.append(-logits.grad[target].item())
    assert pulls[1] > 20 * pulls[0]


def test_dice_and_cross_entropy_equal_their_formulas() -> None:
    logits, target = volumes(2, 3, (4, 4, 4)), flags(2, 3, 4, 4, 4, seed=1)
    losses = dice_and_cross_entropy(logits, target)
    for sample in range(2):
        total = 0.0
        for region in range(3):
            p, t = logits[sample, region].sigmoid().flatten(), target[sample, region].float().flatten()
            dice = 1 - (2 * float(p @ t) + 1) / (float(p.sum() + t.sum()) + 1)
            entropy = -float((t * p.log() + (1 - t) * (1 - p).log()).mean())
            total += (dice + entropy) / 6
        assert float(losses[sample]) == pytest.approx(total, rel=1e-5)


def test_an_empty_region_that_is_not_predicted_costs_nothing() -> None:
    losses = dice_and_cross_entropy(torch.full((1, 2, 4, 4, 4), -50.0), torch.zeros(1, 2, 4, 4, 4, dtype=torch.bool))
    assert float(losses[0]) == pytest.approx(0, abs=1e-6)


def test_a_perfect_segmentation_costs_nothing_and_its_inverse_much() -> None:
    target = flags(1, 1, 4, 4, 4)
    logits = torch.where(target, 30.0, -30.0)
    assert float(dice_and_cross_entropy(logits, target)[0]) == pytest.approx(0, abs=1e-6)
    assert float(dice_and_cross_entropy(-logits, target)[0]) > 10


def test_an_undecided_prediction_costs_half_of_log_two_in_cross_entropy() -> None:
    target = flags(1, 1, 4, 4, 4)
    inside = float(target.sum())
    dice = 1 - (inside + 1) / (32 + inside + 1)
    assert float(dice_and_cross_entropy(torch.zeros(1, 1, 4, 4, 4), target)[0]) == pytest.approx(
        0.5 * dice + 0.5 * math.log(2)
    )

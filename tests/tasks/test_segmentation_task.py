"""The segmentation task: its loss and Dice equal plain computations and MONAI's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.metrics import DiceMetric
from tiny_models import flags, tiny_segmentation, volumes

from bmmae.data.loaders import Batch
from bmmae.losses import dice_and_cross_entropy
from bmmae.model.segmentation import SegmentationModel
from bmmae.tasks.segmentation import SegmentationTask, region_dice
from bmmae.tasks.task import Task


def batch() -> Batch:
    available = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    valid = torch.ones(3, 4, 16, 16, 16, dtype=torch.bool) & available[:, :, None, None, None]
    label = flags(3, 3, 16, 16, 16, share=0.1)
    label[1, 0] = False
    return {
        "images": volumes(3) * valid,
        "available": available,
        "valid": valid,
        "label": label,
        "brain": flags(3, 16, 16, 16, share=0.3, seed=1),
    }


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return tiny_segmentation()


def test_the_loss_is_summed_over_samples(model: SegmentationModel) -> None:
    data = batch()
    output = SegmentationTask(model.config).step(model, data)
    logits = model(data["images"], data["available"], data["brain"][:, None], data["valid"])
    assert float(output.loss_sum.detach()) == pytest.approx(
        float(dice_and_cross_entropy(logits, data["label"]).sum().detach())
    )
    assert float(output.loss_count) == 3


def test_dice_equals_monais_where_it_is_defined() -> None:
    predicted, truth = flags(4, 3, 8, 8, 8, share=0.3), flags(4, 3, 8, 8, 8, share=0.2, seed=1)
    truth[0, 1] = False
    scores, counts = region_dice(predicted, truth)
    theirs = DiceMetric(ignore_empty=True, reduction="none")(predicted.float(), truth.float())
    defined = ~theirs.isnan()
    assert int((~defined).sum()) == 1
    torch.testing.assert_close(scores[defined], theirs[defined])
    assert counts.all()
    assert float(scores[0, 1]) == 0  # predicted though absent: MONAI leaves it out, it counts as a miss here


def test_a_region_neither_there_nor_predicted_is_not_counted() -> None:
    nothing = torch.zeros(1, 2, 4, 4, 4, dtype=torch.bool)
    scores, counts = region_dice(nothing, nothing)
    assert (scores.tolist(), counts.tolist()) == ([[0, 0]], [[0, 0]])


def test_the_mean_dice_is_that_of_the_regions(model: SegmentationModel) -> None:
    output = SegmentationTask(model.config).evaluate(model, batch())
    assert list(output.metrics) == ["dice_ET", "dice_TC", "dice_WT", "dice"]
    for place in (0, 1):
        parts = [float(output.metrics[f"dice_{region}"][place]) for region in ("ET", "TC", "WT")]
        assert sum(parts) == pytest.approx(float(output.metrics["dice"][place]))
    assert torch.equal(output.loss_sum, SegmentationTask(model.config).step(model, batch()).loss_sum)


def test_what_was_not_scanned_is_not_read(model: SegmentationModel) -> None:
    data = batch()
    valid = data["valid"].clone()  # type: ignore[union-attr]
    valid[0, 1], valid[2, 2] = False, False
    available = valid.any(-1).any(-1).any(-1)
    task = SegmentationTask(model.config)
    torch.testing.assert_close(
        task.step(model, {**data, "valid": valid}).loss_sum, task.step(model, {**data, "available": available}).loss_sum
    )


def test_tissue_decides_about_tokens_only_where_the_model_says_so(model: SegmentationModel) -> None:
    everywhere = SegmentationTask(replace(model.config, model=replace(model.config.model, tissue_only=False)))
    data, empty = batch(), torch.zeros(3, 16, 16, 16, dtype=torch.bool)
    assert torch.equal(everywhere.step(model, data).loss_sum, everywhere.step(model, {**data, "brain": empty}).loss_sum)
    tissue = SegmentationTask(model.config)
    assert tissue.step(model, data).loss_sum != tissue.step(model, {**data, "brain": empty}).loss_sum


def test_it_is_a_task(model: SegmentationModel) -> None:
    assert isinstance(SegmentationTask(model.config), Task)

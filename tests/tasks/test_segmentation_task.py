"""The segmentation task: its loss and Dice equal plain computations and MONAI's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from monai.metrics import DiceMetric
from tiny_models import flags, tiny_segmentation, volumes

from bmmae.data.loaders import Batch
from bmmae.errors import ConfigError
from bmmae.losses import agreement_with_teacher, dice_and_cross_entropy
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.schema import from_dict, to_dict
from bmmae.tasks.segmentation import DistillConfig, SegmentationTask, label_coding, region_dice
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
    output = SegmentationTask(model.config).evaluate(model, addressed())
    assert list(output.metrics) == ["dice_ET", "dice_TC", "dice_WT", "dice", "dice_subset", "dice_any"]
    for place in (0, 1):
        parts = [float(output.metrics[f"dice_{region}"][place]) for region in ("ET", "TC", "WT")]
        assert sum(parts) == pytest.approx(float(output.metrics["dice"][place]))
    assert torch.equal(output.loss_sum, SegmentationTask(model.config).step(model, batch()).loss_sum)


def test_checkpoints_are_chosen_by_what_they_make_of_all_modalities_and_of_some(model: SegmentationModel) -> None:
    task, data = SegmentationTask(model.config), addressed()
    first, again = (task.evaluate(model, data).metrics for _ in range(2))
    assert all(torch.equal(first[name][place], again[name][place]) for name in first for place in (0, 1))
    kept = task._subsets(data, data["available"], 1.0)  # type: ignore[arg-type]
    less = model(data["images"], kept, data["brain"][:, None], data["valid"])
    scores, counts = region_dice(less > 0, data["label"])  # type: ignore[arg-type]
    assert first["dice_subset"] == (scores.sum(), counts.sum())
    for place in (0, 1):
        assert float(first["dice_any"][place]) == pytest.approx(
            float(first["dice"][place]) + float(first["dice_subset"][place])
        )
    assert task.selection == ("dice_any", "max")


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


def test_the_encoder_sees_the_visible_tokens_in_training_and_all_in_evaluation(model: SegmentationModel) -> None:
    data, task = addressed(), SegmentationTask(model.config)
    masked = data | {"mask": flags(3, 4, 8, share=0.5)}
    seen: list[torch.Tensor | None] = []
    hook = model.register_forward_pre_hook(lambda _, __, words: seen.append(words.get("visible")), with_kwargs=True)
    try:
        for use, given in ((task.step, masked), (task.evaluate, masked), (task.step, data)):
            use(model, given)
    finally:
        hook.remove()
    assert seen[0] is not None
    assert torch.equal(seen[0], ~masked["mask"])
    assert seen[1:] == [None, None, None]


def test_it_is_a_task(model: SegmentationModel) -> None:
    assert isinstance(SegmentationTask(model.config), Task)


def test_coarse_scales_count_half_and_keep_small_lesions() -> None:
    model, data = tiny_segmentation(supervision=1), batch()
    scales = model(data["images"], data["available"], data["brain"][:, None], data["valid"], every_scale=True)
    coarse = torch.nn.functional.max_pool3d(data["label"].float(), 2).bool()
    expected = (dice_and_cross_entropy(scales[0], data["label"]) + dice_and_cross_entropy(scales[1], coarse) / 2) / 1.5
    output = SegmentationTask(model.config).step(model, data)
    assert float(output.loss_sum.detach()) == pytest.approx(float(expected.sum().detach()), rel=1e-5)


def addressed(epoch: int = 0) -> Batch:
    return {**batch(), "address": [(epoch, index) for index in range(3)]}


def test_distillation_is_zero_where_student_and_teacher_agree() -> None:
    logits = torch.linspace(-4, 4, 64).reshape(1, 1, 4, 4, 4)
    assert float(agreement_with_teacher(logits, logits.sigmoid())) == pytest.approx(0, abs=1e-6)
    assert float(agreement_with_teacher(logits, (-logits).sigmoid())) > 0.5


def test_hard_subsets_learn_from_the_full_set_and_the_teacher_gets_no_gradient(model: SegmentationModel) -> None:
    task = SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=1.0), seed=1)
    data = addressed()
    kept = task._subsets(data, data["available"], 1.0, 0.5)  # type: ignore[arg-type]
    assert kept.any(dim=1).all()
    assert not (kept & ~data["available"]).any()  # type: ignore[operator]
    hard = (kept != data["available"]).any(dim=1)
    assert hard.any()
    logits = model(data["images"], kept, data["brain"][:, None], data["valid"])
    teacher = model(data["images"], data["available"], data["brain"][:, None], data["valid"]).sigmoid()
    told = agreement_with_teacher(logits, teacher.detach()) * hard
    expected = (dice_and_cross_entropy(logits, data["label"]) + told).sum()
    output = task.step(model, data)
    assert float(output.loss_sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    gradients = torch.autograd.grad(output.loss_sum, model.heads[0].around.bias)
    wanted = torch.autograd.grad(expected, model.heads[0].around.bias)
    torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-3)
    assert float(output.metrics["distillation"][1]) == int(hard.sum())


def test_the_subsets_are_a_function_of_the_address(model: SegmentationModel) -> None:
    task = SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=0.7), seed=1)
    everything = torch.ones(3, 4, dtype=torch.bool)
    drawn = [task._subsets(addressed(epoch), everything, 0.7) for epoch in (0, 0, *range(1, 20))]
    assert torch.equal(drawn[0], drawn[1])
    assert len({str(kept.tolist()) for kept in drawn}) > 5


def test_without_dropped_modalities_nothing_is_distilled(model: SegmentationModel) -> None:
    task = SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=0.0))
    output = task.step(model, addressed())
    assert "distillation" not in output.metrics
    assert torch.equal(output.loss_sum, SegmentationTask(model.config).step(model, batch()).loss_sum)


def test_the_teacher_looks_in_every_step_so_that_ranks_that_share_weights_stay_together(
    model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = model.forward

    def counted(images: torch.Tensor, *rest: object, **more: object) -> object:
        calls.append(len(images))
        return forward(images, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "forward", counted)
    for dropout in (0.0, 1.0):
        SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=dropout), seed=1).step(model, addressed())
    assert len(calls) == 4
    assert calls[:2] == [3, 1]


def test_what_is_left_of_a_sample_shows_the_same_share_of_its_tokens(model: SegmentationModel) -> None:
    task = SegmentationTask(model.config, DistillConfig(weight=1.0, dropout=1.0), seed=1, visible_share=0.25)
    visible = torch.zeros(3, 4, 4000, dtype=torch.bool)
    visible[:, 0] = True
    hard = torch.tensor([True, False, True])
    drawn = task._seen_of_less(addressed(), visible, hard)
    assert drawn is not None
    assert torch.equal(drawn[1], visible[1])
    assert drawn[hard].float().mean(2) == pytest.approx(0.25, abs=0.03)
    assert task._seen_of_less(addressed(), None, hard) is None


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"dropout": 2.0}])
def test_impossible_distillation_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DistillConfig(**wrong)


def test_an_own_coding_travels_with_the_model() -> None:
    config = replace(
        tiny_segmentation().config,
        regions=("all", "core"),
        coding="own",
        classes={"core": 1, "rim": 7},
        united={"all": (1, 7), "core": (1,)},
    )
    coding = label_coding(from_dict(SegmentationConfig, json.loads(json.dumps(to_dict(config)))))
    assert coding.classes == {1: "core", 7: "rim"}
    assert dict(coding.regions) == {"all": (1, 7), "core": (1,)}
    assert label_coding(tiny_segmentation().config).name == "brats2017"

"""The task of patients: sums over targets and known labels; the unknown changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import flags, tiny_config, volumes
from torch.nn import functional as F

from bmmae.data.loaders import Batch
from bmmae.losses import cox_partial_likelihood, logistic_hazard
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.targets import UNKNOWN, Target
from bmmae.tasks.patient import PatientTask
from bmmae.tasks.task import JudgesTogether, Task

SUBTYPE = Target("subtype", "binary", ("subtype",), ("a", "b"))
SITE = Target("site", "multiclass", ("site",), ("x", "y", "z"))
MARKERS = Target("markers", "multilabel", ("m1", "m2"), ("m1", "m2"))
HAZARD = Target("survival", "hazard", edges=(6.0, 12.0, 24.0))
COX = Target("cox", "cox", edges=(6.0,))
CLASSES = Target("classes", "survival_classes", classes=("s", "m", "l"), edges=(6.0, 21.0))
ALL = (SUBTYPE, SITE, MARKERS, HAZARD, COX, CLASSES)


def truth() -> Batch:
    return {
        "label": torch.tensor([[0, 2, 1, 0], [UNKNOWN, 1, UNKNOWN, 1], [1, UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN] * 4]),
        "time": torch.tensor([3.0, 10.0, 8.0, math.nan]),
        "event": torch.tensor([True, False, True, False]),
    }


def outputs(targets: tuple[Target, ...] = ALL) -> dict[str, torch.Tensor]:
    return {t.name: volumes(4, t.outputs, (1, 1, 1), seed=i).flatten(1) for i, t in enumerate(targets)}


def task(*targets: Target, **options: object) -> PatientTask:
    return PatientTask(PatientModelConfig(tiny_config(), targets), **options)  # type: ignore[arg-type]


def images() -> Batch:
    available = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0]]).bool()
    valid = torch.ones(4, 4, 16, 16, 16, dtype=torch.bool) & available[:, :, None, None, None]
    brain = flags(4, 16, 16, 16, share=0.3, seed=1)
    return {"images": volumes(4) * valid, "available": available, "valid": valid, "brain": brain, **truth()}


def test_the_loss_is_the_sum_of_the_targets_likelihoods() -> None:
    logits, batch = outputs(), truth()
    given = task(*ALL).judge(logits, batch, metrics=True)
    time, event = batch["time"], batch["event"]
    assert isinstance(time, torch.Tensor)
    assert isinstance(event, torch.Tensor)
    expected = {
        "subtype": F.binary_cross_entropy_with_logits(
            logits["subtype"][[0, 2], 0], torch.tensor([0.0, 1.0]), reduction="sum"
        ),
        "site": F.cross_entropy(logits["site"][:2], torch.tensor([2, 1]), reduction="sum"),
        "markers": F.binary_cross_entropy_with_logits(
            torch.stack([logits["markers"][0, 0], logits["markers"][0, 1], logits["markers"][1, 1]]),
            torch.tensor([1.0, 0.0, 1.0]),
            reduction="sum",
        ),
        "survival": logistic_hazard(logits["survival"], time, event, torch.tensor(HAZARD.edges)).sum(),
        "cox": cox_partial_likelihood(logits["cox"][:, 0], time, event)[0],
        "classes": F.cross_entropy(logits["classes"][[0, 2]], torch.tensor([0, 1]), reduction="sum"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(given.metrics[f"loss_{name}"][0], value)
    torch.testing.assert_close(given.loss_sum, torch.stack(list(expected.values())).sum())
    assert float(given.loss_count) == 3  # nothing is known of the fourth


def test_who_was_censored_before_the_class_was_known_is_never_labelled() -> None:
    logits = outputs((CLASSES,))
    changed = {"classes": logits["classes"].clone()}
    changed["classes"][1] += torch.tensor([5.0, -3.0, 9.0])  # censored in month 10: could still be either
    own = task(CLASSES)
    assert float(own.judge(logits, truth()).loss_sum) == pytest.approx(float(own.judge(changed, truth()).loss_sum))
    assert float(own.judge(logits, truth()).loss_count) == 2


def test_censored_patients_are_stood_in_for() -> None:
    steps = ((9.0, 0.5),)
    weighted = replace(CLASSES, censoring=steps)
    batch = {**truth(), "time": torch.tensor([3.0, 10.0, 12.0, math.nan])}
    plain, heavy = (task(target).judge(outputs((target,)), batch).loss_sum for target in (CLASSES, weighted))
    third = F.cross_entropy(outputs((CLASSES,))["classes"][[2]], torch.tensor([1]))
    torch.testing.assert_close(heavy - plain, third)  # its weight is 2: half have left before month 12


def test_class_weights_and_importance_are_factors() -> None:
    logits, batch = outputs((SUBTYPE,)), truth()
    weighted = replace(SUBTYPE, weights=(3.0, 0.5))
    first, second = (
        task(SUBTYPE).judge(logits, {**batch, "label": torch.tensor([[a], [-1], [b], [-1]])}).loss_sum
        for a, b in ((0, -1), (-1, 1))
    )
    label = {**batch, "label": torch.tensor([[0], [-1], [1], [-1]])}
    torch.testing.assert_close(task(weighted).judge(logits, label).loss_sum, 3 * first + second / 2)
    doubled = task(SUBTYPE, importance={"subtype": 2.0}).judge(logits, label).loss_sum
    torch.testing.assert_close(doubled, 2 * (first + second))


def test_without_any_label_the_loss_is_zero_with_a_gradient() -> None:
    model = PatientModel(PatientModelConfig(tiny_config(), ALL))
    nothing = {
        "label": torch.full((4, 4), UNKNOWN),
        "time": torch.full((4,), math.nan),
        "event": torch.zeros(4, dtype=torch.bool),
    }
    output = PatientTask(model.config).step(model, {**images(), **nothing})
    output.loss_sum.backward()
    assert (float(output.loss_sum.detach()), float(output.loss_count)) == (0, 0)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_two_halves_of_a_batch_add_up() -> None:
    model = PatientModel(PatientModelConfig(tiny_config(), (SUBTYPE, SITE, MARKERS, HAZARD, CLASSES))).eval()
    own, batch = PatientTask(model.config), images()
    whole = own.evaluate(model, batch)
    halves = [own.evaluate(model, {k: v[part] for k, v in batch.items()}) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(whole.loss_sum, halves[0].loss_sum + halves[1].loss_sum)
    torch.testing.assert_close(whole.loss_count, halves[0].loss_count + halves[1].loss_count)


def test_a_validation_set_is_judged_by_its_risk_sets_whatever_the_batches() -> None:
    model = PatientModel(PatientModelConfig(tiny_config(), (COX, HAZARD))).eval()
    torch.nn.init.normal_(model.heads[0].weight)
    own, batch = PatientTask(model.config, importance={"cox": 3.0}), images()
    assert isinstance(own, JudgesTogether)
    whole = own.evaluate(model, batch).rows
    expected, deaths = cox_partial_likelihood(whole["cox"].detach(), whole["time"], whole["event"])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        parts = [own.evaluate(model, {k: v[order[i : i + 2]] for k, v in batch.items()}) for i in (0, 2)]
        assert all(set(part.metrics) == {"loss_survival"} for part in parts)
        together = own.judge_together({name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows})
        torch.testing.assert_close(together.metrics["loss_cox"], (expected, deaths))
        torch.testing.assert_close(together.loss_sum, 3 * expected)
        assert float(together.loss_count) == 0  # patients are counted in their batches
        assert sum(float(part.loss_count) for part in parts) == 3


def test_tokens_are_dropped_in_training_only() -> None:
    model = PatientModel(PatientModelConfig(tiny_config(), (SITE,), dropout=0.0))
    torch.nn.init.normal_(model.heads[0].weight)
    whole, part = PatientTask(model.config), PatientTask(model.config, token_share=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(part.evaluate(model, images()).loss_sum, whole.evaluate(model, images()).loss_sum)
        assert not torch.equal(part.step(model, images()).loss_sum, whole.step(model, images()).loss_sum)


def test_accuracy_counts_what_is_known() -> None:
    logits = {"site": torch.eye(3)[[2, 0, 0, 0]]}
    site_only = {**truth(), "label": torch.tensor([[2], [1], [-1], [-1]])}
    found = task(SITE).judge(logits, site_only, metrics=True)
    assert [float(x) for x in found.metrics["accuracy_site"]] == [1, 2]


def test_it_is_a_task() -> None:
    assert isinstance(task(SUBTYPE), Task)

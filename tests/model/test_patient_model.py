"""Patients: any subset of modalities and of what is known beside them, one set of weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import flags, tiny_config, volumes

from bmmae.checkpoint import load_model
from bmmae.clinical import ClinicalVariable, VectorInput
from bmmae.errors import ConfigError
from bmmae.growth import add_modality
from bmmae.metrics.survival import harrell_c
from bmmae.model.beside import Beside
from bmmae.model.encoder_model import stack_modalities
from bmmae.model.outcomes import baseline_hazard, probabilities, risk, survival, survival_at
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.targets import Target

AGE = ClinicalVariable("age", "numeric", 60.0, 10.0)
SEX = ClinicalVariable("sex", "categorical", categories=("F", "M"))
TARGETS = (
    Target("subtype", "binary", ("subtype",), ("a", "b")),
    Target("site", "multiclass", ("site",), ("x", "y", "z")),
    Target("markers", "multilabel", ("m1", "m2"), ("m1", "m2")),
    Target("survival", "hazard", edges=(6.0, 12.0, 24.0)),
    Target("cox", "cox", edges=(6.0, 12.0), baseline=(0.2, 0.5)),
    Target("survival_class", "survival_classes", classes=("s", "m", "l"), edges=(6.0, 21.0)),
)
EVERYTHING: dict[str, Any] = {
    "clinical": (AGE, SEX),
    "vector": VectorInput(("e0", "e1", "e2"), (0.0,) * 3, (1.0,) * 3),
    "lesion": "attention",
}
SUBSETS = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()


def patient_model(**changes: Any) -> PatientModel:
    """A model whose every parameter matters: attention and outputs would start flat."""
    torch.manual_seed(0)
    model = PatientModel(PatientModelConfig(tiny_config(), TARGETS, **changes)).eval()
    for layer in (model.pool.score, *model.heads, *model.direct):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return model


def beside(rows: int = 3) -> Beside:
    return Beside(
        clinical=torch.tensor([[0.5, 1.0]]).expand(rows, -1),
        clinical_available=torch.ones(rows, 2, dtype=torch.bool),
        vector=volumes(rows, 3, (1, 1, 1)).flatten(1),
        vector_available=torch.ones(rows, dtype=torch.bool),
        lesion=flags(rows, 1, 16, 16, 16, share=0.1).float(),
        lesion_available=torch.ones(rows, dtype=torch.bool),
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_every_target_has_its_outputs() -> None:
    outputs = patient_model()(volumes(3), SUBSETS)
    assert {name: value.shape[1] for name, value in outputs.items()} == {
        "subtype": 1,
        "site": 3,
        "markers": 2,
        "survival": 3,
        "cox": 1,
        "survival_class": 3,
    }


def test_the_order_of_the_modalities_changes_nothing() -> None:
    model, data = patient_model(), volumes(2)
    named = {name: data[:, [i]] for i, name in enumerate(("t1", "t2", "flair"))}
    expected = model(*stack_modalities(named, model.config.model))
    for order in permutations(named):
        assert same(model(*stack_modalities({name: named[name] for name in order}, model.config.model)), expected)


def test_absent_differs_from_zero_filled() -> None:
    model, images = patient_model(), volumes(1)
    images[:, 2] = 0
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert not same(model(images, everything), model(images, torch.tensor([[True, True, False, True]])))


def test_absent_volumes_are_not_read() -> None:
    model, images = patient_model(), volumes(3)
    dirty = torch.where(SUBSETS[:, :, None, None, None], images, 1e6)
    assert same(model(images, SUBSETS), model(dirty, SUBSETS))


def test_a_sample_gets_the_same_output_in_any_batch() -> None:
    model, images = patient_model(**EVERYTHING), volumes(3)
    tissue = flags(3, 1, 16, 16, 16, share=0.002)
    given = beside()
    together = model(images, SUBSETS, tissue, beside=given)
    for i in range(3):
        own = Beside(**{name: value[[i]] for name, value in vars(given).items()})
        alone = model(images[[i]], SUBSETS[[i]], tissue[[i]], beside=own)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][[i]], value, atol=1e-4, rtol=1e-4)


def test_only_tissue_is_pooled() -> None:
    model, images = patient_model(), volumes(1)
    tissue = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    tissue[..., :8] = True
    everything = torch.ones(1, 4, dtype=torch.bool)
    dirty = images.clone()
    dirty[..., 8:] = 50
    assert same(model(images, everything, tissue), model(dirty, everything, tissue))
    weights = model.attention(images, everything, tissue)["site"]
    assert weights.shape == (1, 4, 8)
    assert int((weights > 0).sum()) == 16


def test_attention_weights_add_up_to_one_with_the_class_tokens() -> None:
    model, images = patient_model(), volumes(3)
    total = model.attention(images, SUBSETS)["subtype"].sum((1, 2))
    assert bool((total < 1).all())
    assert bool((total > 0.5).all())


def test_a_sample_without_tissue_runs() -> None:
    nothing = torch.zeros(3, 1, 16, 16, 16, dtype=torch.bool)
    assert all(value.isfinite().all() for value in patient_model()(volumes(3), SUBSETS, nothing).values())


def test_a_missing_clinical_value_is_not_read_and_differs_from_a_mean_one() -> None:
    model, images, known = patient_model(**EVERYTHING), volumes(1), torch.tensor([[False, True]])
    everything = torch.ones(1, 4, dtype=torch.bool)

    def run(age: float, flags: torch.Tensor) -> dict[str, torch.Tensor]:
        values = torch.tensor([[age, 1.0]])
        return dict(model(images, everything, beside=Beside(clinical=values, clinical_available=flags)))

    assert same(run(3.0, known), run(0.0, known))
    assert not same(run(0.0, known), run(0.0, torch.ones_like(known)))


def test_an_imputed_value_counts_as_one_and_keeps_its_flag() -> None:
    model = patient_model(clinical=(replace(AGE, imputed=0.3),))
    images, everything = volumes(1), torch.ones(1, 4, dtype=torch.bool)
    missing = Beside(clinical=torch.tensor([[0.3]]), clinical_available=torch.tensor([[False]]))
    given = Beside(clinical=torch.tensor([[0.3]]), clinical_available=torch.tensor([[True]]))
    design = model.design(missing, 1, images.device)
    torch.testing.assert_close(design, torch.tensor([[0.3, 1.0]]))
    assert not same(model(images, everything, beside=missing), model(images, everything, beside=given))
    assert same(model(images, everything), model(images, everything, beside=missing))


def test_a_lesion_map_draws_attention_and_no_map_does_not() -> None:
    model, images, everything = patient_model(lesion="attention"), volumes(1), torch.ones(1, 4, dtype=torch.bool)
    lesion = torch.zeros(1, 1, 16, 16, 16)
    lesion[..., :8, :8, :8] = 1
    there = Beside(lesion=lesion, lesion_available=torch.tensor([True]))
    not_there = Beside(lesion=lesion, lesion_available=torch.tensor([False]))
    with_map = model.attention(images, everything, beside=there)["site"][0, :, 0].sum()
    assert with_map > 2 * model.attention(images, everything)["site"][0, :, 0].sum()
    assert same(model(images, everything, beside=not_there), model(images, everything))
    assert not same(model(images, everything, beside=there), model(images, everything))


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {**EVERYTHING, "fusion": False}])
def test_every_parameter_gets_a_gradient_whatever_is_missing(changes: dict[str, Any]) -> None:
    model = patient_model(**changes).train()
    available = torch.tensor([[False, True, False, False]]).expand(2, -1)
    outputs = model(volumes(2), available)
    torch.cat(list(outputs.values()), dim=1).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_bf16_autocast_trains() -> None:
    model = patient_model(**EVERYTHING).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(volumes(3), SUBSETS, beside=beside())
        loss = torch.cat(list(outputs.values()), dim=1).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("changes", [{}, EVERYTHING, {**EVERYTHING, "fusion": False}])
def test_it_runs_in_any_precision(changes: dict[str, Any], dtype: torch.dtype) -> None:
    model = patient_model(**changes)
    expected = model(volumes(3), SUBSETS, beside=beside())
    found = model.to(dtype)(volumes(3).to(dtype), SUBSETS, beside=beside())
    for name, values in found.items():
        assert values.dtype == dtype
        torch.testing.assert_close(values.float(), expected[name], atol=0.1, rtol=0.1)


def test_it_is_saved_with_all_that_was_fitted(tmp_path: Path) -> None:
    model = patient_model(**EVERYTHING, subsets={"t1": 0.5, "t1+t2": 0.5})
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model", kind="patient")
    assert loaded.config == model.config
    assert same(loaded(volumes(3), SUBSETS, beside=beside()), model(volumes(3), SUBSETS, beside=beside()))


def test_it_can_learn_a_new_modality() -> None:
    model, images = patient_model(), volumes(1)
    grown = add_modality(model, "adc", like="t2")
    more = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    seen = torch.tensor([[True] * 4 + [False]])
    assert same(grown(more, seen), model(images, seen[:, :4]))


def test_configs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one target"):
        PatientModelConfig(tiny_config())
    with pytest.raises(ConfigError, match="different names"):
        PatientModelConfig(tiny_config(), (TARGETS[0], TARGETS[0]))


def test_probabilities_add_up_and_survival_falls() -> None:
    logits = {t.name: volumes(5, t.outputs, (1, 1, 1)).flatten(1) for t in TARGETS}
    for target in TARGETS:
        if target.classes and target.kind != "multilabel":
            torch.testing.assert_close(probabilities(target, logits[target.name]).sum(1), torch.ones(5))
        if target.survival:
            curve = survival(target, logits[target.name])
            assert curve.shape == (5, len(target.edges))
            assert bool((curve.diff(dim=1) <= 0).all())
            assert bool(((curve >= 0) & (curve <= 1)).all())


@pytest.mark.parametrize("name", ["survival", "cox", "survival_class"])
def test_a_higher_risk_goes_with_a_lower_curve(name: str) -> None:
    target = next(t for t in TARGETS if t.name == name)
    slope = {"survival": [1.0, 1.0, 1.0], "cox": [1.0], "survival_class": [1.0, 0.0, -1.0]}[name]
    logits = torch.linspace(-1, 1, 6)[:, None] * torch.tensor(slope)
    assert bool((risk(target, logits).diff() > 0).all())
    assert bool((survival(target, logits).diff(dim=0) < 0).all())
    died_first = np.arange(6, 0, -1, dtype=float)  # the highest risk dies first
    assert harrell_c(risk(target, logits).double().numpy(), died_first, np.ones(6, bool)) == 1


def test_curves_are_read_at_any_month() -> None:
    target = next(t for t in TARGETS if t.name == "survival")
    logits = volumes(2, 3, (1, 1, 1)).flatten(1)
    curve = survival(target, logits)
    torch.testing.assert_close(survival_at(target, logits, target.edges), curve)
    between = survival_at(target, logits, (3.0, 9.0, 100.0))
    torch.testing.assert_close(between[:, 0], curve[:, 0].sqrt())
    torch.testing.assert_close(between[:, 1], (curve[:, 0] * curve[:, 1]).sqrt())
    torch.testing.assert_close(between[:, 2], curve[:, 2])


@pytest.mark.parametrize("name", ["survival", "cox"])
def test_past_the_longest_follow_up_no_chance_is_told(name: str) -> None:
    target = next(t for t in TARGETS if t.name == name)
    logits, months = volumes(2, target.outputs, (1, 1, 1)).flatten(1), (6.0, 30.0, 30.5, 36.0)
    before = survival_at(target, logits, months)
    found = survival_at(replace(target, followed=30.0), logits, months)
    torch.testing.assert_close(found[:, :2], before[:, :2])
    assert bool(before.isfinite().all())
    assert bool(found[:, 2:].isnan().all())


def test_the_baseline_hazard_is_breslows() -> None:
    time, event = torch.tensor([2.0, 4.0, 6.0, float("nan")]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    log_risk = torch.tensor([0.1, 0.5, -0.3, 9.0])
    e = log_risk.exp()
    first, second = float(1 / e[:3].sum()), float(1 / e[2])
    assert baseline_hazard(log_risk, time, event, (1.0, 2.0, 10.0)) == pytest.approx((0, first, first + second))

"""Linear heads: scikit-learn's coefficients become the weights of a model, whatever the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

from bmmae import linear_heads
from bmmae.clinical import ClinicalVariable
from bmmae.data.cohort import Study
from bmmae.data.patients import Columns
from bmmae.linear_heads import Rows, collect, fit_linear_heads
from bmmae.losses import logistic_hazard
from bmmae.metrics.survival import harrell_c
from bmmae.model.outcomes import risk
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.targets import Target, fit_survival

AGE = ClinicalVariable("age", "numeric", 0.0, 1.0)
SUBTYPE = Target("subtype", "binary", ("subtype",), ("a", "b"))
SITE = Target("site", "multiclass", ("site",), ("x", "y", "z"))
HAZARD = Target("survival", "hazard", edges=(4.0, 8.0, 16.0))
COX = Target("cox", "cox", edges=(8.0,))


def patients(count: int, seed: int, per_study: int = 1) -> Rows:
    """Features, the first of which decides, and an age that decides about survival too."""
    rng = np.random.default_rng(seed)
    features, age = rng.normal(size=(count, 48)) * 3 + 5, rng.normal(size=count)
    signal = (features[:, 0] - 5) / 3
    months = rng.exponential(10 * np.exp(-signal - age)).clip(0.1)
    studies = [
        Study(
            f"s{seed}-{i}",
            {"t1": Path("t1.nii")},
            time=float(min(months[i], 20)),
            event=bool(months[i] < 20),
            values={
                "subtype": "b" if signal[i] + rng.normal() * 0.3 > 0 else "a",
                "site": "xyz"[int(np.digitize(signal[i], [-0.4, 0.4]))],
                "age": float(age[i]),
            },
        )
        for i in range(count)
    ]
    order = np.repeat(np.arange(count), per_study)
    design = np.stack([age, np.zeros(count)], axis=1)[order]
    subsets = [("t1", "t2")[: 1 + k % 2] for k in range(len(order))]
    return collect([studies[i] for i in order], subsets, features[order], design)


def fitted(
    target: Target, *, images: bool = True, per_study: int = 1
) -> tuple[PatientModel, Rows, np.ndarray[Any, Any]]:
    columns = Columns((target,), (AGE,))
    model = PatientModel(PatientModelConfig(tiny_config(), (target,), (AGE,), fusion=False)).eval()
    fit_linear_heads(model, patients(150, 0, per_study), patients(60, 1, per_study), columns, images=images)
    test = patients(80, 2)
    with torch.no_grad():
        features, design = torch.from_numpy(test.features).float(), torch.from_numpy(test.design).float()
        logits = model.heads[0](features) + model.direct[0](design)
    return model, test, logits.double().numpy()


def test_a_binary_head_is_scikit_learns_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setattr(linear_heads, "COMPONENTS", ())
    _, test, logits = fitted(SUBTYPE)
    train, label = patients(150, 0), np.array([s.values["subtype"] == "b" for s in patients(150, 0).studies])
    inputs = np.concatenate([train.features, train.design], axis=1)
    held = np.concatenate([test.features, test.design], axis=1)
    theirs = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000)).fit(inputs, label)
        for c in (0.01, 0.1, 1)
    ]
    closest = min(np.abs(m.decision_function(held) - logits[:, 0]).max() for m in theirs)
    assert closest < 1e-3
    truth = np.array([s.values["subtype"] == "b" for s in test.studies])
    assert ((logits[:, 0] > 0) == truth).mean() > 0.8


def test_several_classes_are_told_apart() -> None:
    _, test, logits = fitted(SITE)
    assert (
        np.mean([SITE.classes[k] == s.values["site"] for k, s in zip(logits.argmax(1), test.studies, strict=True)])
        > 0.7
    )


@pytest.mark.parametrize("target", [HAZARD, COX], ids=lambda t: t.kind)
def test_a_higher_risk_dies_sooner(target: Target) -> None:
    _, test, logits = fitted(target)
    time, event = (np.array([getattr(s, name) for s in test.studies]) for name in ("time", "event"))
    assert harrell_c(risk(target, torch.from_numpy(logits)).double().numpy(), time, event) > 0.7


def test_the_hazards_coefficients_maximise_its_likelihood() -> None:
    columns = Columns((HAZARD,), (AGE,))
    model = PatientModel(PatientModelConfig(tiny_config(), (HAZARD,), (AGE,), fusion=False)).eval()
    train = patients(400, 0)
    fit_linear_heads(model, train, train, columns)  # judged on itself: the weakest penalty wins
    features, design = torch.from_numpy(train.features).float(), torch.from_numpy(train.design).float()
    logits = (model.heads[0](features) + model.direct[0](design)).detach()
    level = torch.zeros(3, requires_grad=True)
    time, event = (torch.tensor([getattr(s, name) for s in train.studies]) for name in ("time", "event"))
    logistic_hazard(logits + level, time, event, torch.tensor(HAZARD.edges)).mean().backward()
    assert level.grad is not None
    assert float(level.grad.abs().max()) < 2e-3


def test_deaths_stay_in_the_interval_that_they_end() -> None:
    rng = np.random.default_rng(0)
    months, died = np.round(rng.exponential(12, 60) + 0.1, 2), rng.random(60) < 0.7
    target = fit_survival("hazard", months.tolist(), died.tolist(), bins=10)
    studies = tuple(
        Study(f"s{i}", {"t1": Path("t1.nii")}, time=float(months[i]), event=bool(died[i])) for i in range(60)
    )
    model = PatientModel(PatientModelConfig(tiny_config(), (target,))).eval()
    rows = collect(studies, [("t1",)] * 60, np.zeros((60, model.feature_width)), np.zeros((60, 0)))
    fit_linear_heads(model, rows, rows, Columns((target,)))
    hazard = model.heads[0].bias.detach().double().sigmoid().numpy()  # type: ignore[union-attr,operator]
    edges = np.array(target.edges)
    # Nobody is told apart, so each interval's share of deaths among those at risk is the answer.
    ended = np.array([(died & (np.searchsorted(edges, months) == k)).sum() for k in range(len(edges))])
    later = np.array([(np.searchsorted(edges, months, side="right") > k).sum() for k in range(len(edges))])
    survived = later - np.array([(died & (months == edge)).sum() for edge in edges])
    np.testing.assert_allclose(hazard, ended / (ended + survived), atol=0.02)


def test_without_labels_to_validate_on_the_penalty_is_cross_validated() -> None:
    columns, train = Columns((SUBTYPE,), (AGE,)), patients(150, 0)
    blank = patients(20, 1)
    studies = [replace(study, values={"age": study.values["age"]}) for study in blank.studies]
    blind = collect(studies, blank.subsets, blank.features, blank.design)
    models = [PatientModel(PatientModelConfig(tiny_config(), (SUBTYPE,), (AGE,), fusion=False)) for _ in range(2)]
    with pytest.warns(UserWarning, match="no validation study has a label .* of 'subtype'"):
        chosen = fit_linear_heads(models[0], train, blind, columns)
    assert chosen == fit_linear_heads(models[1], train, None, columns)
    assert torch.equal(models[0].heads[0].weight, models[1].heads[0].weight)


def test_every_risk_set_holds_a_patient_once() -> None:
    rows = patients(6, 0, per_study=2)
    strata = [rows.taken(chosen) for chosen in rows.strata()]
    assert [set(part.subsets) for part in strata] == [{("t1",)}, {("t1", "t2")}]
    assert all(len({study.subject for study in part.studies}) == len(part.studies) == 6 for part in strata)
    _, _, once = fitted(COX)
    _, _, twice = fitted(COX, per_study=2)
    assert np.corrcoef(once[:, 0], twice[:, 0])[0, 1] > 0.999
    np.testing.assert_allclose(once - once.mean(), twice - twice.mean(), atol=0.2)


def test_settings_chosen_by_cross_validation_come_from_the_training_rows_alone() -> None:
    heads = []
    for _ in range(2):
        columns = Columns((SUBTYPE, SITE), (AGE,))
        model = PatientModel(PatientModelConfig(tiny_config(), (SUBTYPE, SITE), (AGE,), fusion=False)).eval()
        told = fit_linear_heads(model, patients(120, 0), None, columns)
        assert told.keys() == {"subtype", "site"}
        heads.append(model)
    test = patients(80, 2)
    features, design = torch.from_numpy(test.features).float(), torch.from_numpy(test.design).float()
    logits = [(model.heads[0](features) + model.direct[0](design)).detach() for model in heads]
    assert torch.equal(*logits)
    truth = np.array([s.values["subtype"] == "b" for s in test.studies])
    assert ((logits[0][:, 0].numpy() > 0) == truth).mean() > 0.7


@pytest.mark.parametrize("labels", [(0, 2), (1,), (0, 1, 2)])
def test_a_class_that_a_fold_lacks_is_unlikely_and_no_error(labels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    label = np.resize(labels, 30)
    inputs = rng.normal(size=(30, 2)) + 2 * label[:, None]
    fit = linear_heads._logistic(inputs, label, np.ones(30), 1.0, classes=3)
    chances = np.exp(inputs @ fit.slopes.T + fit.intercepts)
    chances /= chances.sum(1, keepdims=True)
    assert chances.shape == (30, 3)
    assert chances[:, [c for c in range(3) if c not in labels]].max(initial=0) < 0.02
    assert (chances.argmax(1) == label).mean() > 0.7


def test_without_images_only_the_clinical_variables_count() -> None:
    model, _, _ = fitted(HAZARD, images=False)
    head: Any = model.heads[0]
    direct: Any = model.direct[0]
    assert not head.weight.any()
    assert bool((direct.weight[:, 0] > 0).all())  # the old die sooner


def test_a_studys_rows_share_one_weight() -> None:
    rows = patients(4, 0, per_study=3)
    np.testing.assert_allclose(rows.weights, 1 / 3)
    assert rows.taken(np.arange(12) % 3 == 1).weights.sum() == pytest.approx(4)
    _, _, once = fitted(SUBTYPE)
    _, _, thrice = fitted(SUBTYPE, per_study=3)
    np.testing.assert_allclose(once, thrice, atol=1e-2)


def test_folds_without_a_death_judge_nothing() -> None:
    columns = Columns((COX,), (AGE,))
    rows = patients(60, 0)
    groups = sorted({study.group for study in rows.studies})
    place = dict(zip(groups, np.random.default_rng(0).permutation(len(groups)) % linear_heads.FOLDS, strict=True))
    keep = {id(s): s if place[s.group] else replace(s, time=20.0, event=False) for s in rows.studies}
    rows = replace(rows, studies=tuple(keep[id(study)] for study in rows.studies))
    model = PatientModel(PatientModelConfig(tiny_config(), (COX,), (AGE,), fusion=False)).eval()
    assert fit_linear_heads(model, rows, None, columns)["cox"]
    with torch.no_grad():
        size = sum(float(layer[0].weight.norm()) for layer in (model.heads, model.direct))  # type: ignore[union-attr]
    assert size > 0.01  # not the strongest penalty, which an infinite loss of every setting would choose


def test_a_penalty_that_nothing_can_choose_is_said(recwarn: pytest.WarningsRecorder) -> None:
    rows = patients(30, 0)
    alive = tuple(replace(study, event=False, time=20.0) for study in rows.studies)
    first = (replace(alive[0], event=True, time=1.0), *alive[1:])
    model = PatientModel(PatientModelConfig(tiny_config(), (COX,), (AGE,), fusion=False)).eval()
    validation = replace(rows, studies=alive)
    fit_linear_heads(model, replace(rows, studies=first), validation, Columns((COX,), (AGE,)))
    assert any("its penalty is chosen by" in str(each.message) for each in recwarn)


def test_a_subset_without_a_death_leaves_the_others_to_judge(recwarn: pytest.WarningsRecorder) -> None:
    def chosen(rare: bool) -> dict[str, str]:
        parts = []
        for rows in (patients(120, 0), patients(40, 1)):
            alive = next(place for place, study in enumerate(rows.studies) if not study.event)
            order = [*range(len(rows.studies)), *([alive] if rare else [])]
            subsets = [("t1",)] * len(rows.studies) + [("t2",)] * rare
            parts.append(collect([rows.studies[i] for i in order], subsets, rows.features[order], rows.design[order]))
        model = PatientModel(PatientModelConfig(tiny_config(), (COX,), (AGE,), fusion=False)).eval()
        return fit_linear_heads(model, *parts, Columns((COX,), (AGE,)))

    assert chosen(rare=True) == chosen(rare=False)
    assert not recwarn.list


@pytest.mark.parametrize("target", [SUBTYPE, HAZARD, COX], ids=lambda t: t.kind)
def test_fewer_patients_than_inner_folds_leave_no_fold_empty(target: Target) -> None:
    rows = patients(4, 3)
    parts = linear_heads._inner_folds(rows)
    assert [len(held.studies) for _, held in parts] == [1, 1, 1, 1]
    model = PatientModel(PatientModelConfig(tiny_config(), (target,), (AGE,), fusion=False)).eval()
    assert fit_linear_heads(model, rows, None, Columns((target,), (AGE,)))

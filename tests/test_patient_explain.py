"""Explanations of a patient model: they add up, are on the input's grid, and repeat what the model says."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_patients import tiny_patient_model, write_patients

from bmmae.checkpoint import preprocessing_of, save_model
from bmmae.cli import main
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.errors import ConfigError
from bmmae.model.patient import PatientModel
from bmmae.patient_explain import Explanation, explain_patient, write_explanation
from bmmae.patient_prediction import embed, predict
from bmmae.targets import Target

CLINICAL = {"age": 55.0, "sex": None}
NOT_KNOWN = {"age": None, "sex": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatientModel, Study]:
    studies = write_patients(tmp_path_factory.mktemp("patients"), 6)
    return tiny_patient_model(studies), studies[0]  # without FLAIR


@pytest.fixture(scope="module")
def found(world: tuple[PatientModel, Study]) -> Explanation:
    model, study = world
    return explain_patient(model, study.images, target="site", clinical=CLINICAL)


def test_shapley_values_add_up_to_the_answer_less_the_base(
    found: Explanation, world: tuple[PatientModel, Study]
) -> None:
    target = next(target for target in world[0].config.targets if target.name == "site")
    assert set(found.shapley) == {"t1", "t1ce", "t2", "clinical: age"}
    assert sum(found.shapley.values()) == pytest.approx(found.answer - found.base, abs=1e-6)
    assert found.base == target.shares[target.classes.index(found.outcome)]
    assert any(abs(value) > 1e-4 for value in found.shapley.values())


def test_shares_of_attention_are_of_the_modalities_given(found: Explanation) -> None:
    assert set(found.attention) == {"t1", "t1ce", "t2"}
    assert sum(found.attention.values()) == pytest.approx(1)


def test_maps_are_on_the_input_grid_and_empty_outside_the_brain(
    found: Explanation, world: tuple[PatientModel, Study], tmp_path: Path
) -> None:
    written = write_explanation(found, tmp_path)
    source = nib.load(next(iter(world[1].images.values())))
    outside = np.asarray(source.dataobj) == 0
    for name in ("attention", "occlusion"):
        image = nib.load(written[name])
        assert image.shape == source.shape
        assert np.allclose(image.affine, source.affine)
        values = np.asarray(image.dataobj)
        assert np.abs(values).max() > 0
        assert not values[outside].any()
    note = json.loads((tmp_path / "explanation.json").read_text())
    assert note["answer"] == found.answer
    assert note["shapley"] == dict(found.shapley)


def test_risks_are_explained_too(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    found = explain_patient(model, {"t1": study.images["t1"]}, target="cox", clinical=NOT_KNOWN)
    assert found.outcome == "risk"
    assert found.shapley == pytest.approx({"t1": found.answer - found.base})


def test_a_model_of_half_the_precision_explains_and_predicts_alike(
    world: tuple[PatientModel, Study], found: Explanation, tmp_path: Path
) -> None:
    model, study = world
    half = copy.deepcopy(model).to(torch.bfloat16)
    again = explain_patient(half, study.images, target="site", outcome=found.outcome, clinical=CLINICAL)
    assert again.answer == pytest.approx(found.answer, abs=0.1)
    cache = StudyCache(None, preprocessing_of(model), model.config.model.modalities)
    (one, two) = (predict(each, [study], cache).logits["site"] for each in (model, half))
    torch.testing.assert_close(one, two, atol=0.2, rtol=0.2)
    assert len(embed(half, [study], cache)) == 1


def test_what_a_model_does_not_use_gets_nothing(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    index = [target.name for target in model.config.targets].index("subtype")
    kept = [layer.weight.detach().clone() for layer in (model.heads[index], model.direct[index])]
    with torch.no_grad():
        for layer in (model.heads[index], model.direct[index]):
            layer.weight.zero_()
    try:
        found = explain_patient(model, {"t1": study.images["t1"]}, target="subtype", outcome="SCLC", clinical=CLINICAL)
    finally:
        with torch.no_grad():
            for layer, weight in zip((model.heads[index], model.direct[index]), kept, strict=True):
                layer.weight.copy_(weight)
    assert found.shapley["clinical: age"] == pytest.approx(0, abs=1e-6)
    assert not found.occlusion.any()


def test_what_is_not_there_is_refused(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    with pytest.raises(ConfigError, match="predicts no 'grade'"):
        explain_patient(model, study.images, target="grade", clinical=NOT_KNOWN)
    with pytest.raises(ConfigError, match="has no class 'skin'"):
        explain_patient(model, study.images, target="site", outcome="skin", clinical=NOT_KNOWN)


def test_the_command_writes_maps_and_says_what_counted(
    world: tuple[PatientModel, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, study = world
    save_model(model, tmp_path / "model")
    common = ["explain", "--model", str(tmp_path / "model"), "--t1", str(study.images["t1"])]
    assert main([*common, "--target", "site", "--clinical", "age=55", "sex=F", "--out", str(tmp_path / "why")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("site: ")
    assert "clinical: age" in said
    assert "attention 100%" in said
    assert str(tmp_path / "why" / "explanation.json") in said
    assert {path.name for path in (tmp_path / "why").iterdir()} == {
        "attention.nii.gz",
        "occlusion.nii.gz",
        "explanation.json",
    }
    assert main([*common, "--target", "site", "--clinical", "age=", "sex=", "--out", str(tmp_path / "unknown")]) == 0
    assert "clinical:" not in capsys.readouterr().out
    for wrong, message in (("age=old", "expects a number"), ("weight=3", "expects NAME=VALUE of age, sex")):
        assert main([*common, "--clinical", wrong, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    assert main([*common, "--clinical", "age=61,5", "--out", str(tmp_path / "no")]) == 2
    assert "age expects a number with a decimal point, got '61,5'" in capsys.readouterr().err
    assert main([*common, "--clinical", "age=61", "age=62", "--out", str(tmp_path / "no")]) == 2
    assert "--clinical gives age twice" in capsys.readouterr().err


def test_an_imputed_variable_that_is_hidden_counts_as_missing(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    plain = model.config
    imputed = tuple(
        replace(variable, imputed=60.0 if variable.kind == "numeric" else 0.0) for variable in plain.clinical
    )
    model.config = replace(plain, clinical=imputed)
    try:
        image = {"t1": study.images["t1"]}
        found = explain_patient(model, image, target="site", clinical={"age": 90.0, "sex": None})
        less = explain_patient(model, image, target="site", outcome=found.outcome, clinical=NOT_KNOWN)
    finally:
        model.config = plain
    assert found.shapley["t1"] + found.shapley["clinical: age"] == pytest.approx(found.answer - found.base, abs=1e-6)
    assert found.shapley["clinical: age"] == pytest.approx((found.answer - less.answer) / 2, abs=1e-5)
    assert found.shapley["clinical: age"] != 0


def test_what_an_explanation_leaves_out_is_said(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    plain = model.config
    model.config = replace(plain, lesion="attention")
    try:
        with pytest.warns(UserWarning, match="the model also takes a lesion map, which an explanation cannot"):
            explain_patient(model, {"t1": study.images["t1"]}, target="cox", clinical=NOT_KNOWN)
        model.config = plain
        with pytest.warns(UserWarning, match="'female' .* training knew"):
            explain_patient(model, {"t1": study.images["t1"]}, target="cox", clinical={"age": None, "sex": "female"})
        with pytest.warns(UserWarning, match="the model also takes 'sex', not given here: .* may answer otherwise"):
            explain_patient(model, {"t1": study.images["t1"]}, target="cox", clinical={"age": 55.0})
        measure = replace(plain.clinical[0], name="measure_lesion_ET_volume", modality="")
        model.config = replace(plain, clinical=(measure, *plain.clinical[1:]))
        with pytest.warns(UserWarning, match="the model also takes 'measure_lesion_ET_volume', not given here"):
            explain_patient(model, {"t1": study.images["t1"]}, target="cox", clinical={"sex": "F"})
    finally:
        model.config = plain


def test_a_column_of_a_multi_label_target_is_chosen(world: tuple[PatientModel, Study]) -> None:
    model, study = world
    kept, markers = model.config, ("EGFR", "ALK", "KRAS")
    several = Target("site", "multilabel", markers, markers, shares=(0.5, 0.25, 0.25))  # as many outputs
    model.config = replace(kept, targets=tuple(several if t.name == "site" else t for t in kept.targets))
    try:
        found = explain_patient(model, {"t1": study.images["t1"]}, target="site", outcome="ALK", clinical=NOT_KNOWN)
        with pytest.raises(ConfigError, match="name its column as the outcome, one of EGFR, ALK, KRAS"):
            explain_patient(model, study.images, target="site", clinical=NOT_KNOWN)
        with pytest.raises(ConfigError, match="has no class 'BRAF': expected one of EGFR, ALK, KRAS"):
            explain_patient(model, study.images, target="site", outcome="BRAF", clinical=NOT_KNOWN)
    finally:
        model.config = kept
    assert (found.outcome, found.base) == ("ALK", 0.25)
    assert sum(found.shapley.values()) == pytest.approx(found.answer - found.base, abs=1e-6)

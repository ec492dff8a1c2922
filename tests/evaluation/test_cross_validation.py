"""Leakage, planted: the library refuses it, or has nothing to leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bmmae.arrays import Array
from bmmae.data.cohort import Cohort, Study
from bmmae.data.folds import Fold, FoldPlan, make_folds
from bmmae.data.writing import write_image
from bmmae.errors import CohortError
from bmmae.evaluation.classification import evaluate_classes
from bmmae.evaluation.clinical import clinical_classifier, clinical_cox, design, fit_variables
from bmmae.evaluation.cross_validation import (
    Answer,
    Fit,
    Predictor,
    Subset,
    Truth,
    cross_validate,
    refuse_leaks,
    select_inside,
)
from bmmae.evaluation.predictions import UNKNOWN, read_predictions, write_predictions
from bmmae.evaluation.survival import compare_survival, evaluate_survival
from bmmae.metrics import auc

PATIENTS = 60
SUBSETS: tuple[Subset, ...] = (("t1",), ("t1", "flair"))
NOISE = 500


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    """Patients of two classes that age tells a little of, with names of files that do not exist."""
    draw = np.random.default_rng(0)
    high = np.arange(PATIENTS) % 2 == 0
    age = 60 + 18 * high + draw.normal(scale=12, size=PATIENTS)
    death = draw.exponential(np.where(high, 10, 30))
    return Cohort(
        tuple(
            Study(
                f"s{i:02}",
                {name: Path(f"{name}-{i}.nii.gz") for name in (("t1",) if i % 5 == 0 else ("t1", "flair"))},
                time=float(min(death[i], 40)),
                event=bool(death[i] < 40),
                values={"grade": "high" if high[i] else "low", "age": float(age[i]), "sex": "mf"[i % 3 == 0]},
            )
            for i in range(PATIENTS)
        )
    )


def folds_of(cohort: Cohort, repeats: int = 1) -> tuple[Fold, ...]:
    return make_folds(cohort, FoldPlan(folds=3, repeats=repeats, stratify=("grade",)))


def run(cohort: Cohort, fits: dict[str, Fit], truth: Truth, subsets: Sequence[Subset] = SUBSETS[:1]):
    return cross_validate(fits, cohort, folds_of(cohort), truth, subsets, compare_content=False)


# What the predictor and the fit are shown


def test_the_predictor_sees_neither_truth_nor_other_modalities(cohort: Cohort) -> None:
    shown: list[Study] = []

    def fit(train: Sequence[Study], validation: Sequence[Study]) -> Predictor:
        assert all(study.values["grade"] and study.time is not None for study in (*train, *validation))

        def predict(studies: Sequence[Study], subset: Subset) -> Answer:
            shown.extend(studies)
            assert all(tuple(study.images) == subset for study in studies)
            return Answer(("low", "high"), np.full((len(studies), 2), 0.5))

        return predict

    table, survival = run(cohort, {"m": fit}, Truth("grade", hidden=("age",)), SUBSETS)
    assert survival is None
    assert table is not None
    assert {key.subset for key in table.keys} == {"t1", "t1+flair"}
    assert sum(key.subset == "t1+flair" for key in table.keys) == PATIENTS * 4 // 5  # others lack flair
    assert all((s.time, s.event, s.split) == (None, None, None) for s in shown)
    assert all(set(s.values) == {"sex"} for s in shown)


def test_every_study_is_tested_once_a_repeat_by_a_model_that_never_saw_its_patient(cohort: Cohort) -> None:
    seen: list[set[str]] = []

    def fit(train: Sequence[Study], validation: Sequence[Study]) -> Predictor:
        known = {study.group for study in (*train, *validation)}
        seen.append(known)

        def predict(studies: Sequence[Study], subset: Subset) -> Answer:
            assert not known & {study.group for study in studies}
            return Answer(("low", "high"), np.full((len(studies), 2), 0.5))

        return predict

    folds = folds_of(cohort, repeats=2)
    table, _ = cross_validate({"m": fit}, cohort, folds, Truth("grade"), SUBSETS[:1], compare_content=False)
    assert table is not None
    assert sorted(key.subject for key in table.keys) == sorted(2 * [study.subject for study in cohort])
    assert len(seen) == 6


# Planted: the same patient twice


def test_a_patient_in_two_parts_is_refused(cohort: Cohort) -> None:
    first, *rest = cohort.studies
    again = Cohort((first, replace(first, session="second"), *rest))
    folds = folds_of(cohort)
    spoilt = next(f for f in folds if first.key in f.test)
    spoilt = replace(spoilt, train=(*spoilt.train, (first.subject, "second")))
    with pytest.raises(
        CohortError, match=r"^fold 0 puts 's00' into train and into test: expected all studies of a patient in one part"
    ):
        refuse_leaks(again, [spoilt], compare_content=False)


def test_a_patient_under_two_names_is_refused_by_the_voxels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    studies = []
    for name in "abcdef":
        voxels = draw.normal(size=(4, 4, 4)).astype(np.float32)
        studies.append(Study(name, {"t1": write_image(tmp_path / f"{name}.nii.gz", voxels, np.eye(4))}))
        if name == "a":
            studies.append(Study("twin", {"t1": write_image(tmp_path / "twin.nii", voxels, np.eye(4))}))
    cohort = Cohort(tuple(studies))
    fold = Fold(tuple((n, "") for n in "abcd"), (("e", ""),), (("f", ""), ("twin", "")))
    with pytest.raises(
        CohortError, match=r"^fold 0 has a in train and twin in test, which hold the same voxels \(t1\)"
    ):
        refuse_leaks(cohort, [fold])
    told = Cohort(tuple(replace(s, group="a") if s.subject == "twin" else s for s in studies))
    with pytest.raises(CohortError, match=r"^fold 0 puts 'a' into train and into test"):
        refuse_leaks(told, [fold])
    refuse_leaks(told, make_folds(told, FoldPlan(folds=2)))


def test_classes_that_are_not_wanted_are_not_labelled(cohort: Cohort) -> None:
    assert Truth("grade", classes=("low", "medium")).classify(cohort[0], ()) is None
    assert Truth("grade").classify(cohort[0], ()) == "high"


def constant(rows: int | None = None) -> Fit:
    """A model that says the same of everybody, in as many rows as there are studies or another number."""
    return lambda _, __: lambda studies, _: Answer(("high", "low"), np.full((rows or len(studies), 2), 0.5))


@pytest.mark.parametrize("rows", [1, 3])
def test_answers_of_another_number_of_rows_are_refused(cohort: Cohort, rows: int) -> None:
    with pytest.raises(CohortError, match=rf"'m' answered for 20 studies with arrays of shape \[\({rows}, 2\)\]"):
        run(cohort, {"m": constant(rows)}, Truth("grade"))
    plain: Fit = lambda _, __: lambda studies, _: Answer(risk=np.zeros(rows))  # noqa: E731
    with pytest.raises(CohortError, match=r"expected \[\(20,\)\]"):
        run(cohort, {"m": plain}, Truth())


def test_a_class_that_is_named_twice_is_refused() -> None:
    with pytest.raises(CohortError, match="the classes of 'grade' are 'low', 'high', 'low': expected each once"):
        Truth("grade", classes=("low", "high", "low"))


def test_text_in_a_column_of_numbers_is_named(cohort: Cohort) -> None:
    text = [replace(study, values={**study.values, "age": "61 y"}) for study in cohort]
    message = r"no training study has a number in column 'age' .*: it holds '61 y', .* text"
    with pytest.raises(CohortError, match=message):
        Truth("age", quantiles=(0.5,)).edges(text)


def test_a_column_that_the_cohort_lacks_is_named_before_anything_is_fitted(cohort: Cohort) -> None:
    with pytest.raises(CohortError, match="no study has anything in column 'graed'"):
        run(cohort, {"m": constant()}, Truth("graed"))


def test_subsets_may_be_named_by_aliases(cohort: Cohort) -> None:
    table, _ = run(cohort, {"m": constant()}, Truth("grade"), [("FLAIR", "T1w")])
    assert table is not None
    assert {key.subset for key in table.keys} == {"t1+flair"}
    with pytest.raises(CohortError, match=r"one of the subsets \['PET\+t1'\]"):
        run(cohort, {"m": constant()}, Truth("grade"), [("PET", "t1")])


def test_folds_of_another_cohort_are_refused(cohort: Cohort) -> None:
    with pytest.raises(CohortError, match="'s99', which the cohort lacks"):
        refuse_leaks(cohort, [Fold((("s99", ""),), (), ())], compare_content=False)


# Planted: label bins fitted on all patients


def nearest_bin(column: str) -> Fit:
    """Predicts the commonest bin of its training studies."""

    def fit(train: Sequence[Study], validation: Sequence[Study]) -> Predictor:
        names = [str(study.values[column]) for study in train]
        classes = tuple(sorted(set(names)))
        shares = np.array([names.count(name) for name in classes]) / len(names)
        return lambda studies, subset: Answer(classes, np.tile(shares, (len(studies), 1)))

    return fit


@pytest.mark.parametrize("label", ["age", "time"])
def test_bins_are_those_of_the_training_fold_whatever_the_test_patients_are(cohort: Cohort, label: str) -> None:
    truth, fold = Truth(label, quantiles=(1 / 3, 2 / 3)), folds_of(cohort)[0]
    by_key = {study.key: study for study in cohort}

    def moved(study: Study) -> Study:
        if study.key not in fold.test:
            return study
        return replace(study, time=1000.0, event=True, values={**study.values, "age": 1000.0})

    tables = []
    for studies in (cohort, Cohort(tuple(map(moved, cohort)))):
        table, _ = cross_validate(
            {"m": nearest_bin(truth.column)}, studies, [fold], truth, SUBSETS[:1], compare_content=False
        )
        assert table is not None
        tables.append(table)
    assert np.array_equal(tables[0].probabilities, tables[1].probabilities)
    assert {tables[1].classes[label] for label in tables[1].label} == {"bin 3"}
    train = [by_key[key] for key in fold.train]
    assert truth.edges(train) != truth.edges(cohort)


# Planted: features selected on all patients


def noisy(cohort: Cohort) -> dict[str, Array]:
    draw = np.random.default_rng(1)
    return {study.subject: draw.normal(size=NOISE) for study in cohort}


def selecting(features: dict[str, Array], chosen_on: Sequence[Study] | None = None) -> Fit:
    """Keep the features that differ most between classes, and add them up; on all patients if these are smuggled in."""

    def fit(train: Sequence[Study], validation: Sequence[Study]) -> Predictor:
        judged = chosen_on or [*train, *validation]
        table = np.array([features[study.subject] for study in judged])
        high = np.array([study.values["grade"] == "high" for study in judged])
        gap = table[high].mean(0) - table[~high].mean(0)
        best = np.argsort(-np.abs(gap))[:10]

        def predict(studies: Sequence[Study], subset: Subset) -> Answer:
            scores = np.array([(features[study.subject][best] * np.sign(gap[best])).sum() for study in studies])
            chance = 1 / (1 + np.exp(-scores))
            return Answer(("low", "high"), np.stack([1 - chance, chance], axis=1))

        return predict

    return fit


def test_selecting_features_gains_nothing_on_noise_unless_test_patients_are_smuggled_in(cohort: Cohort) -> None:
    features = noisy(cohort)
    fits = {"inside": selecting(features), "smuggled": selecting(features, cohort.studies)}
    table, _ = run(cohort, fits, Truth("grade"))
    assert table is not None
    scores = {s.model: s.value.value for s in evaluate_classes(table, draws=0) if s.metric == "auc" and s.fold is None}
    assert abs(scores["inside"] - 0.5) < 0.15
    assert scores["smuggled"] > 0.9


def test_choosing_settings_inside_gains_nothing_on_noise(cohort: Cohort) -> None:
    draw = np.random.default_rng(2)

    def guess(seed: int) -> Fit:
        drawn = np.random.default_rng(seed).random(PATIENTS)
        luck = {study.subject: value for study, value in zip(cohort, drawn, strict=True)}

        def predict(studies: Sequence[Study], subset: Subset) -> Answer:
            chance = np.array([luck[study.subject] for study in studies])
            return Answer(("low", "high"), np.stack([1 - chance, chance], axis=1))

        return lambda train, validation: predict

    def score(predictor: Predictor, studies: Sequence[Study]) -> float:
        given = predictor(studies, ("t1",)).probabilities
        assert given is not None
        return auc(given[:, 1], np.array([study.values["grade"] == "high" for study in studies]))

    guesses = {f"guess {i}": guess(int(draw.integers(10**6))) for i in range(40)}
    nested = select_inside(guesses, score, FoldPlan(folds=3, stratify=("grade",)))
    table, _ = run(cohort, {"nested": nested, **guesses}, Truth("grade"))
    assert table is not None
    scores = {s.model: s.value.value for s in evaluate_classes(table, draws=0) if s.metric == "auc" and s.fold is None}
    luckiest = max(value for name, value in scores.items() if name != "nested")
    assert luckiest > 0.63  # what choosing by the test folds would have reported
    assert scores["nested"] < luckiest - 0.05


# The clinical model beside


def test_the_clinical_models_find_what_the_table_tells(cohort: Cohort) -> None:
    fits = {"clinical": clinical_classifier(("age", "sex"), "grade")}
    table, _ = run(cohort, fits, Truth("grade", classes=("low", "high")))
    assert table is not None
    assert table.classes == ("low", "high")
    assert (table.probabilities[:, 1] > 0.5)[table.label == 1].mean() > 0.5
    found = next(s for s in evaluate_classes(table, draws=0) if s.metric == "auc" and s.fold is None)
    assert found.value.value > 0.65
    at = (6.0, 12.0, 24.0)
    fits = {"clinical": clinical_cox(("age",), at), "blind": clinical_cox(("sex",), at)}
    _, survival = run(cohort, fits, Truth())
    assert survival is not None
    assert not np.isnan(survival.risk_cut).any()
    scores = {(s.model, s.metric): s.value.value for s in evaluate_survival(survival, draws=0) if s.fold is None}
    assert scores["clinical", "harrell_c"] > 0.55
    assert scores["clinical", "integrated_brier"] < 0.25
    assert {test.method for _, _, test in compare_survival(survival, "blind", draws=20)} == {
        "paired bootstrap",
        "corrected t",
    }


def test_gaps_and_unknown_categories_are_flagged_and_fitted_on_the_training_fold(cohort: Cohort) -> None:
    train = [replace(s, values={**s.values, "age": float(i)}) for i, s in enumerate(cohort.studies[:5])]
    variables = fit_variables(train, ("age", "sex"))
    stranger = replace(train[0], values={"age": None, "sex": "x"})
    assert design([stranger], variables).tolist() == [[0, 1, 0, 0, 1]]  # the median 2 is also the mean; no category
    assert design([train[2]], variables).tolist()[0][:2] == [0, 0]
    with pytest.raises(CohortError, match="at least one clinical column"):
        fit_variables(train, ())


def test_one_class_in_training_is_refused(cohort: Cohort) -> None:
    with pytest.raises(CohortError, match="1 classes"):
        clinical_classifier(("age",), "grade")([s for s in cohort if s.values["grade"] == "high"], [])


def test_columns_that_a_clinical_model_cannot_use_are_named(cohort: Cohort) -> None:
    with pytest.raises(CohortError, match="the cohort has no column 'Age': beside images it has grade, age, sex"):
        clinical_classifier(("Age",), "grade")(cohort.studies, [])
    with pytest.raises(CohortError, match="column 'grade' is predicted, so it cannot be given"):
        clinical_classifier(("age", "grade"), "grade")
    with pytest.raises(CohortError, match="none of the 60 training studies has both `time` and `event`"):
        clinical_cox(("age",), (6.0,))([replace(study, event=None) for study in cohort], [])


def test_an_inner_fold_that_judges_nothing_does_not_decide(cohort: Cohort) -> None:
    def guess(sign: int) -> Fit:
        def fit(_: Sequence[Study], __: Sequence[Study]) -> Predictor:
            def predict(studies: Sequence[Study], _: Subset) -> Answer:
                high = np.array([sign * (float(s.values["age"]) - 69) > 0 for s in studies])  # type: ignore[arg-type]
                return Answer(classes=("low", "high"), probabilities=np.stack([~high, high], axis=1).astype(float))

            return predict

        return fit

    calls: list[float] = []

    def score(predictor: Predictor, studies: Sequence[Study]) -> float:
        if len(calls) % 3 == 0:
            calls.append(np.nan)
            return np.nan
        answer = predictor(studies, ("t1",))
        assert answer.probabilities is not None
        truth = np.array([study.values["grade"] == "high" for study in studies])
        calls.append(float(auc(answer.probabilities[:, 1], truth)))
        return calls[-1]

    plan = FoldPlan(folds=3, stratify=("grade",))
    train = list(cohort)
    chosen = select_inside({"inverted": guess(-1), "right": guess(1)}, score, plan)(train, [])
    found = chosen(train, ("t1",)).probabilities
    assert found is not None
    assert auc(found[:, 1], np.array([s.values["grade"] == "high" for s in train])) > 0.6
    with pytest.raises(CohortError, match="no inner fold can judge all of inverted, right"):
        select_inside({"inverted": guess(-1), "right": guess(1)}, lambda *_: np.nan, plan)(train, [])


def test_measures_of_a_hidden_modality_are_hidden_too(cohort: Cohort) -> None:
    study = replace(
        cohort[1], values={"measure_flair_foci": 2.0, "measure_t1_foci": 1.0, "measure_lesion_WT_volume": 3.0}
    )
    assert set(Truth("grade").blind(study, ("t1",)).values) == {"measure_t1_foci", "measure_lesion_WT_volume"}


def test_a_class_that_a_folds_training_lacks_is_not_labelled_there_and_told(cohort: Cohort, tmp_path: Path) -> None:
    """As in runs and joined tables of them: what a model cannot answer is neither right nor wrong, but counted."""
    rare = cohort[0]
    studies = [replace(s, values={**s.values, "grade": "rare"}) if s.key == rare.key else s for s in cohort]
    folds = folds_of(cohort)
    fold = next(number for number, each in enumerate(folds) if rare.key in each.test)
    fits = {"one": nearest_bin("grade"), "two": nearest_bin("grade")}
    with pytest.warns(UserWarning, match="not labelled") as said:
        table, _ = cross_validate(fits, Cohort(tuple(studies)), folds, Truth("grade"), SUBSETS, compare_content=False)
    assert [str(warning.message) for warning in said] == [
        "1 test studies count as not labelled, as a model of their fold does not know their class: "
        f"'rare' (1 in fold {fold}). Name the classes that count (`Truth.classes`), or stratify the folds by the column"
    ]
    assert table is not None
    assert table.classes == ("high", "low", "rare")
    unknown = {(key.fold, key.subject) for key, label in zip(table.keys, table.label, strict=True) if label == UNKNOWN}
    assert unknown == {(fold, rare.subject)}
    assert (table.probabilities[[key.fold == fold for key in table.keys], 2] == 0).all()
    read, _ = read_predictions(write_predictions(tmp_path / "table.csv", table, None))
    assert read is not None
    assert (read.label == table.label).all()
    told = run(cohort, {"m": constant()}, Truth("grade", classes=("low", "high")))[0]  # warnings are errors here
    assert told is not None

"""What the table says of patients reaches the model; what is fitted comes from the training fold alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_models import tiny_config
from tiny_patients import BESIDE, PREPROCESS, SITES, TARGETS, row, write_patients
from tiny_studies import positions

from bmmae.arrays import Array
from bmmae.data.augment import AugmentConfig, Draw, keep_random_subset
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.dataset import View
from bmmae.data.loaders import EVALUATION_EPOCH, collate, sample_generator
from bmmae.data.patient_columns import BesideConfig, TargetsConfig, fit_columns, format_targets, is_labelled
from bmmae.data.patients import Columns, LesionMap, PatientDataset, Shares, cut_by, whole_brain
from bmmae.data.subset_shares import subset_shares
from bmmae.errors import BmmaeError, CohortError, ConfigError
from bmmae.modalities import STANDARD, subset_label
from bmmae.targets import UNKNOWN

VIEW = View.of(tiny_config())


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_patients(tmp_path_factory.mktemp("patients"), 9)


@pytest.fixture(scope="module")
def cache() -> StudyCache:
    return StudyCache(None, PREPROCESS, STANDARD)


def on_paper(count: int) -> list[Study]:
    """Rows without files."""
    return [Study(f"p{number}", {"t1": Path("t1.nii")}, **row(number)) for number in range(count)]


def test_a_sample_says_what_its_row_says(patients: list[Study], cache: StudyCache) -> None:
    columns = fit_columns(patients, TARGETS, BESIDE)
    dataset = PatientDataset(patients, VIEW, cache, columns)
    first, blank = dataset[(EVALUATION_EPOCH, 1)], dataset[(EVALUATION_EPOCH, 4)]
    assert first["label"].tolist() == [1, SITES.index("breast") - 1]  # classes are sorted: breast comes first
    assert (float(first["time"]), bool(first["event"])) == (25.0, True)
    assert first["images"].shape == (4, 16, 16, 16)
    assert blank["label"][0] == UNKNOWN
    assert math.isnan(float(dataset[(EVALUATION_EPOCH, 5)]["time"]))
    assert dataset[(EVALUATION_EPOCH, 2)]["clinical_available"].tolist() == [False, True]
    batch = collate([dataset.packed((EVALUATION_EPOCH, i)) for i in range(3)])
    assert isinstance(batch["clinical"], torch.Tensor)
    assert batch["clinical"].shape == (3, 2)


def test_lesions_come_where_there_is_a_segmentation(patients: list[Study], cache: StudyCache) -> None:
    columns = replace(fit_columns(patients, TARGETS, BESIDE), lesions="attention")
    dataset = PatientDataset(patients, VIEW, cache, columns, augment=AugmentConfig())
    for epoch in (EVALUATION_EPOCH, 0):
        without, with_map = dataset[(epoch, 0)], dataset[(epoch, 1)]
        assert (bool(without["lesion_available"]), bool(with_map["lesion_available"])) == (False, True)
        assert with_map["lesion"].shape == without["lesion"].shape == (1, 16, 16, 16)
        assert not without["lesion"].any()
        assert (with_map["lesion"][0] & with_map["brain"]).any()


def with_map(study: Study, chances: Array, path: Path) -> Study:
    """Give a study a map of chances on its own grid."""
    image = nib.Nifti1Image(chances.astype(np.float32), nib.load(str(study.images["t1"])).affine)
    nib.save(image, path)
    return replace(study, lesion=path)


def ramp() -> Array:
    return np.clip((positions()[0] + 1) / 2, 0, 1)


SOFT = Columns(lesions="probability")


def test_chances_of_lesion_stay_soft_and_are_resampled_linearly(patients: list[Study], tmp_path: Path) -> None:
    study = with_map(patients[1], ramp(), tmp_path / "soft.nii.gz")
    assert study.seg is not None
    samples = []
    for folder in (None, tmp_path / "cache"):
        cache = StudyCache(folder, PREPROCESS, STANDARD)
        if folder:
            cache.store(study)
        dataset = PatientDataset([study, patients[2]], VIEW, cache, SOFT)
        samples.append(dataset[(EVALUATION_EPOCH, 0)])
        assert bool(samples[-1]["lesion_available"])
        without = dataset[(EVALUATION_EPOCH, 1)]
        assert not bool(without["lesion_available"])
        assert not without["lesion"].any()
    assert torch.equal(samples[0]["lesion"], samples[1]["lesion"])
    found = samples[0]["lesion"]
    assert (found.shape, found.dtype) == ((1, 16, 16, 16), torch.float32)
    # Along the first axis 20 voxels of 1 mm become voxels of 1.5 mm: the ramp's step grows by a half.
    inside = found[0][samples[0]["brain"].any(2).any(1)][:, 8, 8]
    steps = inside.diff()[1:-1]
    assert torch.allclose(steps, torch.full_like(steps, 1.5 / 19), atol=1.5 / 255)


def test_chances_of_lesion_move_with_the_images(patients: list[Study], tmp_path: Path) -> None:
    study = with_map(patients[1], ramp(), tmp_path / "soft.nii.gz")
    cache = StudyCache(None, PREPROCESS, STANDARD)
    still, flipped, turned = (
        PatientDataset([study], replace(VIEW, size=(32, 32, 32)), cache, SOFT, augment=augment)[(0, 0)]
        for augment in (
            AugmentConfig(flip=0.0),
            AugmentConfig(flip=1.0),
            AugmentConfig(flip=0.0, rotation=Draw(1.0, 90.0, 90.0)),
        )
    )
    assert torch.equal(still["lesion"].flip(1), flipped["lesion"])
    assert torch.equal(still["brain"].flip(0), flipped["brain"])
    assert 0 <= float(turned["lesion"].min()) <= float(turned["lesion"].max()) <= 1
    assert len(turned["lesion"].unique()) > 5


@pytest.mark.parametrize(
    ("chances", "message"),
    [
        (ramp() * 3, "no map of probabilities: expected values from 0 to 1, got 0 to 3"),
        (ramp()[:-1], "the lesion map soft.nii.gz .* is not on the grid of"),
    ],
)
def test_a_map_that_is_none_is_refused(patients: list[Study], tmp_path: Path, chances: Array, message: str) -> None:
    study = with_map(patients[1], chances, tmp_path / "soft.nii.gz")
    with pytest.raises(BmmaeError, match=message):
        PatientDataset([study], VIEW, StudyCache(None, PREPROCESS, STANDARD), SOFT)[(EVALUATION_EPOCH, 0)]


@pytest.mark.parametrize(("lesion", "column"), [("attention", "seg"), ("probability", "lesion_probability")])
def test_maps_that_no_training_study_has_are_refused(lesion: LesionMap, column: str) -> None:
    with pytest.raises(CohortError, match=f"no training study has a file in column '{column}'"):
        fit_columns(on_paper(12), TARGETS, replace(BESIDE, lesion=lesion))


def test_the_table_keeps_the_map(patients: list[Study], tmp_path: Path) -> None:
    study = with_map(patients[1], ramp(), tmp_path / "soft.nii.gz")
    Cohort((study,)).write(tmp_path / "cohort.csv")
    assert "lesion_probability" in (tmp_path / "cohort.csv").read_text().splitlines()[0].split(",")
    (again,) = read_cohort(tmp_path / "cohort.csv")
    assert again.lesion == study.lesion
    assert "lesion_probability" not in again.values


def test_what_is_fitted_knows_no_other_patient() -> None:
    train, held = on_paper(20)[:12], on_paper(20)[12:]
    poisoned = [
        replace(s, time=900.0, event=True, values={"subtype": "LCNEC", "site": "skin", "age": 999.0, "sex": "X"})
        for s in held
    ]
    fitted = fit_columns(train, TARGETS, replace(BESIDE, impute=True))
    assert fitted == fit_columns(list(train), TARGETS, replace(BESIDE, impute=True))
    with pytest.warns(UserWarning, match="goes up to 900: are these days"):
        assert fitted != fit_columns(train + poisoned, TARGETS, replace(BESIDE, impute=True))
    # Held-out values that training never showed count as unknown or missing, and change nothing that was fitted.
    sample = fitted.encode(poisoned[0])
    assert sample["label"].tolist() == [UNKNOWN, UNKNOWN]
    assert sample["clinical_available"].tolist() == [True, False]


def test_days_are_told_once_for_all_forms() -> None:
    train = [replace(study, time=30 * study.time if study.time else None) for study in on_paper(12)]
    with pytest.warns(UserWarning, match="are these days") as told:
        fit_columns(train, TargetsConfig(survival=("hazard", "cox"), bins=3), BesideConfig())
    assert len(told) == 1


def test_months_past_the_longest_follow_up_are_told_once_for_all_forms() -> None:
    train = [replace(study, time=min(study.time, 12.33) if study.time else None) for study in on_paper(12)]
    config = TargetsConfig(survival=("hazard", "cox"), bins=3)
    with pytest.warns(UserWarning, match="follow-up") as told:
        targets = fit_columns(train, config, BesideConfig()).targets
    assert [str(warning.message) for warning in told] == [
        "months 18, 24, 36 lie past the longest follow-up of the training studies (12.3 months): chances there are not "
        "predicted"
    ]
    assert {target.past_follow_up for target in targets} == {(18.0, 24.0, 36.0)}
    short = [replace(study, time=min(study.time, 35.97) if study.time else None) for study in on_paper(12)]
    with pytest.warns(UserWarning, match=r"^month 36 lies past the longest follow-up .* \(35.9 months\)"):
        fit_columns(short, config, BesideConfig())


def test_a_class_with_one_training_study_is_told() -> None:
    train = [replace(study, values={"subtype": name}) for study, name in zip(on_paper(5), "aabbc", strict=True)]
    with pytest.warns(UserWarning, match="class 'c' of 'subtype' has one training study: nothing can be learned of it"):
        fit_columns(train, TargetsConfig(labels=("subtype",)), BesideConfig())


def test_many_classes_with_one_training_study_are_told_once() -> None:
    train = [replace(study, values={"age": float(i)}) for i, study in enumerate(on_paper(9))]
    with pytest.warns(UserWarning, match="training study") as told:
        fit_columns(train, TargetsConfig(labels=("age",)), BesideConfig())
    (said,) = [str(warning.message) for warning in told]
    assert said.startswith("classes '0', '1', '2', '3', '4' and 4 more of 'age' have one training study each: nothing")


def test_one_death_is_told_whatever_the_forms_of_survival() -> None:
    train = [replace(study, time=40.0, event=not i) for i, study in enumerate(on_paper(5))]
    with pytest.warns(UserWarning, match="one death") as told:
        fit_columns(train, TargetsConfig(survival=("hazard", "cox")), BesideConfig())
    said = [str(warning.message) for warning in told]
    assert said == ["one death is observed among the training studies: nothing can be learned of survival"]


def test_classes_may_be_named_as_numbers() -> None:
    train = [
        replace(study, values={"grade": g}) for study, g in zip(on_paper(5), (2.0, 2.0, 3.5, 3.5, 4.0), strict=True)
    ]
    config = TargetsConfig(labels=("grade",), classes={"grade": (3.5, 2.0)})
    assert fit_columns(train, config, BesideConfig()).targets[0].classes == ("3.5", "2")


def test_what_cannot_be_read_is_told_with_the_study() -> None:
    columns = fit_columns(on_paper(12), TARGETS, BESIDE)
    odd = replace(on_paper(1)[0], values={"age": "61,5"})
    with pytest.raises(
        CohortError, match=f"^study '{odd.name}': column 'age' holds '61,5': expected a number with a d"
    ):
        columns.encode(odd)


def test_scaling_is_that_of_the_training_fold() -> None:
    train = on_paper(12)
    (age, sex) = fit_columns(train, TARGETS, BESIDE).clinical
    known = torch.tensor([float(s.values["age"]) for s in train if s.values["age"] is not None])
    assert (age.mean, age.deviation) == pytest.approx((float(known.mean()), float(known.std(correction=0))))
    assert sex.categories == ("F", "M")


@pytest.mark.parametrize(
    ("targets", "beside", "message"),
    [
        (TargetsConfig(labels=("grade",)), BesideConfig(), "no column 'grade': beside images it has subtype, site"),
        (TargetsConfig(labels=("split",)), BesideConfig(), "'split' has a meaning of its own .* under another name"),
        (TargetsConfig(labels=("subtype",)), BesideConfig(clinical=("ki67",)), "no column 'ki67'"),
        (TargetsConfig(labels=("subtype",)), BesideConfig(clinical=("subtype",)), "'subtype' is predicted"),
        (TargetsConfig(survival=("cox",)), BesideConfig(clinical=("time",)), "'time' is predicted"),
        (
            TargetsConfig(labels=("subtype",)),
            BesideConfig(vector=("time",)),
            "'time' is follow-up, .* of beside.vector",
        ),
        (TargetsConfig(multilabel={"m": ("sex",)}), BesideConfig(), "column 'sex' holds 'F': expected 1, 0"),
        (
            TargetsConfig(labels=("subtype",)),
            BesideConfig(vector=("sex",)),
            "column 'sex' holds 'F': expected a number",
        ),
    ],
)
def test_columns_that_cannot_be_used_are_one_sentence(
    targets: TargetsConfig, beside: BesideConfig, message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        fit_columns(on_paper(12), targets, beside)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing is to be predicted"),
        ({"labels": ("a",), "classes": {"b": ("x", "y")}}, "names 'b', which is not among"),
        ({"survival": ("hazard",), "months": (21.0, 6.0)}, "months that rise"),
        ({"labels": ("event",)}, "column 'event' is follow-up, and no label"),
        ({"labels": ("idh",), "classes": {"idh": (False, True)}}, "idh holds true or false, which is how YAML reads"),
    ],
)
def test_targets_that_contradict_themselves_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetsConfig(**values)  # type: ignore[arg-type]


def test_a_patient_censored_before_its_class_has_no_label() -> None:
    (target,) = fit_columns(on_paper(12), TargetsConfig(survival=("survival_classes",)), BesideConfig()).targets
    study = on_paper(12)[1]
    early, late = replace(study, time=10.0, event=False), replace(study, time=30.0, event=False)
    assert (is_labelled(early, [target]), is_labelled(late, [target])) == (False, True)
    assert "censored before their class was known" in format_targets([target])


def test_shares_are_drawn_exactly_and_every_draw_is_another(patients: list[Study], cache: StudyCache) -> None:
    shares = Shares("site", {"lung": 50.0, "breast": 25.0, "kidney": 25.0})
    studies = [study for study in patients if study.values["site"] != "kidney"] + [patients[2]]
    dataset = PatientDataset(studies, VIEW, cache, Columns(), seed=3, shares=shares)
    addresses = [dataset.address((epoch, index)) for epoch in range(4) for index in range(len(dataset))]
    assert len(set(addresses)) == len(addresses)
    for epoch in range(4):
        drawn = [dataset.address((epoch, index))[1] for index in range(len(dataset))]
        counts = Counter(str(studies[i].values["site"]) for i in drawn)
        assert counts["lung"] in (3, 4)
        assert sum(counts.values()) == len(dataset) == 7
        assert drawn == [dataset.address((epoch, index))[1] for index in range(len(dataset))]
    assert dataset.address((EVALUATION_EPOCH, 2)) == (EVALUATION_EPOCH, 2)
    with pytest.raises(CohortError, match=r"no training study has 'skin' in column 'site'.*breast, kidney, lung"):
        PatientDataset(studies, VIEW, cache, Columns(), shares=Shares("site", {"skin": 1.0}))
    with pytest.raises(ConfigError, match="must be positive"):
        Shares("site", {"lung": -1.0})


def test_the_window_holds_every_brain(patients: list[Study], cache: StudyCache) -> None:
    size = whole_brain(patients, cache, VIEW)
    assert all(extent % patch == 0 for extent, patch in zip(size, VIEW.patch, strict=True))
    assert cut_by(patients, cache, size) == []
    assert cut_by(patients, cache, (8, 8, 8)) == [study.name for study in patients]
    dataset = PatientDataset(patients, replace(VIEW, size=size), cache, Columns())
    assert int(dataset[(EVALUATION_EPOCH, 0)]["brain"].sum()) == int((cache.load(patients[0]).flags & 1).sum())


@pytest.mark.parametrize("single", [0.0, 0.6])
def test_subset_shares_are_the_chances_of_modality_dropout(single: float) -> None:
    available = torch.tensor([True, True, False, True]).numpy()
    names = tuple(name for name, there in zip(STANDARD, available, strict=True) if there)
    shares = subset_shares([names], 0.5, single)
    assert sum(shares.values()) == pytest.approx(1)
    counts: Counter[str] = Counter()
    for index in range(4000):
        rng = sample_generator(0, 0, index)
        kept = keep_random_subset(available, rng, single) if rng.random() < 0.5 else available
        counts[subset_label([n for n, there in zip(STANDARD, kept, strict=True) if there])] += 1
    assert counts.keys() == shares.keys()
    for name, share in shares.items():
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)

"""Splits by patient: nobody is on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmmae.data.cohort import Cohort, Study
from bmmae.data.splits import train_and_validation, warn_of_absent
from bmmae.errors import CohortError


def cohort(patients: int = 10, visits: int = 2, splits: tuple[str | None, ...] = (None,)) -> Cohort:
    studies = [
        Study(f"p{p}", {"t1": Path(f"{p}-{v}.nii")}, session=str(v), split=splits[p % len(splits)])
        for p in range(patients)
        for v in range(visits)
    ]
    return Cohort(tuple(studies))


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_on_both_sides_and_none_is_lost(seed: int) -> None:
    train, validation = train_and_validation(cohort(), validation_share=0.3, seed=seed)
    sides = [{study.group for study in part} for part in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    assert len(train) + len(validation) == 20


def test_the_split_is_a_function_of_the_seed_and_not_of_the_tables_order() -> None:
    first = train_and_validation(cohort(), seed=1)[1]
    rows = Cohort(tuple(reversed(cohort().studies)))
    assert {s.key for s in train_and_validation(rows, seed=1)[1]} == {s.key for s in first}
    assert len({train_and_validation(cohort(), seed=seed)[1][0].group for seed in range(20)}) > 3


@pytest.mark.parametrize("splits", [(None,), ("train", "validation", "test")])
def test_with_a_share_of_nothing_all_train_but_the_tested(splits: tuple[str | None, ...]) -> None:
    rows = cohort(splits=splits)
    train, validation = train_and_validation(rows, validation_share=0.0)
    assert not validation
    assert {study.key for study in train} == {study.key for study in rows if study.split != "test"}
    with pytest.raises(CohortError, match="no training studies among 20"):
        train_and_validation(cohort(splits=("test",)), validation_share=0.0)


def test_subjects_named_as_visits_of_one_patient_are_told() -> None:
    names = ("p1_v1", "p1_v2", "p2_v1", "p3_v1")
    studies = tuple(Study(name, {"t1": Path(f"{name}.nii")}) for name in names)
    with pytest.warns(UserWarning, match="p1_v1 and p1_v2 look like visits of one patient: fill in `group`"):
        train_and_validation(Cohort(studies), validation_share=0.5)


def test_the_tables_own_split_is_used_and_test_studies_are_in_neither_part() -> None:
    train, validation = train_and_validation(cohort(9, splits=("train", "validation", "test")))
    assert {study.split for study in train} == {"train"}
    assert {study.split for study in validation} == {"validation"}


def test_studies_that_the_tables_split_leaves_open_are_counted() -> None:
    table = cohort(9, splits=("train", "validation", None))
    with pytest.warns(UserWarning, match=r"^6 of 18 studies are not used, .* is blank: mark them train, validation"):
        train, validation = train_and_validation(table)
    assert len(train) == len(validation) == 6


def test_a_modality_that_nobody_has_is_told() -> None:
    studies = [Study("a", {"t1": Path("a.nii.gz")}), Study("b", {"flair": Path("b.nii.gz")})]
    warn_of_absent(studies, ("t1", "flair"))
    with pytest.warns(UserWarning, match="no training study has t2, dwi, and nothing will be learned of it"):
        warn_of_absent(studies, ("t1", "t2", "dwi"))


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_each_part_has_at_least_one_patient(share: float) -> None:
    train, validation = train_and_validation(cohort(2), validation_share=share)
    assert len(train) == len(validation) == 2


@pytest.mark.parametrize(
    ("table", "missing"),
    [(cohort(1), "validation"), (cohort(splits=("train",)), "validation"), (cohort(splits=("test",)), "training")],
)
def test_a_part_that_would_be_empty_is_refused(table: Cohort, missing: str) -> None:
    with pytest.raises(CohortError, match=f"no {missing} studies among .*: mark some rows 'train'"):
        train_and_validation(table)

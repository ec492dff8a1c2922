"""Names tell visits from patients only where they can hardly mean anything else."""

from pathlib import Path

import pytest

from bmmae.data.cohort import Study
from bmmae.data.visits import is_visit, patient_of, ungrouped_visits


@pytest.mark.parametrize("name", ["visit1", "week-044-2", "ses-pre", "2019.01.31", "1-2-2019", "20190131_fu2"])
def test_names_of_visits(name: str) -> None:
    assert is_visit(("p01", name))


@pytest.mark.parametrize(
    "name", ["p01", "1", "45", "900-00-1961", "2013_20_1", "20191331", "daylight", "T1", "scan2", "pre"]
)
def test_other_names(name: str) -> None:
    assert not is_visit(("p01", name))


def test_dates_in_the_root_may_be_patients() -> None:
    assert not is_visit(("20190131",))
    assert is_visit(("baseline",))
    assert not is_visit(())


@pytest.mark.parametrize(
    ("subject", "patient"),
    [
        ("p01_baseline", "p01"),
        ("sub-01_ses-2", "sub-01"),
        ("p01_visit1_20190131", "p01"),
        ("W39_1998.09.19", "W39"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("p01_v1", "p01"),
        ("p01_T0", "p01"),
        ("p01_T1", "p01"),
        ("p01_scan2", "p01"),
        ("p01_scan-2", "p01"),
        ("sub-01-pre", "sub-01"),
        ("p01.post", "p01"),
        ("p01_v1_pre", "p01"),
        ("p01_baseline_post", "p01"),
        ("p01_2019-01-31_scan2", "p01"),
        ("visit1_pre", "visit1_pre"),
        ("site1_v1_baseline", "site1_v1"),
        ("p01_T12", "p01_T12"),
        ("p01_scan02", "p01_scan02"),
        ("p01_prepared", "p01_prepared"),
        ("anna_T0", "anna_T0"),
        ("scan2", "scan2"),
        ("scan_2", "scan_2"),
        ("site1_v01", "site1_v01"),
        ("anna_v1", "anna_v1"),
        ("scan_baseline", "scan_baseline"),
        ("visit1_20190131", "visit1_20190131"),
        ("Brats18_2013_11_1", "Brats18_2013_11_1"),
    ],
)
def test_a_visit_at_the_end_of_a_name_is_left_out(subject: str, patient: str) -> None:
    assert patient_of(subject) == patient


def named(*subjects: str, group: str = "") -> list[Study]:
    return [Study(subject, {"t1": Path(f"{subject}.nii")}, group=group) for subject in subjects]


def test_visits_that_no_group_joins_are_told_once() -> None:
    alike = "fill in `group`, else they may fall on both sides of a split"
    told = ungrouped_visits(named("p01_v1", "p02", "p01_v2"))
    assert told == f"p01_v1 and p01_v2 look like visits of one patient: {alike}"
    many = named("p09", *(f"p{patient:02}_ses-{visit}" for patient in range(5) for visit in (1, 2, 3)))
    told = ungrouped_visits(many)
    assert told is not None
    assert told.startswith("p00_ses-1 and p00_ses-2, p01_ses-1 and p01_ses-2, p02_ses-1 and p02_ses-2 and 2 more look")
    assert told.endswith(f"like visits of one patient each: {alike}")


@pytest.mark.parametrize(
    "studies",
    [
        named("p01_v1", "p01_v2", group="p01"),
        named("p01_v1", "p02_v1"),
        named("sub-01", "sub-02", "BraTS-GLI-00001", "Brats18_2013_11_1", "Brats18_2013_12_1"),
        [Study("p01_v1", {"t1": Path("a.nii")}, session=visit) for visit in "12"],
    ],
)
def test_other_tables_are_not_doubted(studies: list[Study]) -> None:
    assert ungrouped_visits(studies) is None


@pytest.mark.parametrize(
    "twins",
    [("P01", "p01"), ("0012", "12"), ("sub-1", "sub-001"), ("p01_v1", "P1_v2"), ("Mu\u0308ller", "M\u00fcller")],
)
def test_names_that_spreadsheets_and_typists_change_are_one_patients(twins: tuple[str, str]) -> None:
    told = ungrouped_visits(named(*twins, "p100", "p10", "p1000"))
    assert told is not None
    assert told.startswith(f"{' and '.join(sorted(twins))} look like visits of one patient: ")


def test_groups_that_differ_in_spelling_or_part_a_subject_are_told() -> None:
    def told(*pairs: tuple[str, str]) -> str | None:
        return ungrouped_visits(
            Study(subject, {"t1": Path("a.nii")}, session=str(i), group=group)
            for i, (subject, group) in enumerate(pairs)
        )

    assert told(("a", "P01"), ("b", "p1"), ("c", "P02")) == ungrouped_visits(named("P01", "p1"))
    assert told(("a", "P01"), ("P1", "")) == ungrouped_visits(named("P01", "P1"))
    assert told(("a", "P01"), ("a", "P02"), ("b", "P03")) is not None
    assert told(("1", "7"), ("2", "1"), ("3", "7")) is None  # numbers of scans and of patients

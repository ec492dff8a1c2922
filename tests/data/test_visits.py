"""Names tell visits from patients only where they can hardly mean anything else."""

import pytest

from bmmae.data.visits import is_visit, patient_of


@pytest.mark.parametrize("name", ["visit1", "week-044-2", "ses-pre", "2019.01.31", "1-2-2019", "20190131_fu2"])
def test_names_of_visits(name: str) -> None:
    assert is_visit(("p01", name))


@pytest.mark.parametrize("name", ["p01", "1", "45", "900-00-1961", "2013_20_1", "20191331", "daylight"])
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
        ("scan_baseline", "scan_baseline"),
        ("visit1_20190131", "visit1_20190131"),
        ("Brats18_2013_11_1", "Brats18_2013_11_1"),
    ],
)
def test_a_visit_at_the_end_of_a_name_is_left_out(subject: str, patient: str) -> None:
    assert patient_of(subject) == patient

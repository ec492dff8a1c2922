"""Clinical columns: numbers stay numbers, whatever else a table holds."""

from __future__ import annotations

import pytest

from bmmae.clinical import ClinicalVariable, VectorInput, fit_clinical, fit_vector
from bmmae.errors import CohortError


def test_text_in_another_part_of_the_table_changes_nothing() -> None:
    # A column with any text in it is read as text, for all rows.
    assert fit_clinical("age", ["61.5", None, "42"]) == fit_clinical("age", [61.5, None, 42.0])
    age = ClinicalVariable("age", "numeric", 60.0, 10.0)
    assert age.encode("70") == age.encode(70.0) == (1.0, True)
    with pytest.raises(CohortError, match="column 'age' holds '>89': expected a number"):
        age.encode(">89")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["61", "42", ">89"], "'age' holds numbers and '>89': write numbers with a decimal point"),
        (["61,5", "42,1", "50,0"], "'age' holds numbers and '61,5', '42,1', '50,0'"),
        ([f"{year},5" for year in range(40, 90)], "'40,5', '41,5', '42,5', '43,5', '44,5' and 45 more: write numbers"),
    ],
)
def test_numbers_that_cannot_be_read_are_named(cells: list[str], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        fit_clinical("age", cells)


def test_words_are_categories_though_one_is_a_number() -> None:
    assert fit_clinical("grade", ["low", "high", "4"]).categories == ("4", "high", "low")
    assert fit_clinical("sex", ["F", "M", None]).kind == "categorical"


def test_a_vector_takes_numbers_alone() -> None:
    vector = fit_vector(("a", "b"), [{"a": 1.0, "b": "2"}, {"a": 3.0, "b": "4"}])
    assert vector == VectorInput(("a", "b"), (2.0, 3.0), (1.0, 1.0))
    assert vector.encode({"a": 2.0, "b": None}) == ([0.0, 0.0], False)
    with pytest.raises(CohortError, match="column 'b' holds 'error': expected a number or a blank cell"):
        vector.encode({"a": 2.0, "b": "error"})


def test_text_with_a_category_a_patient_is_told() -> None:
    with pytest.warns(UserWarning, match=r"'age' holds text, 7 different categories among 8 training .*'40 y', '41 y'"):
        fit_clinical("age", [*(f"{year} y" for year in range(40, 47)), "40 y", None])
    fit_clinical("site", ["lung", "breast", "kidney", "skin", "colon"])  # few patients


def test_categories_that_differ_in_case_or_blanks_only_are_told() -> None:
    with pytest.warns(UserWarning, match="'M', 'm' of column 'sex' differ in case or blanks only"):
        fit_clinical("sex", ["M", "m", "F", "?", "unknown", "9", *"FFMMFFMM"])


def test_a_column_of_one_value_has_a_deviation_of_one() -> None:
    assert fit_clinical("dose", [46.1] * 7).encode(50.0)[0] == pytest.approx(3.9)  # numpy's deviation is 7e-15
    assert fit_vector(("a", "b"), [{"a": 0.1, "b": 46.1}] * 7).deviation == (1.0, 1.0)


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(CohortError, match="column 'age' holds 'inf': expected a number"):
        fit_clinical("age", [50.0, 60.0]).encode(float("inf"))
    with pytest.raises(CohortError, match="column 'r1' holds '-inf': expected a number"):
        VectorInput(("r1",), (0.0,), (1.0,)).encode({"r1": float("-inf")})


def test_a_decimal_comma_is_told_as_such() -> None:
    point = "holds '61,5': expected a number with a decimal point"
    with pytest.raises(CohortError, match=point):
        ClinicalVariable("age", "numeric", 60.0, 10.0).encode("61,5")
    with pytest.raises(CohortError, match=point):
        fit_vector(("a",), [{"a": 1.0}, {"a": "61,5"}])

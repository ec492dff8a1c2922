"""What is fitted for a target: on what it is given and nothing else; times censored too early are never labelled."""

from __future__ import annotations

import math
import re
import unicodedata
import warnings

import numpy as np
import pytest

from bmmae.errors import CohortError, ConfigError
from bmmae.schema import from_dict, to_dict
from bmmae.targets import (
    UNKNOWN,
    Kind,
    Target,
    censoring_weights,
    fit_label,
    fit_multilabel,
    fit_survival,
    interval_edges,
    survival_classes,
    warn_of_days,
)


def test_two_classes_are_binary_and_the_second_is_positive() -> None:
    target = fit_label("grade", ["LGG", "GBM", None, "GBM", "GBM"])
    assert (target.kind, target.classes, target.outputs) == ("binary", ("GBM", "LGG"), 1)
    assert target.shares == (0.75, 0.25)
    assert [target.encode({"grade": cell}) for cell in ("LGG", "GBM", None, "?")] == [[1], [0], [UNKNOWN], [UNKNOWN]]


def test_numbers_are_classes_however_they_are_written() -> None:
    target = fit_label("idh", [1.0, 0.0, 1.0])
    assert target.classes == ("0", "1")
    assert (target.encode({"idh": "1"}), target.encode({"idh": 1.0}), target.encode({"idh": math.nan})) == (
        [1],
        [1],
        [UNKNOWN],
    )


def test_numeric_codes_keep_all_their_digits() -> None:
    assert fit_label("snomed", [1163375002.0, 1163375112.0, 393563007.0, 0.25]).classes == (
        "0.25",
        "1163375002",
        "1163375112",
        "393563007",
    )
    with pytest.warns(UserWarning, match="'unknown' of column 'idh' counts as a class"):
        assert fit_label("idh", ["1.0", "0", "unknown", "007"]).classes == ("0", "007", "1", "unknown")


def test_months_that_float32_rounds_belong_where_they_did() -> None:
    months, died = np.array([3.3, 6.1, 6.1, 9.7, 21.9, 30.0]), np.array([True, True, False, False, True, True])
    target = fit_survival("survival_classes", months.tolist(), died.tolist(), boundaries=(6.1, 21.9), ipcw=True)
    rounded = months.astype(np.float32)  # as in a batch
    expected = [0, 1, UNKNOWN, UNKNOWN, 1, 2]
    assert survival_classes(months, died, target.edges).tolist() == expected
    assert survival_classes(rounded, died, target.edges).tolist() == expected
    np.testing.assert_array_equal(censoring_weights(target, rounded, died), censoring_weights(target, months, died))
    np.testing.assert_allclose(censoring_weights(target, months, died), [1, 1, 0, 0, 2, 2])


def test_balanced_weights_undo_the_frequencies() -> None:
    target = fit_label("site", ["a"] * 6 + ["b"] * 3 + ["c"], balanced=True)
    products = np.array(target.weights) * np.array([6, 3, 1])
    np.testing.assert_allclose(products, products[0])
    assert products.sum() == pytest.approx(10)


def test_two_named_classes_of_many_leave_the_others_unlabelled() -> None:
    target = fit_label("site", ["lung", "breast", "kidney", "lung"], ("lung", "breast"))
    assert target.kind == "binary"
    assert target.counts == {"labelled": 3, "blank": 0, "of no class": 1}
    assert target.encode({"site": "kidney"}) == [UNKNOWN]


@pytest.mark.parametrize(
    ("cells", "classes", "message"),
    [
        ([None, None], (), "blank for all 2 training studies"),
        (["a", "a", None], (), r"one class only among the training studies \('a', 2 times\)"),
        (["a", "b"], ("a", "c"), "one class only"),
        (["a", "b", "b"], ("a", "b", "c"), "class 'c' of column 'x' has no training study"),
        (
            ["a", "b"],
            ("A", "B"),
            r"no training study is of a class that counts \('A', 'B'\): column 'x' holds 'a', 'b'",
        ),
        (["a", "b"], ("a", "B"), r"one class only .* \('a', 1 times\), and 'b', which do not count"),
        (["a", "b", "C"], ("a", "b", "c"), "class 'c' of column 'x' has no training study: it holds 'a', 'b', 'C'"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(
    cells: list[str | None], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        fit_label("x", cells, classes)


def test_a_class_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="class 'a' of column 'x' is named twice"):
        fit_label("x", ["a", "b", "b"], ("a", "b", "a"))


@pytest.mark.parametrize("classes", [(), ("SCLC", "NSCLC")])
def test_classes_that_differ_in_case_or_blanks_only_are_told(classes: tuple[str, ...]) -> None:
    cells = ["SCLC", "NSCLC", "sclc", " SCLC ", "SCLC", "other", "Other"]
    with pytest.warns(UserWarning, match="write them alike") as told:
        target = fit_label("subtype", cells, classes)
    said = [str(warning.message) for warning in told]
    # What was not named is no class, however it is written.
    assert len(said) == (1 if classes else 2)
    assert any("'SCLC'" in one and "'sclc'" in one and "' SCLC '" in one and "column 'subtype'" in one for one in said)
    assert len(target.classes) == (2 if classes else 6)


@pytest.mark.parametrize("word", ["unknown", "?", "N.A."])
def test_a_class_that_says_that_nothing_is_known_is_told(word: str) -> None:
    cells = ["low", "high", word]
    with pytest.warns(
        UserWarning, match=rf"'{re.escape(word)}' of column 'grade' counts as a class: leave cells blank"
    ):
        fit_label("grade", cells)
    fit_label("grade", cells, ("low", "high", word))  # warnings are errors here: whoever names it, means it


def test_classes_that_look_the_same_are_told() -> None:
    cells = ["früh", unicodedata.normalize("NFD", "früh"), "spät"]
    with pytest.warns(UserWarning, match="differ in case or blanks only, or in how letters such as ü are stored, but"):
        fit_label("onset", cells)


def test_several_columns_of_yes_and_no() -> None:
    target = fit_multilabel("markers", {"idh": [1.0, 0.0, None], "mgmt": ["yes", "no", "no"]}, balanced=True)
    assert (target.outputs, target.columns, target.shares) == (2, ("idh", "mgmt"), (0.5, 1 / 3))
    assert target.weights == pytest.approx((1, 1, 0.75, 1.5))
    assert target.encode({"idh": None, "mgmt": "YES"}) == [UNKNOWN, 1]
    with pytest.raises(CohortError, match="column 'idh' holds 'maybe'"):
        target.encode({"idh": "maybe", "mgmt": None})
    with pytest.raises(CohortError, match="2 yes and 0 no"):
        fit_multilabel("m", {"a": [1.0, 1.0]})


TIMES = np.array([3.0, 6.0, 10.0, 21.0, 25.0, 3.0, 10.0, 21.0, 30.0, math.nan])
DIED = np.array([True, True, True, True, True, False, False, False, False, True])


def test_survival_classes_are_known_or_left_out() -> None:
    assert survival_classes(TIMES, DIED).tolist() == [0, 1, 1, 1, 2, UNKNOWN, UNKNOWN, UNKNOWN, 2, UNKNOWN]


def test_patients_censored_before_their_class_are_counted() -> None:
    target = fit_survival("survival_classes", TIMES.tolist(), DIED.tolist())
    assert target.classes == ("below 6 months", "6 to 21 months", "above 21 months")
    assert target.counts == {
        "labelled": 6,
        "blank": 1,
        "deaths": 5,
        "censored before their class was known": 3,
    }
    assert target.shares == pytest.approx((1 / 6, 3 / 6, 2 / 6))


def test_censoring_weights_equal_a_calculation_by_hand() -> None:
    times, died = np.array([2.0, 4.0, 4.0, 8.0, 30.0, 30.0]), np.array([True, False, True, True, True, False])
    target = fit_survival("survival_classes", times.tolist(), died.tolist(), ipcw=True)
    # One of the six leaves at month 4, after the death of that month: four were still under observation.
    weights = censoring_weights(target, times, died)
    np.testing.assert_allclose(weights, [1, 0, 1, 4 / 3, 4 / 3, 4 / 3])
    assert weights.sum() == pytest.approx(6)  # what is left out, the others stand in for


def test_without_censoring_every_weight_is_one() -> None:
    target = fit_survival("survival_classes", [2.0, 10.0, 30.0], [True] * 3, ipcw=True)
    np.testing.assert_allclose(censoring_weights(target, np.array([2.0, 10.0, 30.0]), np.array([True] * 3)), 1)


def test_intervals_hold_equal_shares_of_the_deaths() -> None:
    times = np.arange(1.0, 21.0)
    assert interval_edges(times, np.ones(20, bool), 4) == (5.0, 10.0, 15.0, 20.0)
    assert interval_edges(np.array([3.0, 3.0, 3.0, 9.0]), np.array([1, 1, 1, 0], bool), 5) == (3.0,)


@pytest.mark.parametrize(
    ("times", "events", "message"),
    [
        ([None, math.nan], [True, True], "no training study has both `time` and `event`"),
        ([3.0, 4.0], [None, None], "no training study has both"),
        ([3.0, 4.0], [False, False], "no death is observed among 2"),
        ([0.0, 0.0, 4.0], [True, True, False], "every death among the training studies is at `time` 0"),
    ],
)
def test_follow_up_that_says_nothing_is_refused(
    times: list[float | None], events: list[bool | None], message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        fit_survival("hazard", times, events)


@pytest.mark.parametrize("times", [[120.0, 200.0, 1063.0], [100.0, 121.0, 300.0]])
def test_times_that_can_hardly_be_months_are_told(times: list[float]) -> None:
    with pytest.warns(UserWarning, match=rf"time goes up to {times[-1]:g}: are these days\? .*\(divide by 30.44\)"):
        warn_of_days(times, [True] * 3)


def test_long_follow_up_in_months_is_not_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_days([20.0, 120.0, 360.0, 9999.0, None], [True, True, True, None, True])  # no event, no follow-up
        warn_of_days([None], [True])


@pytest.mark.parametrize("kind", ["hazard", "cox"])
def test_the_longest_follow_up_is_fitted_and_travels(kind: Kind) -> None:
    times, died = [3.0, 9.79, 12.33, 40.0, None], [True, True, False, None, True]
    target = fit_survival(kind, times, died, curve=(6.0, 12.0, 18.0, 24.0))
    assert (target.followed, target.past_follow_up) == (12.33, (18.0, 24.0))  # whose event is not known does not count
    assert from_dict(Target, to_dict(target)) == target


def test_a_target_saved_before_knows_no_longest_follow_up() -> None:
    saved = to_dict(fit_survival("hazard", [3.0, 9.0], [True, True], curve=(6.0, 36.0)))
    del saved["followed"]
    assert from_dict(Target, saved).past_follow_up == ()


def test_an_empty_survival_class_is_refused() -> None:
    with pytest.raises(CohortError, match="'below 6 months' has no training study"):
        fit_survival("survival_classes", [10.0, 30.0], [True, True])


def test_a_target_travels_as_json() -> None:
    target = fit_survival("survival_classes", TIMES.tolist(), DIED.tolist(), ipcw=True)
    assert from_dict(Target, to_dict(target)) == target


def test_months_must_rise() -> None:
    with pytest.raises(ConfigError, match="must be positive and rise"):
        Target("x", "hazard", edges=(5.0, 3.0))


def test_blanks_within_a_name_are_told() -> None:
    with pytest.warns(UserWarning, match="'grade  II', 'grade II' of column 'x' differ in case or blanks only"):
        fit_label("x", ["grade II", "grade  II", "grade IV"])


def test_long_codes_that_differ_in_the_last_digit_are_two_classes() -> None:
    codes = ["1234567890123456788", "1234567890123456789"]
    assert fit_label("x", codes).classes == tuple(codes)

"""Survival from a table of predictions: never across folds, whose risks have scales of their own."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prediction_tables import SUBSETS, classes, survival

from bmmae.errors import CohortError
from bmmae.evaluation.predictions import SurvivalPredictions, read_predictions, write_predictions
from bmmae.evaluation.survival import censoring_of, compare_survival, evaluate_survival, horizon, risk_groups
from bmmae.metrics import censoring_curve, harrell_c, log_rank, uno_c

GAINS = {"image": 4.0, "clinical": 0.1}


def test_concordance_is_computed_within_folds_whatever_their_scales() -> None:
    table = survival(GAINS)
    scores = evaluate_survival(table, draws=30)
    rows = [i for i, k in enumerate(table.keys) if (k.model, k.subset) == ("image", "t1ce")]
    folds = np.array([table.keys[row].fold for row in rows])
    each = [
        harrell_c(table.risk[chosen], table.time[chosen], table.event[chosen])
        for chosen in (np.array(rows)[folds == fold] for fold in range(3))
    ]
    found = next(s for s in scores if (s.model, s.subset, s.metric, s.fold) == ("image", "t1ce", "harrell_c", None))
    assert found.value.value == pytest.approx(np.mean(each))
    assert found.value.low is not None
    assert found.value.low < found.value.value
    pooled = harrell_c(table.risk[rows], table.time[rows], table.event[rows])
    assert pooled < found.value.value - 0.05  # what pooling folds of different scales would have reported


def test_all_figures_are_there() -> None:
    scores = evaluate_survival(survival(GAINS), draws=0)
    names = {s.metric for s in scores}
    assert {"harrell_c", "uno_c", "auc_over_time", "integrated_brier"} <= names
    assert sum(name.startswith("auc_at_") for name in names) == 3


def test_another_model_or_subset_beside_changes_no_figure() -> None:
    table = survival(GAINS)
    fewer = [i for i, k in enumerate(table.keys) if k.model == "image" and (k.subset == "t1ce" or k.subject < "p020")]
    alone = [i for i, k in enumerate(table.keys) if k.model == "image" and k.subset == "t1ce"]
    every, some, one = (
        {s.metric: s.value.value for s in scores if (s.model, s.subset, s.fold) == ("image", "t1ce", None)}
        for scores in (
            evaluate_survival(table.take(np.array(r)), draws=0) for r in (range(len(table.keys)), fewer, alone)
        )
    )
    assert every == some == one


def test_a_figure_that_is_not_compared_is_refused_and_not_taken_for_harrells() -> None:
    with pytest.raises(CohortError, match="no figure 'auc_over_time' to compare: expected one of harrell_c, uno_c"):
        compare_survival(survival(GAINS), "clinical", metric="auc_over_time", draws=0)


def test_censoring_is_estimated_on_the_patients_of_other_folds() -> None:
    table = survival({"image": 1.0})
    others = [i for i, k in enumerate(table.keys) if k.fold != 1 and k.subset == SUBSETS[0]]
    expected = censoring_curve(table.time[others], table.event[others])
    at = np.array([5.0, 15.0, 30.0])
    assert censoring_of(table, 1).at(at) == pytest.approx(expected.at(at))


def test_late_deaths_do_not_outweigh_the_others_in_unos_concordance() -> None:
    table = survival(GAINS)
    until = horizon(table)
    each_patient_once = table.time[:60]
    assert until == np.quantile(each_patient_once, 0.9)
    each = {}
    for model in GAINS:
        folds = [
            np.array([i for i, k in enumerate(table.keys) if (k.model, k.subset, k.fold) == (model, "t1ce", fold)])
            for fold in range(3)
        ]
        each[model] = np.mean(
            [
                uno_c(table.risk[rows], table.time[rows], table.event[rows], censoring_of(table, fold), until)
                for fold, rows in enumerate(folds)
            ]
        )
    scores = evaluate_survival(table, draws=0)
    found = {s.model: s.value.value for s in scores if (s.subset, s.metric, s.fold) == ("t1ce", "uno_c", None)}
    assert found == pytest.approx(each)
    gain = next(test for _, _, test in compare_survival(table, "clinical", metric="uno_c", draws=0))
    assert gain.difference == pytest.approx(each["image"] - each["clinical"])


def test_risk_groups_are_cut_at_the_training_median_where_it_is_known() -> None:
    table = survival({"image": 2.0})
    found = risk_groups(table)
    assert {(g.subset, g.fold) for g in found} == {(subset, fold) for subset in SUBSETS for fold in range(3)}
    first = found[0]
    assert not first.from_training
    assert first.high.sum() == 10
    assert first.p == pytest.approx(log_rank(first.time, first.event, first.high.astype(int)))
    late = np.array([30.0])
    assert first.curve(high=True).at(late) < first.curve(high=False).at(late)
    cut = risk_groups(replace(table, risk_cut=np.full(len(table.keys), 0.5)))[0]
    assert cut.from_training
    assert (
        cut.high == (table.risk[: len(table.keys)][[k.fold == 0 and k.subset == SUBSETS[0] for k in table.keys]] >= 0.5)
    ).all()


def test_the_better_risk_wins() -> None:
    for metric in ("harrell_c", "uno_c"):
        found = compare_survival(survival(GAINS), "clinical", metric=metric, draws=100)
        assert {(model, subset) for model, subset, _ in found} == {("image", subset) for subset in SUBSETS}
        assert all(test.difference > 0 for _, _, test in found)
        assert all(test.p < 0.05 for _, _, test in found if test.method == "paired bootstrap")


def test_without_deaths_evaluation_is_refused() -> None:
    table = survival(GAINS)
    with pytest.raises(CohortError, match="died"):
        evaluate_survival(replace(table, event=np.zeros(len(table.keys), bool)))


def test_one_table_holds_both_kinds(tmp_path: Path) -> None:
    risks, labels = survival(GAINS), classes(GAINS)
    risks = replace(risks, time=np.where(np.arange(len(risks.time)) == 2, math.nan, risks.time))
    one, two = read_predictions(write_predictions(tmp_path / "both.csv", labels, risks))
    assert one is not None
    assert two is not None
    assert one.keys == two.keys == labels.keys
    for name in ("risk", "curve", "at", "risk_cut", "time"):
        assert np.array_equal(getattr(two, name), getattr(risks, name), equal_nan=True)
    assert (two.event == risks.event)[~np.isnan(risks.time)].all()
    assert len(two.known.keys) == len(risks.keys) - 1


@pytest.mark.parametrize(("curve", "message"), [([[0.2, 0.9]], "hazards"), ([[1.2, 0.9]], "hazards")])
def test_what_is_no_survival_curve_is_refused(curve: list[list[float]], message: str) -> None:
    table = survival(GAINS).take(np.array([0]))
    with pytest.raises(CohortError, match=message):
        replace(table, curve=np.array(curve), at=np.array([6.0, 12.0]))


def test_visits_are_counted_once_a_patient_and_not_tested_as_independent() -> None:
    table = survival({"image": 2.0})
    once = risk_groups(table)[0]
    visits = SurvivalPredictions(
        tuple(replace(key, session=f"{visit}") for visit in range(4) for key in table.keys),
        *(np.tile(values, (4, 1) if values.ndim > 1 else 4) for values in (table.time, table.event, table.risk)),
        np.tile(table.curve, (4, 1)),
        table.at,
        np.tile(table.risk_cut, 4),
    )
    several = risk_groups(visits)[0]
    assert len(several.time) == 4 * len(once.time)
    for high in (False, True):
        assert several.counts(high=high) == once.counts(high=high)
    assert not math.isnan(once.p)
    assert math.isnan(several.p)


def test_who_may_have_died_is_not_taken_for_alive(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("subject,time,event,risk\na,5,1,0.3\nb,9,,0.1\nc,7,0,0.2\n")
    _, table = read_predictions(path)
    assert table is not None
    assert [key.subject for key in table.known.keys] == ["a", "c"]


def test_an_event_may_be_a_word(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("subject,time,event,risk\na,5,True,0.3\nb,9,FALSE,0.1\n")
    _, table = read_predictions(path)
    assert table is not None
    assert table.event.tolist() == [True, False]


def test_a_column_that_only_begins_as_a_curve_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("subject,time,event,risk,s_6 months\na,5,1,0.3,0.5\n")
    with pytest.raises(CohortError, match="column 's_6 months' begins as those of a survival curve: expected s_<time>"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("row", "message"), [("5,2", "'event'"), ("5,-1", "'event'"), ("-5,1", "'time'"), ("inf,0", "'time'")]
)
def test_follow_up_that_cannot_be_is_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"subject,time,event,risk\na,{row},0.3\n")
    with pytest.raises(CohortError, match=message):
        read_predictions(path)

"""Scores from a table of predictions: within folds, for every subset, beside a reference model."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prediction_tables import SUBSETS, classes
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as reference_curve

from bmmae.errors import CohortError
from bmmae.evaluation.classification import compare_classes, confusion, evaluate_classes, roc_curve
from bmmae.evaluation.predictions import UNKNOWN, ClassPredictions, PredictionKey, read_predictions, write_predictions
from bmmae.evaluation.scores import Score, format_scores

GAINS = {"image": 2.0, "clinical": 0.3}


def one(scores: list[Score], model: str, subset: str, metric: str, fold: int | None = None) -> Score:
    found = [s for s in scores if (s.model, s.subset, s.metric, s.fold) == (model, subset, metric, fold)]
    assert len(found) == 1
    return found[0]


def test_a_figure_is_computed_within_folds_and_averaged() -> None:
    table = classes(GAINS)
    scores = evaluate_classes(table, draws=20)
    each = []
    for fold in range(3):
        rows = [i for i, k in enumerate(table.keys) if (k.model, k.subset, k.fold) == ("image", "t1ce", fold)]
        each.append(roc_auc_score(table.label[rows], table.probabilities[rows, 1]))
        assert one(scores, "image", "t1ce", "auc", fold).value.value == pytest.approx(each[-1])
        assert one(scores, "image", "t1ce", "auc", fold).value.n == 20
    overall = one(scores, "image", "t1ce", "auc")
    assert overall.value.value == pytest.approx(np.mean(each))
    assert overall.deviation == pytest.approx(np.std(each, ddof=1))
    assert overall.value.low is not None
    assert overall.value.high is not None
    assert overall.value.low < overall.value.value < overall.value.high


def test_every_figure_for_every_model_and_subset() -> None:
    scores = evaluate_classes(classes(GAINS, names=("a", "b", "c")), draws=0)
    names = {s.metric for s in scores}
    assert {"auc", "auc_a", "auc_a_b", "top_2", "ece", "brier", "macro_f1", "specificity"} <= names
    assert {(s.model, s.subset) for s in scores} == {(model, subset) for model in GAINS for subset in SUBSETS}
    assert len(scores) == len(names) * 4 * 4  # models x subsets, each three folds and their mean
    assert "auc" in format_scores(scores, ["auc", "brier"])


def test_a_fold_of_one_class_is_left_out_and_counted() -> None:
    table = classes(GAINS)
    folds = np.array([key.fold for key in table.keys])
    table = replace(table, label=np.where(folds == 0, 1, table.label))
    overall = one(evaluate_classes(table, draws=10), "image", "t1ce", "auc")
    assert overall.undefined == 1
    assert not math.isnan(overall.value.value)


def test_unknown_labels_are_left_out() -> None:
    table = classes(GAINS)
    unknown = np.where(np.arange(len(table.label)) % 60 < 3, UNKNOWN, table.label)
    assert one(evaluate_classes(replace(table, label=unknown), draws=0), "image", "t1ce", "auc").value.n == 57
    with pytest.raises(CohortError, match="column 'label'"):
        evaluate_classes(replace(table, label=np.full(len(table.label), UNKNOWN)))


def test_the_interval_is_over_patients_not_rows() -> None:
    table = classes({"image": 1.0})
    twice = ClassPredictions(
        (*table.keys, *(replace(key, session="second") for key in table.keys)),
        table.classes,
        np.tile(table.label, 2),
        np.tile(table.probabilities, (2, 1)),
    )
    once, doubled = (one(evaluate_classes(t, draws=100), "image", "t1ce", "auc").value for t in (table, twice))
    assert (doubled.value, doubled.low, doubled.high, doubled.n) == (once.value, once.low, once.high, 60)


def test_the_better_model_wins_over_folds() -> None:
    found = compare_classes(classes(GAINS), "clinical", draws=100)
    assert [(model, subset, test.method) for model, subset, test in found] == [
        ("image", subset, method) for subset in SUBSETS for method in ("paired bootstrap", "corrected t")
    ]
    assert all(test.difference > 0.1 for _, _, test in found)
    assert all(test.p < 0.05 for _, _, test in found if test.method == "paired bootstrap")


def test_one_test_set_is_compared_by_delong() -> None:
    table = classes(GAINS)
    together = replace(table, keys=tuple(replace(key, fold=0) for key in table.keys))
    methods = {test.method: test for _, subset, test in compare_classes(together, "clinical", draws=100)}
    assert set(methods) == {"paired bootstrap", "DeLong"}
    assert methods["DeLong"].difference == pytest.approx(methods["paired bootstrap"].difference)


def test_comparing_with_an_unknown_model_is_refused() -> None:
    with pytest.raises(CohortError, match="no predictions of 'radiologist'"):
        compare_classes(classes(GAINS), "radiologist")
    with pytest.raises(CohortError, match="no figure 'area'"):
        compare_classes(classes(GAINS), "clinical", metric="area")


def test_confusion_and_curve_equal_scikit_learn() -> None:
    table = classes(GAINS)
    assert confusion(table, "image", "t1ce").sum() == 60
    part = table.take(np.arange(20))
    wrong, found, area = roc_curve(part, 1)
    expected = reference_curve(part.label, part.probabilities[:, 1], drop_intermediate=False)
    assert wrong == pytest.approx(expected[0])
    assert found == pytest.approx(expected[1])
    assert area == pytest.approx(np.trapezoid(found, wrong))


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = classes(GAINS, names=("a", "b", "c"))
    table = replace(table, label=np.where(np.arange(len(table.label)) == 4, UNKNOWN, table.label))
    for name in ("predictions.csv", "predictions.parquet"):
        again, nothing = read_predictions(write_predictions(tmp_path / name, table, None))
        assert nothing is None
        assert again is not None
        assert again.keys == table.keys
        assert (again.label == table.label).all()
        assert (again.probabilities == table.probabilities).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,label,p_a,p_b\ns1,c,0.5,0.5\n", "'c' is none of the classes a, b"),
        ("subject,label,p_a,p_b\ns1,a,2.0,-1.5\n", "logits"),
        ("subject,label,p_a,p_b\ns1,a,0.5,0.5\ns1,b,0.5,0.5\n", "there twice"),
        ("subject,label,p_a,p_b\ns1,a,half,0.5\n", "half"),
        ("subject,label\ns1,a\n", "neither"),
        ("subject;label;p_a;p_b\ns1;a;0,5;0,5\n", "column 'p_a' holds '0,5': expected a number with a decimal point"),
        ("subject,fold,label,p_a,p_b\ns1,0.5,a,0.5,0.5\n", "column 'fold' holds '0.5': expected a whole number"),
        ("patient,p_a,p_b\ns1,0.5,0.5\n", "'subject'"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=message):
        read_predictions(path)


def test_a_table_may_lack_what_has_a_default(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("subject,label,p_a,p_b\ns1,a,0.5,0.5\n")
    table, _ = read_predictions(path)
    assert table is not None
    assert table.keys == (PredictionKey("s1", "", "s1", "model", "all", 0),)


def test_numbers_are_folds_and_classes_however_a_program_writes_them(tmp_path: Path) -> None:
    """A column of whole numbers with a blank cell comes out of pandas as 1.0, and out of R with NA."""
    path = tmp_path / "predictions.csv"
    path.write_text(
        "subject,session,group,model,subset,fold,label,p_0,p_1\n"
        "a,NA,NA,NA,NA,0.0,1.0,0.5,0.5\n"
        "b,NA,NA,ours,t1,1.0,NA,0.5,0.5\n"
    )
    table, _ = read_predictions(path)
    assert table is not None
    assert table.keys == (PredictionKey("a", "", "a", "model", "all", 0), PredictionKey("b", "", "b", "ours", "t1", 1))
    assert table.label.tolist() == [1, UNKNOWN]


def test_folds_that_lack_a_class_are_read_with_a_probability_of_zero(tmp_path: Path) -> None:
    """Tables of folds put together: the first knows A, B and C, the second B and C."""
    path = tmp_path / "joined.csv"
    path.write_text("subject,fold,label,p_A,p_B,p_C\na,0,A,0.5,0.3,0.2\nb,1,B,,0.6,0.4\nc,1,A,,0.6,0.4\n")
    table, _ = read_predictions(path)
    assert table is not None
    assert table.probabilities.tolist() == [[0.5, 0.3, 0.2], [0, 0.6, 0.4], [0, 0.6, 0.4]]
    assert table.label.tolist() == [0, 1, UNKNOWN]  # who has a class that the fold has not had is not labelled


def test_figures_that_a_subset_lacks_are_not_defined_in_the_table() -> None:
    scores = [s for s in evaluate_classes(classes({"image": 1.0}), draws=0) if s.fold is None]
    lacking = [s for s in scores if not (s.subset == "t1ce" and s.metric == "auc")]
    line = next(line for line in format_scores(lacking, ["auc"]).splitlines() if " t1ce " in line)
    assert line.endswith("not defined")


def test_a_perfect_figure_in_a_few_patients_has_no_interval() -> None:
    label = np.arange(16) % 2
    table = ClassPredictions(
        tuple(PredictionKey(f"p{i}", "", f"p{i}", "image", "t1", 0) for i in range(16)),
        ("low", "high"),
        label,
        np.where(label[:, None] == [0, 1], 0.9, 0.1),
    )
    found = one(evaluate_classes(table, draws=50), "image", "t1", "auc").value
    assert (found.value, found.low, found.high) == (1, None, None)


def test_the_calibration_error_has_no_interval() -> None:
    found = one(evaluate_classes(classes({"image": 1.0}), draws=50), "image", "t1ce", "ece").value
    assert found.value > 0
    assert (found.low, found.high) == (None, None)

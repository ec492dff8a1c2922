"""The report on patients: one file, every figure in it, and what to doubt above them."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import binomtest

sys.path.append(str(Path(__file__).parent / "evaluation"))

from prediction_tables import SUBSETS, classes, survival

from bmmae.errors import CohortError, OutputError
from bmmae.evaluation.predictions import UNKNOWN
from bmmae.evaluation.survival import risk_groups
from bmmae.notice import NOTICE
from bmmae.patient_report import patient_page, write_patient_report
from bmmae.patient_report.plots import corners, draw_confusion, draw_reliability, draw_roc, draw_survival, wilson_reach
from bmmae.patient_report.sections import fullest, survival_pictures
from bmmae.patient_tables import write_tables

GAINS = {"image": 2.0, "clinical": 0.5}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    remarks = ["The weights were trained on SYNTHETIC data <only>."]
    write_patient_report(path, classes(GAINS), survival(GAINS), title="Grade & survival", remarks=remarks, draws=6)
    return path.read_text()


def test_it_needs_no_other_file(page: str) -> None:
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 2 * 4 + 2  # each model: ROC, reliability, decision curve, confusion; and survival
    assert page.count("Decision curve of") == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "<script" not in page


def test_it_says_what_it_is_and_what_to_doubt(page: str) -> None:
    assert NOTICE in page
    assert "<h1>Grade &amp; survival</h1>" in page
    assert "SYNTHETIC data &lt;only&gt;" in page
    assert re.search(r"Only \d+ patients of class 'high'", page)
    assert re.search(r"Only \d+ deaths", page)
    assert "60 patients, 60 studies, 3 folds" in page


def test_every_subset_and_the_difference_to_the_clinical_model_are_there(page: str) -> None:
    for subset in SUBSETS:
        assert page.count(f"<td>{subset}</td>") > 20
    assert "auc minus that of clinical" in page
    assert "corrected t, 3 folds" in page
    assert "paired bootstrap, 60 patients" in page
    assert "log-rank p" in page
    assert page.count("<td>calibration_slope</td>") == page.count("<td>auc</td>")
    assert re.search(r"\d\.\d{3}<br><small>\d\.\d{3} to \d\.\d{3}, n \d+", page)


def test_without_a_clinical_model_it_says_so() -> None:
    found = patient_page(classes({"image": 2.0}, names=("a", "b", "c")), None, title="Site", draws=2)
    assert "No model 'clinical' is beside" in found
    assert "auc_a_b" in found
    assert "Decision curve of" not in found  # which class would be treated?
    assert "calibration_slope" not in found


def test_the_pictures_are_of_the_fullest_subset() -> None:
    keys = classes(GAINS).keys
    assert fullest(keys) == [("image", "t1ce+flair"), ("clinical", "t1ce+flair")]
    pooled = tuple(replace(key, subset="available") for key in keys if key.subset == "t1ce")
    assert fullest((*keys, *pooled)) == [("image", "available"), ("clinical", "available")]


def test_one_class_alone_is_drawn_as_not_defined() -> None:
    table = classes({"image": 2.0})
    found = patient_page(replace(table, label=np.ones(len(table.label), int)), None, title="One class", draws=2)
    assert "not defined in 3 folds" in found
    first = table.take(np.array([row for row, key in enumerate(table.keys) if key.fold == 0]))
    alone = patient_page(replace(first, label=np.ones(len(first.label), int)), None, title="One test set", draws=2)
    assert "not defined<br><small>n " in alone
    assert "not defined in" not in alone


def test_titles_of_many_panels_are_not_cut() -> None:
    picture = imread(io.BytesIO(draw_roc(classes({"image": 2.0}, names=("a", "b", "c", "d", "e")))))
    rim = np.concatenate([picture[[0, -1], :, :3].ravel(), picture[:, [0, -1], :3].ravel()])
    assert (rim == 1).all()


LONG = ("oligodendroglioma, IDH-mutant, 1p/19q-codeleted, grade 3", "glioblastoma, IDH-wildtype, grade 4")


@pytest.mark.filterwarnings("error")
def test_long_names_of_classes_leave_room_for_the_panels() -> None:
    matrix = np.eye(2, dtype=int)
    assert imread(io.BytesIO(draw_confusion(matrix, LONG))).shape[1] < 300
    short, long = (imread(io.BytesIO(draw_reliability(classes({"a": 2.0}, names=n)))) for n in (("a", "b"), LONG))
    assert long.shape[1] < short.shape[1] + 20


def test_the_intervals_of_the_first_table_are_named(page: str) -> None:
    assert "its 95 % interval, and how many patients (n)" in page


def test_a_group_without_patients_is_drawn_as_not_defined() -> None:
    table = survival({"image": 2.0})
    found = survival_pictures(replace(table, risk_cut=np.full(len(table.keys), -1e9)))
    assert "0 patients, 0 died" in found
    assert found.count("<td>not defined</td>") == len(SUBSETS) * 3
    assert "training patients' median risk" in found or "training patients&#x27; median risk" in found


def test_a_curve_ends_with_the_follow_up_of_its_patients() -> None:
    """Past it nothing is known; and nobody has no survival."""
    time, event = np.array([2.0, 5.0, 9.0, 30.0]), np.array([True, False, True, False])
    groups = replace(
        risk_groups(survival({"image": 2.0}))[0],
        time=time, event=event, high=np.array([True, True, False, False]), patients=tuple("abcd"),
    )  # fmt: skip
    assert [values.tolist() for values in corners(groups.curve(high=True))] == [[0, 2, 5], [1, 0.5, 0.5]]
    empty = replace(groups, high=np.zeros(4, bool))
    assert [values.tolist() for values in corners(empty.curve(high=True))] == [[], []]
    assert draw_survival([groups]) != draw_survival([empty])


def test_those_left_out_are_counted() -> None:
    table = classes({"image": 2.0})
    label = np.where([key.subject == "p001" for key in table.keys], UNKNOWN, table.label)
    page = patient_page(replace(table, label=label), None, title="x", draws=0)
    assert "1 patient left out: no class is known, or the fold's model does not know it." in page.replace("&#x27;", "'")


def test_a_slash_in_a_name_makes_no_folder(tmp_path: Path) -> None:
    (path,) = write_tables(tmp_path, {"1p/19q": (classes({"image": 2.0}), None)})
    assert path == tmp_path / "1p-19q.csv"
    assert path.is_file()


def test_nothing_to_judge_is_an_error(tmp_path: Path) -> None:
    table = survival({"image": 1.0})
    with pytest.raises(CohortError, match="died"):
        patient_page(None, replace(table, event=np.zeros(len(table.keys), bool)), title="Nobody died")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_patient_report(tmp_path / "file" / "report.html", None, survival({"image": 1.0}), title="x", draws=2)


def test_it_says_which_class_is_positive_and_how_a_class_is_given(page: str) -> None:
    assert "Classes: low, high (positive: high)" in page
    assert "a threshold of 0.5" in page


def test_one_patient_in_a_bin_is_not_drawn_as_certain() -> None:
    down, up = wilson_reach(np.array([0.0, 1.0, 0.5]), np.array([1.0, 1.0, 100.0]))
    assert (down[0], up[1]) == (pytest.approx(0), pytest.approx(0))
    expected = binomtest(50, 100).proportion_ci(method="wilson")
    assert (0.5 - down[2], 0.5 + up[2]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert up[0] == pytest.approx(binomtest(0, 1).proportion_ci(method="wilson").high)

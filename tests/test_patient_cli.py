"""predict, embed and evaluate on a cohort of phantoms: tables that say from what, and errors of one line."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tiny_models import tiny_config
from tiny_patients import PREPROCESS, tiny_patient_model, write_table

from bmmae.checkpoint import describe, load_model, save_model
from bmmae.cli import main
from bmmae.clinical import ClinicalVariable
from bmmae.data.cohort import Study, read_cohort
from bmmae.data.tables import Cell
from bmmae.embedding_plot import cells_to_colour, draw_embeddings
from bmmae.errors import ConfigError
from bmmae.model.mae import MAE
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.patient_evaluation import model_names, refuse_what_cannot_be_judged
from bmmae.patient_prediction import warn_of_other_units
from bmmae.targets import Target

ALL = "t1+t1ce+t2+flair"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of twelve patients, a model of them, and a pretrained model."""
    folder = tmp_path_factory.mktemp("world")
    studies = list(read_cohort(write_table(folder)))
    shares = {ALL: 0.6, "t1+t1ce+t2": 0.395, "t1": 0.005}
    tiny_patient_model(studies[:7], subsets=shares).save_pretrained(folder / "model")
    save_model(MAE(tiny_config()), folder / "mae", preprocessing=PREPROCESS)
    return folder


def run(world: Path, command: str, out: Path, *more: str, model: str = "model", table: str = "cohort.csv") -> int:
    words = ("--model", world / model, "--cohort", world / table, "--cache", world / "cache", "--out", out)
    return main([command, *map(str, words), *more])


def test_predict_says_who_from_what_and_how_sure(world: Path, tmp_path: Path) -> None:
    assert run(world, "predict", tmp_path / "p.csv") == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert len(table) == 12
    assert set(table["subset"]) == {ALL, "t1+t1ce+t2"}
    np.testing.assert_allclose(table[["subtype_p_NSCLC", "subtype_p_SCLC"]].sum(axis=1), 1)
    assert set(table["site"]) <= {"lung", "breast", "kidney"}
    alive = table[[name for name in table if name.startswith("hazard_alive_")]].to_numpy()
    assert alive.shape == (12, 7)
    assert (np.diff(alive, axis=1) <= 0).all()
    assert table["cox_risk"].nunique() > 6
    assert table["rare"].sum() == 0


def test_a_segmentation_that_the_model_does_not_read_is_not_in_the_way(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table["seg"] = [str(world / "cohort.csv"), *[None] * (len(table) - 1)]
    table.to_csv(world / "bad_seg.csv", index=False)
    words = ["predict", "--model", world / "model", "--cohort", world / "bad_seg.csv", "--out", tmp_path / "p.csv"]
    for cache in ([], ["--cache", tmp_path / "cache"]):
        assert main([str(word) for word in [*words, *cache]]) == 0
        assert len(pd.read_csv(tmp_path / "p.csv")) == 12


def test_a_broken_study_is_left_out_by_the_option_that_is_recommended(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table.loc[0, "t1"] = str(world / "cohort.csv")
    table.to_csv(world / "broken.csv", index=False)
    words = [str(w) for w in ("predict", "--model", world / "model", "--cohort", world / "broken.csv")]
    assert main([*words, "--out", str(tmp_path / "p.csv")]) == 2
    (option,) = re.findall(r"leave them out with (\S+)$", capsys.readouterr().err.strip())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*words, "--out", str(tmp_path / "p.csv"), option]) == 0
    assert len(pd.read_csv(tmp_path / "p.csv")) == 11


def test_a_run_that_has_not_finished_is_told(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(world / "model", run_folder / "checkpoints" / "step-00000008")
    index = {"status": "running", "step": 8, "steps": 400, "last": "step-00000008", "best": None}
    (run_folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    assert main(["info", str(run_folder)]) == 0
    assert re.search(r"run +NOT FINISHED: running, step 8 of 400\n", capsys.readouterr().out)
    words = ["--cohort", str(world / "cohort.csv"), "--out", str(tmp_path / "p.csv"), "--cache", str(world / "cache")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["predict", "--model", str(run_folder), *words]) == 0
    assert "has not finished (running, step 8 of 400): used is what" in capsys.readouterr().err
    (run_folder / "checkpoints" / "index.json").write_text(json.dumps(index | {"status": "finished"}))
    assert main(["info", str(run_folder)]) == 0
    assert "FINISHED" not in capsys.readouterr().out


def test_a_rare_subset_is_warned_of(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(world, "predict", tmp_path / "p.csv", "--subset", "T1") == 0
    told = re.search(
        r"warning: 12 of 12 predictions are from subsets .* 1 in 100 .* t1 \(12\)", capsys.readouterr().err
    )
    assert told
    assert pd.read_csv(tmp_path / "p.csv")["rare"].all()


def test_a_restricted_patient_is_one_that_never_had_more(world: Path, tmp_path: Path) -> None:
    cohort = read_cohort(world / "cohort.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(world, "predict", tmp_path / "few.csv", "--subset", "t1", "t2") == 0
        assert run(world, "predict", tmp_path / "joined.csv", "--subset", "t1+t2") == 0  # as tables write it
        bare = cohort.path.read_text().splitlines() if cohort.path else []
        names = bare[0].split(",")
        kept = [i for i, name in enumerate(names) if name not in ("t1ce", "flair")]
        (world / "bare.csv").write_text("\n".join(",".join(line.split(",")[i] for i in kept) for line in bare))
        assert run(world, "predict", tmp_path / "bare.csv", table="bare.csv") == 0
    few, alone = (pd.read_csv(tmp_path / name) for name in ("few.csv", "bare.csv"))
    assert set(few["subset"]) == {"t1+t2"}
    assert (tmp_path / "joined.csv").read_text() == (tmp_path / "few.csv").read_text()
    # The brain is that of all images in one case and of two in the other; here they are the same.
    np.testing.assert_allclose(few["cox_risk"], alone["cox_risk"], atol=1e-4)


def test_patients_without_the_modalities_are_counted(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(world, "predict", tmp_path / "p.csv", "--subset", "flair") == 0
    assert "8 predictions" in (said := capsys.readouterr().out)
    assert "4 patients without these modalities left out" in said
    assert run(world, "embed", tmp_path / "e.csv", "--subset", "flair") == 0
    assert "4 patients without these modalities left out" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(world, "evaluate", tmp_path / "ev", "--subset", "flair", "--draws", "0") == 0
    assert "model: 8 predictions, 4 patients without these modalities left out" in capsys.readouterr().out


def test_a_patient_without_any_image_of_the_models_is_left_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[[3, 5], ["t1", "t1ce", "t2", "flair"]] = None
    table.to_csv(world / "bare.csv", index=False)
    words = ("predict", "--model", str(world / "model"), "--out", str(tmp_path / "p.csv"), "--cohort")
    assert main([*words, str(world / "bare.csv")]) == 0
    assert "10 predictions" in (said := capsys.readouterr().out)
    assert "2 patients without these modalities left out" in said
    table.loc[:, ["t1", "t1ce", "t2", "flair"]] = None
    table.to_csv(world / "bare.csv", index=False)
    assert main([*words, str(world / "bare.csv")]) != 0
    assert "has any of the modalities t1, t1ce, t2, flair" in capsys.readouterr().err


def test_values_that_training_has_not_seen_are_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table["sex"] = table["sex"].map({"F": "female", "M": "male"})
    table["subtype"] = table["subtype"].str.lower()
    table.to_csv(world / "words.csv", index=False)
    words = ("--model", str(world / "model"), "--cohort", str(world / "words.csv"), "--out", str(tmp_path / "x"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["evaluate", *words, "--draws", "0"]) == 0
    said = capsys.readouterr()
    assert "column 'sex' holds values that count as missing: 'female' (6), 'male' (5); training knew F, M" in said.err
    assert "count as not labelled: 'subtype' is learned for NSCLC, SCLC alone" in said.err
    assert "subtype: the cohort knows no truth of it" in said.out


def test_clinical_numbers_in_another_unit_are_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table.assign(age=table["age"] * 365).to_csv(world / "days.csv", index=False)
    for name, told in (("days.csv", 1), ("cohort.csv", 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert run(world, "predict", tmp_path / "p.csv", table=name) == 0
        said = capsys.readouterr().err
        assert (
            len(re.findall(r"column 'age' holds numbers around 20.*, and training knew 53.* same unit\?", said)) == told
        )


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_decimal_comma_is_told_before_the_work(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("bmmae.data.caching.sound_studies", lambda *_, **__: pytest.fail("the work has begun"))
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[3, "age"] = "61,5"
    table.to_csv(world / "comma.csv", index=False)
    assert run(world, command, tmp_path / "p.csv", table="comma.csv") == 2
    assert "study 'p03': column 'age' holds '61,5': expected a number with a decimal point" in capsys.readouterr().err


def test_a_flag_that_is_rarely_set_is_in_no_other_unit(world: Path) -> None:
    model = load_model(world / "model")
    rare = ClinicalVariable("resected", "numeric", mean=0.04, deviation=0.196)
    model.config = replace(model.config, clinical=(rare,))
    for cell, told in ((1.0, 0), (0.0, 0), (None, 0), (100.0, 1)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warn_of_other_units(model, [Study("p", {}, values={"resected": cell})])
        assert len(said) == told


def test_a_batch_of_nobody_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(world, "predict", tmp_path / "p.csv", "--batch-size", "0")
    assert "expected a whole number from 1 on, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["model", "mae"])
def test_embed_writes_one_vector_a_study_and_subset(world: Path, tmp_path: Path, model: str) -> None:
    picture = tmp_path / "e.png"
    more = ("--umap", str(picture), "--colour", "subtype", "--subset", "t1", "t2", "--every-subset")
    assert run(world, "embed", tmp_path / "e.parquet", *more, model=model) == 0
    table = pd.read_parquet(tmp_path / "e.parquet")
    assert list(table.columns) == ["subject", "session", "subset", *(f"e{i}" for i in range(24))]
    assert table.groupby("subset").size().to_dict() == {"t1": 12, "t2": 12, "t1+t2": 12}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_column_that_cannot_colour_is_refused_before_the_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmmae.data.caching.sound_studies", lambda *_, **__: pytest.fail("the work has begun"))
    for column in ("grade", "session"):  # the table has no visits
        more = ("--umap", str(tmp_path / "e.png"), "--colour", column)
        assert run(world, "embed", tmp_path / "e.csv", *more, model="mae") == 2
        assert re.search(f"no column '{column}' to colour by: it has subject, group, .*subtype", error(capsys))


@pytest.mark.parametrize("column", ["subject", "session", "group", "split", "time", "event"])
def test_columns_that_every_table_knows_colour_a_picture(tmp_path: Path, column: str) -> None:
    files = {"t1": Path("t1.nii.gz")}
    ones = {"session": "v1", "split": "train", "time": 0.0, "event": True}
    studies = [Study("a", files, **ones), Study("b", files, time=3.5, event=False)]  # type: ignore[arg-type]
    expected: dict[str, list[Cell]] = {
        "subject": ["a", "b"],
        "session": ["v1", None],
        "group": ["a", "b"],
        "split": ["train", None],
        "time": [0.0, 3.5],
        "event": [1.0, 0.0],
    }
    assert cells_to_colour(studies, column) == expected[column]
    rows: list[dict[str, Cell]] = [
        {"subject": s.subject, "session": s.session, "subset": "t1", "e0": float(n), "e1": 0.0}
        for n, s in enumerate(studies)
    ]
    draw_embeddings(tmp_path / "e.png", rows, studies, column)
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


def drawn_by(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    monkeypatch.setitem(sys.modules, "umap", None)  # with UMAP the points would take longer
    files = {"t1": Path("t1.nii.gz")}
    studies = [Study(f"s{n}", files, values={"site": cell}) for n, cell in enumerate(cells)]
    rows: list[dict[str, Cell]] = [
        {"subject": s.subject, "session": "", "subset": "t1", "e0": float(n), "e1": 0.0} for n, s in enumerate(studies)
    ]
    draw_embeddings(Path("e.png"), rows, studies, "site")
    return figures[0]


def test_no_two_names_of_a_picture_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[Cell] = [f"site {n % 15}" for n in range(30)]
    points = drawn_by(cells, monkeypatch).axes[0].collections
    looks = {(tuple(p.get_facecolor()[0]), p.get_paths()[0].vertices.shape, p.get_label()) for p in points}
    assert len(looks) == 15
    assert len({look[:2] for look in looks}) == 15


def test_a_legend_lists_the_most_frequent_names_outside_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[Cell] = [*["a name that is far too long for any legend", None] * 3, *(f"site {n}" for n in range(40))]
    figure = drawn_by(cells, monkeypatch)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == 21
    assert names[0] == "a name that is far too long\N{HORIZONTAL ELLIPSIS}"
    assert names[-2:] == ["blank", "22 others"]
    figure.draw_without_rendering()
    left = figure.legends[0].get_window_extent().x0
    assert left > figure.axes[0].get_window_extent().x1
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 2
    title = figure.get_suptitle()
    assert title.startswith("46 embeddings\n")


def test_a_blank_among_many_numbers_leaves_them_on_a_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[Cell] = [*(float(n) for n in range(20)), None]
    numbers, blank = drawn_by(cells, monkeypatch).axes[0].collections
    assert np.shape(numbers.get_offsets()) == (20, 2)
    assert np.shape(blank.get_offsets()) == (1, 2)
    assert blank.get_label() == "blank"


@pytest.mark.slow
def test_evaluate_judges_models_beside_each_other(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").symlink_to(world / "model")
    assert run(world, "evaluate", tmp_path / "ev", "--beside", str(tmp_path / "other"), "--draws", "4") == 0
    said = capsys.readouterr().out
    assert said.startswith("NOT KNOWN whether the model was trained on these test studies")
    scores = pd.read_csv(tmp_path / "ev" / "scores.csv")
    assert {path.stem for path in (tmp_path / "ev").glob("*.html")} == set(scores["target"])
    assert set(scores["model"]) == {"model", "other"}
    assert set(scores["target"]) == {"subtype", "site", "hazard", "cox", "survival_class"}
    assert set(scores["subset"]) == {ALL, "t1+t1ce+t2", "available"}
    both = scores.pivot_table(index=["target", "subset", "metric"], columns="model", values="value")
    np.testing.assert_allclose(both["model"], both["other"])
    pooled = scores[(scores["subset"] == "available") & (scores["target"] == "cox")]
    assert (pooled.set_index("metric").loc["harrell_c", "patients"] == 11).all()  # the follow-up of one is not known
    assert {path.stem for path in (tmp_path / "ev").glob("*.html")} == set(scores["target"])
    page = (tmp_path / "ev" / "cox.html").read_text()
    assert "harrell_c minus that of other" in page
    assert "NOT KNOWN whether the model was trained on these test studies" in page


def test_names_of_models_are_short_and_different() -> None:
    assert model_names(["runs/a", "runs/b/clinical-only"]) == ["a", "clinical-only"]
    assert model_names(["x/m", "y/m"]) == ["x/m", "y/m"]


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("command", "more", "model", "message"),
    [
        ("predict", (), "mae", r"holds a model of kind 'mae', which predicts nothing of a patient.*finetune/"),
        ("predict", ("--subset", "t3"), "model", "unknown modality 't3'"),
        ("predict", (), "nothing", "there is no model"),
        ("embed", ("--umap", "/tmp/e.png", "--colour", "grade"), "mae", "no column 'grade'"),
        ("embed", ("--umap", "/tmp/e.txt"), "nothing", r"e\.txt: expected a picture's name, ending in one of .*\.png"),
    ],
)
def test_errors_are_one_line(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    more: tuple[str, ...],
    model: str,
    message: str,
) -> None:
    assert run(world, command, tmp_path / "out.csv", *more, model=model) == 2
    assert re.search(message, error(capsys))


def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, "predict", tmp_path / "p.xlsx") == 2
    assert "expected a name ending in .csv" in error(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,t1\n", "has no rows"),
        ("subject,t1,event\na,a.nii,2\n", "event is '2'; expected 1"),
        ("subject,t1,time\na,a.nii,-3\n", "time is '-3'; expected a number of months"),
        ("subject,t1,time\na,a.nii,soon\n", "time is 'soon'"),
    ],
)
def test_tables_that_are_none_are_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (world / "wrong.csv").write_text(text)
    assert run(world, "predict", tmp_path / "p.csv", table="wrong.csv") == 2
    assert message in error(capsys)


@pytest.mark.filterwarnings("ignore:the model was trained with columns")
def test_evaluate_without_any_truth_says_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table[["subject", "t1", "t1ce", "t2", "flair"]].to_csv(world / "blind.csv", index=False)
    assert run(world, "evaluate", tmp_path / "ev", table="blind.csv") == 2
    assert "knows the truth of none of the targets" in error(capsys)


@pytest.mark.filterwarnings("ignore")
def test_labels_that_cannot_be_read_stop_an_evaluation_and_no_prediction(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markers = ("idh", "mgmt")
    target = Target("markers", "multilabel", markers, markers, shares=(0.5, 0.5))
    model = PatientModel(PatientModelConfig(tiny_config(), (target,), ())).eval()
    describe(model, PREPROCESS)
    model.save_pretrained(tmp_path / "model")
    table = pd.read_csv(world / "cohort.csv", dtype=str).assign(idh="pending", mgmt="yes")
    table.to_csv(world / "pending.csv", index=False)
    words = ["--model", str(tmp_path / "model"), "--cohort", str(world / "pending.csv"), "--cache", str(tmp_path)]
    assert main(["predict", *words, "--out", str(tmp_path / "p.csv")]) == 0
    assert pd.read_csv(tmp_path / "p.csv")["markers-idh"].isin(["yes", "no"]).all()
    capsys.readouterr()
    assert main(["evaluate", *words, "--out", str(tmp_path / "ev")]) == 2
    assert "column 'idh' holds 'pending': expected 1, 0, yes, no" in error(capsys)


def test_evaluate_says_why_a_truth_is_not_known(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str).drop(columns="site")
    table["subtype"], table["event"], table["time"] = table["subtype"].str.lower(), "0", "5"
    table.to_csv(world / "alive.csv", index=False)
    assert run(world, "evaluate", tmp_path / "ev", table="alive.csv") == 2
    said = error(capsys)
    assert "subtype: column 'subtype' holds 'nsclc', 'sclc', and the model knows 'NSCLC', 'SCLC'" in said
    assert "site: column 'site' is blank or not there" in said
    assert "cox: nobody died (`event` is 0 for all 12 who were followed), and survival is judged by deaths" in said
    assert not (tmp_path / "ev" / "predictions").exists()


def test_models_of_other_targets_are_refused_by_what_they_say(world: Path) -> None:
    studies = read_cohort(world / "cohort.csv").studies
    model = tiny_patient_model(list(studies[:7]))
    subtype, *others = model.config.targets
    fewer, swapped = tiny_patient_model(list(studies[:7])), tiny_patient_model(list(studies[:7]))
    fewer.config = replace(model.config, targets=tuple(others))
    swapped.config = replace(model.config, targets=(replace(subtype, classes=subtype.classes[::-1]), *others))
    refuse_what_cannot_be_judged({"one": model, "two": model}, studies)
    with pytest.raises(ConfigError, match=r"'two' predicts site, hazard.*, expected the same as the first: subtype"):
        refuse_what_cannot_be_judged({"one": model, "two": fewer}, studies)
    with pytest.raises(ConfigError, match="'two' knows other classes of 'subtype' than the first"):
        refuse_what_cannot_be_judged({"one": model, "two": swapped}, studies)
    sparse = tiny_patient_model(list(studies[:7]))
    sparse.config = replace(
        model.config, targets=tuple(replace(t, curve=(6.0,)) if t.kind == "hazard" else t for t in model.config.targets)
    )
    with pytest.raises(ConfigError, match=r"'two' tells survival of 'hazard' at other months than the first: \[6.0\]"):
        refuse_what_cannot_be_judged({"one": model, "two": sparse}, studies)


def test_evaluate_tells_times_in_days_once(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table["time"] *= 30.44
    table.to_csv(world / "days.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run(world, "evaluate", tmp_path / "ev", "--draws", "0", table="days.csv") == 0
    assert capsys.readouterr().err.count("are these days? months are expected") == 1


def test_predictions_do_not_replace_the_cohort(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "cohort.csv").read_bytes()
    for command in ("predict", "embed"):
        assert run(world, command, world / "cohort.csv") == 2
        assert "is one of the files given, and would be written over" in capsys.readouterr().err
    assert (world / "cohort.csv").read_bytes() == before

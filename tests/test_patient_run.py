"""From a table to predictions of patients that the model has not seen, in every mode."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_config, tiny_segmentation
from tiny_patients import PREPROCESS, write_table

from bmmae.checkpoint import load_model, save_model
from bmmae.cli import main
from bmmae.config import parse
from bmmae.data.cohort import read_cohort
from bmmae.data.synthetic import SyntheticConfig, make_cohort
from bmmae.errors import CohortError, ConfigError, OutputError, TrainingError
from bmmae.evaluation.predictions import read_predictions
from bmmae.model.mae import MAE
from bmmae.model.patient import PatientModel
from bmmae.patient_config import PatientConfig
from bmmae.patient_prediction import warn_of_lacking_inputs
from bmmae.patient_run import fine_tune

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "finetune"
QUICK = ("--train.steps", "2", "--train.epochs", "null", "--train.batch_size", "3", "--train.workers", "0")
QUIET = ("--train.progress", "false", "--train.precision", "no", "--optim.warmup_steps", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of twelve patients and a pretrained model."""
    folder = tmp_path_factory.mktemp("world")
    write_table(folder)
    save_model(MAE(tiny_config()), folder / "mae", preprocessing=PREPROCESS)
    return folder


def configured(world: Path, out: Path, program: str, *more: str) -> PatientConfig:
    data = ("--data.cohort", world / "cohort.csv", "--data.cache", world / "cache", "--model", world / "mae")
    words = ("--config", CONFIGS / f"{program}.yaml", *data, "--out", out, *QUICK, *QUIET, *more)
    return parse(PatientConfig, [str(word) for word in words])


SURVIVAL = ("--targets.survival", "[hazard, cox, survival_classes]", "--targets.labels", "[subtype]")
CLINICAL = ("--beside.clinical", "[age, sex]")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["features", "head", "full"])
def test_every_mode_predicts_whom_it_has_not_seen(world: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "run"
    lesion = () if mode == "features" else ("--beside.lesion", "attention", "--optim.layer_decay", "0.8")
    config = configured(world, out, "survival", *SURVIVAL, *CLINICAL, *lesion, "--mode", mode)
    assert fine_tune(config) == 0
    model = load_model(out, kind="patient")
    assert isinstance(model, PatientModel)
    cox = next(target for target in model.config.targets if target.kind == "cox")
    assert len(cox.baseline) == len(cox.edges)
    assert list(np.diff(cox.baseline) >= 0) == [True] * (len(cox.edges) - 1)
    for place in ("", "clinical-only/"):
        classes, survival = read_predictions(out / "predictions" / f"{place}test" / "cox.csv")
        assert classes is None
        assert survival is not None
        assert {key.subset for key in survival.keys} >= {"available", "t1", "t1+t1ce+t2"}
        assert {key.subject for key in survival.keys} == {"p09", "p10", "p11"}
        np.testing.assert_allclose(survival.risk_cut, model_cut(out, place))
    assert (
        main(["predict", "--model", str(out), "--cohort", str(world / "cohort.csv"), "--out", str(out / "p.csv")]) == 0
    )
    assert len(pd.read_csv(out / "p.csv")) == 12
    assert not list((out / "checkpoints").glob(".writing-*"))


def model_cut(out: Path, place: str) -> float:
    """The training fold's median risk, as the saved model has it."""
    model = load_model(out / "clinical-only" if place else out, kind="patient")
    assert isinstance(model, PatientModel)
    cut = next(target.risk_cut for target in model.config.targets if target.kind == "cox")
    assert cut is not None
    return cut


@pytest.mark.slow
def test_test_patients_change_nothing_that_is_fitted(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv")
    held = table["split"] == "test"
    table.loc[held, ["time", "event", "age", "subtype", "site"]] = [999.0, 1, 500.0, "skin", "skin"]
    table.to_csv(world / "poisoned.csv", index=False)
    models = []
    for name in ("cohort", "poisoned"):
        more = ("--mode", "features", "--data.cohort", str(world / f"{name}.csv"))
        config = configured(world, tmp_path / name, "survival", *SURVIVAL, *CLINICAL, *more)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert fine_tune(config) == 0
        unseen = [str(w.message) for w in told if "count as not labelled" in str(w.message)]
        assert len(unseen) == (name == "poisoned")
        models.append(load_model(tmp_path / name, kind="patient"))
    assert models[0].config == models[1].config
    for one, two in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert (one == two).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:class.* of 'site' ha.* one training study")
def test_folds_shares_and_a_modality_less(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv").drop(columns="split")
    table.to_csv(world / "free.csv", index=False)
    folds = tmp_path / "folds.json"
    assert (
        main(
            [
                "split",
                str(world / "free.csv"),
                "--out",
                str(folds),
                "--folds",
                "3",
                "--stratify",
                "site",
                "--validation-share",
                "0.5",
            ]
        )
        == 0
    )
    more = ("--data.cohort", str(world / "free.csv"), "--data.splits", str(folds), "--data.fold", "2")
    shares = json.dumps({"site": {"lung": 60, "breast": 20, "kidney": 20}})
    own = ("--targets.labels", "[site]", "--targets.balanced", "true", "--head.focal", "2", "--head.shares", shares)
    one = ("--modalities", "[t1, flair]", "--head.token_share", "0.5")
    config = configured(world, tmp_path / "run", "classification", *more, *own, *one)
    assert fine_tune(config) == 0
    model = load_model(tmp_path / "run")
    assert model.model_config.modalities == ("t1", "flair")
    classes, _ = read_predictions(tmp_path / "run" / "predictions" / "test" / "site.csv")
    assert classes is not None
    held = json.loads(folds.read_text())["folds"][2]["test"]
    assert {key.subject for key in classes.keys} == {subject for subject, _ in held}
    assert {key.fold for key in classes.keys} == {2}


def test_classes_and_shares_may_be_numbers(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table["grade"] = [2, 3] * (len(table) // 2)
    table.to_csv(world / "graded.csv", index=False)
    config = configured(
        world,
        tmp_path / "run",
        "classification",
        *("--data.cohort", str(world / "graded.csv"), "--targets.labels", "[grade]"),
        *("--targets.classes", "{grade: [3, 2]}", "--head.shares", "{grade: {2: 1, 3: 2}}"),
    )
    assert fine_tune(config) == 0
    model = load_model(tmp_path / "run")
    assert isinstance(model, PatientModel)
    assert model.config.targets[0].classes == ("3", "2")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["features", "head"])
def test_a_segmentations_probabilities_and_measures_feed_a_model(world: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "segmented"
    save_model(tiny_segmentation(), tmp_path / "segmenter", preprocessing=PREPROCESS)
    words = ["--model", str(tmp_path / "segmenter"), "--cohort", str(world / "cohort.csv"), "--out", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["segment", *words, "--probabilities"]) == 0
        coding = ["--labels", "brats2017", "--spacing", "1.5", "1.5", "1.5"]
        assert main(["measure", str(out / "cohort.csv"), "--out", str(out / "measured.csv"), *coding]) == 0
    given = ("--beside.lesion", "probability", "--beside.measures", "true", "--data.cohort", str(out / "measured.csv"))
    config = configured(world, tmp_path / "run", "survival", *SURVIVAL, *CLINICAL, *given, "--mode", mode)
    assert fine_tune(config) == 0
    model = load_model(tmp_path / "run", kind="patient")
    assert isinstance(model, PatientModel)
    assert model.config.lesion == "probability"
    assert {variable.modality for variable in model.config.clinical} >= {None, ""}
    plain = load_model(tmp_path / "run" / "clinical-only", kind="patient")
    assert isinstance(plain, PatientModel)
    assert [variable.name for variable in plain.config.clinical] == ["age", "sex"]
    words = ["--model", str(tmp_path / "run"), "--cohort", str(out / "measured.csv")]
    assert main(["predict", *words, "--out", str(tmp_path / "p.csv")]) == 0
    warn_of_lacking_inputs(model, read_cohort(out / "measured.csv").studies)  # warnings are errors here
    with pytest.warns(UserWarning, match="columns that no study of this cohort has: measure_lesion_ET_volume"):
        warn_of_lacking_inputs(model, read_cohort(world / "cohort.csv").studies)


def test_modalities_asked_for_that_no_training_study_has_are_told(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv").drop(columns="flair")
    table.to_csv(world / "three.csv", index=False)
    data = ("--data.cohort", str(world / "three.csv"), "--modalities", "[t1, flair]")
    more = ("--mode", "features", "--targets.labels", "[site]", *data)
    with pytest.warns(UserWarning, match="no training study has flair"):
        assert fine_tune(configured(world, tmp_path / "run", "classification", *more)) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_synthetic_cohort_end_to_end_from_random_weights(tmp_path: Path) -> None:
    table = make_cohort(tmp_path / "data", SyntheticConfig(12, seed=1, size=24, missing=0.2), progress=False, workers=1)
    scratch = ("--model", "scratch:tiny", "--preprocess.spacing", "[8.0, 8.0, 8.0]", "--data.cohort", str(table))
    config = configured(tmp_path, tmp_path / "run", "classification", *scratch, "--targets.labels", "[subtype]")
    assert fine_tune(config) == 0
    assert (tmp_path / "run" / "predictions" / "test" / "subtype.csv").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # synthetic data; few patients
        words = ["--model", str(tmp_path / "run"), "--cohort", str(table), "--out", str(tmp_path / "ev")]
        assert main(["evaluate", *words, "--draws", "3"]) == 0
    assert (tmp_path / "ev" / "scores.csv").is_file()


@pytest.mark.parametrize(
    ("program", "more", "message"),
    [
        ("classification", ("--targets.labels", "[grade]"), "no column 'grade': beside images it has"),
        ("survival", ("--beside.clinical", "[ki67]"), "no column 'ki67'"),
        (
            "survival",
            ("--targets.months", "[100.0, 200.0]", "--targets.survival", "[survival_classes]"),
            "'100 to 200 months' has no training study",
        ),
        ("classification", ("--targets.labels", "[site]", "--targets.classes.site", "[lung, skin]"), "one class only"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(
    world: Path, tmp_path: Path, program: str, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CohortError, match=message):
        fine_tune(configured(world, tmp_path / "run", program, *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--head.token_share", "0"), "token_share must lie in"),
        (("--head.focal", "-1"), "focal must be zero or more"),
        (("--head.shares", '{"a": {"x": 1}, "b": {"y": 1}}'), "takes one column"),
        (("--targets.lables", "[subtype]"), "unknown configuration key 'targets.lables'"),
        (("--targets.survival", "[kaplan]"), "targets.survival|kaplan"),
        (("--targets.ipcw", "true"), "targets.ipcw is about survival_classes, which nothing here predicts"),
        (("--targets.survival", "[survival_classes]", "--targets.balanced", "true"), "about labels and multilabel"),
        (("--head.focal", "2"), "head.focal is about classes"),
        (("--data.labels", "binary"), "is about segmentation"),
        (("--data.validation_share", "0"), "data.validation_share is 0, and nobody would validate"),
        (("--model", "scratch:tiny", "--mode", "head"), "random weights from scratch would never learn"),
        (("--mode", "head", "--optim.frozen_steps", "5"), "optim.frozen_steps has no effect in mode 'head'"),
        (("--mode", "features", "--optim.frozen_steps", "5"), "optim.frozen_steps has no effect in mode 'features'"),
    ],
)
def test_wrong_values_are_refused(world: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(world, tmp_path / "run", "survival", *more)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--train.batch_size", "1"), ConfigError, "compares the patients of a batch"),
        (("--train.find_batch_size", "true"), ConfigError, "another batch is another training"),
        (("--data.cohort", "CENSORED"), CohortError, "nobody in the validation part has died"),
        (("--data.cohort", "OLD", *CLINICAL), CohortError, "column 'age' holds '>89': expected a number"),
    ],
)
def test_what_training_could_not_use_is_refused_before_it(
    world: Path, tmp_path: Path, more: tuple[str, ...], error: type[Exception], message: str
) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] == "validation", "event"] = "0"
    table.to_csv(world / "censored.csv", index=False)
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[11, "age"] = ">89"
    table.to_csv(world / "old.csv", index=False)
    files = {"CENSORED": str(world / "censored.csv"), "OLD": str(world / "old.csv")}
    words = [files.get(word, word) for word in more]
    config = configured(world, tmp_path / "run", "survival", "--targets.survival", "[cox]", *words)
    with pytest.raises(error, match=message):
        fine_tune(config)


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_targets_are_told_by_one_process(
    world: Path,
    tmp_path: Path,
    rank: str,
    times: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", rank)
    config = configured(
        world, tmp_path / "run", "classification", "--targets.labels", "[site]", "--head.start", "linear"
    )
    monkeypatch.setattr("bmmae.patient_run.fit", lambda *_, **__: SimpleNamespace(exit_code=75))
    assert fine_tune(config) == 75
    said = capsys.readouterr().out
    assert said.count("site (multiclass): 7 labelled") == times
    assert said.count("inverse penalty") == times


@pytest.mark.slow
def test_a_cox_target_that_validation_cannot_judge_is_told_beside_others(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] == "validation", "event"] = "0"
    table.to_csv(world / "censored.csv", index=False)
    cohort = ("--data.cohort", str(world / "censored.csv"))
    with pytest.warns(UserWarning, match="chosen by the other targets alone"):
        assert fine_tune(configured(world, tmp_path / "run", "survival", *SURVIVAL, *cohort)) == 0


@pytest.mark.slow
def test_training_can_start_from_linear_heads(world: Path, tmp_path: Path) -> None:
    started, labels = ("--head.start", "linear", "--optim.lr", "1e-12"), ("--targets.labels", "[subtype]")
    for name, more in (("features", ("--mode", "features")), ("full", started)):
        assert fine_tune(configured(world, tmp_path / name, "classification", *labels, *more)) == 0
    features, full = (load_model(tmp_path / name, kind="patient") for name in ("features", "full"))
    expected = dict(features.named_parameters())
    for name, value in full.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


def test_linear_heads_and_fusion_exclude_each_other(world: Path, tmp_path: Path) -> None:
    config = configured(world, tmp_path / "run", "survival", *CLINICAL, "--head.start", "linear")
    with pytest.raises(ConfigError, match=r"set beside.fusion=false"):
        fine_tune(config)


@pytest.mark.slow
def test_a_run_folder_is_not_overwritten(world: Path, tmp_path: Path) -> None:
    config = configured(world, tmp_path / "run", "survival", "--mode", "features")
    assert fine_tune(config) == 0
    with pytest.raises(TrainingError, match="already holds a run"):
        fine_tune(config)


def test_a_run_folder_that_cannot_be_is_refused_before_the_work(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmmae.patient_run.collect_features", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    given = ("--targets.labels", "[subtype]", "--mode", "features")
    with pytest.raises(OutputError, match="cannot be written"):
        fine_tune(configured(world, tmp_path / "file" / "run", "classification", *given))


def test_linear_heads_do_not_go_on_in_steps(world: Path, tmp_path: Path) -> None:
    labels = ("--targets.labels", "[subtype]")
    assert fine_tune(configured(world, tmp_path / "run", "classification", *labels, "--mode", "features")) == 0
    with pytest.raises(TrainingError, match=r"run holds linear heads, .* choose another run folder"):
        fine_tune(configured(world, tmp_path / "run", "classification", *labels, "--train.resume", "true"))


GIVEN = ("--targets.labels", "[subtype]", "--beside.clinical", "[age]", "--train.resume", "auto")


@pytest.fixture(scope="module")
def started(world: Path) -> Path:
    """A run on a table with another label column and another clinical one; beside it, other weights and a copy."""
    table = pd.read_csv(world / "cohort.csv")
    table["grade"] = table["subtype"].map({"NSCLC": "low", "SCLC": "high"})
    table["weight"] = table["age"] + 20
    table.to_csv(world / "more.csv", index=False)
    torch.manual_seed(7)
    save_model(MAE(tiny_config()), world / "other", preprocessing=PREPROCESS)
    shutil.copytree(world / "mae", world / "moved")
    assert fine_tune(resumable(world)) == 0
    return world


def resumable(world: Path, *more: str) -> PatientConfig:
    cohort = ("--data.cohort", str(world / "more.csv"))
    return configured(world, world / "started", "classification", *GIVEN, *cohort, *more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--targets.classes.subtype", "[SCLC, NSCLC]"),
            r"targets\.subtype\.classes was \['NSCLC', 'SCLC'\] and is now \['SCLC', 'NSCLC'\]",
        ),
        (("--targets.labels", "[grade]"), r"targets was \['subtype'\] and is now \['grade'\]"),
        (("--beside.clinical", "[weight]"), r"clinical was \['age'\] and is now \['weight'\]"),
        (("--model", "OTHER"), r"encoder at the start \(--model\) was 'SHA-256 \w{16}' and is now 'SHA-256"),
    ],
)
def test_a_run_does_not_go_on_with_other_answers_columns_or_weights(
    started: Path, more: tuple[str, ...], message: str
) -> None:
    words = [str(started / "other") if word == "OTHER" else word for word in more]
    with pytest.raises(TrainingError, match=message):
        fine_tune(resumable(started, *words))


def test_the_same_weights_under_another_path_go_on(started: Path) -> None:
    with pytest.warns(UserWarning, match="configuration has changed .* model: "):
        assert fine_tune(resumable(started, "--model", str(started / "moved"))) == 0


def test_what_held_out_patients_have_and_training_has_not_seen_is_told(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] != "train", "sex"] = "female"
    table.to_csv(world / "spelt.csv", index=False)
    given = ("--targets.labels", "[subtype]", "--beside.clinical", "[sex]", "--data.cohort", str(world / "spelt.csv"))
    config = configured(world, tmp_path / "run", "classification", *given, "--mode", "features")
    with pytest.warns(
        UserWarning, match=r"'sex' holds values that count as missing: 'female' \(5\); training knew F, M"
    ):
        assert fine_tune(config) == 0


def test_a_class_that_validation_alone_has_is_told(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] == "validation", "subtype"] = ["NSCLC", "nsclc"]
    table.to_csv(world / "validation.csv", index=False)
    given = ("--targets.labels", "[subtype]", "--data.cohort", str(world / "validation.csv"), "--mode", "features")
    with pytest.warns(UserWarning, match=r"1 held-out studies count as not labelled: .* they have 'nsclc' \(1\)"):
        assert fine_tune(configured(world, tmp_path / "run", "classification", *given)) == 0


@pytest.mark.parametrize(
    ("column", "part", "cell", "message"),
    [
        ("age", "train", "61,5", "clinical column 'age' holds numbers and '61,5': write numbers with a decimal point"),
        ("age", "test", "61,5", "study 'p09': column 'age' holds '61,5': expected a number with a decimal point"),
        ("subtype", "train", "NSCLC", "'subtype' holds one class only among the training studies"),
    ],
)
def test_columns_that_cannot_be_used_are_refused_before_images_are_opened(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, part: str, cell: str, message: str
) -> None:
    monkeypatch.setattr("bmmae.patient_run.sound_studies", lambda *_, **__: pytest.fail("the work has begun"))
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] == part, column] = cell
    table.to_csv(world / "odd.csv", index=False)
    given = ("--targets.labels", "[subtype]", *CLINICAL, "--data.cohort", str(world / "odd.csv"))
    with pytest.raises(CohortError, match=message):
        fine_tune(configured(world, tmp_path / "run", "classification", *given))


def test_parts_without_the_modalities_or_labels_are_told_with_what_to_do(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv", dtype=str)
    table.loc[table["split"] == "train", "t2"] = None
    table.loc[table["split"] == "validation", "subtype"] = None
    table.to_csv(world / "bare.csv", index=False)
    given = ("--targets.labels", "[subtype]", "--data.cohort", str(world / "bare.csv"))
    with pytest.raises(CohortError, match="no training study has any of the modalities t2"):
        fine_tune(configured(world, tmp_path / "run", "classification", *given, "--modalities", "[t2]"))
    with pytest.raises(CohortError, match=r"2 validation studies has a label of any target \(subtype\) .* other folds"):
        fine_tune(configured(world, tmp_path / "run", "classification", *given))


@pytest.mark.slow
def test_the_clinical_only_model_sees_no_vector(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "cohort.csv")
    table.assign(r1=range(len(table)), r2=1.5).to_csv(world / "vector.csv", index=False)
    more = ("--data.cohort", str(world / "vector.csv"), "--mode", "features", "--beside.vector", "[r1, r2]")
    labels = ("--targets.labels", "[site]")
    assert fine_tune(configured(world, tmp_path / "both", "classification", *labels, *more, *CLINICAL)) == 0
    plain = load_model(tmp_path / "both" / "clinical-only", kind="patient")
    assert isinstance(plain, PatientModel)
    assert plain.config.vector is None
    assert [variable.name for variable in plain.config.clinical] == ["age", "sex"]
    assert fine_tune(configured(world, tmp_path / "vector", "classification", *labels, *more)) == 0
    assert not (tmp_path / "vector" / "clinical-only").exists()

"""No chance of survival is told past the training fold's longest follow-up, and none is judged there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_patients import PREPROCESS, tiny_patient_model, write_table

from bmmae.checkpoint import Provenance, describe, load_model
from bmmae.cli import main
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.errors import CohortError
from bmmae.evaluation.predictions import read_predictions
from bmmae.evaluation.survival import evaluate_survival
from bmmae.modalities import STANDARD
from bmmae.model.patient import PatientModel
from bmmae.patient_evaluation import evaluate_cohort
from bmmae.patient_prediction import Outputs
from bmmae.patient_tables import tables, write_tables

CURVE = (3, 6, 9, 12, 18, 24, 36)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of twelve patients and a model of them."""
    folder = tmp_path_factory.mktemp("world")
    studies = list(read_cohort(write_table(folder)))
    tiny_patient_model(studies[:7]).save_pretrained(folder / "model")
    return folder


def followed_for(world: Path, months: float | None) -> PatientModel:
    """The model, as if its training studies had been followed for so long at most; None = saved without it."""
    model = load_model(world / "model", kind="patient")
    assert isinstance(model, PatientModel)
    hazards = (0.1, 0.2, 0.3)
    targets = tuple(
        replace(target, followed=months, baseline=hazards[: len(target.edges)] if target.kind == "cox" else ())
        for target in model.config.targets
    )
    model.config = replace(model.config, targets=targets)
    return model


def guesses(world: Path, model: PatientModel) -> Outputs:
    """Outputs drawn at random, for every patient of the table from its T1; the same whatever the follow-up."""
    studies, draw = tuple(read_cohort(world / "cohort.csv")), torch.Generator().manual_seed(0)
    drawn = {t.name: torch.randn(len(studies), t.outputs, generator=draw) for t in model.config.targets}
    return Outputs(studies, (("t1",),) * len(studies), drawn)


@pytest.mark.parametrize(("months", "told"), [(12.33, 4), (2.0, 0), (None, 7)])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_chances_past_the_longest_follow_up_are_blank(
    world: Path, tmp_path: Path, suffix: str, months: float | None, told: int
) -> None:
    followed_for(world, months).save_pretrained(tmp_path / "model")
    out = tmp_path / f"p.{suffix}"
    words = ("--model", tmp_path / "model", "--cohort", world / "cohort.csv", "--cache", world / "cache", "--out", out)
    assert main(["predict", *map(str, words)]) == 0
    table = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
    for form in ("hazard", "cox"):
        alive = table[[f"{form}_alive_{month}" for month in CURVE]].to_numpy(dtype=float)
        assert np.isfinite(alive[:, :told]).all()
        assert np.isnan(alive[:, told:]).all()
        assert table[f"{form}_risk"].notna().all()


def test_without_a_baseline_a_cox_target_has_no_columns_of_months(world: Path) -> None:
    model = followed_for(world, 12.33)
    targets = tuple(replace(target, baseline=()) for target in model.config.targets)
    (_, survival) = tables(targets, guesses(world, model))["cox"]
    assert survival is not None
    assert survival.at.tolist() == []


def test_tables_of_folds_join_at_the_months_that_all_of_them_tell(world: Path, tmp_path: Path) -> None:
    files = []
    for fold, months in enumerate((12.33, 40.0, 2.0)):
        model = followed_for(world, months)
        found = tables(model.config.targets, guesses(world, model), fold=fold)
        (path,) = write_tables(tmp_path / str(fold), {"hazard": found["hazard"]})
        _, survival = read_predictions(path)
        assert survival is not None
        assert survival.at.tolist() == [month for month in CURVE if month <= months]
        files.append(pd.read_csv(path, dtype=str, keep_default_na=False))
    for chosen, expected in ((files[:2], [3, 6, 9, 12]), (files, [])):
        pd.concat(chosen, join="inner").to_csv(tmp_path / "joined.csv", index=False)  # as docs/patient.md says
        _, survival = read_predictions(tmp_path / "joined.csv")
        assert survival is not None
        assert survival.at.tolist() == expected
        figures = {score.metric for score in evaluate_survival(survival, draws=0)}
        assert ("harrell_c" in figures, "integrated_brier" in figures) == (True, bool(expected))
    pd.concat(files[:2]).to_csv(tmp_path / "gaps.csv", index=False)
    with pytest.raises(CohortError, match=r"'s_18', 's_24', 's_36' are blank in some rows \(s_18 in .* join='inner'"):
        read_predictions(tmp_path / "gaps.csv")


def test_models_are_judged_at_the_months_that_all_of_them_tell(world: Path, tmp_path: Path) -> None:
    models = {name: followed_for(world, months) for name, months in (("long", 40.0), ("short", 9.5))}
    pairs = {name: (model, guesses(world, model)) for name, model in models.items()}
    long, short = models.values()
    describe(long, provenance=Provenance(content_hashes=("other images",)))
    describe(short, provenance=Provenance(parent_synthetic=True))
    said = evaluate_cohort(pairs, StudyCache(None, PREPROCESS, STANDARD), tmp_path, draws=0)
    page = (tmp_path / "cox.html").read_text()
    assert "<p class=fine>None of the 12 test studies was in the model's training" in page
    assert "<p class=warning>short was pretrained on synthetic data: measure it on labelled patients" in page
    assert "long was" not in page
    told = "Chances of survival at months 12, 18, 24, 36 are not judged"
    assert said.count(told) == 2  # hazard and cox
    for form in ("hazard", "cox"):
        assert told in (tmp_path / f"{form}.html").read_text()
        columns = list(pd.read_csv(tmp_path / "predictions" / f"{form}.csv"))
        assert [name for name in columns if name.startswith("s_")] == ["s_3", "s_6", "s_9"]
    assert told not in (tmp_path / "survival_class.html").read_text()
    scores = pd.read_csv(tmp_path / "scores.csv")
    chosen = scores[(scores["metric"] == "integrated_brier") & (scores["target"] == "hazard")]
    both = chosen.pivot(index="subset", columns="model", values="value")
    # They answer alike where both do, and are judged alike: what one tells beyond does not count.
    np.testing.assert_array_equal(both["long"], both["short"])
    assert both.notna().all(axis=None)

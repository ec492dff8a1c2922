"""The learning benchmarks compare by patient, refuse to compare what is not there, and run from end to end."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "benchmarks" / "results" / "quick"
sys.path.insert(0, str(ROOT / "benchmarks"))

import probe
import recipe_figures
import segmentation
import segmentation_figures
import transfer
import transfer_figures
from cells import CellStore
from full_volumes import counter_intuitive_rate
from learning_data import EDITIONS, OnlyModalities, Source
from paired import by_patient, differences, figure_by_patient, means
from pretrained_weights import configuration
from real import Parts
from recipe_factors import NAMES, OURS, PUBLISHED, settings, variant
from segmentation_contestants import DEDICATED, OPTIM, digest, form_of
from segmentation_figures import DEDICATED_TO
from transfer import some

from bmmae.data.cache import StudyCache
from bmmae.data.dataset import View
from bmmae.data.labels import BRATS2017, BRATS2023, region_masks
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.data.preprocess import PreprocessConfig
from bmmae.masking import MaskingConfig
from bmmae.modalities import STANDARD

PEOPLE = ("a", "b", "c")
LABELS = ("t1", "t1ce", "t1+t1ce")


def row(
    method: str, shift: float, labels: tuple[str, ...] = LABELS, people: tuple[str, ...] = PEOPLE
) -> dict[str, Any]:
    """A cell whose Dice is 0.5, a little more for each patient, plus a shift."""
    scores = {
        label: {region: {person: 0.5 + shift + 0.01 * place for place, person in enumerate(people)} for region in "EW"}
        for label in labels
    }
    return {"cell": {"method": method}, "scores": scores, "steps": 3, "training_seconds": 1.0}


def test_cells_are_found_again_when_their_weights_are_no_longer_kept(tmp_path: Path) -> None:
    given = argparse.Namespace(model=tmp_path / "fold{fold}", seconds=1.0, threads=1, width=4)
    given.only, given.folds, given.seeds, given.masked = ["ours"], None, 1, None
    nobody = Parts((), (), ())
    source = Source("real", (nobody, nobody), StudyCache(tmp_path, PreprocessConfig(), STANDARD), EDITIONS)
    store = CellStore("toy", folder=tmp_path)
    for made in ("first", "second"):
        store.run(segmentation.cell_of(given, source, "ours", 1, 0, made=made), dict)
    assert [cell["weights"] for cell in segmentation.cells(given, source, store)] == [None, "second"]
    kept = tmp_path / "fold1" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"weights")
    assert [cell["weights"] for cell in segmentation.cells(given, source, store)] == [None, digest(kept.parent)]
    given.only = ["masked"]
    assert not list(segmentation.cells(given, source, store))
    given.masked = given.model
    assert [cell["weights"] for cell in segmentation.cells(given, source, store)] == [None, digest(kept.parent)]


def test_a_difference_is_taken_within_patients_and_places() -> None:
    ours, theirs = by_patient([row("ours", 0.2)]), by_patient([row("b", 0.1, ("t1",), ("b", "c", "d"))])
    found = differences(ours, theirs)
    assert set(found) == {"b", "c"}
    assert found["b"] == pytest.approx(0.51 + 0.2 - 0.5 - 0.1)
    assert figure_by_patient(found).value == pytest.approx(11)


def test_seeds_are_averaged_before_patients_are_compared() -> None:
    both = by_patient([row("ours", 0.0), row("ours", 0.2)])
    assert means(both) == pytest.approx({"a": 0.6, "b": 0.61, "c": 0.62})


def finished(*rows: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in segmentation.methods(DEDICATED_TO)}
    return runs | {one["cell"]["method"]: [one] for one in rows}


def test_a_figure_is_about_the_patients_that_both_sides_scored_and_says_so() -> None:
    runs = finished(row("ours", 0.2), row("scratch", 0.1), row("masked", 0.15), row("unet", 0.0, people=("a",)))
    found = segmentation_figures.headline_figures(runs, len(PEOPLE))
    assert found["pretrained_vs_scratch"].value == pytest.approx(10)
    assert found["pretrained_vs_scratch"].unit == "Dice points"
    assert found["masked_vs_scratch"].value == pytest.approx(5)
    assert found["best_comparator_gap"].value == pytest.approx(20)
    assert found["best_comparator_gap"].unit == "Dice points, 1 of 3 patients, over unet, the best of 1"
    assert "any_vs_dedicated" not in found
    assert found["counter_intuitive_rate"].value == 0
    assert segmentation_figures.headline_figures(finished(row("unet", 0.0)), len(PEOPLE)) == {}


def test_dedicated_models_are_compared_on_their_own_subsets() -> None:
    dedicated = [row(DEDICATED + label, 0.1 * place, (label,)) for place, label in enumerate(DEDICATED_TO)]
    runs = finished(row("ours", 0.0, DEDICATED_TO), *dedicated)
    found = segmentation_figures.headline_figures(runs, len(PEOPLE))
    assert found["any_vs_dedicated"].value == pytest.approx(-15)
    assert found["any_vs_dedicated_full_set"].value == pytest.approx(0)
    rows = segmentation_figures.comparisons(runs)
    assert [one["method"] for one in rows] == ["ours", *(DEDICATED + label for label in DEDICATED_TO)]
    assert rows[-1]["ours_minus_it_in_points"] == pytest.approx(-30)
    longer = segmentation_figures.longer_figures(runs, len(PEOPLE), 600.0)
    assert longer["any_vs_dedicated_600s"] == found["any_vs_dedicated"]
    assert "et_without_t1ce_600s" not in longer


def test_patients_of_whom_no_setting_was_tried_have_figures_of_their_own() -> None:
    tried, untried = ("tried",), tuple(sorted(segmentation_figures.UNTRIED))
    sides = {"ours": (0.3, 0.2), "unet": (0.0, 0.1)}
    runs = {
        method: [row(method, shifts[0], people=tried), row(method, shifts[1], people=untried)]
        for method, shifts in sides.items()
    }
    found = segmentation_figures.untried_figures(runs, 5)
    assert found["best_comparator_gap_untried"].value == pytest.approx(10)
    assert found["best_comparator_gap_untried"].unit == "Dice points, 4 of 5 patients, over unet, the best of 1"
    assert segmentation_figures.headline_figures(runs, 5)["best_comparator_gap"].value == pytest.approx(14)
    assert segmentation_figures.untried_figures(finished(row("ours", 0.0, people=tried)), 5) == {}


def test_the_counter_intuitive_rate_counts_falls_of_more_than_half_a_point() -> None:
    table = {
        "t1": {"WT": {"a": 0.5, "b": 0.5}},
        "t2": {"WT": {"a": 0.4, "b": 0.7}},
        "t1+t2": {"WT": {"a": 0.496, "b": 0.6}},
    }
    found = counter_intuitive_rate([table])
    assert (found.fallen, found.cases) == (1, 4)


def learned(
    weights: str, shift: float, data: str = "real", fold: int = 0, amount: float | None = None
) -> dict[str, Any]:
    """A segmentation cell of `transfer.py`."""
    people = tuple(f"{person}{fold}" for person in PEOPLE)
    found = row(weights, shift, people=people)
    cell = {"part": "segmentation", "weights": weights, "data": data, "fold": fold, "amount": amount, "seed": 0}
    return {**found, "cell": cell}


def test_gains_need_every_fold_and_one_case_is_not_the_whole_share() -> None:
    sides = [("ours", 0.1), ("random", 0.0)]
    whole = [learned(*side, fold=fold, amount=3) for fold in range(5) for side in sides]
    assert "segmentation_gain_three_cases" not in transfer_figures.headline_figures(whole[:-2])
    whole += [learned("segmenter", 0.3, fold=fold, amount=3) for fold in range(4)]
    found = transfer_figures.headline_figures(whole)
    assert found["segmentation_gain_three_cases"].value == pytest.approx(10)
    assert "segmenter_segmentation_gain_three_cases" not in found
    whole = [learned("segmenter", 0.3, fold=4, amount=3), *whole]
    found = transfer_figures.headline_figures(whole)
    assert found["segmenter_segmentation_gain_three_cases"].value == pytest.approx(30)
    synthetic = [learned(*side, data="synthetic-2", amount=1.0) for side in sides]
    found = transfer_figures.headline_figures([*synthetic, learned("ours", 0.3, amount=1)])
    assert found["segmentation_gain_100pct"].value == pytest.approx(10)
    assert "segmentation_gain_one_case" not in found
    assert "counter_intuitive_rate_synthetic" in found
    assert "counter_intuitive_rate" not in found  # of a model that has seen one case


def test_the_published_recipe_is_brought_to_the_size_of_ours_and_to_nothing_else_of_it() -> None:
    ours, published = (configuration(name, (64, 64, 64)).model for name in ("ours", "published"))
    assert replace(published.encoder, rotary=ours.encoder.rotary) == ours.encoder
    assert (published.encoder.rotary, published.decoder.kind, published.decoder.colocated) == (False, "self", False)
    assert (published.surroundings, published.tissue_only, published.synthesis.units) == ((), False, 0)


@pytest.mark.parametrize("coding", [BRATS2017, BRATS2023])
def test_one_coding_reads_the_regions_of_both_editions(coding: Any) -> None:
    values = np.array([0, *coding.classes], np.int16).reshape(1, 1, -1)
    assert np.array_equal(region_masks(values, EDITIONS), region_masks(values, coding))


class OneStudy:
    """A dataset of a single sample."""

    view = View(STANDARD, (2, 2, 2), (1, 1, 1))
    studies: tuple[Any, ...] = ()
    seed = 0

    def __init__(self, masking: MaskingConfig | None = None) -> None:
        self.masking = masking

    def __len__(self) -> int:
        return 1

    def __getitem__(self, address: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {
            "images": torch.ones(4, 2, 2, 2),
            "available": torch.tensor([True, True, False, True]),
            "valid": torch.ones(4, 2, 2, 2, dtype=torch.bool),
            "brain": torch.ones(2, 2, 2, dtype=torch.bool),
        }


def test_a_dedicated_model_sees_its_modalities_alone() -> None:
    sample = OnlyModalities(OneStudy(), ("t1ce", "t2"))[(EVALUATION_EPOCH, 0)]  # type: ignore[arg-type]
    assert sample["available"].tolist() == [False, True, False, False]
    assert sample["images"].sum((1, 2, 3)).tolist() == [0, 8, 8, 0]
    assert sample["valid"].flatten(1).any(1).tolist() == [False, True, True, False]
    assert "mask" not in sample


def test_a_dedicated_model_sees_its_share_of_what_it_is_shown() -> None:
    shown = OnlyModalities(OneStudy(MaskingConfig(0.25)), ("t1ce",))  # type: ignore[arg-type]
    masks = [shown[(epoch, 0)]["mask"] for epoch in (0, 0, 1, 2)]
    assert all((~mask).sum(1).tolist() == [0, 2, 0, 0] for mask in masks)
    assert torch.equal(masks[0], masks[1])
    assert any(not torch.equal(masks[0], mask) for mask in masks)


def test_cells_of_an_earlier_decoder_are_no_further_seeds_of_todays() -> None:
    given = argparse.Namespace(quick=True, threads=1, seconds=1.5, width=4)
    about = {"part": "segmentation", "data": "real", "threads": 1, "seconds": 1.5, "width": 4}
    cell = about | {"form": form_of((32, 32, 32), 4), "optim": OPTIM.kind}
    assert transfer._is_current(cell, given, {"made"})
    assert not transfer._is_current(cell | {"form": "earlier"}, given, {"made"})
    assert not transfer._is_current(cell | {"optim": "earlier"}, given, {"made"})


def test_few_cases_are_drawn_by_the_seed() -> None:
    studies: Any = list(range(10))
    assert some(studies, None, 0) == studies
    assert len(some(studies, 3, 0)) == 3
    assert len(some(studies, 0.3, 0)) == 3
    assert some(studies, 1.0, 0) == studies
    assert some(studies, 3, 0) == some(studies, 3, 0) != some(studies, 3, 1)


@dataclass(frozen=True)
class Named:
    """A study that has a patient and nothing else."""

    group: str


def training(name: str, budget: float, errors: tuple[float, ...], ap: float) -> dict[str, Any]:
    """A cell of the recipe benchmark that took part in the race, judged at equal intervals."""
    cell = {"part": "race", "variant": name, "seed": 0, "budget": budget, "data": "real", "scored": "test"}
    curve = [{"seconds": budget * (i + 1) / len(errors), "hidden": e} for i, e in enumerate(errors)]
    scores = {key: {"a": ap, "b": ap + 0.1} for key in ("ap_all", "ap_t1")} | {"hidden": {"a": errors[-1]}}
    return {"cell": cell, "curve": curve, "scores": scores, "steps": 9}


def test_the_race_says_when_ours_reached_the_best_of_the_published_recipe() -> None:
    published = training(PUBLISHED, 60.0, (0.9, 0.5, 0.6), 0.4)
    found = recipe_figures.headline_figures([published, training(OURS, 20.0, (0.8, 0.5, 0.3, 0.4), 0.5)])
    assert found["time_to_published_loss_share"].value == pytest.approx(10 / 60)
    assert found["error_over_published"].value == pytest.approx(0.4 / 0.5)
    assert found["probe_gain_over_published"].value == pytest.approx(0.1)
    never = recipe_figures.headline_figures([published, training(OURS, 20.0, (0.8, 0.51), 0.5)])
    assert "time_to_published_loss_share" not in never
    assert never["error_over_published"].value > 1


def test_probes_are_compared_with_random_weights_by_patient() -> None:
    ours, random = training(OURS, 20.0, (0.5,), 0.5), training(recipe_figures.RANDOM, 0.0, (1.0,), 0.3)
    found = recipe_figures.headline_figures([ours, random])
    assert found["probe_gain"].value == pytest.approx(0.2)
    assert "probe_gain_over_statistics" not in found


def test_a_probe_on_unseen_patients_learns_from_all_of_them_but_the_one_it_judges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    studies = {letter: Named(letter) for letter in "abcdef"}
    rng = np.random.default_rng(0)
    tumour = rng.random(60) < 0.3
    own = {letter: np.outer(np.where(tumour, 1.0, -1.0), rng.normal(size=6)) for letter in studies}

    def places(source: Any, chosen: list[Named], *others: Any) -> probe.Places:
        found = [(own[study.group], tumour, np.full(60, study.group)) for study in chosen]
        return probe.Places(*map(np.concatenate, zip(*found, strict=True)))

    monkeypatch.setattr(probe, "gather", places)
    parts: Any = Parts((studies["a"],), (studies["b"], studies["c"]), (studies["d"], studies["e"]))  # type: ignore[arg-type]
    fitted: list[set[str]] = []
    plain = probe._fit

    def fit(chosen: probe.Places, penalty: float) -> object:
        fitted.append(set(chosen.patient.tolist()))
        return plain(chosen, penalty)

    monkeypatch.setattr(probe, "_fit", fit)
    found = probe.probe_unseen(None, parts, None, STANDARD, None)  # type: ignore[arg-type]
    assert set(found["ap"]) == {"d", "e"}
    assert {"b", "c", "e"} in fitted
    assert {"b", "c", "d"} in fitted
    assert not any({"d", "e"} <= people or "a" in people for people in fitted)


def test_many_patients_are_left_out_in_groups_that_share_nobody() -> None:
    groups = probe._groups([f"sub-{number:02}" for number in (*range(20), *range(20))])
    assert len(groups) == probe.GROUPS
    assert sorted(name for group in groups for name in group) == [f"sub-{number:02}" for number in range(20)]
    assert probe._groups(["a", "a", "b"]) == [["a"], ["b"]]


def test_every_variant_but_the_recipe_changes_something() -> None:
    plain = variant(OURS, (64, 64, 64))
    assert plain.config.model.synthesis.units == 0
    assert all(variant(name, (64, 64, 64)) != plain for name in NAMES if name != OURS)
    assert len({settings(name) for name in NAMES}) == len(NAMES)


def run_quickly(name: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=one_thread)


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The quick run of each benchmark that is asked for, two at a time: each computes on one thread."""
    asked = [
        item for item in request.session.items if getattr(item, "originalname", "") == "test_it_runs_from_end_to_end"
    ]
    with ThreadPoolExecutor(2) as pool:
        runs = {}
        for item in asked:
            name = item.callspec.params["name"]  # type: ignore[attr-defined]
            (QUICK / f"{name}.json").unlink(missing_ok=True)
            runs[name] = pool.submit(run_quickly, name)
        yield runs
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("segmentation", {"any_vs_dedicated_t1ce", "pretrained_vs_scratch", "best_comparator_gap", "et_without_t1ce"}),
        ("recipe", {"probe_gain", "probe_gain_t1", "probe_gain_t1_unseen", "error_over_published"}),
        ("small_lesions", {"lesion_f1", "false_lesions", "f1_gain_over_windows_anywhere", "f1_gain_over_unet"}),
        ("transfer", {"counter_intuitive_rate_synthetic", "neighbours_subtype_ours"}),
        ("tumour_probe", {"probe_gain_all_train_over_random", "probe_gain_t1_unseen_over_patch_statistics"}),
        ("patient", {"auc_to_ceiling", "c_index_to_ceiling", "any_vs_dedicated_auc"}),
    ],
)
def test_it_runs_from_end_to_end(
    ended: dict[str, Future[subprocess.CompletedProcess[str]]], name: str, figures: set[str]
) -> None:
    run = ended[name].result()
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((QUICK / f"{name}.json").read_text())
    assert found["quick"]
    assert figures <= set(found["headline"])
    assert found["rows"]
    if name == "segmentation":
        distances_of_its_model()


def distances_of_its_model() -> None:
    (QUICK / "cells" / "segmentation_distances.jsonl").unlink(missing_ok=True)
    run = run_quickly("segmentation_distances")
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((QUICK / "segmentation_distances.json").read_text())
    assert found["headline"]["hd95_all_subsets"]["value"] > 0
    parts = Counter(row["part"] for row in found["rows"])
    assert parts == {"cleaning": 3 * 2, "subsets": 15 * 4}  # three regions and their mean

"""Segmentation: one any-subset model against dedicated ones, against scratch, and against seven networks.

python benchmarks/segmentation.py [--data synthetic] [--model checkpoints/tiny] [--seconds 300] [--only ours unet]

Cells are run fold by fold, everything of fold 0 first, then the next seed, and are skipped when finished. `ours` and
the networks train for `--seconds` of processor time on `--threads` threads (a GPU: seconds that pass); `scratch` and
the dedicated models take as many steps as `ours` of their fold and seed did. All fifteen subsets are scored on whole
test volumes at 2 mm (synthetic: 3 mm), the dedicated models on their own. No validation: the last weights are scored.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import CellStore
from full_volumes import score_volumes
from harness import RESULTS, ROOT, Figure, arguments, parse, write_result
from learning_data import Source, real_source, synthetic_source
from paired import by_patient, differences, everything, figure_by_patient, means
from segmentation_contestants import (
    DEDICATED,
    LAYER_DECAY,
    Start,
    describe_contestants,
    digest,
    fine_tune,
    fit_network,
    form_of,
    keep,
    kept_weights,
    methods,
)
from study_time import time_study
from subset_plot import plot_subsets

from bmmae.baselines.budget import Budget
from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS
from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import STANDARD, subset_label

T1, T1CE, T2, FLAIR = STANDARD
DEDICATED_TO = tuple(map(subset_label, (STANDARD, (T1CE,), (FLAIR,), (T1, T2))))
QUICK_METHODS = ("ours", "scratch", DEDICATED + T1CE, "unet")
TRAIN, TEST = 400, 100
"""Synthetic subjects."""


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("segmentation", quick=True).path.unlink(missing_ok=True)
    source = _source(given)
    store = CellStore("segmentation", quick=given.quick)
    for cell in cells(given, source):
        row = store.run(cell, lambda cell=cell: run_cell(given, cell, source, store))
        mean = statistics.fmean(means(by_patient([row])).values())
        print(f"{cell['method']}, fold {cell['fold']}, seed {cell['seed']}: Dice {mean:.3f}, {row['steps']} steps")
    report(given, source, store)


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--data", choices=("real", "synthetic"), default="real")
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / "checkpoints" / "tiny",
        help="pretrained weights; `{fold}` in the path: each fold's own",
    )
    parser.add_argument("--width", type=int, default=8, help="channels of our decoder at full resolution")
    parser.add_argument("--seconds", type=float, default=300.0, help="training budget of a cell")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of ours, scratch and the dedicated models")
    parser.add_argument("--folds", type=int, nargs="+", default=None, help="only these")
    parser.add_argument("--only", nargs="+", default=None, help="only these methods")
    parser.add_argument("--no-time", action="store_true", help="do not time a study of 240x240x155")
    given = parse(parser)
    unknown = set(given.only or ()) - set(methods(DEDICATED_TO))
    if unknown:
        sys.exit(f"error: unknown method {', '.join(sorted(unknown))}: expected some of {', '.join(_known())}")
    if given.quick:
        given.data, given.seeds, given.seconds, given.width, given.no_time = "synthetic", 1, 4.0, 4, True
        given.only = given.only or list(QUICK_METHODS)
    return given


def _known() -> list[str]:
    return methods(DEDICATED_TO)


def _source(given: argparse.Namespace) -> Source:
    if given.quick:
        return synthetic_source(4, 3, size=32)
    return real_source() if given.data == "real" else synthetic_source(TRAIN, TEST)


def cells(given: argparse.Namespace, source: Source) -> Iterator[dict[str, Any]]:
    """Yield the cells in the order in which they are run."""
    for seed in range(given.seeds):
        for fold in range(len(source.parts)):
            for method in given.only or _known():
                wanted = given.folds is None or fold in given.folds
                if wanted and not (seed and method in SEGMENTATION_NETWORKS):
                    yield cell_of(given, source, method, fold, seed)


def cell_of(given: argparse.Namespace, source: Source, method: str, fold: int, seed: int) -> dict[str, Any]:
    """Return what identifies a run."""
    cell = {"method": method, "data": source.name, "fold": fold, "seed": seed, "seconds": given.seconds}
    cell |= {"threads": given.threads}
    if method not in SEGMENTATION_NETWORKS:
        cell |= {"width": given.width, "form": form_of(source.window, given.width)}
    if method == "ours" or method.startswith(DEDICATED):
        weights = _weights(given, fold)
        made = digest(weights) if (weights / "model.safetensors").exists() else "not made yet"
        cell |= {"layer_decay": LAYER_DECAY, "weights": made}
    return cell


def _weights(given: argparse.Namespace, fold: int) -> Path:
    return Path(str(given.model).format(fold=fold))


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source, store: CellStore) -> dict[str, Any]:
    """Train one contestant on one fold and score it on the fold's test patients."""
    start = Start.of(_weights(given, cell["fold"]), source.window, given.width)
    method, seed, parts = cell["method"], cell["seed"], source.parts[cell["fold"]]
    studies, subsets = [*parts.train, *parts.validation], all_subsets()
    tune = functools.partial(fine_tune, source=source, studies=studies, seed=seed)
    if method in SEGMENTATION_NETWORKS:
        budget = Budget(seconds=cell["seconds"])
        model, training = fit_network(method, start.shape, source, studies, budget, seed=seed)
    elif method == "ours":
        model, training = tune(start, budget=Budget(seconds=cell["seconds"]))
        if seed == 0:
            keep(model, source, kept_weights(source, cell["fold"]))
    elif method == "scratch":
        model, training = tune(start.scratch(), budget=_same_steps(cell, store))
    else:
        subsets = [tuple(method.removeprefix(DEDICATED).split("+"))]
        model, training = tune(start, budget=_same_steps(cell, store), only=subsets[0])
    scores = score_volumes(model, source, parts.test, start.shape, subsets)
    return {**training.row(), "patients": len(parts.test), "scores": scores}


def _same_steps(cell: Mapping[str, Any], store: CellStore) -> Budget:
    """Return as many steps as `ours` took on the same fold with the same seed."""
    shared = ("data", "fold", "seed", "seconds", "threads", "width", "form")
    for row in store:
        other = row["cell"]
        same = all(other.get(key) == cell[key] for key in shared) and other.get("layer_decay") == LAYER_DECAY
        if other["method"] == "ours" and same and other["weights"] == cell.get("weights", other["weights"]):
            return Budget(steps=row["steps"])
    sys.exit(f"error: {cell['method']} takes as many steps as 'ours' of its fold and seed, which has not been run")


def report(given: argparse.Namespace, source: Source, store: CellStore) -> None:
    """Write figures, rows and plot of the cells that this command line is about."""
    asked = argparse.Namespace(**{**vars(given), "only": None, "folds": None})
    keys = list(cells(asked, source))
    rows = [row for row in map(store.find, keys) if row is not None]
    runs = {method: [row for row in rows if row["cell"]["method"] == method] for method in _known()}
    patients = len({study.group for parts in source.parts for study in parts.test})
    headline = headline_figures(runs, patients, quick=given.quick)
    extra: list[Mapping[str, Any]] = [{"part": "contestants", **row} for row in describe_contestants()]
    if not given.no_time:
        took = store.run({"method": "seconds_a_study", "recipe": "small"}, functools.partial(time_study, given.runs))
        headline |= {
            "seconds_a_study": _spread(took["wall_seconds"], 30.0, "seconds, lower is better"),
            "memory_a_study": _spread(took["memory_gb"], 4.0, "GB at the peak, lower is better"),
        }
    if len(rows) < len(keys):
        print(f"{len(rows)} of {len(keys)} cells are finished; figures are given where every patient was scored")
    name = "segmentation" if source.name == "real" or given.quick else "segmentation_synthetic"
    table = [*table_rows(runs), *extra]
    write_result(name, quick=given.quick, runs=len(rows), headline=headline, rows=table)
    plot_subsets(runs, (RESULTS / "quick" if given.quick else RESULTS) / f"{name}.png", source.name)


def headline_figures(
    runs: Mapping[str, list[dict[str, Any]]], patients: int, *, quick: bool = False
) -> dict[str, Figure]:
    """Return the figures for which every patient has been scored by both sides."""
    scored = {method: by_patient(rows) for method, rows in runs.items()}
    complete = {method: scores for method, scores in scored.items() if len(scores) == patients}
    ours, found = complete.get("ours", {}), {}
    dedicated = {method: scores for method, scores in complete.items() if method.startswith(DEDICATED)}
    if ours and dedicated and (quick or len(dedicated) == len(DEDICATED_TO)):
        theirs = {p: {k: v for scores in dedicated.values() for k, v in scores[p].items()} for p in ours}
        found["any_vs_dedicated"] = figure_by_patient(differences(ours, theirs), asked=0.0)
        full = dedicated.get(DEDICATED + DEDICATED_TO[0])
        if full:
            found["any_vs_dedicated_full_set"] = figure_by_patient(differences(ours, full), asked=-1.0)
    if ours and "scratch" in complete:
        found["pretrained_vs_scratch"] = figure_by_patient(differences(ours, complete["scratch"]), asked=5.0)
    rivals = {name: complete[name] for name in SEGMENTATION_NETWORKS if name in complete}
    if ours and rivals:
        best = max(rivals, key=lambda name: statistics.fmean(means(rivals[name]).values()))
        gap = figure_by_patient(differences(ours, rivals[best]), asked=0.0)
        found["best_comparator_gap"] = replace(gap, unit=f"Dice points over {best}, the best of {len(rivals)}")
    if ours:
        found |= _hard_floors(runs["ours"])
    return found


def _hard_floors(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the two cases that no subset model can do well, on lines of their own."""
    places = {
        "mean_dice": everything,
        "et_without_t1ce": lambda subset, region: region == "ET" and T1CE not in subset.split("+"),
        "wt_without_flair": lambda subset, region: region == "WT" and FLAIR not in subset.split("+"),
    }
    return {name: figure_by_patient(means(by_patient(rows, counts))) for name, counts in places.items()}


def table_rows(runs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return mean Dice by method, subset and region, with what the training cost."""
    table = []
    for method, rows in runs.items():
        gathered: dict[tuple[str, str], list[float]] = {}
        for places in by_patient(rows).values():
            for place, value in places.items():
                gathered.setdefault(place, []).append(value)
        cost = {key: statistics.fmean(row[key] for row in rows) for key in ("steps", "training_seconds") if rows}
        for (subset, region), values in gathered.items():
            row = {"method": method, "subset": subset, "region": region, "dice": statistics.fmean(values)}
            table.append(row | {"worst": min(values), "patients": len(values), "cells": len(rows)} | cost)
    return table


def _spread(values: list[float], asked: float, unit: str) -> Figure:
    return Figure(statistics.median(values), min(values), max(values), None, asked, unit)


if __name__ == "__main__":
    main()

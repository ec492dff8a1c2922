"""Segmentation: one any-subset model against dedicated ones, against scratch, and against seven networks.

python benchmarks/segmentation.py [--data synthetic] [--model PATH] [--masked PATH] [--seconds 300] [--only ours unet]

Cells are run fold by fold, everything of fold 0 first, then the next seed, and are skipped when finished. `ours` and
the networks train for `--seconds` of processor time on `--threads` threads (a GPU: seconds that pass). What is compared
with `ours` at equal steps takes as many as it did in that fold with that seed: `scratch` from random weights, `masked`
from an encoder that was pretrained by masking alone, the dedicated models from what `ours` starts from. `relying` is
`ours` with each region taken from no more modalities than paid on further synthetic subjects (`bmmae segment --rely`).
All fifteen subsets are scored on whole test volumes at 2 mm (synthetic: 3 mm), the dedicated models on their own. No
validation: the last weights are scored.

The real cases start from `checkpoints/tiny-segmentation`, which has seen synthetic subjects alone; the synthetic ones
from `checkpoints/tiny`, which has seen no label.
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
from full_volumes import region_scores, score_volumes
from harness import RESULTS, ROOT, arguments, parse, refuse_unknown, write_result
from learning_data import Source, prepare, quick_source, real_source, synthetic_cohort, synthetic_source
from paired import by_patient, means
from segmentation_contestants import (
    AUGMENT,
    DEDICATED,
    LAYER_DECAY,
    MASKED,
    OPTIM,
    RELYING,
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
from segmentation_figures import (
    DEDICATED_TO,
    T1CE,
    comparisons,
    headline_figures,
    longer_figures,
    subset_rows,
    untried_figures,
)
from subset_plot import plot_subsets

from bmmae.baselines.budget import Budget
from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS
from bmmae.checkpoint import load_model
from bmmae.data.synthetic.cohort import SyntheticConfig
from bmmae.evaluation.subsets import all_subsets, choose_subsets

QUICK_METHODS = ("ours", "scratch", DEDICATED + T1CE, "unet")
LONGER = 600.0
"""Seconds of the longer runs, one seed, whose figures stand beside those of the command line's budget."""
TRAIN, TEST = 400, 100
"""Synthetic subjects."""
CHOSEN_ON = SyntheticConfig(24, seed=101)
"""The subjects that `relying` is chosen on: neither trained on nor tested on."""


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("segmentation", quick=True).path.unlink(missing_ok=True)
    source = _source(given)
    refuse_unknown("fold", given.folds, range(len(source.parts)))
    store = CellStore("segmentation", quick=given.quick)
    for cell in cells(given, source, store):
        row = store.run(cell, lambda cell=cell: run_cell(given, cell, source))
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
        default=None,
        help="pretrained weights; `{fold}` in the path: each fold's own; by default those of `checkpoints`",
    )
    parser.add_argument("--masked", type=Path, default=None, help="weights pretrained by masking alone, likewise")
    parser.add_argument("--width", type=int, default=8, help="half the channels of our decoder at half resolution")
    parser.add_argument("--seconds", type=float, default=300.0, help="training budget of a cell")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of ours, scratch and the dedicated models")
    parser.add_argument("--folds", type=int, nargs="+", default=None, help="only these")
    parser.add_argument("--only", nargs="+", default=None, help="only these methods")
    given = parse(parser)
    refuse_unknown("method", given.only, _known())
    if given.quick:
        given.data, given.seeds, given.seconds, given.width = "synthetic", 1, 1.5, 4
        given.only = given.only or list(QUICK_METHODS)
    start = "tiny" if given.data == "synthetic" else "tiny-segmentation"
    given.model = given.model or ROOT / "checkpoints" / start
    return given


def _known() -> list[str]:
    return methods(DEDICATED_TO)


def _source(given: argparse.Namespace) -> Source:
    if given.quick:
        return quick_source()
    return real_source() if given.data == "real" else synthetic_source(TRAIN, TEST)


def cells(given: argparse.Namespace, source: Source, store: CellStore) -> Iterator[dict[str, Any]]:
    """Yield the cells in the order in which they are run."""
    for seed in range(given.seeds):
        for fold in range(len(source.parts)):
            made, masked = (
                _weights_of(given, source, store, start, fold=fold, seed=seed) for start in ("ours", MASKED)
            )
            ours = cell_of(given, source, "ours", fold, seed, made=made)
            for method in given.only or _known():
                wanted = given.folds is None or fold in given.folds
                if not wanted or (seed and method in (RELYING, *SEGMENTATION_NETWORKS)):
                    continue
                if method == RELYING and (source.name == "real" or given.quick):
                    continue  # a dozen real cases leave none to choose on
                cell = cell_of(given, source, method, fold, seed, made=masked if method == MASKED else made)
                if method in ("scratch", MASKED) or method.startswith(DEDICATED):
                    finished = store.find(ours)
                    cell |= {"steps": finished and finished["steps"]}
                if method != MASKED or given.masked is not None or store.find(cell):
                    yield cell


def cell_of(
    given: argparse.Namespace, source: Source, method: str, fold: int, seed: int, *, made: str | None
) -> dict[str, Any]:
    """Return what identifies a run; `made` tells one pretraining from another."""
    cell = {"method": method, "data": source.name, "fold": fold, "seed": seed, "seconds": given.seconds}
    cell |= {"threads": given.threads, "modality_dropout": AUGMENT.modality_dropout}
    cell |= {"single_share": AUGMENT.single_share}
    if method not in SEGMENTATION_NETWORKS:
        cell |= {"width": given.width, "form": form_of(source.window, given.width), "optim": OPTIM.kind}
    if method in ("ours", MASKED, RELYING) or method.startswith(DEDICATED):
        cell |= {"layer_decay": LAYER_DECAY, "weights": made}
    return cell


def _weights_of(
    given: argparse.Namespace, source: Source, store: CellStore, start: str, *, fold: int, seed: int
) -> str | None:
    """Return the digest of a fold's weights; where they are no longer kept, of those that `start` last started from.

    Args:
        given: The command line.
        source: The data.
        store: The finished cells.
        start: `ours` or `masked`.
        fold: Which one.
        seed: Of the cell.
    """
    weights = _weights(given, start, fold)
    if weights is not None:
        return digest(weights)
    about = cell_of(given, source, start, fold, seed, made=None).items()
    earlier = [row["cell"] for row in store if about <= (row["cell"] | {"weights": None}).items()]
    return str(earlier[-1]["weights"]) if earlier else None


def _path(given: argparse.Namespace, method: str) -> Path | None:
    """Return what the command line says of where a method starts from."""
    path: Path | None = given.masked if method == MASKED else given.model
    return path


def _weights(given: argparse.Namespace, method: str, fold: int) -> Path | None:
    folder = Path(str(_path(given, method)).format(fold=fold))
    return folder if (folder / "model.safetensors").exists() else None


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Train one contestant on one fold and score it on the fold's test patients."""
    method, seed, parts = cell["method"], cell["seed"], source.parts[cell["fold"]]
    if method == RELYING:
        return _relying(given, cell, source)
    weights = _weights(given, method, cell["fold"])
    if weights is None and method not in SEGMENTATION_NETWORKS:
        where = _path(given, method)
        sys.exit(f"error: {method} takes its encoder from {where}, where no model is for fold {cell['fold']}")
    start = Start.of(weights, source.window, given.width)
    studies, subsets = [*parts.train, *parts.validation], all_subsets()
    tune = functools.partial(fine_tune, source=source, studies=studies, seed=seed)
    if method in SEGMENTATION_NETWORKS:
        budget = Budget(seconds=cell["seconds"])
        model, training = fit_network(method, start.shape, source, studies, budget, seed=seed)
    elif method == "ours":
        model, training = tune(start, budget=Budget(seconds=cell["seconds"]))
        keep(model, source, kept_weights(source, cell["fold"], seed))
    elif method == "scratch":
        model, training = tune(start.scratch(), budget=_same_steps(cell))
    elif method == MASKED:
        model, training = tune(start, budget=_same_steps(cell))
    else:
        subsets = [tuple(method.removeprefix(DEDICATED).split("+"))]
        model, training = tune(start, budget=_same_steps(cell), only=subsets[0])
    scores = score_volumes(model, source, parts.test, start.shape, subsets)
    return {**training.row(), "patients": len(parts.test), "scores": scores}


def _relying(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Choose what to rely on by other subjects, and look up what that gives on the test patients."""
    ours = CellStore("segmentation", quick=given.quick).find({**cell, "method": "ours"})
    folder = kept_weights(source, cell["fold"])
    if ours is None or not (folder / "model.safetensors").exists():
        sys.exit(f"error: {RELYING} needs the model of 'ours', which is not kept: run 'ours' first")
    others = synthetic_cohort(replace(CHOSEN_ON, size=source.window[0]))
    prepare(others, source.cache)
    model = load_model(folder)
    seen = score_volumes(model, source, others.studies, model.model_config, all_subsets())
    chosen = choose_subsets(region_scores([seen]))
    scores = {
        subset: {region: ours["scores"][chosen.get(region, {}).get(subset, subset)][region] for region in regions}
        for subset, regions in ours["scores"].items()
    }
    told = {key: ours[key] for key in ("steps", "training_seconds", "seconds_a_step", "loss", "patients")}
    return {**told, "chosen": chosen, "scores": scores}


def _same_steps(cell: Mapping[str, Any]) -> Budget:
    """Return as many steps as `ours` took on the same fold with the same seed."""
    if cell["steps"] is None:
        sys.exit(f"error: {cell['method']} takes as many steps as 'ours' of its fold and seed, which has not been run")
    return Budget(steps=cell["steps"])


def report(given: argparse.Namespace, source: Source, store: CellStore) -> None:
    """Write figures, rows and plot of the cells that this command line is about, and what more training changes."""
    runs, missing = _finished(given, source, store)
    patients = len({study.group for parts in source.parts for study in parts.test})
    headline = headline_figures(runs, patients) | untried_figures(runs, patients)
    extra: list[Mapping[str, Any]] = [{"part": "contestants", **row} for row in describe_contestants()]
    if given.seconds < LONGER:
        longer, _ = _finished(given, source, store, seconds=LONGER, seeds=1)
        headline |= longer_figures(longer, patients, LONGER)
        extra += comparisons(longer, part="longer")
    done = sum(map(len, runs.values()))
    if missing:
        print(f"{done} of {done + missing} cells are finished; figures are about the patients that both sides scored")
    name = "segmentation" if source.name == "real" or given.quick else "segmentation_synthetic"
    table = [*comparisons(runs), *subset_rows(runs), *extra]
    write_result(name, quick=given.quick, runs=done, headline=headline, rows=table, measured=store.ran > 0)
    plot_subsets(runs, (RESULTS / "quick" if given.quick else RESULTS) / f"{name}.png", source.name)


def _finished(
    given: argparse.Namespace, source: Source, store: CellStore, **other: Any
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Return the finished cells of all methods and folds by method, and how many are missing.

    Args:
        given: The command line.
        source: The data.
        store: The finished cells.
        **other: What is otherwise than on the command line.
    """
    asked = argparse.Namespace(**{**vars(given), "only": None, "folds": None, **other})
    keys = list(cells(asked, source, store))
    rows = [row for row in map(store.find, keys) if row is not None]
    runs = {method: [row for row in rows if row["cell"]["method"] == method] for method in _known()}
    return runs, len(keys) - len(rows)


if __name__ == "__main__":
    main()

"""Absent modalities from those there are: ours against what anyone would try first, each trained for the same time.

python benchmarks/synthesis.py [--methods mean ridge unet ours] [--folds 0 1 fixed] [--given 3]
[--seconds 600] [--model PATH]

Each method is trained on a fold's training patients alone, and scored on its test patients: all 14 proper subsets of
four modalities, each absent modality, on the native 1 mm grid, after the least-squares affine map that is the same
for all. Seconds are processor seconds of this process over its threads, our pretraining counted, so that a busy
machine does not decide. `--parts use` replaces each modality by a synthesised one and segments. Finished cells are
skipped.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import CellStore
from harness import ROOT, arguments, parse, refuse_unknown, write_result
from learning_data import WORK, Source, real_source, synthetic_source
from real import Parts, fixed_split, real_cohort
from segmentation_contestants import digest, weights_file
from synthesis_figures import FIXED, LEFT_OUT, headline_figures, short_table, table_rows
from synthesis_methods import METHODS, TRAINED, Assignment, Scale, form_of, obtain, unfair
from synthesis_scores import coverage_of_patients, score_in_use, score_patients, segmenter_of, summary

Cell = dict[str, Any]
SIZES = (1, 2, 3)
"""Of subsets that something is absent from."""


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = read_arguments()
    if given.model is not None:
        weights_file(given.model)  # stops here where there is none
    store = CellStore("synthesis", quick=given.quick)
    if given.quick:
        store.path.unlink(missing_ok=True)
    source, splits = _data(given)
    scale = Scale.quick(source) if given.quick else Scale.real()
    keys = list(cells(given, source, scale, splits))
    print(f"{len(keys)} cells; seconds are processor seconds over {torch.get_num_threads()} thread(s)")
    for cell in keys:
        work = partial(run_cell, given, cell, assignment(given, cell, source, scale, splits[cell["fold"]]))
        row = store.run(cell, work)
        print(", ".join(f"{key} {value}" for key, value in cell.items()), row.get("gist", ""), flush=True)
    rows = [row for row in store if _is_current(row["cell"], given, source, scale)]
    print(short_table(rows))
    write_result(
        "synthesis",
        quick=given.quick,
        runs=len(rows),
        headline=headline_figures(rows),
        rows=table_rows(rows),
        measured=store.ran > 0,
    )


def _is_current(cell: Cell, given: argparse.Namespace, source: Source, scale: Scale) -> bool:
    """Tell whether a finished cell is about what is asked now, of any fold: a short run must not hide the rest."""
    saved = given.model or ROOT / "checkpoints" / "glioma"
    return (
        cell["data"] == source.name
        and cell.get("budget", given.seconds) == given.seconds
        and ("form" not in cell or cell["form"] == form_of(cell["method"], source, scale))
        and ("weights" not in cell or cell["weights"] == digest(saved))
    )


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    chosen = [name for name in METHODS if name != "saved"]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=chosen)
    parser.add_argument("--parts", nargs="+", choices=("score", "use"), default=["score", "use"])
    parser.add_argument(
        "--given", type=int, nargs="+", choices=SIZES, default=list(SIZES), help="subsets of such sizes"
    )
    parser.add_argument("--folds", nargs="+", default=["0", "1", "2", "3", "4", FIXED])
    parser.add_argument("--seconds", type=float, default=600.0, help="training budget of every method that learns")
    parser.add_argument("--segmenter-seconds", type=float, default=300.0, help="that of the segmenter of `use`")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--model", type=Path, default=None, help="weights of our own made elsewhere: the method `saved`"
    )
    given = parse(parser)
    if given.model is not None and "saved" not in given.methods:
        given.methods.append("saved")
    given.work = WORK / "pretrained"
    if given.quick:
        given.folds, given.seconds, given.segmenter_seconds = ["0"], 1.0, 1.0
        given.work = WORK / "quick" / "pretrained"
        shutil.rmtree(given.work, ignore_errors=True)  # a look at how everything works, training included
    return given


def _data(given: argparse.Namespace) -> tuple[Source, dict[str, Parts]]:
    if given.quick:
        source = synthetic_source(2, 2, size=32)
        return source, {"0": source.parts[0]}
    source = real_source()
    splits = {str(number): parts for number, parts in enumerate(source.parts)} | {FIXED: fixed_split(real_cohort())}
    refuse_unknown("fold", given.folds, splits)
    return source, {name: splits[name] for name in given.folds}


def cells(given: argparse.Namespace, source: Source, scale: Scale, splits: Mapping[str, Parts]) -> Iterator[Cell]:
    """Yield the cells: all methods of one fold before the next, so that methods can be compared early."""
    unfair_folds = _unfair_folds(given, source, splits)
    for fold in splits:
        for seed in range(given.seeds):
            for part in given.parts:
                for method in (*given.methods, *([LEFT_OUT] if part == "use" else [])):
                    if (method == "cyclegan" and part == "use") or (method == "saved" and fold in unfair_folds):
                        continue  # it makes nothing from three others; it has seen the test patients
                    learns = method in TRAINED or part == "use"
                    yield (
                        {"part": part, "data": source.name, "method": method, "fold": fold}
                        | ({"seed": seed, "threads": given.threads} if learns else {})
                        | ({"budget": given.seconds} if method in TRAINED else {})
                        | ({"given": _sizes(given)} if part == "score" and set(given.given) != set(SIZES) else {})
                        | ({"segmenter": given.segmenter_seconds} if part == "use" else {})
                        | _weights(given, method, source, scale)
                    )


def _sizes(given: argparse.Namespace) -> str:
    return "+".join(map(str, sorted(set(given.given))))


def _unfair_folds(given: argparse.Namespace, source: Source, splits: Mapping[str, Parts]) -> set[str]:
    """Return the folds whose test patients the saved model has seen, and say so."""
    if "saved" not in given.methods:
        return set()
    if given.model is None:
        raise SystemExit("error: the method `saved` needs --model")
    reasons = {fold: unfair(given.model, source, parts) for fold, parts in splits.items()}
    for fold, reason in reasons.items():
        if reason is not None:
            print(f"{given.model} is not judged on fold {fold}. {reason}")
    return {fold for fold, reason in reasons.items() if reason is not None}


def _weights(given: argparse.Namespace, method: str, source: Source, scale: Scale) -> Cell:
    """Return what tells one form of a method from another: a changed recipe is another cell."""
    if method == "saved":
        return {"weights": digest(given.model)}
    return {"form": form_of(method, source, scale)} if method in TRAINED else {}


def assignment(given: argparse.Namespace, cell: Cell, source: Source, scale: Scale, parts: Parts) -> Assignment:
    """Return what a cell's method is trained on."""
    return Assignment(
        method=cell["method"],
        source=source,
        parts=parts,
        fold=cell["fold"],
        seed=cell.get("seed", 0),
        seconds=given.seconds,
        scale=scale,
        work=given.work,
        weights=given.model,
    )


def run_cell(given: argparse.Namespace, cell: Cell, task: Assignment) -> dict[str, Any]:
    """Do the work of one cell."""
    started = time.process_time()
    method, training = (None, {}) if cell["method"] == LEFT_OUT else obtain(task)
    test = task.parts.test
    if cell["part"] == "use":
        segmenter = segmenter_of(task, given.segmenter_seconds)
        outcome: dict[str, Any] = {"scores": score_in_use(method, segmenter, task.source, test)}
    elif method is not None:
        scores = score_patients(method, test, given.given, quiet=given.quick)
        outcome = {"scores": scores, "gist": summary(scores), "coverage": coverage_of_patients(method, test)}
    return {**training, **outcome, "processor_seconds": round(time.process_time() - started, 1)}


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()

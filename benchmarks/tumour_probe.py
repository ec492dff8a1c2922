"""Does the frozen encoder tell tumour from brain? A linear probe of every patch, five folds of the real cases.

python benchmarks/tumour_probe.py [--seconds 1200] [--folds 0 1] [--ours PATH]

Our recipe is pretrained on each fold's training patients alone, without a label; `--ours` names weights made elsewhere
instead (`{fold}` in the path stands for the fold's number). `probe.py` says what is probed, and on whom it is fitted.
Finished cells are skipped.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cells import CellStore
from harness import Figure, arguments, parse, refuse_unknown, write_result
from learning_data import WORK, Source, real_source, synthetic_source
from paired import figure_by_patient
from pretrained_weights import configuration, form_of, random_weights, weights_of
from probe import Features, frozen_features, patch_statistics, probe, probe_unseen
from real import Parts
from segmentation_contestants import digest
from transfer_figures import complete, pick

from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.modalities import STANDARD, subset_label
from bmmae.model.mae import MAE

OURS, RANDOM, STATISTICS = "ours", "random", "patch statistics"
RANDOM_SEEDS = 3
PROBED = {"all": subset_label(STANDARD), "t1": STANDARD[0]}
PROBES = {"train": probe, "unseen": probe_unseen}
"""By whom the probe is fitted on: training patients, or patients whom pretraining has not seen."""
QUICK, QUICK_SIZE = 8, 32
Cell = dict[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    store = CellStore("tumour_probe", quick=given.quick)
    if given.quick:
        store.path.unlink(missing_ok=True)
    source = synthetic_source(QUICK, QUICK, size=QUICK_SIZE) if given.quick else real_source()
    refuse_unknown("fold", given.folds, range(len(source.parts)))
    asked = given.folds or range(len(source.parts))
    for cell in (cell for fold in asked for cell in cells(given, source, fold)):
        row = store.run(cell, lambda cell=cell: run_cell(given, cell, source))
        told = ", ".join(str(cell[key]) for key in ("weights", "seed", "given", "fitted_on", "fold"))
        print(f"{told}: AP {_mean(row, 'ap'):.3f}, AUC {_mean(row, 'auc'):.3f}", flush=True)
    keys = (cell for fold in range(len(source.parts)) for cell in cells(given, source, fold))
    rows = [row for row in map(store.find, keys) if row is not None]
    headline = headline_figures(rows)
    write_result(
        "tumour_probe",
        quick=given.quick,
        runs=len(rows),
        headline=headline,
        rows=table_rows(rows),
        measured=store.ran > 0,
    )


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--seconds", type=float, default=1200.0, help="of pretraining a fold")
    parser.add_argument("--folds", type=int, nargs="+", default=None, help="only these")
    parser.add_argument("--ours", default=None, help="weights of our recipe, instead of pretraining here")
    given = parse(parser)
    if given.quick:
        given.seconds = 1.5
    return given


def cells(given: argparse.Namespace, source: Source, fold: int) -> Iterator[Cell]:
    """Yield the cells of a fold in the order in which they are run."""
    shared = {"data": source.name, "fold": fold, "threads": given.threads}
    starts = [(STATISTICS, 0), *((RANDOM, seed) for seed in range(RANDOM_SEEDS)), (OURS, 0)]
    for (weights, seed), names, on in product(starts, PROBED.values(), PROBES):
        cell = shared | {"weights": weights, "seed": seed, "given": names, "fitted_on": on}
        yield cell | ({"pretraining": _pretraining(given, source, fold)} if weights == OURS else {})


def _pretraining(given: argparse.Namespace, source: Source, fold: int) -> str:
    """Return what tells one pretraining from another."""
    if given.ours is not None:
        return digest(Path(given.ours.format(fold=fold)))
    return f"{form_of(OURS, source, batch_size=None)}, {given.seconds:g} s"


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Pretrain, if there is anything to pretrain, and probe."""
    parts = source.parts[cell["fold"]]
    if not parts.validation:
        parts = Parts(parts.train[:-2], parts.train[-2:], parts.test)
    shape = configuration(OURS, source.window).model
    features, told = _features(given, cell, source, parts.train)
    return dict(PROBES[cell["fitted_on"]](source, parts, shape, cell["given"].split("+"), features)) | told


def _features(
    given: argparse.Namespace, cell: Mapping[str, Any], source: Source, studies: Sequence[Study]
) -> tuple[Features, dict[str, Any]]:
    """Return what is probed, and how it was trained on these studies."""
    if cell["weights"] == STATISTICS:
        return patch_statistics(configuration(OURS, source.window).model), {}
    if cell["weights"] == RANDOM:
        return frozen_features(random_weights(source, seed=cell["seed"])), {}
    if given.ours is not None:
        folder, told = Path(given.ours.format(fold=cell["fold"])), {}
    else:
        more = {"seconds": given.seconds, "batch_size": None}
        folder, told = weights_of(OURS, source, studies, fold=str(cell["fold"]), **more)
    model = load_model(folder)
    if not isinstance(model, MAE):
        raise TypeError(f"{folder} holds a model of kind '{model.kind}', expected 'mae'")
    return frozen_features(model), told


def headline_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Return what our weights gain, by patient, where all folds are done."""
    found = {}
    for (label, names), on in product(PROBED.items(), PROBES):
        for rival in (RANDOM, STATISTICS):
            ours, theirs = (pick(rows, given=names, fitted_on=on, weights=name) for name in (OURS, rival))
            if not ours or not complete(ours, theirs):
                continue
            mine, other = _by_patient(ours), _by_patient(theirs)
            gains = {patient: mine[patient] - other[patient] for patient in mine}
            name = f"probe_gain_{label}_{on}_over_{rival.replace(' ', '_')}"
            found[name] = figure_by_patient(gains, asked=0.1, unit="average precision", scale=1.0)
    return found


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return each patient's mean over seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for patient, value in row["ap"].items():
            found.setdefault(patient, []).append(value)
    return {patient: statistics.fmean(values) for patient, values in found.items()}


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over patients for each contestant and probe, then one flat row a cell."""
    table: list[dict[str, Any]] = []
    for weights, (label, names), on in product((OURS, RANDOM, STATISTICS), PROBED.items(), PROBES):
        some = pick(rows, weights=weights, given=names, fitted_on=on)
        if some:
            found = _by_patient(some)
            row = {"table": "mean", "weights": weights, "probe": f"{label}, fitted on {on}", "patients": len(found)}
            table.append(row | {"ap": round(statistics.fmean(found.values()), 4)})
    for row in rows:
        told = {key: row[key] for key in ("steps", "training_seconds") if key in row}
        scores = {name: round(_mean(row, name), 4) for name in ("ap", "auc")}
        table.append({"table": "cells", **row["cell"], **told, **scores})
    return table


def _mean(row: Mapping[str, Any], name: str) -> float:
    return statistics.fmean(row[name].values())


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()

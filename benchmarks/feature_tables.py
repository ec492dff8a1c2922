"""GBM against LGG from features per sequence: Missing Modality Transformer, MFN-VAE and plain models on every subset.

python benchmarks/feature_tables.py                # all; continues where it was interrupted
python benchmarks/feature_tables.py --share 0 2       # every second fold, so that two processes fill one table
python benchmarks/feature_tables.py --gather       # no fitting: writes the result of the folds that are complete

3 x 5 folds, stratified, one row a patient. Whatever is fitted is fitted inside the fold: gaps, scaling, choice of
columns, Borderline-SMOTE, loss weights (20 trials on all four sequences without the columns of enhancing tumour, reused
for every subset and with those columns). Positive class: GBM.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cells import CellStore, key_of
from harness import Figure, arguments, parse, write_result
from sklearn.model_selection import RepeatedStratifiedKFold

from bmmae.baselines.feature_table import FeatureTable, hide, read_feature_tables
from bmmae.baselines.loss_weights import search_loss_weights
from bmmae.baselines.tabular import METHODS, NETWORKS, table_classifier
from bmmae.evaluation.comparison import corrected_t
from bmmae.metrics.classification import classification_figures
from bmmae.modalities import subset_label

CLASSES = ("LGG", "GBM")
FIGURES = ("accuracy", "auc", "precision", "sensitivity", "specificity")
"""As in the paper's Table 2."""
COLUMNS = {"without_et": r"_ET(_|$)", "with_et": None}
"""What is left out: the columns of enhancing tumour, whose gaps tell the class."""
SEARCHED = "without_et"
"""Columns on which loss weights are searched."""
FOLDS, REPEATS = 5, 3
MARGIN = 0.02


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        folds: Numbers of the folds, from 0; repeats follow one another.
        subsets: Sequences that are present.
        trials: Of the search for loss weights.
    """

    folds: tuple[int, ...]
    subsets: tuple[tuple[str, ...], ...]
    trials: int


def main() -> None:
    """Fit what is not finished, then write the result of all complete folds."""
    given = _arguments()
    torch.set_num_threads(given.threads or 1)
    table = _table(given.data)
    every = Plan(tuple(range(FOLDS * REPEATS)), table.subsets(), 20)
    if given.quick:
        every = Plan((0,), (table.modalities, table.modalities[1:]), 3)
    store = CellStore("feature_tables", quick=given.quick)
    if not given.gather:
        index, parts = given.share
        for fold in every.folds[index::parts]:
            run_fold(store, table, every, fold)
    _write(store, table, every, quick=given.quick)


@dataclass(frozen=True)
class Fold:
    """What is fitted and scored in one fold.

    Attributes:
        table: With the columns that are used.
        train: Rows.
        test: Rows.
        seed: Of whatever is random.
        memory: Folder in which prepared rows are kept.
    """

    table: FeatureTable
    train: Sequence[int]
    test: Sequence[int]
    seed: int
    memory: str

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """1 for GBM."""
        return (self.table.labels == CLASSES[1]).astype(int)

    def search(self, method: str, trials: int) -> dict[str, Any]:
        """Search the loss weights of a network."""
        features, labels = self.table.features[self.train], self.labels[self.train]
        return asdict(
            search_loss_weights(method, self.table.blocks, features, labels, trials=trials, random_state=self.seed)
        )

    def fit(self, method: str, subset: tuple[str, ...], weights: Mapping[str, Any] | None) -> dict[str, Any]:
        """Fit one model and score it on the test rows, from which all other sequences are removed."""
        blocks, features = self.table.blocks, self.table.features
        model = table_classifier(method, blocks, subset, weights=weights, random_state=self.seed, memory=self.memory)
        model.fit(features[self.train], self.labels[self.train])
        given = model.predict_proba(hide(features[self.test], blocks, subset))
        figures = classification_figures(CLASSES)
        return {
            "figures": {name: figures[name](given, self.labels[self.test]) for name in FIGURES},
            "probabilities": [round(float(value), 5) for value in given[:, 1]],
        }


def run_fold(store: CellStore, table: FeatureTable, plan: Plan, number: int) -> None:
    """Fill the cells of one fold."""
    done = {key_of(row["cell"]) for row in store}
    with TemporaryDirectory() as memory:
        folds = {columns: _fold(table, columns, number, memory) for columns in COLUMNS}
        weights = {}
        for method in NETWORKS:
            cell = {"task": "search", "columns": SEARCHED, "fold": number, "method": method}
            weights[method] = store.run(cell, partial(folds[SEARCHED].search, method, plan.trials))["weights"]
        for (columns, fold), subset, method in product(folds.items(), plan.subsets, METHODS):
            cell = _cell(columns, subset, method, number)
            if key_of(cell) not in done:
                store.run(cell, partial(fold.fit, method, subset, weights.get(method)))
    print(f"fold {number}: done", flush=True)


def _write(store: CellStore, table: FeatureTable, plan: Plan, *, quick: bool) -> None:
    finished = {key_of(row["cell"]): row for row in store}
    complete = [
        fold for fold in plan.folds if all(key_of(_cell(*kind, fold)) in finished for kind in _kinds(plan.subsets))
    ]
    if not complete:
        print("no fold is complete yet: nothing written")
        return
    scores = {
        kind: {name: [finished[key_of(_cell(*kind, fold))]["figures"][name] for fold in complete] for name in FIGURES}
        for kind in _kinds(plan.subsets)
    }
    rows = [_row(*kind, figures) for kind, figures in scores.items()]
    searches = [row for row in finished.values() if row["cell"]["task"] == "search" and row["cell"]["fold"] in complete]
    headline = _headline(scores, table.modalities, plan)
    write_result(
        "feature_tables",
        quick=quick,
        runs=len(complete),
        headline=headline,
        rows=[*rows, *_importances(searches)],
        measured=store.ran > 0,
    )


def _headline(
    scores: Mapping[Any, Mapping[str, list[float]]], modalities: tuple[str, ...], plan: Plan
) -> dict[str, Figure]:
    one_missing = [subset for subset in plan.subsets if len(subset) == len(modalities) - 1]

    def mean(columns: str, method: str, figure: str, subsets: Iterable[tuple[str, ...]]) -> list[float]:
        lists = [scores[columns, subset, method][figure] for subset in subsets]
        return [statistics.fmean(values) for values in zip(*lists, strict=True)]

    found = {}
    for columns, figure in product(COLUMNS, ("accuracy", "auc")):
        end = ("" if figure == "accuracy" else "_auc") + ("" if columns == "without_et" else "_with_et")
        one = mean(columns, "missing_modality_transformer", figure, one_missing)
        all_present = mean(columns, "mfn_vae", figure, [modalities])
        unit = f"{figure}, one missing minus all; mean, 95 % interval; holds if all of it is above what is asked"
        found[f"mmt_vs_mfn_vae{end}"] = _difference(one, all_present, unit, -MARGIN)
        for plain in ("logistic_regression", "random_forest"):
            unit = f"{figure}, both with one missing; mean, 95 % interval"
            found[f"mmt_vs_{plain}{end}"] = _difference(one, mean(columns, plain, figure, one_missing), unit)
        if figure == "auc":
            flags = mean(columns, "missing_flags", figure, [modalities])
            found[f"missing_flags{end}"] = _difference(
                flags, [0.0] * len(flags), "AUC of which cells are empty", None, 0.5
            )
    return found


def _difference(
    one: Sequence[float], two: Sequence[float], unit: str, asked: float | None = None, floor: float | None = None
) -> Figure:
    compared = corrected_t([a - b for a, b in zip(one, two, strict=True)], 1 / (FOLDS - 1))
    low = compared.difference if compared.low is None else compared.low
    high = compared.difference if compared.high is None else compared.high
    return Figure(compared.difference, low, high, floor, asked, unit)


def _row(columns: str, subset: tuple[str, ...], method: str, figures: Mapping[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"columns": columns, "sequences": subset_label(subset), "method": method}
    for name, values in figures.items():
        defined = [value for value in values if not math.isnan(value)]
        row[name] = round(statistics.fmean(defined), 4) if defined else None
        row[f"{name}_sd"] = round(statistics.stdev(defined), 4) if len(defined) > 1 else None
    return row


def _importances(searches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    gathered: dict[tuple[str, str], list[float]] = {}
    for row in searches:
        for weight, share in row["importances"].items():
            gathered.setdefault((row["cell"]["method"], weight), []).append(share)
    return [
        {
            "columns": SEARCHED,
            "method": method,
            "weight": weight,
            "importance": round(statistics.fmean(shares), 4),
            "importance_sd": round(statistics.stdev(shares), 4) if len(shares) > 1 else None,
        }
        for (method, weight), shares in sorted(gathered.items())
    ]


def _kinds(subsets: Sequence[tuple[str, ...]]) -> list[tuple[str, tuple[str, ...], str]]:
    return list(product(COLUMNS, subsets, METHODS))


def _cell(columns: str, subset: tuple[str, ...], method: str, fold: int) -> dict[str, Any]:
    return {"task": "fit", "columns": columns, "fold": fold, "sequences": subset_label(subset), "method": method}


def _fold(table: FeatureTable, columns: str, number: int, memory: str) -> Fold:
    pattern = COLUMNS[columns]
    used = table if pattern is None else table.without(pattern)
    splits = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=REPEATS, random_state=0)
    train, test = list(splits.split(used.features, used.labels))[number]
    return Fold(used, train, test, number, memory)


def _table(folder: Path) -> FeatureTable:
    files = {name: folder / f"{name}.csv" for name in CLASSES}
    absent = [str(file) for file in files.values() if not file.exists()]
    if absent:
        sys.exit(f"error: no feature tables at {', '.join(absent)}: name their folder with --data")
    table = read_feature_tables(files)
    widths = ", ".join(f"{name} {len(block)}" for name, block in table.blocks.items())
    print(
        f"{len(table.subjects)} patients; columns: {widths}; {len(table.dropped)} left out as of no one sequence; "
        f"{table.repaired} cells held no number"
    )
    return table


def _arguments() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "radiomics")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("INDEX", "PARTS"))
    parser.add_argument("--gather", action="store_true", help="write the result of complete folds and fit nothing")
    given = parse(parser)
    index, parts = given.share
    if not 0 <= index < parts:
        parser.error(f"argument --share: expected INDEX from 0 to below PARTS, got {index} {parts}")
    return given


if __name__ == "__main__":
    main()

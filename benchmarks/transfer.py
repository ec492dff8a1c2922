"""Does pretraining pay? Fine-tuning and linear heads from random weights, from our recipe, from the published one.

python benchmarks/transfer.py [--data real synthetic] [--pretrain-seconds 600] [--seconds 180] [--ours PATH]

Both recipes are pretrained here, on the training patients of each fold alone, with equal computing seconds; `--ours`
and `--published` name weights made elsewhere instead (`{fold}` in the path stands for the fold's number).
`segmenter` was pretrained on other synthetic subjects, by masking and then on their tumours' outlines: segmentation of
the real cases starts from it, and for the synthetic patients it gives its encoder and, beside the images, the measures
of what it segments (nobody draws anything); `measures` are these alone. Fine-tuning has equal computing seconds for
all. Finished cells are skipped.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from budgeted import train
from cells import CellStore
from embeddings import neighbours
from full_volumes import score_volumes
from harness import RESULTS, ROOT, arguments, parse, refuse_unknown, write_result
from learning_data import WINDOW, WORK, Source, real_source, synthetic_name, synthetic_source
from patient_features import answers, encode, fit, measured_parts, model_of
from patient_learning import (
    AUGMENT,
    BATCH,
    FIGURES,
    IMAGES_ALONE,
    LAYER_DECAY,
    OPTIM,
    Predictions,
    dataset_of,
    predict_patients,
)
from pretrained_weights import Recipe, configuration, form_of, random_weights, weights_of
from real import FOLDS, Parts
from segmentation_contestants import AUGMENT as SEGMENTATION_AUGMENT
from segmentation_contestants import OPTIM as SEGMENTATION_OPTIM
from segmentation_contestants import Start, digest, fine_tune, weights_file
from segmentation_contestants import form_of as form_of_decoder
from transfer_figures import headline_figures, table_rows

from bmmae.baselines.budget import Budget
from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.data.patient_columns import BesideConfig
from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import STANDARD, subset_label
from bmmae.model.patient import PatientModel
from bmmae.patient_prediction import columns_of
from bmmae.tasks.patient import PatientTask

RECIPES: tuple[Recipe, ...] = ("ours", "published")
WEIGHTS = ("random", *RECIPES)
SEGMENTER, MEASURES = "segmenter", "measures"
MEASURED = (SEGMENTER, MEASURES)
MADE = (*RECIPES, *MEASURED)
"""Weights that somebody pretrained."""
T1, T1CE, T2, FLAIR = STANDARD
SUBSETS = (STANDARD, (T1CE,), (FLAIR,), (T1, T2))
CASES = (1, 3, None)
"""Real training cases; None for all."""
SHARES = (0.1, 0.3, 1.0)
TRAIN, TEST, SEGMENTED = 400, 400, 100
"""Synthetic subjects; so many of the test subjects are segmented too."""
TOKEN_SHARE = 0.25
"""Of a patient's tokens, in fine-tuning: five times as many steps in the same time."""
SCRATCH = OPTIM
PRETRAINED = replace(OPTIM, lr=1e-4, layer_decay=LAYER_DECAY)
QUICK, QUICK_SEGMENTED, QUICK_SIZE = 8, 3, 32
Cell = dict[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("transfer", quick=True).path.unlink(missing_ok=True)
    sources = _sources(given)
    store = CellStore("transfer", quick=given.quick)
    for name, source in sources.items():
        for cell in cells(given, name, source):
            row = store.run(cell, lambda cell=cell, source=source: run_cell(given, cell, source))
            told = {key: value for key, value in cell.items() if key in ("part", "weights", "fold", "seed", "amount")}
            print(*(f"{key} {value}," for key, value in told.items()), _gist(row))
    made = {
        _pretraining(given, start, fold, source)
        for source in sources.values()
        for start in MADE
        for fold in range(len(source.parts))
    }
    rows = [row for row in store if _is_current(row["cell"], given, made)]
    write_result(
        "transfer",
        quick=given.quick,
        runs=len(rows),
        headline=headline_figures(rows),
        rows=table_rows(rows),
        measured=store.ran > 0,
    )


def _is_current(cell: Mapping[str, Any], given: argparse.Namespace, pretrainings: set[str]) -> bool:
    """Tell whether a finished cell is about what is asked now, of any part: a short run must not hide the rest."""
    synthetic = synthetic_name(QUICK, QUICK, QUICK_SIZE) if given.quick else synthetic_name(TRAIN, TEST)
    return (
        cell["data"] in ("real", synthetic)
        and cell["threads"] == given.threads
        and cell.get("seconds", given.seconds) == given.seconds
        and all(cell.get(key, value) == value for key, value in _decoder(given).items())
        and (cell["part"] != "patients" or cell.get("token_share") == TOKEN_SHARE)
        and cell.get("pretraining", next(iter(pretrainings))) in pretrainings
    )


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--data", nargs="+", choices=("real", "synthetic"), default=["real", "synthetic"])
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="only these cells")
    parser.add_argument("--weights", nargs="+", choices=(*WEIGHTS, *MEASURED), default=None, help="only these")
    parser.add_argument("--ours", default=None, help="weights of our recipe, instead of pretraining here")
    parser.add_argument("--published", default=None, help="weights of the published recipe, likewise")
    parser.add_argument("--segmenter", default=str(ROOT / "checkpoints" / "tiny-segmentation"))
    parser.add_argument("--pretrain-seconds", type=float, default=600.0)
    parser.add_argument("--seconds", type=float, default=180.0, help="fine-tuning budget of a cell")
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the smallest fraction")
    parser.add_argument("--width", type=int, default=8, help="half the channels of our decoder at half resolution")
    parser.add_argument("--folds", type=int, nargs="+", default=None, help="only these folds of the real cases")
    parser.add_argument("--amounts", nargs="+", default=None, help="only so many cases, such shares, or `all`")
    given = parse(parser)
    refuse_unknown("fold", given.folds, range(FOLDS))
    refuse_unknown("amount", given.amounts, map(_called, dict.fromkeys((*CASES, *SHARES))))
    for path in filter(None, (given.ours, given.published, given.segmenter)):
        for fold in range(FOLDS if "real" in given.data and not given.quick else 1):
            weights_file(Path(path.format(fold=fold)))  # stops here where there is none, and not after hours
    if given.quick:
        given.data, given.seeds, given.width = ["synthetic"], 1, 4
        given.pretrain_seconds, given.seconds = 1.5, 1.5
    return given


def _sources(given: argparse.Namespace) -> dict[str, Source]:
    if given.quick:
        return {"synthetic": synthetic_source(QUICK, QUICK, size=QUICK_SIZE)}
    made = {"real": real_source, "synthetic": lambda: synthetic_source(TRAIN, TEST)}
    return {name: made[name]() for name in given.data}


def cells(given: argparse.Namespace, name: str, source: Source) -> Iterator[Cell]:
    """Yield the cells in the order in which they are run: all of fold 0 first."""
    for fold in range(len(source.parts)):
        if name == "real" and given.folds is not None and fold not in given.folds:
            continue
        for part in given.parts:
            for cell in PARTS[part](given, name):
                weights = cell["weights"]
                if given.weights is not None and weights not in given.weights:
                    continue
                yield (
                    {"part": part, "data": source.name, "fold": fold, "threads": given.threads}
                    | cell
                    | ({"pretraining": _pretraining(given, weights, fold, source)} if weights in MADE else {})
                )


def _pretraining(given: argparse.Namespace, start: str, fold: int, source: Source) -> str:
    """Return what tells one pretraining from another."""
    path = _path(given, start)
    if path is None:
        return f"{form_of(cast(Recipe, start), source)}, {given.pretrain_seconds:g} s"
    return digest(Path(path.format(fold=fold)))


def _path(given: argparse.Namespace, start: str) -> str | None:
    """Return where the command line says that weights are."""
    path: str | None = given.segmenter if start in MEASURED else getattr(given, start)
    return path


def _pretrain_cells(given: argparse.Namespace, name: str) -> Iterator[Cell]:
    del name
    for recipe in RECIPES:
        if getattr(given, recipe) is None:
            yield {"weights": recipe}


def _embedding_cells(given: argparse.Namespace, name: str) -> Iterator[Cell]:
    del given, name
    for weights in WEIGHTS:
        yield {"weights": weights}


def _segmentation_cells(given: argparse.Namespace, name: str) -> Iterator[Cell]:
    amounts = CASES if name == "real" else SHARES
    starts = (*WEIGHTS, SEGMENTER) if name == "real" else WEIGHTS
    yield from _learning_cells(given, amounts, _decoder(given), starts)


def _decoder(given: argparse.Namespace) -> Cell:
    """Return what tells one form of our decoder, and of how it is trained, from another."""
    form = form_of_decoder((QUICK_SIZE,) * 3 if given.quick else WINDOW, given.width)
    return {"width": given.width, "form": form, "optim": SEGMENTATION_OPTIM.kind}


def _linear_cells(given: argparse.Namespace, name: str) -> Iterator[Cell]:
    if name == "synthetic":
        for cell in _learning_cells(given, SHARES, {}, (*WEIGHTS, *MEASURED)):
            yield {key: value for key, value in cell.items() if key != "seconds"}


def _patient_cells(given: argparse.Namespace, name: str) -> Iterator[Cell]:
    if name == "synthetic":
        yield from _learning_cells(given, SHARES, {"token_share": TOKEN_SHARE}, (*WEIGHTS, SEGMENTER))


def _learning_cells(
    given: argparse.Namespace, amounts: Sequence[float | None], more: Cell, starts: Sequence[str] = WEIGHTS
) -> Iterator[Cell]:
    chosen = amounts[-1:] if given.quick else amounts
    for place, amount in enumerate(chosen):
        if given.amounts is not None and _called(amount) not in given.amounts:
            continue
        for weights in starts:
            for seed in range(given.seeds if place == 0 else 1):
                yield {"weights": weights, "amount": amount, "seed": seed, "seconds": given.seconds} | more


def _called(amount: float | None) -> str:
    """Return what the command line calls an amount of training data."""
    return "all" if amount is None else f"{amount:g}"


PARTS = {
    "pretrain": _pretrain_cells,
    "embeddings": _embedding_cells,
    "segmentation": _segmentation_cells,
    "linear": _linear_cells,
    "patients": _patient_cells,
}


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Do the work of one cell."""
    parts: Parts = source.parts[cell["fold"]]
    if cell["part"] == "pretrain":
        return _pretrained(given, cell, source)[1]
    if cell["part"] == "embeddings":
        folder = _folder(given, cell, source)
        model = random_weights(source) if folder is None else load_model(folder)
        drawn = RESULTS / f"embeddings_{cell['weights']}_{{label}}.png" if not given.quick else None
        return {"neighbours": neighbours(model, source, parts, picture=drawn)}
    folder = _folder(given, cell, source)
    if cell["weights"] in MEASURED and cell["part"] != "segmentation":
        train, test = measured_parts(source, _work(given), segmenter=folder)
        parts = Parts(train, (), test)
        source = replace(source, parts=(parts,))
    studies = some(parts.train, cell["amount"], cell["seed"])
    learn = {"segmentation": _segmented, "linear": _linear, "patients": _patients}[cell["part"]]
    return {**learn(given, cell, source, folder, studies), "studies": len(studies)}


def _segmented(
    given: argparse.Namespace, cell: Mapping[str, Any], source: Source, folder: Path | None, studies: Sequence[Study]
) -> dict[str, Any]:
    start = Start.of(folder, source.window, cell["width"])
    budget, augment = Budget(seconds=cell["seconds"]), replace(SEGMENTATION_AUGMENT, single_share=0.0)
    model, training = fine_tune(start, source, studies, budget, seed=cell["seed"], augment=augment)
    everything = cell["weights"] == "ours" and cell["amount"] == (None if source.name == "real" else 1.0)
    subsets = all_subsets() if everything else SUBSETS
    judged = source.parts[cell["fold"]].test[: QUICK_SEGMENTED if given.quick else SEGMENTED]
    return {**training.row(), "scores": score_volumes(model, source, judged, start.shape, subsets)}


def _linear(
    given: argparse.Namespace, cell: Mapping[str, Any], source: Source, folder: Path | None, studies: Sequence[Study]
) -> dict[str, Any]:
    """Fit linear heads to what the frozen encoder says of all modalities."""
    model, row = _with_linear_heads(given, cell, source, folder, studies)
    test = encode(model, source.parts[cell["fold"]].test, source, *_kept(given, cell), every=False)
    return {**row, **_judged(dict(answers(model, test))[subset_label(STANDARD)])}


def _patients(
    given: argparse.Namespace, cell: Mapping[str, Any], source: Source, folder: Path | None, studies: Sequence[Study]
) -> dict[str, Any]:
    """Fine-tune everything: pretrained weights from linear heads with small steps, random ones with larger."""
    started, optim = 0.0, SCRATCH
    if folder is None:
        torch.manual_seed(cell["seed"])
        model = model_of(None, configuration("ours", source.window).model, studies, IMAGES_ALONE)
    else:
        model, row = _with_linear_heads(given, cell, source, folder, studies)
        started, optim = row["training_seconds"], PRETRAINED
    shown = dataset_of(source, studies, model.config, seed=cell["seed"], augment=AUGMENT)
    budget = Budget(seconds=max(0.1, cell["seconds"] - started))
    task = PatientTask(model.config, token_share=cell["token_share"])
    done = train(model, task, shown, budget, optim=optim, batch_size=min(BATCH, len(shown)), seed=cell["seed"])
    found = predict_patients(model, model.config, source, source.parts[cell["fold"]].test)
    return {**done.row(), **_judged(found)}


def _with_linear_heads(
    given: argparse.Namespace, cell: Mapping[str, Any], source: Source, folder: Path | None, studies: Sequence[Study]
) -> tuple[PatientModel, dict[str, Any]]:
    encoder = random_weights(source) if folder is None else load_model(folder)
    beside = BesideConfig(measures=True) if cell["weights"] in MEASURED else IMAGES_ALONE
    model = model_of(encoder, replace(encoder.model_config, size=source.window), studies, beside)
    encoded = encode(model, source.parts[cell["fold"]].train, source, *_kept(given, cell), every=False)
    shown = encoded.of_studies({study.key for study in studies})
    return model, fit(model, shown, columns_of(model), images=cell["weights"] != MEASURES)


def _kept(given: argparse.Namespace, cell: Mapping[str, Any]) -> tuple[str, Path]:
    """Return under which name an encoder's features are kept, and where."""
    weights = SEGMENTER if cell["weights"] == MEASURES else cell["weights"]
    return f"{weights}, {cell.get('pretraining')}", _work(given)


def _work(given: argparse.Namespace) -> Path:
    return WORK / "quick" if given.quick else WORK


def _judged(found: Predictions) -> dict[str, Any]:
    """Return the figures of some predictions, and these."""
    return {"figures": {name: figure(found, list(found)) for name, figure in FIGURES.items()}, "predictions": found}


def some(studies: Sequence[Study], amount: int | float | None, seed: int) -> list[Study]:
    """Return some training studies, drawn by the seed: so many cases (int), a share of them (float), or all."""
    if amount is None:
        return list(studies)
    count = amount if isinstance(amount, int) else round(amount * len(studies))
    order = np.random.default_rng(seed).permutation(len(studies))[:count]
    return [studies[int(index)] for index in sorted(order)]


def _folder(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> Path | None:
    """Return where the weights are that a cell starts from; None for random ones."""
    start, fold = cell["weights"], cell["fold"]
    if start not in MADE:
        return None
    path = _path(given, start)
    if path is not None:
        return Path(path.format(fold=fold))
    return _pretrained(given, cell, source)[0]


def _pretrained(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> tuple[Path, dict[str, Any]]:
    studies, fold = source.parts[cell["fold"]].train, str(cell["fold"])
    return weights_of(cell["weights"], source, studies, fold=fold, seconds=given.pretrain_seconds)


def _gist(row: Mapping[str, Any]) -> str:
    """Return a cell's outcome in a few words."""
    if "neighbours" in row:
        told = {label: statistics.fmean(each["right"].values()) for label, each in row["neighbours"].items()}
        return ", ".join(f"neighbours tell {label} in {share:.3f}" for label, share in told.items())
    if "figures" in row:
        return ", ".join(f"{name} {value:.3f}" for name, value in row["figures"].items())
    if "scores" in row:
        values = [v for regions in row["scores"].values() for found in regions.values() for v in found.values()]
        return f"Dice {statistics.fmean(values):.3f} after {row['steps']} steps"
    return f"{row['steps']} steps"


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    main()

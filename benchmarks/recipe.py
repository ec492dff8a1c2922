"""Which pretraining recipe learns fastest? One change at a time, equal computing seconds, judged on unseen patients.

python benchmarks/recipe.py [--data real synthetic] [--only recipe "visible 25 %"] [--seconds 150] [--seeds 2]

Real cases: the fixed split. `--race SECONDS` adds the published recipe with that budget and ours with a third of it,
and draws both over time. Finished cells are skipped; `recipe_factors.py` lists the changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from budgeted import train
from cells import CellStore
from harness import RESULTS, arguments, parse, write_result
from learning_data import WORK, Source, real_source, synthetic_source
from probe import frozen_features, patch_statistics
from real import Parts, fixed_split, real_cohort
from recipe_factors import NAMES, OURS, PUBLISHED, settings, variant
from recipe_figures import RANDOM, STATISTICS, headline_figures, plot, short_table, table_rows
from recipe_yardsticks import means, probe_scores, reconstruction_scores

from bmmae.baselines.budget import Budget
from bmmae.data.dataset import StudyDataset, View
from bmmae.model.mae import MAE
from bmmae.tasks.reconstruction import ReconstructionTask

UNTRAINED = (RANDOM, STATISTICS)
LOOKS, RACE_LOOKS = 4, 12
"""How often a training is judged."""
TRAIN, VALIDATION, TEST = 48, 8, 24
"""Synthetic subjects."""
WINDOWS = "whole brain"
"""Where the probe looks. Earlier cells say `lesions`, whose windows lay around what was to be found, so that a place's
position in them told much of it (of T1 alone most); and the first say nothing: windows in the middle of the brain."""
Cell = dict[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("recipe", quick=True).path.unlink(missing_ok=True)
    store = CellStore("recipe", quick=given.quick)
    for name in given.data:
        source, parts = _source(given, name)
        for cell in cells(given, source.name):
            row = store.run(cell, lambda cell=cell, source=source, parts=parts: run_cell(cell, source, parts))
            told = ", ".join(f"{key} {value:.3f}" for key, value in means(row["scores"]).items())
            print(f"{cell['variant']}, seed {cell['seed']}: {told}, {row.get('steps', 0)} steps", flush=True)
    rows = [row for row in store if _is_current(row["cell"], given)]
    headline = headline_figures(rows)
    path = write_result(
        "recipe", quick=given.quick, runs=len(rows), headline=headline, rows=table_rows(rows), measured=store.ran > 0
    )
    print(short_table(table_rows(rows)))
    plot(rows, path.with_suffix(".png"))


def _is_current(cell: Mapping[str, Any], given: argparse.Namespace) -> bool:
    """Tell whether a finished cell is of the recipe as it is now: earlier forms are not further seeds of it."""
    name = OURS if cell["variant"] in UNTRAINED else cell["variant"]
    return name in NAMES and cell["settings"] == settings(name) and cell["threads"] == given.threads


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--data", nargs="+", choices=("real", "synthetic"), default=["real"])
    parser.add_argument("--only", nargs="+", choices=(*UNTRAINED, *NAMES), default=[*UNTRAINED, *NAMES])
    parser.add_argument("--seconds", type=float, default=150.0, help="computing seconds of a cell")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--race", type=float, default=None, help="seconds of the published recipe; ours has a third")
    parser.add_argument("--development", action="store_true", help="judge on the validation patients, to choose")
    given = parse(parser)
    if given.quick:
        given.data, given.seeds, given.seconds, given.race = ["synthetic"], 1, 1.0, 2.0
        given.only = [*UNTRAINED, OURS, "plain", "muon", "small normal weights", PUBLISHED]
    return given


def _source(given: argparse.Namespace, name: str) -> tuple[Source, Parts]:
    if name == "real":
        parts = fixed_split(real_cohort())
        if given.development:
            parts = Parts(parts.train[:-2], parts.train[-2:], parts.validation)
        return real_source(), parts
    source = synthetic_source(6, 2, size=32) if given.quick else synthetic_source(TRAIN + VALIDATION, TEST)
    held = 2 if given.quick else VALIDATION
    every = source.parts[0]
    return source, Parts(every.train[:-held], every.train[-held:], every.test)


def cells(given: argparse.Namespace, data: str) -> Iterator[Cell]:
    """Yield the cells in the order in which they are run: all changes with one seed, then with the next."""
    shared = {"data": data, "threads": given.threads, "scored": "validation" if given.development else "test"}
    shared |= {"windows": WINDOWS}
    for seed in range(given.seeds):
        for name in given.only:
            if name in UNTRAINED:
                if name == RANDOM or seed == 0:
                    yield {"part": "untrained", "variant": name, "seed": seed, "settings": settings(OURS), **shared}
            else:
                more = {"seed": seed, "budget": given.seconds, "settings": settings(name)}
                yield {"part": "equal", "variant": name, **more, **shared}
        if given.race is not None:
            for name, share in ((PUBLISHED, 1.0), (OURS, 1 / 3)):
                budget = round(share * given.race, 1)
                more = {"seed": seed, "budget": budget, "settings": settings(name)}
                yield {"part": "race", "variant": name, **more, **shared}


def run_cell(cell: Mapping[str, Any], source: Source, parts: Parts) -> dict[str, Any]:
    """Train, if there is anything to train, and judge."""
    chosen = variant(OURS if cell["part"] == "untrained" else cell["variant"], source.window)
    shape = chosen.config.model
    if cell["variant"] == STATISTICS:
        return {"scores": probe_scores(source, parts, shape, patch_statistics(shape))}
    torch.manual_seed(cell["seed"])
    model = MAE(shape)
    chosen.initialise(model)
    outcome: dict[str, Any] = {"parameters": sum(value.numel() for value in model.parameters())}
    if cell["part"] != "untrained":
        outcome |= _train(model, cell, source, parts)
    features = frozen_features(model)
    scores = reconstruction_scores(model, source, parts.test) | probe_scores(source, parts, shape, features)
    return {**outcome, "scores": scores}


def _train(model: MAE, cell: Mapping[str, Any], source: Source, parts: Parts) -> dict[str, Any]:
    """Train a model in place; return how it went, with its errors over time."""
    chosen, seed = variant(cell["variant"], source.window), cell["seed"]
    config, looks = chosen.config, RACE_LOOKS if cell["part"] == "race" else LOOKS
    dataset = StudyDataset(
        parts.train, View.of(config.model), source.cache, seed=seed, masking=config.masking, augment=config.augment
    )
    curve: list[dict[str, float]] = []

    def look(steps: int, seconds: float) -> None:
        if seconds * looks >= cell["budget"] * (len(curve) + 1):
            scores = means(reconstruction_scores(model, source, parts.test))
            curve.append({"seconds": round(seconds, 1), "steps": steps, **scores})
            model.train()

    done = train(
        model,
        ReconstructionTask(config.model),
        dataset,
        Budget(seconds=cell["budget"]),
        optim=config.optim,
        batch_size=min(config.train.batch_size, len(dataset)),
        seed=seed,
        warmup=chosen.warmup,
        watch=look,
    )
    return {**done.row(), "curve": curve}


if __name__ == "__main__":
    Path(WORK).mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    main()

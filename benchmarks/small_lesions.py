"""Small lesions: is each of them found? Synthetic metastases of 1 to 6 mm at 1 mm, scored lesion by lesion.

python benchmarks/small_lesions.py [--seconds 180] [--seeds 1] [--only ours "lesions in proportion"]

All contestants train for as many processor seconds on windows of 64 mm, from all modalities or a random subset of
them, and are scored on whole test volumes, from all modalities. `ours` is `configs/finetune/segmentation_lesions.yaml`
from `checkpoints/tiny-segmentation`, whose tumours were large; each contestant after it has one thing else, and the
last is a U-Net with the same windows and loss. Finished cells are skipped.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cells import CellStore
from full_volumes import predicted_volumes
from harness import ROOT, Figure, arguments, parse, write_result
from learning_data import FIELD_OF_VIEW, Source, one_split
from paired import figure_by_patient
from segmentation_contestants import AUGMENT, OPTIM, Start, digest, fine_tune, fit_network, form_of

from bmmae.arrays import Array
from bmmae.baselines.budget import Budget
from bmmae.data.augment import AugmentConfig
from bmmae.data.labels import own_coding
from bmmae.data.synthetic.cohort import GENERATOR_VERSION, SyntheticConfig
from bmmae.metrics.lesions import count_lesions, match_lesions
from bmmae.metrics.overlap import dice
from bmmae.modalities import STANDARD

RADII_MM = (0.5, 3.0)
SMALL_MM = 3.0
"""Diameters up to this are counted apart: of the ball that has a lesion's volume."""
TRAIN, TEST = 24, 12
"""Synthetic subjects, three to eight lesions each."""
SEED = 300
START = ROOT / "checkpoints" / "tiny-segmentation"
WIDTH = 8
CODING = own_coding({4: "lesion"})
AIMED = replace(AUGMENT, lesion_share=0.8, each_lesion=1.0)
OURS, UNET = "ours", "unet"


@dataclass(frozen=True)
class Contestant:
    """What is trained.

    Attributes:
        augment: Says where training windows lie.
        pretrained: Whether it starts from `START`.
        supervision: How many coarser resolutions learn too.
        hardest_share: Of the voxels, whose cross-entropy counts.
    """

    augment: AugmentConfig = AIMED
    pretrained: bool = True
    supervision: int = 2
    hardest_share: float = 0.01


CONTESTANTS = {
    OURS: Contestant(),
    "all voxels count": Contestant(hardest_share=1.0),
    "lesions in proportion": Contestant(replace(AIMED, each_lesion=0.0)),
    "windows anywhere": Contestant(replace(AIMED, lesion_share=0.0, each_lesion=0.0)),
    "no deep supervision": Contestant(supervision=0),
    "scratch": Contestant(pretrained=False),
    UNET: Contestant(pretrained=False, supervision=0),
}
METRICS = ("lesion_f1", "sensitivity", "small_sensitivity", "false_lesions", "dice")
Row = Mapping[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    store = CellStore("small_lesions", quick=given.quick)
    if given.quick:
        store.path.unlink(missing_ok=True)
    source = lesion_source(2, 2, 48) if given.quick else lesion_source(TRAIN, TEST, FIELD_OF_VIEW)
    keys = list(cells(given, source))
    for cell in keys:
        if cell["method"] in given.only:
            row = store.run(cell, lambda cell=cell: run_cell(cell, source))
            print(f"{cell['method']}, seed {cell['seed']}: {_gist(row)}, {row['steps']} steps", flush=True)
    rows = [row for row in map(store.find, keys) if row is not None]
    headline = headline_figures(rows)
    write_result(
        "small_lesions",
        quick=given.quick,
        runs=len(rows),
        headline=headline,
        rows=table_rows(rows),
        measured=store.ran > 0,
    )


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--seconds", type=float, default=180.0, help="training budget of a cell")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    given = parse(parser)
    if given.quick:
        given.seconds, given.seeds, given.only = 1.0, 1, [OURS, "windows anywhere", UNET]
    return given


def lesion_source(train: int, test: int, size: int) -> Source:
    """Return a synthetic cohort of small lesions in one split; `size` voxels along each axis of 192 mm."""
    config = SyntheticConfig(train + test, SEED, size, lesion_radius_mm=RADII_MM)
    name = f"small-lesions-{GENERATOR_VERSION}-{size}-{train}-{test}"
    return replace(one_split(name, config, train), coding=CODING, window=(min(64, size),) * 3)


def cells(given: argparse.Namespace, source: Source) -> Iterator[dict[str, Any]]:
    """Yield the cells in the order in which they are run."""
    for seed in range(given.seeds):
        for method, contestant in CONTESTANTS.items():
            cell = {"method": method, "data": source.name, "seed": seed, "seconds": given.seconds}
            cell |= {"threads": given.threads, "single_share": contestant.augment.single_share}
            cell |= {"hardest_share": contestant.hardest_share}
            if method != UNET:
                cell |= {"form": form_of(source.window, WIDTH), "optim": OPTIM.kind}
            yield cell | ({"weights": digest(START)} if contestant.pretrained else {})


def run_cell(cell: Row, source: Source) -> dict[str, Any]:
    """Train one contestant and score it on the test subjects."""
    contestant, parts, seed = CONTESTANTS[cell["method"]], source.parts[0], cell["seed"]
    start = replace(Start.of(START, source.window, WIDTH), supervision=contestant.supervision)
    budget = Budget(seconds=cell["seconds"])
    learn = {"seed": seed, "augment": contestant.augment, "hardest_share": contestant.hardest_share}
    if cell["method"] == UNET:
        model, training = fit_network(UNET, start.shape, source, parts.train, budget, **learn)
    else:
        start = start if contestant.pretrained else start.scratch()
        model, training = fine_tune(start, source, parts.train, budget, **learn)
    scores: dict[str, dict[str, float]] = {}
    voxel = math.prod(source.cache.config.spacing)
    for study, _, predicted, truth in predicted_volumes(model, source, parts.test, start.shape, [STANDARD]):
        scores[study.group] = lesion_scores(predicted[0], truth[0], voxel)
    return {**training.row(), "patients": len(parts.test), "scores": scores}


def lesion_scores(predicted: Array, truth: Array, voxel: float) -> dict[str, float]:
    """Return what is said of one study.

    Args:
        predicted: Bool[H, W, D].
        truth: Likewise.
        voxel: Volume of a voxel in mm3.
    """
    counts = count_lesions(predicted, truth)
    sizes, found = match_lesions(truth, predicted)
    small = sizes * voxel <= math.pi / 6 * SMALL_MM**3
    return {
        "lesion_f1": counts.f1,
        "sensitivity": counts.sensitivity,
        "false_lesions": counts.false,
        "dice": dice(predicted, truth),
        "small_sensitivity": float(np.mean(found[small])) if small.any() else math.nan,
    }


def by_patient(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Return each patient's value, the mean over seeds; patients for whom it is not defined are left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for patient, scores in row["scores"].items():
            if not math.isnan(scores[metric]):
                found.setdefault(patient, []).append(scores[metric])
    return {patient: statistics.fmean(values) for patient, values in found.items()}


def headline_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Return what ours finds from all modalities, and its gain of F1 over each other contestant by patient."""
    runs = _by_method(rows)
    if OURS not in runs:
        return {}
    units = {"lesion_f1": "F1 by lesion", "sensitivity": "share of the lesions found"}
    units["small_sensitivity"] = f"share of the lesions up to {SMALL_MM:g} mm found"
    units["false_lesions"] = "a study, lower is better"
    values = {metric: by_patient(runs[OURS], metric) for metric in units}
    found = {
        metric: figure_by_patient(values[metric], unit=unit, scale=1.0)
        for metric, unit in units.items()
        if values[metric]
    }
    ours = by_patient(runs[OURS], "lesion_f1")
    for method, others in runs.items():
        if method != OURS:
            theirs = by_patient(others, "lesion_f1")
            gains = {patient: ours[patient] - theirs[patient] for patient in set(ours) & set(theirs)}
            name = f"f1_gain_over_{method.replace(' ', '_')}"
            found[name] = figure_by_patient(gains, asked=0.0 if method == UNET else None, unit="F1", scale=1.0)
    return found


def table_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row for each contestant: the means over patients."""
    table = []
    for method, runs in _by_method(rows).items():
        values = {metric: by_patient(runs, metric).values() for metric in METRICS}
        means = {metric: statistics.fmean(found) for metric, found in values.items() if found}
        steps = round(statistics.fmean(run["steps"] for run in runs))
        table.append({"part": "contestants", "method": method, "seeds": len(runs), "steps": steps, **means})
    return table


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found = {name: [row for row in rows if row["cell"]["method"] == name] for name in CONTESTANTS}
    return {name: those for name, those in found.items() if those}


def _gist(row: Row) -> str:
    values = {metric: by_patient([row], metric).values() for metric in METRICS}
    return ", ".join(f"{metric} {statistics.fmean(found):.3f}" for metric, found in values.items() if found)


if __name__ == "__main__":
    main()

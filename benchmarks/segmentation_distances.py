"""What Dice does not say of the segmentations of the real cases: distances, lesions found, volumes.

python benchmarks/segmentation_distances.py [--seed 0]

Scores the weights that the cells `ours` of `segmentation.py` left, a model a fold, on every test patient from all
fifteen subsets: whole volumes at 2 mm, the library's own metrics, as predicted and after `bmmae segment --postprocess`.
What is not defined (the region is not there) is left out of the means. The scores of a fold are a cell, skipped when it
is finished. `--quick` scores the model that `segmentation.py --quick` left.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cells import CellStore
from full_volumes import metrics_of, predicted_volumes
from harness import Figure, arguments, parse, write_result
from learning_data import Source, quick_source, real_source
from paired import figure_by_patient
from segmentation_contestants import digest, kept_model, kept_weights

from bmmae.evaluation.subsets import RegionScore, all_subsets, summarise_subsets
from bmmae.inference.postprocess import PostprocessConfig, clean_regions
from bmmae.metrics.regions import region_metrics
from bmmae.modalities import STANDARD, subset_label
from bmmae.model.segmentation import SegmentationModel

UNITS = {
    "dice": "Dice",
    "hd95": "mm, lower is better",
    "surface_dice": "share of the surfaces within 2 mm",
    "lesion_f1": "F1 by lesion",
    "volume_error_relative": "predicted minus true volume over the true one, 0 is best",
}
CLEANINGS = (0.0, 20.0, 200.0)
"""Cubic millimetres of the smallest component that is left in; 0: as predicted."""
TOLERANCE = 2.0
"""Millimetres that surfaces may be apart: one voxel."""
NAME = "segmentation_distances"


def main() -> None:
    """Score the models of all folds, and write means by subset and region."""
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    given = parse(parser)
    source = quick_source() if given.quick else real_source()
    store = CellStore(NAME, quick=given.quick)
    found = [row for fold in range(len(source.parts)) for row in fold_scores(source, fold, given.seed, store)]
    scores = {smallest: [_as_score(row) for row in found if row["smallest_mm3"] == smallest] for smallest in CLEANINGS}
    plain = scores[0.0]
    patients = len({score.subject for score in plain})
    figures, rows = headline_figures(plain), [*cleaning_rows(scores), *subset_rows(plain)]
    write_result(NAME, quick=given.quick, runs=patients, headline=figures, rows=rows, measured=store.ran > 0)


def fold_scores(source: Source, fold: int, seed: int, store: CellStore) -> list[dict[str, Any]]:
    """Return what `score` yields of a fold's test patients; their model may be gone since they were scored."""
    asked = {"data": source.name, "fold": fold, "seed": seed, "cleanings": list(CLEANINGS)}
    before = [row for row in store if {**row["cell"], **asked} == row["cell"]]
    if before and not kept_weights(source, fold, seed).is_dir():
        row = before[-1]
    else:
        model, weights = kept_model(source, fold, seed), digest(kept_weights(source, fold, seed))
        row = store.run(asked | {"weights": weights}, lambda: {"scores": list(score(model, source, fold))})
    rows: list[dict[str, Any]] = row["scores"]
    print(f"fold {fold}: {len(rows)} scores")
    return rows


def _as_score(row: Mapping[str, Any]) -> RegionScore:
    return RegionScore(row["patient"], tuple(row["subset"].split("+")), row["region"], metrics_of(row["metrics"]))


def score(model: SegmentationModel, source: Source, fold: int) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each test patient, subset, cleaning and region."""
    spacing, studies, coding = source.cache.config.spacing, source.parts[fold].test, source.coding
    for study, subset, predicted, truth in predicted_volumes(model, source, studies, model.model_config, all_subsets()):
        for smallest in CLEANINGS:
            masks = predicted
            if smallest:
                masks, _ = clean_regions(predicted, coding, spacing, PostprocessConfig(smallest_mm3=smallest))
            for region, mask, there in zip(coding.regions, masks, truth, strict=True):
                found = asdict(region_metrics(mask, there, spacing, tolerance=TOLERANCE))
                metrics = {name: round(found[name], 4) for name in UNITS}
                place = {"patient": study.group, "subset": subset, "region": region, "smallest_mm3": smallest}
                yield {**place, "metrics": metrics}


def headline_figures(scores: Sequence[RegionScore]) -> dict[str, Figure]:
    """Return each metric with all modalities and over all subsets: means by patient."""
    found = {}
    for metric, unit in UNITS.items():
        for name, subset in (("full_set", STANDARD), ("all_subsets", None)):
            values = _by_patient(scores, metric, subset)
            found[f"{metric}_{name}"] = figure_by_patient(values, unit=f"{unit}, {len(values)} patients", scale=1.0)
    return found


def _by_patient(scores: Sequence[RegionScore], metric: str, subset: Sequence[str] | None) -> Mapping[str, float]:
    """Return each patient's mean over regions, and over subsets if none is given."""
    values: dict[str, list[float]] = {}
    for one in scores:
        value = float(getattr(one.metrics, metric))
        if subset in (None, one.subset) and not math.isnan(value):
            values.setdefault(one.subject, []).append(value)
    return {patient: statistics.fmean(found) for patient, found in values.items()}


def cleaning_rows(scores: Mapping[float, Sequence[RegionScore]]) -> Iterator[dict[str, Any]]:
    """Yield what each cleaning makes of the metrics, means by patient."""
    for smallest, cleaned in scores.items():
        for name, subset in (("all four", STANDARD), ("mean of fifteen", None)):
            row: dict[str, Any] = {"part": "cleaning", "smallest_mm3": smallest, "modalities": name}
            for metric in UNITS:
                row[metric] = statistics.fmean(_by_patient(cleaned, metric, subset).values())
            yield row


def subset_rows(scores: Sequence[RegionScore]) -> Iterator[dict[str, Any]]:
    """Yield the means of a subset and region, with the worst patient's distance."""
    summaries = {metric: summarise_subsets(scores, metric) for metric in UNITS}
    for rows in zip(*summaries.values(), strict=True):
        distance = rows[list(UNITS).index("hd95")]
        row = {"part": "subsets", "subset": subset_label(rows[0].subset), "region": rows[0].region}
        row |= {metric: summary.mean.value for metric, summary in zip(summaries, rows, strict=True)}
        yield row | {"worst_hd95": distance.worst, "not_defined": distance.undefined}


if __name__ == "__main__":
    main()

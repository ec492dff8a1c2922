"""A segmentation judged: which coding the truth has, whether it fits, and tables of what was found."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bmmae.arrays import Array
from bmmae.data.coding import SEG_ORIGIN, is_predicted, stated_coding
from bmmae.data.cohort import Study
from bmmae.data.labels import (
    BINARY,
    CODINGS,
    Coding,
    check_values,
    editions_of,
    find_coding,
    region_masks,
    values_of,
)
from bmmae.data.location import write_whole
from bmmae.data.preprocess import read_on_grid
from bmmae.data.tables import header_of
from bmmae.errors import BmmaeError, LabelError, OutputError
from bmmae.evaluation.subsets import RegionScore, save_subset_plot, subset_table
from bmmae.inference.segmentation import Segmentation, voxel_spacing
from bmmae.inference.study import LoadedStudy
from bmmae.metrics.regions import RegionMetrics, region_metrics
from bmmae.modalities import subset_label
from bmmae.model.segmentation import SegmentationModel
from bmmae.tasks.segmentation import label_coding

METRICS = "metrics.csv"
SUMMARY = "metrics.md"
PLOT = "subsets.png"
SUMMARISED = ("dice", "hd95", "surface_dice", "lesion_f1", "lesion_sensitivity", "volume_error_ml")

COLUMNS = ["subject", "group", "modalities", "region", *(item.name for item in fields(RegionMetrics))]
"""Of the table of scores."""


@dataclass(frozen=True)
class Judged:
    """How predictions are compared with the truth.

    Attributes:
        coding: Of the truth.
        tolerance: Of the surface Dice, in millimetres.
    """

    coding: Coding
    tolerance: float = 1.0


def truth_coding(model: SegmentationModel, studies: Iterable[Study], name: str | None = None) -> Coding:
    """Return the coding of the truth that a model is compared with.

    Args:
        model: Its own coding is taken where nothing says another.
        studies: Their table may state the coding (`seg_coding`), and file names may contradict the model's.
        name: The coding, if the user says it.

    Raises:
        LabelError: If there is none of that name, it lacks a region of the model's, or file names are those of an
            edition that codes otherwise.
    """
    labelled = [study for study in studies if study.seg is not None and not is_predicted(study)]
    own = label_coding(model.config)
    coding = (stated_coding(labelled) if name is None else find_coding(name)) or own
    lacking = [region for region in model.config.regions if region not in coding.regions]
    if lacking:
        raise LabelError(
            f"the label coding '{coding.name}' has no region {', '.join(lacking)}, which the model predicts; it has "
            f"{', '.join(coding.regions)}: name one with all of the model's (--labels; a YAML file may spell it out)"
        )
    if name is None and coding is own and own.name in CODINGS and own.name != BINARY.name:
        for study in labelled:
            editions = editions_of(str(study.seg))
            if editions and own.name not in editions:
                raise LabelError(
                    f"by its name, {study.seg} is coded as {' or '.join(editions)}, and the model's labels are "
                    f"'{own.name}', where the same number is another tissue: say what the truth is with --labels"
                )
    return coding


def read_truth(study: Study, loaded: LoadedStudy, coding: Coding) -> tuple[Array | None, str]:
    """Return the truth on the images' grid, if there is one and it fits; else why not.

    Args:
        study: Its `seg` is the truth.
        loaded: Its images.
        coding: Of the truth.
    """
    if study.seg is None:
        return None, ""
    if is_predicted(study):
        return None, f"its segmentation is a prediction, as '{SEG_ORIGIN}' says, and no truth"
    try:
        truth = read_on_grid(study.seg, loaded.reference, "the segmentation ")
        check_values(values_of(truth), coding, str(study.seg))
    except BmmaeError as error:
        return None, str(error)
    return truth, ""


def warn_of_binary_truth(coding: Coding, values: Collection[int]) -> None:
    """Warn if a cohort's truth holds no other values than 0 and 1, and its coding tells regions apart.

    Args:
        coding: How the truth was read.
        values: All that occur in it.
    """
    if set(values) | {0} != {0, 1} or len(coding.regions) == 1:
        return
    whole = max(coding.regions, key=lambda region: len(coding.regions[region]))
    warnings.warn(
        f"every segmentation to compare with holds 0 and 1 alone, and was read as '{coding.name}', where 1 means "
        f"'{coding.classes[1]}': if these are masks of whole lesions ('{BINARY.name}'), only {whole} means something",
        stacklevel=3,
    )


def score(
    model: SegmentationModel, study: Study, found: Segmentation, truth: Array, judged: Judged
) -> Iterator[RegionScore]:
    """Judge the labels as they are written, region by region, on the whole native volume.

    Args:
        model: Says what the labels mean.
        study: Whose they are.
        found: The prediction.
        truth: Label values on the same grid, from `read_truth`.
        judged: What the truth's values mean, and the surface's tolerance.
    """
    own = label_coding(model.config)
    true = dict(zip(judged.coding.regions, region_masks(truth, judged.coding), strict=True))
    predicted = dict(zip(own.regions, region_masks(found.labels, own), strict=True))
    spacing = voxel_spacing(found.study)
    for region in model.config.regions:
        metrics = region_metrics(predicted[region], true[region], spacing, tolerance=judged.tolerance)
        yield RegionScore(study.name, tuple(found.study.images), region, metrics, study.group)


def as_row(score: RegionScore) -> dict[str, Any]:
    """Return a score as JSON holds it, which knows no NaN."""
    values = {name: None if math.isnan(value) else value for name, value in asdict(score.metrics).items()}
    return {"subset": list(score.subset), "region": score.region, **values}


def from_row(row: Mapping[str, Any], study: Study) -> RegionScore:
    """Return a score from what `as_row` made of it."""
    names = [item.name for item in fields(RegionMetrics)]
    values: dict[str, Any] = {name: math.nan if row[name] is None else row[name] for name in names}
    metrics = RegionMetrics(**values)
    return RegionScore(study.name, tuple(row["subset"]), row["region"], metrics, study.group)


def write_metrics(folder: Path, scores: Sequence[RegionScore], seen: str, *, plot: bool) -> None:
    """Write `metrics.csv` and `metrics.md`, and the plot by subset; without scores remove what an earlier run left.

    Args:
        folder: Where to.
        scores: One a study, subset and region.
        seen: Whether the model knows these studies from its training: the first sentence.
        plot: Whether to draw `subsets.png`.

    Raises:
        OutputError: If a file cannot be written.
    """
    try:
        for name in (PLOT, SUMMARY, METRICS):  # an earlier run's would be taken for this one's; see `refuse_foreign`
            (folder / name).unlink(missing_ok=True)
        if scores:
            write_scores(scores, folder / METRICS)
            tables = (f"## {metric}\n\n{subset_table(scores, metric)}" for metric in SUMMARISED)
            (folder / SUMMARY).write_text("\n\n".join((f"{seen}.", *tables)) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the metrics to {folder}: {error.strerror or error}") from error
    if scores and plot:
        save_subset_plot(scores, folder / PLOT)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files of the names that `write_metrics` removes, unless it made them.

    Raises:
        OutputError: If there are.
    """
    there = [folder / name for name in (METRICS, SUMMARY, PLOT) if (folder / name).exists()]
    if there and header_of(folder / METRICS) != COLUMNS:
        raise OutputError(
            f"{there[0]} is not of an earlier run of `bmmae segment` and would be replaced: name another --out"
        )


def write_scores(scores: Sequence[RegionScore], path: Path) -> Path:
    """Write one row a study, subset and region, in one step: half a table would be taken for somebody else's.

    Raises:
        OutputError: If the file cannot be written.
    """
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(COLUMNS)
    for score in scores:
        values = asdict(score.metrics)
        table.writerow([score.subject, score.group, subset_label(score.subset), score.region, *values.values()])
    write_whole(path, stream.getvalue().encode())
    return path

"""A whole cohort segmented: a folder a study, continued after an interruption, judged where there is a truth."""

from __future__ import annotations

import csv
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from tqdm import tqdm

from bmmae._version import __version__
from bmmae.arrays import Array
from bmmae.data.cohort import LESION, Cohort, Study
from bmmae.data.labels import Coding, find_coding, region_masks
from bmmae.data.location import fingerprint
from bmmae.data.preprocess import read_on_grid
from bmmae.errors import BmmaeError, LabelError, OutputError
from bmmae.evaluation.subsets import RegionScore, all_subsets, save_subset_plot, subset_table
from bmmae.inference.segmentation import Segmentation, SegmentOptions, require_segmenter, segment_study, voxel_spacing
from bmmae.inference.study import StudyFiles, load_files
from bmmae.inference.writing import read_note, write_together
from bmmae.metrics.regions import RegionMetrics, region_metrics
from bmmae.modalities import subset_label
from bmmae.model.pretrained import PretrainedModel, digest
from bmmae.model.segmentation import SegmentationModel
from bmmae.notice import NOTICE
from bmmae.tasks.segmentation import label_coding

NOTE = "segmentation.json"
TABLE = "cohort.csv"
METRICS = "metrics.csv"
SUBSETS = "subsets"
Status: TypeAlias = Literal["made", "kept", "failed"]


@dataclass(frozen=True)
class CohortOptions:
    """What is made of each study.

    Attributes:
        segment: How one is segmented.
        probabilities: Write probability maps as well.
        subsets: Judge every subset of a study's modalities; what is written is still from all of them.
        metrics: Refuse a cohort without any truth.
        labels: Label coding of the truth, if it is not the model's.
        tolerance: Of the surface Dice, in millimetres.
    """

    segment: SegmentOptions = field(default_factory=SegmentOptions)
    probabilities: bool = False
    subsets: bool = False
    metrics: bool = False
    labels: str | None = None
    tolerance: float = 1.0


@dataclass(frozen=True)
class StudyResult:
    """What became of one study.

    Attributes:
        study: The study.
        status: `made` now; `kept`, as it was made before; or `failed`.
        seconds: For reading, segmenting and writing it from all its modalities.
        scores: By subset and region; empty without a truth.
        cleaned: What postprocessing changed, by region.
        problem: Why it failed.
    """

    study: Study
    status: Status
    seconds: float = 0.0
    scores: tuple[RegionScore, ...] = ()
    cleaned: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def segment_cohort(
    model: PretrainedModel, cohort: Cohort, folder: str | Path, options: CohortOptions | None = None
) -> list[StudyResult]:
    """Segment every study into a folder of its own name, and judge those that have a truth.

    Studies that were finished before, by the same model from the same files with the same options, are kept. A study
    that fails stops no other. In the end `cohort.csv` names the predicted segmentations in its column `seg` (and the
    probability maps in `lesion_probability`), and `metrics.csv` holds the scores, if there are any.

    Args:
        model: A segmentation model.
        cohort: The studies, read with the model's modalities.
        folder: Where to.
        options: How.

    Returns:
        One result a study, in the cohort's order.

    Raises:
        ModalityError: If the model cannot segment.
        LabelError: If metrics are asked for and no study has a truth, or its coding lacks a region of the model's.
        OutputError: If the folder cannot be written (any more); what is finished is kept.
    """
    segmenter, options, folder = require_segmenter(model), options or CohortOptions(), Path(folder)
    if (options.metrics or options.subsets) and all(study.seg is None for study in cohort):
        raise LabelError(
            f"no study of {cohort.path or 'the cohort'} has a segmentation to compare with: metrics need the table's "
            "column 'seg'"
        )
    truth_coding(segmenter, options.labels)
    results = list(_results(segmenter, cohort.studies, folder, options))
    done = tuple(_completed(result, folder, options) for result in results if result.status != "failed")
    if done:
        Cohort(done, cohort.modalities).write(folder / TABLE)
    scores = [score for result in results for score in result.scores]
    if scores:
        write_scores(scores, folder / METRICS)
    if scores and options.subsets:
        _write_text(folder / f"{SUBSETS}.md", subset_table(scores) + "\n")
        save_subset_plot(scores, folder / f"{SUBSETS}.png")
    return results


def truth_coding(model: SegmentationModel, name: str | None) -> Coding:
    """Return the coding of the truth that a model is compared with.

    Raises:
        LabelError: If there is none of that name, or it lacks a region of the model's.
    """
    coding = label_coding(model.config) if name is None else find_coding(name)
    lacking = [region for region in model.config.regions if region not in coding.regions]
    if lacking:
        raise LabelError(
            f"the label coding '{coding.name}' has no region {', '.join(lacking)}, which the model predicts; it has "
            f"{', '.join(coding.regions)}"
        )
    return coding


def score_segmentation(
    found: Segmentation, truth: Array, study: Study, model: SegmentationModel, options: CohortOptions
) -> tuple[RegionScore, ...]:
    """Judge a segmentation, region by region, on the whole native volume.

    Args:
        found: The prediction; its labels are judged, as they are written.
        truth: Label values on the same grid.
        study: Whose it is.
        model: Says what the labels mean.
        options: The truth's coding, and the tolerance.

    Raises:
        LabelError: If the truth holds values outside its coding.
    """
    coding = truth_coding(model, options.labels)
    true = dict(zip(coding.regions, region_masks(truth, coding), strict=True))
    own = label_coding(model.config)
    predicted = dict(zip(own.regions, region_masks(found.labels, own), strict=True))
    spacing = voxel_spacing(found.study)
    given = tuple(found.study.images)
    return tuple(
        RegionScore(
            study.name,
            given,
            region,
            region_metrics(predicted[region], true[region], spacing, tolerance=options.tolerance),
            study.group,
        )
        for region in model.config.regions
    )


def _results(
    model: SegmentationModel, studies: Sequence[Study], folder: Path, options: CohortOptions
) -> Iterator[StudyResult]:
    known = digest(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one study's remarks say little without its name: see the notes
        for study in tqdm(studies, desc="segmenting", unit="study"):
            try:
                yield _one(model, study, folder / study.name, options, known)
            except OutputError:
                raise
            except (MemoryError, torch.OutOfMemoryError):
                problem = "there was not enough memory: it may be an unusually large image"
                yield StudyResult(study, "failed", problem=problem)
            except BmmaeError as error:
                yield StudyResult(study, "failed", problem=str(error))


def _one(model: SegmentationModel, study: Study, folder: Path, options: CohortOptions, known: str) -> StudyResult:
    names = [name for name in model.config.model.modalities if name in study.images]
    identity = _identity(study, names, options, known)
    note = read_note(folder, NOTE)
    if note is not None and note.get("identity") == identity:
        return _remembered(study, note)
    started = time.perf_counter()
    found = _segment(model, study, names, options.segment)
    seconds = time.perf_counter() - started
    scores: list[RegionScore] = []
    if study.seg is not None:
        truth = read_on_grid(study.seg, found.study.reference, "the segmentation ")
        scores += score_segmentation(found, truth, study, model, options)
    images = {"seg": found.image(), **(found.probability_images() if options.probabilities else {})}
    if study.seg is not None and options.subsets:
        for subset in all_subsets(names)[:-1]:
            less = _segment(model, study, subset, options.segment)
            scores += score_segmentation(less, truth, study, model, options)
    cleaned = {region: str(told) for region, told in found.cleaned.items()}
    written = _note(study, names, found, model, identity) | {
        "postprocessing": cleaned,
        "scores": [_as_row(score) for score in scores],
        "seconds": round(seconds, 2),
    }
    writing = time.perf_counter()
    write_together(images, written, folder, NOTE)
    return StudyResult(study, "made", seconds + time.perf_counter() - writing, tuple(scores), cleaned)


def _segment(model: SegmentationModel, study: Study, names: Sequence[str], options: SegmentOptions) -> Segmentation:
    """Segment a study as if it had these modalities alone."""
    masks = {name: mask for name in names if (mask := study.brain_mask_of(name)) is not None}
    files = StudyFiles({name: study.images[name] for name in names}, masks)
    return segment_study(model, load_files(model, files), options)


def _identity(study: Study, names: Sequence[str], options: CohortOptions, known: str) -> dict[str, Any]:
    """All that decides what is written for a study."""
    files = {name: study.images[name] for name in names}
    masks = {f"brain_mask_{name}": mask for name in names if (mask := study.brain_mask_of(name)) is not None}
    truth = {} if study.seg is None else {"seg": study.seg}
    prints = {role: fingerprint(file) for role, file in {**files, **masks, **truth}.items()}
    identity: dict[str, Any] = json.loads(
        json.dumps({"model": known, "files": prints, "options": asdict(replace(options, metrics=False))}, default=str)
    )
    return identity


def _note(
    study: Study, names: Sequence[str], found: Segmentation, model: SegmentationModel, identity: Mapping[str, Any]
) -> dict[str, object]:
    provenance = model.metadata.provenance
    return {
        "bmmae": __version__,
        "study": study.name,
        "given": list(names),
        "coding": found.coding,
        "regions": list(found.regions),
        "remarks": list(found.study.remarks),
        "model": {key: provenance.get(key) for key in ("data", "synthetic", "parent") if provenance.get(key)},
        "identity": dict(identity),
        "notice": NOTICE,
    }


def _remembered(study: Study, note: Mapping[str, Any]) -> StudyResult:
    scores = tuple(_from_row(row, study) for row in note["scores"])
    return StudyResult(study, "kept", float(note["seconds"]), scores, dict(note["postprocessing"]))


def _as_row(score: RegionScore) -> dict[str, Any]:
    return {"subset": list(score.subset), "region": score.region, **asdict(score.metrics)}


def _from_row(row: Mapping[str, Any], study: Study) -> RegionScore:
    metrics = RegionMetrics(**{item.name: row[item.name] for item in fields(RegionMetrics)})
    return RegionScore(study.name, tuple(row["subset"]), row["region"], metrics, study.group)


def _completed(result: StudyResult, folder: Path, options: CohortOptions) -> Study:
    """The study with what was predicted where the patient-level models look for it."""
    study, own = result.study, folder / result.study.name
    chances = own / f"{LESION}.nii.gz" if options.probabilities else None
    return replace(study, seg=own / "seg.nii.gz", lesion=chances, values={**study.values, "seg_origin": "predicted"})


def write_scores(scores: Sequence[RegionScore], path: Path) -> Path:
    """Write one row a study, subset and region.

    Raises:
        OutputError: If the file cannot be written.
    """
    names = [item.name for item in fields(RegionMetrics)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["subject", "group", "modalities", "region", *names])
            for score in scores:
                values = asdict(score.metrics)
                row = [score.subject, score.group, subset_label(score.subset), score.region]
                table.writerow([*row, *(values[name] for name in names)])
    except OSError as error:
        raise OutputError(f"cannot write the metrics to {path}: {error.strerror or error}") from error
    return path


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

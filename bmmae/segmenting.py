"""A whole cohort segmented: a folder a study, continued after an interruption, judged where there is a truth."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from tqdm import tqdm

from bmmae._version import __version__
from bmmae.data.coding import PREDICTED, SEG_CODING, SEG_ORIGIN, is_predicted
from bmmae.data.cohort import LESION, Cohort, Study
from bmmae.data.labels import values_of
from bmmae.data.location import File, fingerprint, refuse_overwriting
from bmmae.data.preprocess import VERSION as PREPROCESSING
from bmmae.errors import BmmaeError, ImageError, LabelError, OccupiedError, OutputError, few
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.subsets import RegionScore, all_subsets
from bmmae.inference.segmentation import (
    Segmentation,
    SegmentOptions,
    probability_names,
    require_segmenter,
    segment_study,
)
from bmmae.inference.study import LoadedStudy, StudyFiles, load_files
from bmmae.inference.writing import read_note, refuse_foreign_table, refuse_replacing, write_together
from bmmae.model.pretrained import PretrainedModel, digest
from bmmae.model.segmentation import SegmentationModel
from bmmae.notice import NOTICE
from bmmae.segmentation_scores import (
    METRICS,
    SUMMARY,
    Judged,
    as_row,
    from_row,
    read_truth,
    refuse_foreign,
    score,
    truth_coding,
    warn_of_binary_truth,
    write_metrics,
)

NOTE = "segmentation.json"
TABLE = "cohort.csv"
Status: TypeAlias = Literal["made", "kept", "failed"]


@dataclass(frozen=True)
class CohortOptions:
    """What is made of each study.

    Attributes:
        segment: How one is segmented.
        probabilities: Write probability maps as well.
        subsets: Judge every subset of a study's modalities; what is written is still from all of them.
        metrics: Refuse a cohort without any truth, and studies whose truth does not fit.
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
        problem: Why it failed, or why it could not be judged.
        remarks: Reasons to doubt what was found, one sentence each.
        truth: The values of its truth, as far as that was read.
    """

    study: Study
    status: Status
    seconds: float = 0.0
    scores: tuple[RegionScore, ...] = ()
    cleaned: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    remarks: tuple[str, ...] = ()
    truth: tuple[int, ...] = ()


def segment_cohort(
    model: PretrainedModel, cohort: Cohort, folder: str | Path, options: CohortOptions | None = None
) -> list[StudyResult]:
    """Segment every study into a folder of its own name, and judge those that have a truth.

    Studies that were finished before, by the same model from the same files with the same options, are kept. A study
    that fails stops no other. One whose truth does not fit has failed if metrics are asked for; else it is segmented,
    and its result says why it was not judged. In the end `cohort.csv` names the predicted segmentations in its column
    `seg` (and the probability maps in `lesion_probability`), `metrics.csv` holds the scores, if there are any, and
    `metrics.md` their summary.

    Args:
        model: A segmentation model.
        cohort: The studies, read with the model's modalities.
        folder: Where to.
        options: How.

    Returns:
        One result a study, in the cohort's order.

    Raises:
        ModalityError: If the model cannot segment.
        LabelError: If metrics are asked for and no study has a truth, its coding lacks a region of the model's, or file
            names are those of an edition that codes otherwise.
        OutputError: If the folder cannot be written (any more), or a file given would be written over; what is
            finished is kept.

    Warns:
        UserWarning: If the folder holds what another model has made, which is replaced.
        UserWarning: If all truth is a mask of 0 and 1, and the coding, which was not asked for, tells regions apart.
    """
    segmenter, options, folder = require_segmenter(model), options or CohortOptions(), Path(folder)
    if (options.metrics or options.subsets) and all(study.seg is None or is_predicted(study) for study in cohort):
        predicted = f" ('{SEG_ORIGIN}' says that it holds predictions)" if any(map(is_predicted, cohort)) else ""
        raise LabelError(
            f"no study of {cohort.path or 'the cohort'} has a segmentation to compare with: metrics need the table's "
            f"column 'seg'{predicted}"
        )
    coding = truth_coding(segmenter, cohort.studies, options.labels)
    _refuse_overwriting(segmenter, cohort, folder)
    work = _Work(segmenter, digest(segmenter), Judged(coding, options.tolerance), options)
    _warn_of_replacing(work, cohort, folder)
    results = list(_results(work, cohort.studies, folder))
    if options.labels is None:
        warn_of_binary_truth(coding, set().union(*(result.truth for result in results)))
    done = tuple(_completed(result, segmenter, folder, options) for result in results if result.status != "failed")
    if done:
        Cohort(done, cohort.modalities).write(folder / TABLE)
    scores = [score for result in results for score in result.scores]
    judged = {score.subject for score in scores}
    seen = overlap(segmenter, [study for study in cohort if study.name in judged]) if judged else ""
    write_metrics(folder, scores, str(seen), plot=options.subsets)
    return results


def _refuse_overwriting(model: SegmentationModel, cohort: Cohort, folder: Path) -> None:
    names = [f"{name}.nii.gz" for name in ("seg", *probability_names(model.config.regions))]
    written = [folder / study.name / name for study in cohort for name in names]
    tables = [cohort.path] if cohort.path else []
    given = [file for study in cohort for file in study.files()]
    refuse_overwriting([*written, *(folder / name for name in (TABLE, METRICS, SUMMARY))], [*tables, *given])
    refuse_foreign(folder)
    refuse_foreign_table(folder / TABLE, SEG_ORIGIN)


@dataclass(frozen=True)
class _Work:
    """What is done to every study, and by which model."""

    model: SegmentationModel
    digest: str
    judged: Judged
    options: CohortOptions

    @property
    def must_judge(self) -> bool:
        """Whether a study whose truth is unfit has failed."""
        return self.options.metrics or self.options.subsets


def _warn_of_replacing(work: _Work, cohort: Cohort, folder: Path) -> None:
    """Warn that what another model has made is going to be made again."""
    notes: dict[str, Any] = {study.name: read_note(folder / study.name, NOTE) or {} for study in cohort}
    made_by = {name: note["identity"] for name, note in notes.items() if isinstance(note.get("identity"), dict)}
    others = [name for name, identity in made_by.items() if identity.get("model") != work.digest]
    if others:
        warnings.warn(
            f"{folder} holds {len(others)} studies that another model segmented ({few(others)}): they are segmented "
            "anew, and its results replaced; stop now and name another --out to keep both",
            stacklevel=3,
        )


def _results(work: _Work, studies: Sequence[Study], folder: Path) -> Iterator[StudyResult]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one study's remarks say little without its name: see the notes
        for study in tqdm(studies, desc="segmenting", unit="study"):
            try:
                yield _one(work, study, folder / study.name)
            except OccupiedError as error:
                yield StudyResult(study, "failed", problem=str(error))
            except OutputError:
                raise
            except (MemoryError, torch.OutOfMemoryError):
                problem = "there was not enough memory: it may be an unusually large image"
                yield StudyResult(study, "failed", problem=problem)
            except BmmaeError as error:
                yield StudyResult(study, "failed", problem=str(error))


def _one(work: _Work, study: Study, folder: Path) -> StudyResult:
    model, options = work.model, work.options
    names = [name for name in model.config.model.modalities if name in study.images]
    identity = _identity(study, names, work)
    note = read_note(folder, NOTE)
    if note is not None and note.get("identity") == identity:
        return _remembered(study, note, work)
    written = ["seg", *(probability_names(model.config.regions) if options.probabilities else ())]
    refuse_replacing([folder / f"{name}.nii.gz" for name in written], folder, NOTE)
    started = time.perf_counter()
    loaded = _load(model, study, names)
    truth, problem = read_truth(study, loaded, work.judged.coding)
    if problem and work.must_judge:
        raise LabelError(problem)
    found = segment_study(model, loaded, options.segment)
    seconds = time.perf_counter() - started
    images = {"seg": found.image(), **(found.probability_images() if options.probabilities else {})}
    scores: list[RegionScore] = []
    if truth is not None:
        scores += score(model, study, found, truth, work.judged)
        for subset in all_subsets(names)[:-1] if options.subsets else ():
            less = segment_study(model, _load(model, study, subset), options.segment)
            scores += score(model, study, less, truth, work.judged)
    cleaned = {region: str(each) for region, each in found.cleaned.items()}
    remarks, values = found.study.remarks, () if truth is None else values_of(truth)
    told = _note(study, names, found, model, identity) | {
        "postprocessing": cleaned,
        "scores": [as_row(each) for each in scores],
        "truth": list(values),
        "problem": problem,
        "seconds": round(seconds, 2),
    }
    writing = time.perf_counter()
    write_together(images, told, folder, NOTE)
    seconds += time.perf_counter() - writing
    return StudyResult(study, "made", seconds, tuple(scores), cleaned, problem, remarks, values)


def _load(model: SegmentationModel, study: Study, names: Sequence[str]) -> LoadedStudy:
    """Read a study as if it had these modalities alone."""
    masks = {name: mask for name in names if (mask := study.brain_mask_of(name)) is not None}
    return load_files(model, StudyFiles({name: study.images[name] for name in names}, masks))


def _identity(study: Study, names: Sequence[str], work: _Work) -> dict[str, Any]:
    """All that decides what is written for a study, its scores among it."""
    files = {name: study.images[name] for name in names}
    masks = {f"brain_mask_{name}": mask for name in names if (mask := study.brain_mask_of(name)) is not None}
    prints: dict[str, object] = {role: fingerprint(file) for role, file in {**files, **masks}.items()}
    if study.seg is not None:
        prints["seg"] = PREDICTED if is_predicted(study) else _print_of_truth(study.seg)
    options = asdict(replace(work.options, metrics=False))
    content = {
        "model": work.digest,
        "preprocessing": PREPROCESSING,
        "files": prints,
        "options": options,
        "coding": asdict(work.judged.coding),
    }
    identity: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return identity


def _print_of_truth(file: File) -> object:
    try:
        return fingerprint(file)
    except ImageError:  # gone: `read_truth` says so, and the study is segmented all the same
        return str(file)


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
        "cuts": list(found.cuts),
        "remarks": list(found.study.remarks),
        "model": {key: provenance.get(key) for key in ("data", "synthetic", "parent") if provenance.get(key)},
        "identity": dict(identity),
        "notice": NOTICE,
    }


def _remembered(study: Study, note: Mapping[str, Any], work: _Work) -> StudyResult:
    problem = str(note.get("problem", ""))
    if problem and work.must_judge:
        raise LabelError(problem)
    scores = tuple(from_row(row, study) for row in note["scores"])
    remarks, values = tuple(note["remarks"]), tuple(note.get("truth", ()))  # earlier versions noted no values
    cleaned = dict(note["postprocessing"])
    return StudyResult(study, "kept", float(note["seconds"]), scores, cleaned, problem, remarks, values)


def _completed(result: StudyResult, model: SegmentationModel, folder: Path, options: CohortOptions) -> Study:
    """The study with what was predicted where the patient-level models look for it."""
    stated = {SEG_ORIGIN: PREDICTED, SEG_CODING: model.config.coding}
    study, own = result.study, folder / result.study.name
    chances = own / f"{LESION}.nii.gz" if options.probabilities else None
    return replace(study, seg=own / "seg.nii.gz", lesion=chances, values={**study.values, **stated})

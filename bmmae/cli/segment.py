"""The command that segments a study or a cohort."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.cli.command import Commands, add_command, amount, print_doubts, require_writable, tally, whole
from bmmae.cli.images import add_images, given_images, load, required_images
from bmmae.data.problems import lines_of
from bmmae.errors import ConfigError, LabelError, OutputError
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from bmmae.data.cohort import Cohort
    from bmmae.evaluation.subsets import RegionScore
    from bmmae.inference.segmentation import SegmentOptions
    from bmmae.model.segmentation import SegmentationModel
    from bmmae.segmenting import StudyResult


def add_segment(commands: Commands) -> None:
    """Add the command."""
    summary = f"Segment a study, or every study of a cohort, from any of its modalities. {NOTICE}"
    command = add_command(commands, "segment", summary, _run)
    add_images(command)
    command.add_argument("--cohort", type=Path, metavar="TABLE", help="a cohort table, instead of one study's images")
    command.add_argument("--out", type=Path, required=True, help="the NIfTI file to write; with --cohort, a folder")
    command.add_argument(
        "--overlap", type=float, default=0.25, help="share of a window that the next one covers too (default: 0.25)"
    )
    command.add_argument("--flips", action="store_true", help="average with the mirror image: twice the time")
    command.add_argument("--fitted", action="store_true", help="windows no larger than the overlap needs: faster")
    command.add_argument("--probabilities", action="store_true", help="write a probability map a region as well")
    command.add_argument(
        "--cut",
        default="0.5",
        metavar="P",
        help="probability above which a voxel belongs to a region, or 'dice': each region of each study where its "
        "expected Dice is largest (default: 0.5)",
    )
    command.add_argument(
        "--postprocess",
        type=amount,
        nargs="?",
        const=20.0,
        metavar="MM3",
        help="fill holes, and remove components smaller than so many cubic millimetres (20 unless said; without the "
        "option, neither)",
    )
    command.add_argument(
        "--splits", type=Path, metavar="FILE", help="with --cohort: only a part of a fold, `bmmae split`"
    )
    command.add_argument("--fold", type=whole, help="which fold of --splits (default: 0)")
    command.add_argument(
        "--part",
        choices=("train", "validation", "test"),
        help="which part of the fold, or of the table's column 'split' (default: test with --splits, else all)",
    )
    command.add_argument("--metrics", action="store_true", help="with --cohort: refuse a cohort without segmentations")
    command.add_argument("--subsets", action="store_true", help="with --cohort: judge every subset of the modalities")
    command.add_argument(
        "--rely",
        type=Path,
        metavar="MODEL",
        help="with --subsets, on patients that are neither for training nor for testing: save a copy of the model that "
        "takes each region from no more modalities than have improved it there",
    )
    command.add_argument("--labels", metavar="CODING", help="label coding of the truth (name or YAML file), if another")
    command.add_argument("--tolerance", type=amount, help="of the surface Dice, in mm (default: 1)")


ENOUGH = 20
"""Patients to choose on, see docs/segmentation.md."""

OF_COHORTS = ("metrics", "subsets", "rely", "labels", "splits", "fold", "part", "tolerance")


def _run(given: argparse.Namespace) -> int:
    code = _run_study(given) if given.cohort is None else _run_cohort(given)
    print(NOTICE)
    return code


def _options(given: argparse.Namespace) -> SegmentOptions:
    from bmmae.inference.decision import parse_cut
    from bmmae.inference.postprocess import PostprocessConfig
    from bmmae.inference.segmentation import SegmentOptions

    cleaning = None if given.postprocess is None else PostprocessConfig(smallest_mm3=given.postprocess)
    return SegmentOptions(given.overlap, given.flips, given.fitted, cleaning, parse_cut(given.cut))


def _run_study(given: argparse.Namespace) -> int:
    from bmmae.data.location import refuse_overwriting
    from bmmae.inference.segmentation import probability_names, require_segmenter, segment_study
    from bmmae.inference.study import load_study
    from bmmae.inference.writing import save_image

    values = {name: getattr(given, name) for name in OF_COHORTS}
    judging = [f"--{name}" for name, value in values.items() if value is not None and value is not False]
    if judging:
        raise ConfigError(f"{', '.join(judging)}: about a cohort, which --cohort names, and there is none")
    images = required_images(given)
    if not given.out.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(f"--out names the file to write, .nii or .nii.gz; got {given.out}")
    require_writable(given.out.parent)
    model = require_segmenter(load(given.model))
    started = time.perf_counter()
    stem = given.out.name.removesuffix(".gz").removesuffix(".nii")
    paths = {"seg": given.out}
    if given.probabilities:
        maps = probability_names(model.config.regions)
        paths |= {name: given.out.with_name(f"{stem}_{name}.nii.gz") for name in maps}
    refuse_overwriting(paths.values(), [*images.values(), *([given.brain_mask] if given.brain_mask else [])])
    found = segment_study(model, load_study(model, images, given.brain_mask), _options(given))
    made = {"seg": found.image(), **(found.probability_images() if given.probabilities else {})}
    for name, path in paths.items():
        print(save_image(made[name], path))
    if given.cut == "dice":
        named = zip(found.regions, found.cuts, strict=True)
        print("cut at", ", ".join(f"{region} {cut:.3g}" for region, cut in named))
    for region, told in found.cleaned.items():
        print(f"postprocessing, {region}: {told}")
    print(f"{time.perf_counter() - started:.1f} s")
    return 0


def _run_cohort(given: argparse.Namespace) -> int:
    from bmmae.data.cohort import read_cohort
    from bmmae.inference.segmentation import require_segmenter
    from bmmae.segmenting import CohortOptions, segment_cohort

    if given_images(given) or given.brain_mask is not None:
        raise ConfigError("--cohort names the images of all studies: leave out images and --brain-mask")
    if given.fold is not None and given.splits is None:
        raise ConfigError(f"--fold {given.fold} is one of --splits: name the file that `bmmae split` wrote")
    if given.rely is not None and not given.subsets:
        raise ConfigError("--rely chooses by the scores of every subset: ask for them with --subsets")
    for folder in (given.out, *([given.rely] if given.rely is not None else [])):
        require_writable(folder)
    model = load(given.model)
    if given.rely is not None and require_segmenter(model).config.relied_on:
        raise ConfigError(f"{given.model} has chosen what to rely on already: choose from the model it was made of")
    if given.rely is not None:
        _require_new(given.rely, given.out)
    cohort = _part(given, read_cohort(given.cohort, model.model_config.modalities))
    options = CohortOptions(
        segment=_options(given),
        probabilities=given.probabilities,
        subsets=given.subsets,
        metrics=given.metrics,
        labels=given.labels,
        tolerance=CohortOptions.tolerance if given.tolerance is None else given.tolerance,
    )
    results = segment_cohort(model, cohort, given.out, options)
    _tell(results, given.out)
    if given.rely is not None:
        _rely(require_segmenter(model), cohort, results, given.rely)
    return 1 if any(result.status == "failed" for result in results) else 0


def _require_new(model: Path, out: Path) -> None:
    """Find out before the work whether a model can be saved there."""
    from bmmae.model_folder import CONFIG

    if (model / CONFIG).exists():
        raise OutputError(f"{model} holds a model, which would be written over: name another folder for --rely")
    if model.resolve() == out.resolve() or (model.is_dir() and any(model.iterdir())):
        raise OutputError(f"{model} is for other files than a model: name a new or empty folder for --rely")


def _part(given: argparse.Namespace, cohort: Cohort) -> Cohort:
    """The studies that are asked for."""
    from bmmae.data.fold_file import read_fold

    if given.splits is None:
        return cohort if given.part is None else cohort.subset(given.part)
    studies = read_fold(given.splits, cohort, given.fold or 0)[given.part or "test"]
    return replace(cohort, studies=tuple(studies))


def _tell(results: list[StudyResult], folder: Path) -> None:
    for result in results:
        if result.status == "failed":
            print(f"failed: {result.study.name}: {result.problem}", file=sys.stderr)
            continue
        means = {score.region: score.metrics.dice for score in result.scores[: len({s.region for s in result.scores})]}
        told = ", ".join(f"{region} {dice:.3f}" for region, dice in means.items() if not math.isnan(dice))
        print(f"{result.study.name}: {result.seconds:.1f} s" + (f"; Dice {told}" if told else ""))
        for region, cleaned in result.cleaned.items():
            print(f"  postprocessing, {region}: {cleaned}")
    done = [result for result in results if result.status != "failed"]
    unjudged = [(result.study.name, result.problem) for result in done if result.problem]
    for line in lines_of(unjudged):
        print(f"not judged: {line}", file=sys.stderr)
    print_doubts(results)
    said: dict[str, str] = {"made": "segmented", "kept": "finished before", "failed": "FAILED"}
    print(tally(results, said) + (f"; {len(unjudged)} not judged (see above)" if unjudged else ""))
    scores = [score for result in results for score in result.scores]
    if scores:
        _tell_scores(scores, folder)


def _rely(model: SegmentationModel, cohort: Cohort, results: list[StudyResult], folder: Path) -> None:
    """Save the model so that it relies on what has paid on these studies, and say what that is."""
    from bmmae.checkpoint import provenance_of, save_model
    from bmmae.data.origin import content_hashes
    from bmmae.evaluation.overlap import warn_of_overlap
    from bmmae.evaluation.subsets import choose_subsets

    scores = [score for result in results for score in result.scores]
    judged = {score.subject for score in scores}
    if not judged:
        raise LabelError("no study could be judged: nothing to choose by")
    studies = [study for study in cohort if study.name in judged]
    warn_of_overlap(model, studies)
    chosen = choose_subsets(scores)
    model.config = replace(model.config, relied_on=chosen)
    change = f"takes regions from the modalities that improved them on {len(judged)} studies (`relied_on`)"
    before = provenance_of(model)
    after = before.changed(model.kind, change) if chosen else before
    choosing = {*before.selection_hashes, *content_hashes(studies)}
    save_model(model, folder, provenance=replace(after, selection_hashes=tuple(sorted(choosing))))
    few = len({score.group or score.subject for score in scores}) < ENOUGH
    doubt = f"; from fewer than {ENOUGH} patients, by chance as much as by merit: better on more" if few else ""
    print(f"{folder}: chosen on {len(judged)} studies{doubt}")
    for region, table in chosen.items():
        for given, used in table.items():
            print(f"  {region} from {used} alone where {given} are given")


def _tell_scores(scores: list[RegionScore], folder: Path) -> None:
    from bmmae.evaluation.subsets import counter_intuitive, subset_table
    from bmmae.segmentation_scores import METRICS, SUMMARY

    print((folder / SUMMARY).read_text().partition("\n")[0])  # whether the model has seen these studies
    print(subset_table(scores))
    found = counter_intuitive(scores)
    if found.cases:
        share = f"{found.fallen} of {found.cases} cases ({found.rate:.1%})"
        print(f"a modality more lowered Dice by over half a point in {share}")
    print(f"all metrics: {folder / SUMMARY}, by study: {folder / METRICS}")

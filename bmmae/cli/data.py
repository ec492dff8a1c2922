"""Commands on data: synth, index, check, split, cache."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from bmmae.cli.command import (
    Commands,
    add_command,
    add_modalities,
    given_modalities,
    millimetres,
    positive,
    require_writable,
    whole,
)
from bmmae.modalities import title

MOST_NAMES = 5
"""Files of one kind that are listed beside the first."""


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (_synth, _index, _check, _split, _cache):
        add(commands)


def _synth(commands: Commands) -> None:
    command = add_command(commands, "synth", "Make a labelled synthetic cohort; nothing is downloaded.", _run_synth)
    command.add_argument("--out", type=Path, required=True, help="folder for the cohort")
    command.add_argument("--subjects", type=positive, default=64, help="how many (default: 64)")
    command.add_argument("--seed", type=whole, default=0, help="another one makes other subjects (default: 0)")
    command.add_argument("--size", type=positive, default=64, help="voxels along each axis (default: 64)")
    command.add_argument("--missing", type=float, default=0.0, help="share of the modalities to leave out (default: 0)")
    command.add_argument(
        "--lesion-radius",
        type=millimetres,
        nargs=2,
        metavar="MM",
        help="scatter small lesions, of radii between these two, instead of a tumour",
    )
    command.add_argument("--workers", type=positive, default=2, help="processes (default: 2)")


def _run_synth(given: argparse.Namespace) -> int:
    from bmmae.data.problems import counted
    from bmmae.data.synthetic import SyntheticConfig, make_cohort

    radii = None if given.lesion_radius is None else (given.lesion_radius[0], given.lesion_radius[1])
    config = SyntheticConfig(given.subjects, given.seed, given.size, given.missing, radii)
    table = make_cohort(given.out, config, workers=given.workers)
    made = counted(given.subjects, "synthetic subject", "synthetic subjects")
    print(f"{made}: {table}; what the labels depend on: {given.out / 'README.md'}")
    return 0


def _index(commands: Commands) -> None:
    command = add_command(commands, "index", "Find the studies in a folder and write a cohort table.", _run_index)
    command.add_argument("folder", type=Path, help="searched with all folders below it")
    command.add_argument("--out", type=Path, required=True, help="the table to write (.csv or .parquet)")
    add_modalities(command)


def _run_index(given: argparse.Namespace) -> int:
    from bmmae.data.index import index_folder
    from bmmae.data.problems import counted, lines_of
    from bmmae.data.replacing import refuse_losing

    report = index_folder(given.folder, given_modalities(given))
    for line in lines_of(((str(item.path), item.told) for item in report.problems), MOST_NAMES):
        print(f"warning: {line}", file=sys.stderr)
    refuse_losing(given.out, report.cohort)
    path = report.cohort.write(given.out)
    counts = ", ".join(f"{title(m)} {sum(m in s.images for s in report.cohort)}" for m in report.cohort.modalities)
    found = counted(len(report.cohort), "study", "studies")
    print(f"{found} in {path} ({counts}); next: bmmae check {shlex.quote(str(path))}")
    return 0


def _check(commands: Commands) -> None:
    command = add_command(commands, "check", "Open every file of a cohort and list what is wrong.", _run_check)
    command.add_argument("cohort", type=Path, help="the cohort table")
    command.add_argument("--labels", metavar="CODING", help="label coding (name or YAML file), where it is left open")
    command.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures of every study")
    command.add_argument("--workers", type=positive, default=2, help="studies at a time (default: 2)")
    add_modalities(command)


def _run_check(given: argparse.Namespace) -> int:
    from bmmae.check_page import CheckPage
    from bmmae.data.check import check_cohort
    from bmmae.data.cohort import read_cohort
    from bmmae.data.findings import format_table
    from bmmae.data.labels import find_coding
    from bmmae.data.location import refuse_overwriting

    cohort = read_cohort(given.cohort, given_modalities(given), set_bare_apart=True)
    coding = find_coding(given.labels) if given.labels else None
    page = CheckPage() if given.html else None
    if given.html:
        require_writable(given.html.parent)
        refuse_overwriting([given.html], [given.cohort])
    report = check_cohort(cohort, workers=given.workers, coding=coding, show=page.add if page else None)
    print(format_table(report))
    if page:
        print(f"page: {page.write(given.html, report, given.cohort.name)}")
    return 1 if report.failed else 0


def _split(commands: Commands) -> None:
    command = add_command(commands, "split", "Divide a cohort into folds by patient, and keep them.", _run_split)
    command.add_argument("cohort", type=Path, help="the cohort table")
    command.add_argument("--out", type=Path, required=True, help="the file to write (.json), for data.splits")
    command.add_argument("--folds", type=positive, default=5, help="how many (default: 5)")
    command.add_argument("--repeats", type=positive, default=1, help="divisions, each into all folds (default: 1)")
    command.add_argument("--stratify", nargs="+", default=[], metavar="COLUMN", help="spread these evenly over folds")
    command.add_argument(
        "--validation-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the patients outside the test part (default: 0.2)",
    )
    command.add_argument("--seed", type=whole, default=0, help="another one divides otherwise (default: 0)")
    add_modalities(command)


def _run_split(given: argparse.Namespace) -> int:
    from bmmae.data.cohort import read_cohort
    from bmmae.data.fold_file import write_folds
    from bmmae.data.folds import FoldPlan, format_folds, make_folds
    from bmmae.data.location import refuse_overwriting
    from bmmae.data.problems import counted
    from bmmae.errors import ImageError

    refuse_overwriting([given.out], [given.cohort])
    cohort = read_cohort(given.cohort, given_modalities(given))
    plan = FoldPlan(given.folds, given.repeats, tuple(given.stratify), given.validation_share, given.seed)
    folds = make_folds(cohort, plan)
    try:
        path = write_folds(given.out, cohort, folds, plan)
    except ImageError as error:  # every image is read
        check = f"bmmae check {shlex.quote(str(given.cohort))}"
        raise ImageError(f"{error}. Run `{check}` to see all that is broken, and mend or remove it") from error
    print(format_folds(cohort, folds, plan))
    made = counted(len(folds), "fold", "folds")
    print(f"{made} in {path}; train with --data.splits {shlex.quote(str(path))} --data.fold 0")
    return 0


def _cache(commands: Commands) -> None:
    command = add_command(commands, "cache", "Preprocess a cohort once, for fast training.", _run_cache)
    command.add_argument("cohort", type=Path, help="the cohort table")
    command.add_argument("--out", type=Path, required=True, help="folder for the prepared studies")
    command.add_argument(
        "--spacing",
        type=millimetres,
        nargs="+",
        default=[2.0],
        metavar="MM",
        help="millimetres, one or three numbers: preprocess.spacing of the model's config (default: 2)",
    )
    command.add_argument("--workers", type=positive, default=2, help="processes (default: 2)")
    command.add_argument("--shards", type=positive, default=1, help="machines that share the work (default: 1)")
    command.add_argument("--shard", type=whole, default=0, help="which of them this is, from 0 (default: 0)")
    command.add_argument("--skip-broken", action="store_true", help="leave broken studies out and count them")
    add_modalities(command)


def _run_cache(given: argparse.Namespace) -> int:
    from bmmae.data.cache import StudyCache
    from bmmae.data.caching import build_cache, plan_cache, shard_of, warn_of_other_entries
    from bmmae.data.cohort import read_cohort
    from bmmae.data.preprocess import PreprocessConfig
    from bmmae.data.problems import lines_of

    spacing = tuple(given.spacing) * (3 if len(given.spacing) == 1 else 1)
    cohort = read_cohort(given.cohort, given_modalities(given))
    cache = StudyCache(given.out, PreprocessConfig(spacing=spacing), cohort.modalities)
    studies = shard_of(cohort.studies, given.shards, given.shard)
    warn_of_other_entries(cache, studies)
    plan = plan_cache(cache, studies)
    print(plan, flush=True)
    if plan.todo:
        require_writable(given.out)
    left_out = build_cache(cache, plan.todo, workers=given.workers, skip_broken=given.skip_broken)
    for line in lines_of(left_out):
        print(f"left out: {line}", file=sys.stderr)
    print(f"{len(studies) - len(left_out)} of {len(studies)} studies are prepared in {given.out}")
    return 0

"""The command line: `bmmae ...`. Each command is a thin wrapper around a function of the library."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bmmae._version import __version__
from bmmae.errors import BmmaeError, ConfigError, ModalityError, OutputError
from bmmae.modalities import STANDARD, TABLE, title
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from bmmae.model.pretrained import PretrainedModel

EXIT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 fine, 1 findings (`check`), 2 an error that the user can mend."""
    warnings.showwarning = _print_warning
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except BmmaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="bmmae", description=f"Masked pretraining for brain MRI. {NOTICE}")
    parser.add_argument("--version", action="version", version=f"bmmae {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_synth, _index, _check, _cache, _reconstruct, _segment, _info, _convert, _init, _demo):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], int]


def _command(commands: Commands, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    return command


def _print_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """One line a warning: a path into the library says nothing to its user."""
    if not issubclass(category, DeprecationWarning):
        print(f"warning: {message}", file=sys.stderr)


# ---- data -----------------------------------------------------------------------------------------------------------


def _synth(commands: Commands) -> None:
    command = _command(commands, "synth", "Make a labelled synthetic cohort; nothing is downloaded.", _run_synth)
    command.add_argument("--out", type=Path, required=True, help="folder for the cohort")
    command.add_argument("--subjects", type=int, default=64)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--size", type=int, default=64, help="voxels along each axis (default: 64)")
    command.add_argument("--missing", type=float, default=0.0, help="share of the modalities to leave out")
    command.add_argument("--workers", type=int, default=2)


def _run_synth(given: argparse.Namespace) -> int:
    from bmmae.data.synthetic import SyntheticConfig, make_cohort

    config = SyntheticConfig(subjects=given.subjects, seed=given.seed, size=given.size, missing=given.missing)
    table = make_cohort(given.out, config, workers=given.workers)
    print(f"{given.subjects} synthetic subjects: {table}; what the labels depend on: {given.out / 'README.md'}")
    return 0


def _index(commands: Commands) -> None:
    command = _command(commands, "index", "Find the studies in a folder and write a cohort table.", _run_index)
    command.add_argument("folder", type=Path)
    command.add_argument("--out", type=Path, required=True, help="the table to write (.csv or .parquet)")
    _add_modalities(command)


def _run_index(given: argparse.Namespace) -> int:
    from bmmae.data.index import index_folder

    report = index_folder(given.folder, _modalities(given))
    for problem in report.problems:
        print(f"warning: {problem}", file=sys.stderr)
    path = report.cohort.write(given.out)
    counts = ", ".join(f"{title(m)} {sum(m in s.images for s in report.cohort)}" for m in report.cohort.modalities)
    print(f"{len(report.cohort)} studies in {path} ({counts}); next: bmmae check {path}")
    return 0


def _check(commands: Commands) -> None:
    command = _command(commands, "check", "Open every file of a cohort and list what is wrong.", _run_check)
    command.add_argument("cohort", type=Path)
    command.add_argument("--workers", type=int, default=2)
    _add_modalities(command)


def _run_check(given: argparse.Namespace) -> int:
    from bmmae.data.check import check_cohort, format_table
    from bmmae.data.cohort import read_cohort

    report = check_cohort(read_cohort(given.cohort, _modalities(given)), workers=given.workers)
    print(format_table(report))
    return 1 if report.failed else 0


def _cache(commands: Commands) -> None:
    command = _command(commands, "cache", "Preprocess a cohort once, for fast training.", _run_cache)
    command.add_argument("cohort", type=Path)
    command.add_argument("--out", type=Path, required=True, help="folder for the prepared studies")
    command.add_argument("--spacing", type=float, nargs="+", default=[2.0], help="millimetres, one or three numbers")
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--skip-broken", action="store_true", help="leave broken studies out and count them")
    _add_modalities(command)


def _run_cache(given: argparse.Namespace) -> int:
    from bmmae.data.cache import StudyCache, build_cache
    from bmmae.data.cohort import read_cohort
    from bmmae.data.preprocess import PreprocessConfig

    spacing = tuple(given.spacing) * (3 if len(given.spacing) == 1 else 1)
    cohort = read_cohort(given.cohort, _modalities(given))
    cache = StudyCache(given.out, PreprocessConfig(spacing=spacing), cohort.modalities)
    left_out = build_cache(cache, cohort, workers=given.workers, skip_broken=given.skip_broken)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    print(f"{len(cohort) - len(left_out)} of {len(cohort)} studies are prepared in {given.out}")
    return 0


def _add_modalities(command: argparse.ArgumentParser) -> None:
    command.add_argument("--modalities", nargs="+", default=list(STANDARD), help="names to look for, in any order")


def _modalities(given: argparse.Namespace) -> tuple[str, ...]:
    from bmmae.modalities import find, in_table_order

    return in_table_order(find(name) or name for name in given.modalities)


# ---- use of a model -------------------------------------------------------------------------------------------------


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help="a model folder, a run folder or a hub id")
    for modality in TABLE:
        shown = modality.name in STANDARD
        command.add_argument(
            f"--{modality.name}",
            type=Path,
            metavar="F",
            help=f"the {modality.title} image" if shown else argparse.SUPPRESS,
        )
    command.add_argument(
        "--image", action="append", default=[], metavar="NAME=F", help="an image of any other modality"
    )
    command.add_argument("--brain-mask", type=Path, metavar="F", help="brain mask, for images that are not stripped")


def _images(given: argparse.Namespace) -> dict[str, Path]:
    found = {m.name: getattr(given, m.name) for m in TABLE if getattr(given, m.name) is not None}
    for pair in given.image:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--image expects NAME=FILE, got '{pair}'")
        if name in found:
            raise ModalityError(f"modality '{name}' is given twice")
        found[name] = Path(path)
    if not found:
        flags = ", ".join(f"--{m}" for m in STANDARD)
        raise ModalityError(f"no image given: expected at least one of {flags} or --image NAME=FILE")
    return found


def _reconstruct(commands: Commands) -> None:
    summary = f"Synthesise the absent modalities of a study. {NOTICE}"
    command = _command(commands, "reconstruct", summary, _run_reconstruct)
    _add_images(command)
    command.add_argument("--out", type=Path, required=True, help="folder; one NIfTI file a modality is written")
    command.add_argument("--all", action="store_true", help="write the given modalities as well: a complete set")


def _run_reconstruct(given: argparse.Namespace) -> int:
    from bmmae.inference import reconstruct_to_folder

    images = _images(given)
    _require_writable(given.out)
    paths = reconstruct_to_folder(
        _load(given.model), images, given.out, brain_mask=given.brain_mask, complete=given.all
    )
    for name, path in paths.items():
        print(f"{title(name):>6}  {path}")
    print(NOTICE)
    return 0


def _segment(commands: Commands) -> None:
    command = _command(commands, "segment", f"Segment a study from any of its modalities. {NOTICE}", _run_segment)
    _add_images(command)
    command.add_argument("--out", type=Path, required=True, help="the NIfTI file to write")


def _run_segment(given: argparse.Namespace) -> int:
    from bmmae.inference import save_image, segment

    images = _images(given)
    _require_writable(given.out.parent)
    path = save_image(segment(_load(given.model), images, brain_mask=given.brain_mask), given.out)
    print(f"{path}\n{NOTICE}")
    return 0


def _load(source: str) -> PretrainedModel:
    from bmmae.checkpoint import load_model

    return load_model(source)


def _require_writable(folder: Path) -> None:
    """Find out before the work, not after it."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write to {folder}: {nearest} is not a folder that you may write to; name another --out"
        )


def _info(commands: Commands) -> None:
    command = _command(commands, "info", "Show what a model is and where it comes from.", _run_info)
    command.add_argument("model")
    command.add_argument("--json", action="store_true", help="for programs")


def _run_info(given: argparse.Namespace) -> int:
    import json

    from bmmae.checkpoint import info

    found = info(given.model)
    print(json.dumps(found.as_dict(), indent=2) if given.json else found.format_table())
    return 0


def _convert(commands: Commands) -> None:
    command = _command(commands, "convert", "Convert published BM-MAE weights (.pth) to a model folder.", _run_convert)
    command.add_argument("weights", type=Path)
    command.add_argument("--out", type=Path, required=True)


def _run_convert(given: argparse.Namespace) -> int:
    from bmmae.checkpoint import convert

    print(convert(given.weights, given.out))
    return 0


# ---- getting started ------------------------------------------------------------------------------------------------


def _init(commands: Commands) -> None:
    command = _command(commands, "init", "Write the training scripts and their configs into a folder.", _run_init)
    command.add_argument("folder", type=Path)


def _run_init(given: argparse.Namespace) -> int:
    from bmmae.starter import write_starter

    for path in write_starter(given.folder):
        print(path)
    return 0


def _demo(commands: Commands) -> None:
    summary = "Go through all steps on a synthetic cohort: minutes, no downloads."
    command = _command(commands, "demo", summary, _run_demo)
    command.add_argument("--out", type=Path, default=Path("runs/demo"))
    command.add_argument("--quick", action="store_true", help="a minute, to see that everything runs; learns nothing")


def _run_demo(given: argparse.Namespace) -> int:
    from bmmae.demo import run_demo

    code: int = run_demo(given.out, quick=given.quick)
    return code

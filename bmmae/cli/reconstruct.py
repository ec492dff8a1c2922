"""The command that synthesises absent modalities, of a study or of a cohort."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bmmae.cli.command import Commands, add_command, print_doubts, require_writable, separate_names, tally
from bmmae.cli.images import add_images, given_images, load, required_images
from bmmae.errors import ConfigError, few
from bmmae.modalities import title
from bmmae.notice import NOTICE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bmmae.inference import Outcome, ReconstructOptions
    from bmmae.inference.reconstruction_folder import Page
    from bmmae.model.pretrained import PretrainedModel

INTENSITIES = ("cohort", "given", "zscore")
ENOUGH_COVERED = 0.95
"""Share of a real image from which on it goes without saying over how much of it the figures are."""


def add_reconstruct(commands: Commands) -> None:
    """Add the command."""
    summary = f"Synthesise the absent modalities of a study, or of every study of a cohort. {NOTICE}"
    command = add_command(commands, "reconstruct", summary, _run)
    add_images(command)
    command.add_argument("--cohort", type=Path, metavar="TABLE", help="a cohort table, instead of one study's images")
    command.add_argument("--out", type=Path, required=True, help="folder; one NIfTI file a modality is written")
    command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="just these of the absent modalities")
    command.add_argument(
        "--subset", nargs="+", default=[], metavar="NAME", help="pretend that only these are available, and judge"
    )
    command.add_argument("--all", action="store_true", help="write the given modalities as well: a complete set")
    command.add_argument(
        "--intensity",
        choices=INTENSITIES,
        help="scale of the results: that of the given images, with the prediction's own histogram (given, the default) "
        "or the training cohort's (cohort); or z-scores (zscore)",
    )
    command.add_argument("--uncertainty", action="store_true", help="write a standard deviation a voxel as well")
    command.add_argument("--report", action="store_true", help="write a page with pictures of each study")


def _run(given: argparse.Namespace) -> int:
    from bmmae.inference import ReconstructOptions
    from bmmae.reconstruction_page import study_page

    options = ReconstructOptions(
        only=separate_names(given.only),
        subset=separate_names(given.subset),
        intensity=given.intensity,
        uncertainty=given.uncertainty,
        complete=given.all,
    )
    page = study_page if given.report else None
    code = _run_study(given, options, page) if given.cohort is None else _run_cohort(given, options, page)
    print(NOTICE)
    return code


def _run_study(given: argparse.Namespace, options: ReconstructOptions, page: Page | None) -> int:
    from bmmae.inference import reconstruct_to_folder
    from bmmae.inference.reconstruction import DEVIATION
    from bmmae.inference.reconstruction_folder import agreement_in

    images = required_images(given)
    require_writable(given.out)
    paths = reconstruct_to_folder(
        load(given.model), images, given.out, brain_mask=given.brain_mask, options=options, page=page
    )
    for name, path in paths.items():
        of = "deviation of " if name.endswith(DEVIATION) else ""
        print(f"{of + title(name.removesuffix(DEVIATION)):>6}  {path}")
    for name, figures in agreement_in(given.out).items():
        print(f"{title(name):>6}  {_close(figures)}, compared with the real one")
    if page:
        print(f"report  {given.out / 'report.html'}")
    return 0


def _run_cohort(given: argparse.Namespace, options: ReconstructOptions, page: Page | None) -> int:
    from bmmae.data.cohort import read_cohort
    from bmmae.inference import reconstruct_cohort

    if given_images(given) or given.brain_mask is not None:
        raise ConfigError("--cohort names the images of all studies: leave out images and --brain-mask")
    require_writable(given.out)
    model = load(given.model)
    cohort = read_cohort(given.cohort, model.model_config.modalities)
    outcomes = reconstruct_cohort(model, cohort, given.out, options, page=page)
    _tell(outcomes, given.out)
    _tell_agreement(model, outcomes, given.out)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _tell(outcomes: list[Outcome], folder: Path) -> None:
    from bmmae.inference.cohort import LEFT_OUT

    skipped: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status == "skipped":
            skipped.setdefault(outcome.problem, []).append(outcome.study.name)
        elif outcome.problem:
            print(f"{outcome.status}: {outcome.study.name}: {outcome.problem}", file=sys.stderr)
    for problem, names in skipped.items():  # one line for all: a cohort may have hundreds
        print(f"skipped: {few(names, quote='')}: {problem}", file=sys.stderr)
    said: dict[str, str] = {
        "made": "made",
        "kept": "finished before",
        "complete": "have nothing absent",
        "skipped": "skipped, with nothing of the subset",
        "failed": "FAILED",
    }
    print_doubts(outcomes)
    print(tally(outcomes, said))
    if any(outcome.status not in LEFT_OUT for outcome in outcomes):
        print(f"completed table: {folder / 'cohort.csv'}")


def _tell_agreement(model: PretrainedModel, outcomes: list[Outcome], folder: Path) -> None:
    """Say how close the synthetic images are to the real ones, where there are any."""
    import statistics

    from bmmae.evaluation.overlap import overlap

    judged = [outcome.study for outcome in outcomes if outcome.agreement]
    if not judged:
        return
    print(f"{overlap(model, judged)}.")
    found: dict[str, list[Mapping[str, float | None]]] = {}
    for outcome in outcomes:
        for name, figures in outcome.agreement.items():
            found.setdefault(name, []).append(figures)
    for name, rows in found.items():
        defined = {key: [value for row in rows if (value := row[key]) is not None] for key in rows[0]}
        means = {key: statistics.fmean(values) if values else None for key, values in defined.items()}
        print(f"{title(name):>6}  {_close(means)}: mean over {len(rows)} studies with a real one")
    print(f"all figures: {folder / 'metrics.csv'}")


def _close(figures: Mapping[str, float | None]) -> str:
    """Return how close an image is to the real one, in words."""
    told = {key: "not defined" if value is None else f"{value:.3g}" for key, value in figures.items()}
    share = figures["covered"]
    partly = f", over {share:.0%} of the real image" if share is not None and share < ENOUGH_COVERED else ""
    return f"PSNR {told['psnr_fitted']} dB (as written {told['psnr']}), SSIM {told['ssim']}{partly}"

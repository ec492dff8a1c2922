"""Absent modalities of a whole cohort: a folder a study, continued after an interruption, failures counted."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from bmmae.data.cohort import SYNTHETIC, Cohort, Study
from bmmae.data.location import refuse_overwriting
from bmmae.data.tables import write_rows
from bmmae.errors import BmmaeError, ModalityError, OccupiedError, OutputError
from bmmae.inference.prediction import require_uncertainty
from bmmae.inference.reconstruction import ReconstructOptions, require_mae
from bmmae.inference.reconstruction_folder import (
    NOTE,
    Page,
    Plan,
    agreement_in,
    carry_out,
    is_finished,
    seen_in_training,
)
from bmmae.inference.study import StudyFiles
from bmmae.inference.writing import read_note, refuse_foreign_table
from bmmae.modalities import in_table_order, title
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel, digest

TABLE, METRICS = "cohort.csv", "metrics.csv"
PSNR = "psnr_fitted"
Status = Literal["made", "kept", "complete", "skipped", "failed"]

LEFT_OUT = ("skipped", "failed")
"""Studies of which nothing was made that a table could name."""


@dataclass(frozen=True)
class Outcome:
    """What became of one study.

    Attributes:
        study: The study.
        status: `made` now; `kept`, as it was made before; `complete`, so there was nothing to make; `skipped`, as it
            has nothing of the subset; or `failed`.
        files: The synthesised images by modality.
        problem: Why it failed, or was skipped.
        remarks: Reasons to doubt what was made, one sentence each.
        agreement: How close each synthesised image is to the real one, where the study has one, see `Agreement`; None
            where a figure is not defined.
        seen: Whether the model was trained on the study.
    """

    study: Study
    status: Status
    files: dict[str, Path]
    problem: str = ""
    remarks: tuple[str, ...] = ()
    agreement: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    seen: bool = False


def reconstruct_cohort(
    model: PretrainedModel,
    cohort: Cohort,
    folder: str | Path,
    options: ReconstructOptions | None = None,
    *,
    page: Page | None = None,
) -> list[Outcome]:
    """Synthesise the absent modalities of every study, each into a folder of its own name.

    Studies that were finished before, by the same model from the same images with the same options, are kept. A study
    that fails stops no other. In the end `cohort.csv` names the studies' images and, where they had none, the synthetic
    ones, with these modalities listed in a column `synthetic`; studies that failed, or have nothing of the subset, are
    left out of it. `metrics.csv` holds how close the synthetic ones are to the real ones, if there are any: a row a
    study and modality.

    Args:
        model: A masked autoencoder.
        cohort: The studies.
        folder: Where to.
        options: What to synthesise, and how; by default all that is absent.
        page: Writes the report of each study; by default there is none.

    Returns:
        One outcome a study, in the cohort's order.

    Raises:
        ModalityError: If the model cannot reconstruct, an option names an unknown modality, or no study has any of the
            subset.
        ConfigError: If the model has no uncertainty output and one is asked for.
        OutputError: If the folder cannot be written (any more), or a file given, or a table of another kind, would be
            written over; what is finished is kept.
    """
    mae = require_mae(model)
    options = (options or ReconstructOptions()).named(mae.config.modalities)
    if options.uncertainty:
        require_uncertainty(mae)
    if options.subset and not any(name in study.images for study in cohort for name in options.subset):
        raise ModalityError(
            f"no study of {cohort.path or 'the cohort'} has {' or '.join(map(title, options.subset))}: name others in "
            "the subset"
        )
    refuse_overwriting([Path(folder) / TABLE], [cohort.path] if cohort.path else [])
    for table, own in ((TABLE, SYNTHETIC), (METRICS, PSNR)):
        refuse_foreign_table(Path(folder) / table, own)
    outcomes = list(_outcomes(_Work(mae, digest(mae), options, page), cohort.studies, Path(folder)))
    studies = tuple(_completed(outcome, options) for outcome in outcomes if outcome.status not in LEFT_OUT)
    if studies:
        Cohort(studies, cohort.modalities).write(Path(folder) / TABLE)
        _write_metrics(outcomes, Path(folder) / METRICS)
    return outcomes


@dataclass(frozen=True)
class _Work:
    """What is done to every study, and by which model."""

    model: MAE
    digest: str
    options: ReconstructOptions
    page: Page | None


def _outcomes(work: _Work, studies: Sequence[Study], folder: Path) -> Iterator[Outcome]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one study's remarks say little without its name: see the notes
        for study in tqdm(studies, desc="reconstructing", unit="study"):
            try:
                yield _one(work, study, folder / study.name)
            except OccupiedError as error:
                yield Outcome(study, "failed", {}, str(error))
            except OutputError as error:
                advice = "make room" if os.strerror(errno.ENOSPC) in str(error) else "choose another --out"
                message = f"{error}; what is finished is kept: {advice} and run the same command again"
                raise OutputError(message) from error
            except (MemoryError, torch.OutOfMemoryError):
                yield Outcome(study, "failed", {}, "there was not enough memory: it may be an unusually large image")
            except BmmaeError as error:
                yield Outcome(study, "failed", {}, str(error))


def _one(work: _Work, study: Study, folder: Path) -> Outcome:
    names, options = work.model.config.modalities, work.options
    images = {name: study.images[name] for name in names if name in study.images}
    shown = [name for name in images if not options.subset or name in options.subset]
    if not shown and options.subset:
        return Outcome(study, "skipped", {}, f"it has none of {', '.join(map(title, options.subset))}")
    left = tuple(name for name in options.only or names if name not in shown)
    if not left:
        return Outcome(study, "complete", {})
    masks = {name: mask for name in images if (mask := study.brain_mask_of(name)) is not None}
    plan = Plan.of(work.model, StudyFiles(images, masks), replace(options, only=left), study.synthesised)
    identity = plan.identity(work.digest, report=work.page is not None)
    status: Status = "kept" if is_finished(folder, identity) else "made"
    if status == "made":
        carry_out(plan, work.model, folder, identity, work.page)
    note: dict[str, Any] = read_note(folder, NOTE) or {}
    files = {name: folder / f"{name}.nii.gz" for name in plan.absent}
    seen = seen_in_training(work.model, identity)
    return Outcome(study, status, files, "", tuple(note.get("remarks", ())), agreement_in(folder), seen)


def _write_metrics(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write how close what was synthesised is to what is real, or remove what an earlier run has said of it."""
    rows = [
        {"subject": outcome.study.name, "group": outcome.study.group, "modality": name}
        | dict(figures)
        | {"seen_in_training": "yes" if outcome.seen else "no"}
        for outcome in outcomes
        for name, figures in outcome.agreement.items()
    ]
    if rows:
        write_rows(path, rows, list(rows[0]))
    else:
        path.unlink(missing_ok=True)


def _completed(outcome: Outcome, options: ReconstructOptions) -> Study:
    """The study with synthetic images where it had none, or had to do without.

    What an earlier run has synthesised, of whatever modalities, is still named as such.
    """
    study, made = outcome.study, outcome.files
    shown = {name: path for name, path in study.images.items() if not options.subset or name in options.subset}
    images = {name: {**shown, **made}[name] for name in in_table_order({**shown, **made})}
    before = [name for name in study.synthesised if name not in made and (name in shown or name not in study.images)]
    # Blank as it means, but never a blank column: that is not written, and tells the next run whose table this is.
    values = {**study.values, SYNTHETIC: "+".join([*before, *in_table_order(made)]) or "none"}
    return replace(study, images=images, values=values)

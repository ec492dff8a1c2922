"""Commands on raw scans: import-dicom, preprocess."""

from __future__ import annotations

import argparse
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
)
from bmmae.errors import ConfigError
from bmmae.modalities import title


def add_commands(commands: Commands) -> None:
    """Add this module's commands."""
    for add in (_import_dicom, _preprocess):
        add(commands)


def _import_dicom(commands: Commands) -> None:
    command = add_command(
        commands, "import-dicom", "Turn DICOM folders into a cohort of NIfTI files without identities.", _run_import
    )
    command.add_argument("folder", type=Path, help="searched with all folders below it")
    command.add_argument("--out", type=Path, required=True, help="folder for the cohort; series.csv is written to it")
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument("--table", type=Path, help="convert as this table says: series.csv, confirmed or edited")
    chosen.add_argument("--yes", action="store_true", help="convert what was recognised without asking")
    command.add_argument(
        "--structure",
        action="append",
        default=[],
        metavar="NAME[=LABEL]",
        help="contours to keep: a name or pattern such as 'GTV*'; may be repeated",
    )
    command.add_argument("--mapping", type=Path, help="also write who stands behind each number; outside --out")
    add_modalities(command)


def _run_import(given: argparse.Namespace) -> int:
    from bmmae.data.problems import counted
    from bmmae.data.raw.dicom_import import find_series, import_series
    from bmmae.data.raw.privacy import write_mapping
    from bmmae.data.raw.series_table import apply_table, format_rows, write_table
    from bmmae.data.raw.structures import Choice

    require_writable(given.out)
    wanted = given_modalities(given)
    choices = [Choice.parse(text) for text in given.structure]
    found = find_series(given.folder, wanted, given.mapping)
    rows = apply_table(given.table, found.rows, wanted) if given.table else found.rows
    print(format_rows(rows))
    for doubt in found.doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    if given.mapping:
        write_mapping(given.mapping, found.series, found.names, given.out)
    if not given.table:
        table = write_table(given.out / "series.csv", rows)
        print(f"{sum(bool(row.modality) for row in rows)} of {len(rows)} series are recognised: {table}")
    if not (given.table or given.yes):
        for problem in found.problems:
            print(f"warning: {problem}", file=sys.stderr)
        print(f"nothing is converted yet; correct the `modality` column, then add --table {table} (or --yes)")
        return 0
    report = import_series(found, rows, given.out, structures=choices, wanted=wanted)
    for problem in report.problems:
        print(f"left out: {problem}", file=sys.stderr)
    counts = ", ".join(f"{title(m)} {sum(m in s.images for s in report.cohort)}" for m in report.cohort.modalities)
    studies = counted(len(report.cohort), "study", "studies")
    print(f"{studies} in {report.table} ({counts}); next: bmmae check {report.table}")
    return 1 if report.problems else 0


def _preprocess(commands: Commands) -> None:
    command = add_command(
        commands, "preprocess", "Co-register, resample and skull-strip the raw scans of a cohort.", _run_preprocess
    )
    command.add_argument("cohort", type=Path, help="the cohort table")
    command.add_argument("--out", type=Path, required=True, help="folder for the prepared studies and their cohort.csv")
    atlas = command.add_mutually_exclusive_group()
    atlas.add_argument("--atlas", type=Path, help="register to this brain (default: the MNI152 template of nilearn)")
    atlas.add_argument("--no-atlas", action="store_true", help="stay in the study's own space")
    command.add_argument("--affine", action="store_true", help="let the atlas registration scale and shear")
    command.add_argument("--spacing", type=millimetres, default=1.0, help="millimetres (default: 1)")
    command.add_argument(
        "--keep-n4", "--apply-n4", action="store_true", help="correct the bias field of the output (not of ADC and CT)"
    )
    command.add_argument("--workers", type=positive, default=1, help="studies at a time (default: 1)")
    add_modalities(command)


def _run_preprocess(given: argparse.Namespace) -> int:
    from bmmae.data.cohort import read_cohort
    from bmmae.data.location import refuse_overwriting
    from bmmae.data.problems import lines_of
    from bmmae.data.raw.atlas import MNI152
    from bmmae.data.raw.cohort_pipeline import preprocess_cohort
    from bmmae.data.raw.study_pipeline import PipelineConfig

    if given.affine and given.no_atlas:
        raise ConfigError("--affine is about the registration to the atlas that --no-atlas leaves out: drop one")
    require_writable(given.out)
    refuse_overwriting([given.out / "cohort.csv"], [given.cohort])
    config = PipelineConfig(
        atlas=None if given.no_atlas else str(given.atlas or MNI152),
        affine=given.affine,
        spacing=given.spacing,
        keep_n4=given.keep_n4,
    )
    report = preprocess_cohort(
        read_cohort(given.cohort, given_modalities(given)), given.out, config, workers=given.workers
    )
    for line in lines_of(report.remarks):
        print(f"note: {line}", file=sys.stderr)
    for line in lines_of(report.failures):
        print(f"failed: {line}", file=sys.stderr)
    total = report.done + len(report.failures)
    print(f"{report.done} of {total} studies are in {report.table}; next: bmmae check {report.table}")
    return 1 if report.failures else 0

"""Open every file of a cohort and say what is wrong, before a training run finds out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bmmae import modalities as table
from bmmae.arrays import Array, Bool, Float
from bmmae.data.brain import is_stripped
from bmmae.data.cohort import Cohort, Study
from bmmae.data.labels import Coding, check_values, fitting, names_an_edition, propose_coding, values_of
from bmmae.data.location import File
from bmmae.data.reading import array_hash, read_image, read_labels
from bmmae.errors import BmmaeError, LabelError

Severity = Literal["error", "warning"]

GRID_TOLERANCE = 1e-3
"""Affines of one study may differ by this much (mm)."""

FULL_COVERAGE = 0.95
"""Skull-stripping differs a little between the modalities of one study; less than this is a cropped scan."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a study.

    Attributes:
        study: The study's name.
        severity: An error must be mended before training; a warning is for a person to judge.
        code: `file`, `grid`, `labels`, `empty`, `head`, `coverage` or `duplicate`.
        path: The file concerned.
        message: What was expected, what came, what to do.
    """

    study: str
    severity: Severity
    code: str
    path: File
    message: str


@dataclass(frozen=True)
class CheckReport:
    """The findings in the order of the table, and what was looked at."""

    findings: tuple[Finding, ...]
    studies: int
    files: int

    @property
    def failed(self) -> bool:
        """Whether there is any error: the command's exit code is then 1."""
        return any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True)
class _Grid:
    shape: tuple[int, ...]
    affine: Float[Array, "4 4"]

    def same(self, other: _Grid) -> bool:
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, rtol=0, atol=GRID_TOLERANCE))

    def __str__(self) -> str:
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        return f"{'x'.join(map(str, self.shape))} voxels of {'x'.join(f'{size:.3g}' for size in spacing)} mm"


@dataclass(frozen=True)
class _Scan:
    """What is kept of an image once it was read: a tenth of its memory."""

    path: File
    grid: _Grid
    nonzero: Bool[Array, "H W D"]
    stripped: bool
    digest: str


def check_cohort(
    cohort: Cohort, workers: int | None = None, coding: Coding | None = None, progress: bool = True
) -> CheckReport:
    """Open every file of every study; broken ones are listed and never stop the check.

    Args:
        cohort: The studies.
        workers: Threads (decompression runs outside Python's lock); by default one a core, at most eight.
        coding: What segmentation values mean; by default it is judged from names and values.
        progress: Show a progress bar on standard error.
    """
    from tqdm import tqdm

    count = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        checks = pool.map(lambda study: _check(study, coding), cohort)
        done = list(tqdm(checks, total=len(cohort), desc="check", unit="study", disable=not progress, leave=False))
    findings = [finding for found, _ in done for finding in found]
    findings += _duplicates(cohort, [scans for _, scans in done])
    order = {study.name: rank for rank, study in enumerate(cohort)}
    findings.sort(key=lambda finding: order[finding.study])
    return CheckReport(tuple(findings), len(cohort), sum(len(study.files()) for study in cohort))


def check_study(study: Study, coding: Coding | None = None) -> list[Finding]:
    """Open every file of one study and return what is wrong; as `check_cohort`."""
    return _check(study, coding)[0]


def format_table(report: CheckReport) -> str:
    """Return the findings as a table for the terminal, with a closing line that counts them."""
    rows = [(f.severity, f.study, f.code, f.message) for f in report.findings]
    head = ("", "study", "code", "what was found")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    lines = ["  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in (head, *rows)] if rows else []
    errors = sum(finding.severity == "error" for finding in report.findings)
    lines.append(
        f"{report.studies} studies, {report.files} files: {errors} errors, {len(rows) - errors} warnings"
        + ("" if rows else "; nothing wrong")
    )
    return "\n".join(lines)


def _check(study: Study, coding: Coding | None) -> tuple[list[Finding], dict[str, str]]:
    """Return the findings, and the content hash of each readable image."""
    findings: list[Finding] = []
    scans: dict[str, _Scan] = {}
    for name, path in study.images.items():
        try:
            scans[name] = _scan(path)
        except BmmaeError as error:
            findings.append(_finding(study, "error", "file", path, str(error)))
    findings += _grid_findings(study, scans)
    masks = _brain_masks(study, scans, findings)
    findings += _coverage_findings(study, scans, masks)
    if study.seg is not None:
        findings += _segmentation_findings(study, study.seg, scans, coding)
    return findings, {str(scan.path): scan.digest for scan in scans.values()}


def _finding(study: Study, severity: Severity, code: str, path: File, message: str) -> Finding:
    return Finding(study.name, severity, code, path, message.replace(str(path), path.name))


def _scan(path: File) -> _Scan:
    image = read_image(path)
    nonzero = np.asarray(image.array != 0)
    return _Scan(path, _Grid(image.shape, image.affine), nonzero, is_stripped(image.array), array_hash(image.array))


def _grid_findings(study: Study, scans: dict[str, _Scan]) -> Iterator[Finding]:
    """Compare each image's grid with that of the first."""
    first = next(iter(scans.values()), None)
    for scan in scans.values():
        if first is not None and not scan.grid.same(first.grid):
            yield _finding(
                study,
                "error",
                "grid",
                scan.path,
                f"{scan.path.name} is on another grid than {first.path.name}: expected {first.grid}, got {scan.grid}"
                f"{'' if scan.grid.shape != first.grid.shape else ' (another place or orientation)'}; run "
                "`bmmae preprocess` to register and resample the study",
            )


def _brain_masks(study: Study, scans: dict[str, _Scan], findings: list[Finding]) -> dict[str, Bool[Array, "H W D"]]:
    """Read the brain mask of each modality, noting those that cannot be used."""
    masks: dict[str, Bool[Array, "H W D"]] = {}
    for name, scan in scans.items():
        path = study.brain_mask_of(name)
        if path is None:
            continue
        try:
            values, affine = read_labels(path)
        except BmmaeError as error:
            findings.append(_finding(study, "error", "file", path, str(error)))
            continue
        if not _Grid(values.shape, affine).same(scan.grid):
            message = f"brain mask {path.name} is on another grid than {scan.path.name}; resample it to that grid"
            findings.append(_finding(study, "error", "grid", path, message))
        elif not values.any():
            message = f"brain mask {path.name} is empty; draw it again or leave its cell blank"
            findings.append(_finding(study, "error", "empty", path, message))
        else:
            masks[name] = values > 0
    return masks


def _coverage_findings(study: Study, scans: dict[str, _Scan], masks: dict[str, Array]) -> Iterator[Finding]:
    """Warn of heads with their skull, and of scans that show only a part of the brain."""
    for name, scan in scans.items():
        if not scan.stripped and name not in masks:
            yield _finding(
                study,
                "warning",
                "head",
                scan.path,
                f"{scan.path.name} is not skull-stripped and has no brain mask: the whole head will be used; strip it, "
                f"or add a brain_mask_{name} column",
            )
    known = {
        name: masks[name] & (scan.nonzero | (not scan.stripped)) if name in masks else scan.nonzero
        for name, scan in scans.items()
        if name in masks or scan.stripped
    }
    for names in _on_one_grid({name: scans[name].grid for name in known}):
        brain = np.logical_or.reduce([masks.get(name, scans[name].nonzero) for name in names])
        for name in names:
            share = int(np.count_nonzero(known[name])) / max(1, int(np.count_nonzero(brain)))
            if share < FULL_COVERAGE:
                message = (
                    f"{scans[name].path.name} covers {share:.0%} of the brain seen in the study's modalities; the rest "
                    f"counts as not scanned in {table.title(name)}"
                )
                yield _finding(study, "warning", "coverage", scans[name].path, message)


def _on_one_grid(grids: dict[str, _Grid]) -> list[list[str]]:
    """Gather the modalities that share a grid."""
    gathered: list[list[str]] = []
    for name, grid in grids.items():
        home = next((names for names in gathered if grids[names[0]].same(grid)), None)
        if home is None:
            gathered.append([name])
        else:
            home.append(name)
    return gathered


def _segmentation_findings(
    study: Study, path: File, scans: dict[str, _Scan], coding: Coding | None
) -> Iterator[Finding]:
    try:
        labels, affine = read_labels(path)
    except BmmaeError as error:
        yield _finding(study, "error", "labels" if isinstance(error, LabelError) else "file", path, str(error))
        return
    grid = _Grid(labels.shape, affine)
    if scans and not any(grid.same(scan.grid) for scan in scans.values()):
        other = next(iter(scans.values()))
        message = (
            f"segmentation {path.name} is on another grid than the images: expected {other.grid}, got {grid}; "
            "resample it by nearest neighbour"
        )
        yield _finding(study, "error", "grid", path, message)
    values = values_of(labels)
    if not any(values):
        yield _finding(study, "warning", "empty", path, f"segmentation {path.name} is empty: is there no lesion?")
        return
    try:
        if coding is None:
            propose_coding([str(path)], values)
        else:
            check_values(values, coding, where=path.name)
    except LabelError as error:
        # Names that are silent only leave the coding open, as long as one of them fits.
        is_open = coding is None and fitting(values) and not names_an_edition(str(path))
        yield _finding(study, "warning" if is_open else "error", "labels", path, str(error))


def _duplicates(cohort: Cohort, digests: list[dict[str, str]]) -> Iterator[Finding]:
    """Find images that show the same voxels: a patient under two names leaks from one split into another."""
    first: dict[str, tuple[Study, str]] = {}
    for study, images in zip(cohort, digests, strict=True):
        for path, digest in images.items():
            twin, seen = first.setdefault(digest, (study, path))
            if seen == path:
                continue
            leak = twin.split != study.split
            message = (
                f"{Path(path).name} has the same voxels as {Path(seen).name} of {twin.name}"
                f"{f' in split {twin.split}' if leak else ''}; delete one, or give both the same `group`"
            )
            yield _finding(study, "error" if leak else "warning", "duplicate", Path(path), message)

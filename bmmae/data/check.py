"""Open every file of a cohort and say what is wrong, before a training run finds out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bmmae import modalities as table
from bmmae.arrays import Array, Bool, Float
from bmmae.data.brain import scanned_voxels
from bmmae.data.check_table import table_findings
from bmmae.data.coding import SEG_CODING, stated_coding
from bmmae.data.cohort import SYNTHETIC, Cohort, Study
from bmmae.data.findings import WHOLE, CheckReport, Finding, Severity
from bmmae.data.geometry import FEWEST_SLICES, sheared
from bmmae.data.labels import OWN, Coding, check_values, editions_of, fitting, propose_coding, values_of
from bmmae.data.location import File
from bmmae.data.reading import read_chances, read_labels
from bmmae.data.scans import Grid, Scan, on_one_grid, read_scan
from bmmae.data.swaps import likely_swaps
from bmmae.errors import BmmaeError, LabelError

LARGEST_BRAIN = 2000
"""Millilitres; a head whose air is exactly 0 looks skull-stripped but for its size."""

FULL_COVERAGE = 0.95
"""Skull-stripping differs a little between the modalities of one study; less than this is a cropped scan."""


@dataclass(frozen=True)
class ImageGlance:
    """What the report shows of an image.

    Attributes:
        modality: Canonical name.
        path: The file.
        grid: Its grid.
        extremes: Smallest and largest intensity.
        percentiles: 1st and 99th percentile of the non-zero voxels.
        coverage: Share of the study's brain that it covers; None where no brain is known.
        thin: Float[h, w, d], voxels thinned as `Grid.thinned` says; None unless asked for.
    """

    modality: str
    path: File
    grid: Grid
    extremes: tuple[float, float]
    percentiles: tuple[float, float]
    coverage: float | None
    thin: Float[Array, "h w d"] | None = None


@dataclass(frozen=True)
class StudyGlance:
    """What the report shows of a study.

    Attributes:
        study: The row of the table.
        images: Those that could be read.
        labels: Values of the segmentation, sorted; empty if there is none or it cannot be read.
        outline: Int16[h, w, d], the segmentation thinned like the images on its grid; None unless asked for.
        outline_grid: The segmentation's grid.
    """

    study: Study
    images: tuple[ImageGlance, ...]
    labels: tuple[int, ...] = ()
    outline: Array | None = None
    outline_grid: Grid | None = None


@dataclass
class _Look:
    """What is known of a study while it is looked at."""

    study: Study
    scans: dict[str, Scan] = field(default_factory=dict)
    masks: dict[str, Bool[Array, "H W D"]] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    labels: Array | None = None
    label_grid: Grid | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, code: str, path: File, message: str) -> None:
        shown = message.replace(str(path), path.name)
        self.findings.append(Finding(self.study.name, severity, code, path, shown))

    def glance(self, pictures: bool) -> StudyGlance:
        """Keep what a report needs, and let go of the rest."""
        images = tuple(self._image(name, scan, pictures) for name, scan in self.scans.items())
        if self.labels is None or self.label_grid is None:
            return StudyGlance(self.study, images)
        outline = self.labels[self.label_grid.thinned].copy() if pictures else None
        return StudyGlance(self.study, images, values_of(self.labels), outline, self.label_grid)

    def _image(self, name: str, scan: Scan, pictures: bool) -> ImageGlance:
        thin, share = scan.thin if pictures else None, self.coverage.get(name)
        return ImageGlance(name, scan.path, scan.grid, scan.extremes, scan.percentiles, share, thin)


Looked: TypeAlias = tuple[list[Finding], dict[str, tuple[str, str]], StudyGlance]


def check_cohort(
    cohort: Cohort,
    workers: int | None = None,
    coding: Coding | None = None,
    progress: bool = True,
    show: Callable[[StudyGlance], None] | None = None,
) -> CheckReport:
    """Open every file of every study; broken ones are listed and never stop the check.

    Args:
        cohort: The studies.
        workers: Threads (decompression runs outside Python's lock); by default one a core, at most eight.
        coding: What segmentation values mean; by default it is judged from names and values.
        progress: Show a progress bar on standard error.
        show: Called with each study once it was looked at, in the order of the table, to draw what it holds; pictures
            are not kept any longer.
    """
    from tqdm import tqdm

    count = workers or min(8, os.cpu_count() or 1)
    findings: list[Finding] = []
    digests: list[dict[str, tuple[str, str]]] = []
    bar = tqdm(total=len(cohort), desc="check", unit="study", disable=not progress, leave=False)
    with ThreadPoolExecutor(count) as pool, bar:
        for found, hashes, glance in _ahead(pool, lambda study: _check(study, coding, show is not None), cohort, count):
            findings += found
            digests.append(hashes)
            if show is not None:
                show(glance)
            bar.update()
    findings += table_findings(cohort, digests)
    studies = (*cohort, *cohort.bare)
    order = {WHOLE: -1} | {study.name: rank for rank, study in enumerate(studies)}
    findings.sort(key=lambda finding: order[finding.study])
    absent = tuple(name for name in cohort.modalities if not any(name in study.images for study in cohort))
    files = sum(len(study.files()) for study in cohort)
    return CheckReport(tuple(findings), len(studies), files, absent)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Study], Looked], studies: Iterable[Study], count: int
) -> Iterator[Looked]:
    """As `pool.map`, but never more than a few results ahead of who takes them: they hold pictures."""
    waiting: deque[Future[Looked]] = deque()
    for study in studies:
        waiting.append(pool.submit(work, study))
        if len(waiting) > 2 * count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def check_study(study: Study, coding: Coding | None = None) -> list[Finding]:
    """Open every file of one study and return what is wrong; as `check_cohort`."""
    return _check(study, coding, pictures=False)[0]


def _check(study: Study, coding: Coding | None, pictures: bool) -> Looked:
    """Return the findings, the content hash of each readable image, and what a report shows."""
    look = _Look(study)
    for name, path in study.images.items():
        try:
            look.scans[name] = read_scan(path)
        except BmmaeError as error:
            look.add("error", "file", path, str(error))
    _check_pictures(look)
    _check_slices(look)
    _check_acquired(look)
    _check_axes(look)
    _check_grids(look)
    _read_masks(look)
    _check_coverage(look)
    for one, two, reason in likely_swaps(look.scans, look.masks):
        path = look.scans[one].path
        names = f"{path.name} ({table.title(one)}) and {look.scans[two].path.name} ({table.title(two)})"
        look.add("warning", "swapped", path, f"{names} may be swapped: {reason}; look at both")
    if study.seg is not None:
        _check_segmentation(look, study.seg, coding)
    if study.lesion is not None:
        _check_lesion_map(look, study.lesion)
    digests = {name: (str(scan.path), scan.digest) for name, scan in look.scans.items()}
    return look.findings, digests, look.glance(pictures)


def _check_pictures(look: _Look) -> None:
    """Find masks that stand in an image's column."""
    for scan in look.scans.values():
        low, high = scan.percentiles
        if low == high:
            message = f"{scan.path.name} holds {low:g} wherever it is not 0: a mask, no image; name the image instead"
            look.add("error", "constant", scan.path, message)


def _check_slices(look: _Look) -> None:
    """Warn of images too thin to show a brain."""
    for scan in look.scans.values():
        if min(scan.grid.shape) < FEWEST_SLICES:
            message = f"{scan.path.name} has {scan.grid}: is it a localiser or a part of a scan? Leave its cell blank"
            look.add("warning", "thin", scan.path, message)


def _check_acquired(look: _Look) -> None:
    """Warn of synthetic images that the table does not call so."""
    for name, scan in look.scans.items():
        if scan.synthetic and name not in look.study.synthesised:
            message = (
                f"{scan.path.name} was synthesised, as its header says, and stands in the table as if it had been "
                f"acquired: leave its cell blank, or list {name} in a column '{SYNTHETIC}'"
            )
            look.add("warning", "synthetic", scan.path, message)


def _check_axes(look: _Look) -> None:
    """Warn of the first image whose header leaves right and left open; the others often are as it is."""
    doubted = next((scan for scan in look.scans.values() if scan.open_axes), None)
    if doubted is not None:
        advice = "right and left may be swapped: convert it again from DICOM or repair the header"
        message = f"{doubted.open_axes}; {advice}"
        look.add("warning", "axes", doubted.path, message)


def _check_grids(look: _Look) -> None:
    """Compare each image's grid with that of the first, and find those that no model can read."""
    first = next(iter(look.scans.values()), None)
    for scan in look.scans.values():
        if first is not None and not scan.grid.same(first.grid):
            message = (
                f"{scan.path.name} is on another grid than {first.path.name}: expected {first.grid}, got {scan.grid}"
                f"{scan.grid.difference(first.grid)}; run `bmmae preprocess` to register and resample the study"
            )
            look.add("error", "grid", scan.path, message)
        if sheared(scan.grid.affine):
            message = (
                f"the axes of {scan.path.name} are not at right angles (its affine has a shear): expected a grid "
                "without; run `bmmae preprocess`, which resamples the study"
            )
            look.add("error", "grid", scan.path, message)


def _read_masks(look: _Look) -> None:
    """Read the brain mask of each modality, noting those that cannot be used."""
    for name, scan in look.scans.items():
        path = look.study.brain_mask_of(name)
        if path is None:
            continue
        try:
            values, affine = read_labels(path)
        except BmmaeError as error:
            look.add("error", "file", path, str(error))
            continue
        values, grid = Grid(values.shape, affine).turned_like(values, scan.grid)
        if not grid.same(scan.grid):
            message = (
                f"brain mask {path.name} is on another grid than {scan.path.name}: expected {scan.grid}, got {grid}"
                f"{grid.difference(scan.grid)}; resample it to that grid by nearest neighbour"
            )
            look.add("error", "grid", path, message)
        elif not values.any():
            look.add("error", "empty", path, f"brain mask {path.name} is empty; draw it again or leave its cell blank")
        else:
            look.masks[name] = values > 0


def _check_coverage(look: _Look) -> None:
    """Warn of heads with their skull, and of scans that show only a part of the brain."""
    scans, masks = look.scans, look.masks
    for name, scan in scans.items():
        if not scan.stripped and name not in masks:
            message = (
                f"{scan.path.name} is not skull-stripped and has no brain mask: the whole head will be used; strip it, "
                f"or add a brain_mask_{name} column"
            )
            look.add("warning", "head", scan.path, message)
        elif name not in masks and (millilitres := scan.millilitres) > LARGEST_BRAIN:
            message = (
                f"{scan.path.name} is not zero in {millilitres:.0f} ml, more than a brain holds: if its skull is still "
                f"there, strip it, or add a brain_mask_{name} column"
            )
            look.add("warning", "head", scan.path, message)
    known = {
        name: masks[name] & scanned_voxels(scan.nonzero) if name in masks else scan.nonzero
        for name, scan in scans.items()
        if name in masks or scan.stripped
    }
    for names in on_one_grid({name: scans[name].grid for name in known}):
        brain = np.logical_or.reduce([masks.get(name, scans[name].nonzero) for name in names])
        for name in names:
            share = int(np.count_nonzero(known[name])) / max(1, int(np.count_nonzero(brain)))
            look.coverage[name] = share
            if share < FULL_COVERAGE:
                message = (
                    f"{scans[name].path.name} covers {share:.0%} of the brain seen in the study's modalities; the rest "
                    f"counts as not scanned in {table.title(name)}"
                )
                look.add("warning", "coverage", scans[name].path, message)


def _check_lesion_map(look: _Look, path: File) -> None:
    try:
        chances = read_chances(path)
    except BmmaeError as error:
        look.add("error", "file", path, str(error))
        return
    advice = "write it anew with `bmmae segment --probabilities`"
    _place(look, f"lesion map {path.name}", path, (chances.array, chances.affine), advice)


def _place(
    look: _Look, name: str, path: File, drawing: tuple[Array, Float[Array, "4 4"]], advice: str
) -> tuple[Array, Grid]:
    """Turn a drawing's axes as those of the first image that has voxels in the same places; note if none has."""
    own = Grid(drawing[0].shape, drawing[1])
    turned = [(own.turned_like(drawing[0], scan.grid), scan.grid) for scan in look.scans.values()]
    for (array, grid), expected in turned:
        if grid.same(expected):
            return array, grid
    for (_, grid), expected in turned[:1]:
        message = (
            f"{name} is on another grid than the images: expected {expected}, got {grid}{grid.difference(expected)}; "
            f"{advice}"
        )
        look.add("error", "grid", path, message)
    return drawing[0], own


def _check_segmentation(look: _Look, path: File, coding: Coding | None) -> None:
    try:
        labels, affine = read_labels(path)
    except BmmaeError as error:
        look.add("error", "labels" if isinstance(error, LabelError) else "file", path, str(error))
        return
    name, advice = f"segmentation {path.name}", "resample it by nearest neighbour"
    look.labels, look.label_grid = _place(look, name, path, (labels, affine), advice)
    values = values_of(labels)
    if not any(values):
        look.add("warning", "empty", path, f"segmentation {path.name} is empty: is there no lesion?")
        return
    _check_values(look, path, values, coding)


def _check_values(look: _Look, path: File, values: Sequence[int], coding: Coding | None) -> None:
    """Compare values with the coding that was given, that the table states, or that the file's name tells."""
    stated = look.study.values.get(SEG_CODING) if coding is None else None
    try:
        known = coding or stated_coding([look.study])
        if known is None:
            propose_coding([str(path)], values)
        else:
            check_values(values, known, where=path.name)
    except LabelError as error:
        # Names that are silent only leave the coding open, as long as one of them fits; so does a user's own.
        is_silent = coding is None and stated is None and fitting(values) and not editions_of(str(path))
        look.add("warning" if is_silent or stated == OWN else "error", "labels", path, str(error))

"""What is wrong with a cohort and shows in no study alone: its columns, its rows, and images that stand in it twice."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bmmae import modalities as table
from bmmae.data.cohort import LESION, MASK_PREFIX, Cohort, Study
from bmmae.data.findings import WHOLE, Finding
from bmmae.data.visits import ungrouped_visits

IMAGE_ENDINGS = (".nii", ".nii.gz")


def table_findings(cohort: Cohort, digests: Sequence[Mapping[str, tuple[str, str]]]) -> Iterator[Finding]:
    """Yield what is wrong with the table, and with studies beside each other.

    Args:
        cohort: The studies.
        digests: Of each of them, modality to path and content hash of its image.
    """
    path = cohort.path or Path()
    if doubt := ungrouped_visits(cohort):
        yield Finding(WHOLE, "warning", "visits", path, doubt)
    for column, near in _unused_image_columns(cohort):
        advice = f"did you mean '{near}'? Rename" if near else "rename"
        message = (
            f"column '{column}' holds image files but names no modality known here, and is used for nothing: {advice} "
            "it, or name it with --modalities"
        )
        yield Finding(WHOLE, "warning", "column", path, message)
    yield from _duplicates(cohort, digests)
    for study in cohort.bare:
        yield _bare(study, cohort)


def _unused_image_columns(cohort: Cohort) -> Iterator[tuple[str, str | None]]:
    """Yield columns of image files that mean nothing here, each with the name that was likely meant and is free."""
    studies = (*cohort, *cohort.bare)
    names = dict.fromkeys((*cohort.modalities, *(modality.name for modality in table.TABLE)))
    known = (*names, "seg", LESION, "brain_mask", *(MASK_PREFIX + name for name in names))
    taken = {role for study in studies for role in study.by_role()}
    for column in dict.fromkeys(name for study in studies for name in study.values):
        cells = [cell for study in studies if (cell := study.values.get(column)) is not None]
        images = [cell for cell in cells if isinstance(cell, str) and cell.lower().endswith(IMAGE_ENDINGS)]
        plain = column.strip().lower()
        if 2 * len(images) > len(cells) and table.find(plain.removeprefix(MASK_PREFIX)) is None:
            near = difflib.get_close_matches(plain, [name for name in known if name not in taken], n=1)
            yield column, next(iter(near), None)


def _bare(study: Study, cohort: Cohort) -> Finding:
    message = (
        f"no image: the cells of {', '.join(cohort.modalities)} are blank, and most other commands refuse the table; "
        "fill in a path, or delete the row"
    )
    return Finding(study.name, "error", "bare", cohort.path or Path(), message)


def _duplicates(cohort: Cohort, digests: Sequence[Mapping[str, tuple[str, str]]]) -> Iterator[Finding]:
    """Find images that show the same voxels: a patient under two names leaks from one split into another."""
    first: dict[str, tuple[Study, str]] = {}
    for study, images in zip(cohort, digests, strict=True):
        for path, digest in images.values():
            if digest not in first:
                first[digest] = study, path
                continue
            twin, seen = first[digest]
            leak = twin.group != study.group and twin.split != study.split
            if twin is study:
                advice = ", which stands in another column of its row: name the right file in one of them"
            elif twin.group == study.group:
                advice = f" of {twin.name}, another visit of the same patient: name the right file in one of the rows"
            else:
                split = f" in split {twin.split}" if leak else ""
                advice = f" of {twin.name}{split}; delete one, or give both the same `group`"
            message = f"{Path(path).name} has the same voxels as {Path(seen).name}{advice}"
            yield Finding(study.name, "error" if leak else "warning", "duplicate", Path(path), message)

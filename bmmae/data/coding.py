"""Which label coding a cohort uses: named by the user, stated in its table, or proposed from file names and values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from bmmae.data.cohort import Study
from bmmae.data.labels import CODINGS, Coding, check_values, find_coding, propose_coding, values_of
from bmmae.data.location import File
from bmmae.data.reading import read_labels
from bmmae.errors import LabelError, few

SEG_CODING = "seg_coding"
"""Column of a cohort table: the label coding of its segmentations."""

SEG_ORIGIN, PREDICTED = "seg_origin", "predicted"
"""Column of a cohort table, and what it says of segmentations that are a model's."""


def is_predicted(study: Study) -> bool:
    """Tell whether a study's segmentation is a model's, by what its table says: no truth to judge by."""
    return study.seg is not None and study.values.get(SEG_ORIGIN) == PREDICTED


def coding_of(cohort: Iterable[Study], name: str | Coding | None = None) -> Coding:
    """Return a cohort's label coding, after looking at every segmentation.

    Args:
        cohort: The studies; those without a segmentation are passed over.
        name: A coding, or its name; by default what the table states, else one is proposed.

    Raises:
        LabelError: If no study has a segmentation, values do not fit, or names and values leave the coding open.

    Warns:
        UserWarning: If the table states another coding than the one asked for.
    """
    labelled = [study for study in cohort if study.seg is not None]
    paths = [study.seg for study in labelled if study.seg is not None]
    if not paths:
        raise LabelError("no study of the cohort has a segmentation: fill the column 'seg' of the table")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_values, paths))
    coding = stated_coding(labelled) if name is None else find_coding(name) if isinstance(name, str) else name
    if coding is None:
        return propose_coding([str(path) for path in paths], set().union(*found))
    for path, values in zip(paths, found, strict=True):
        check_values(values, coding, str(path))
    others = {str(study.values.get(SEG_CODING) or coding.name) for study in labelled} - {coding.name}
    if others and coding.name in CODINGS:
        warnings.warn(
            f"the table's column '{SEG_CODING}' says {few(sorted(others))}, and '{coding.name}' was asked for, where "
            "the same number may be another tissue: correct one of them",
            stacklevel=2,
        )
    return coding


def stated_coding(studies: Iterable[Study]) -> Coding | None:
    """Return the coding that a table states in its column `seg_coding`, as `bmmae segment --cohort` writes it.

    Args:
        studies: Those with a segmentation.

    Raises:
        LabelError: If it states several, or one that has to be spelt out.
    """
    stated = {study.values.get(SEG_CODING) for study in studies} or {None}
    if len(stated) > 1:
        words = ", ".join(sorted(str(name or "nothing") for name in stated))
        raise LabelError(
            f"the column '{SEG_CODING}' states several label codings ({words}): keep them in separate tables"
        )
    (name,) = stated
    return None if name is None else find_coding(str(name))


def _values(path: File) -> tuple[int, ...]:
    return values_of(read_labels(path)[0])

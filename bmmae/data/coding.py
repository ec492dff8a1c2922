"""Which label coding a cohort uses: named by the user, or proposed from file names and values."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from bmmae.data.cohort import Study
from bmmae.data.labels import Coding, check_values, find_coding, propose_coding, values_of
from bmmae.data.location import File
from bmmae.data.reading import read_labels
from bmmae.errors import LabelError


def coding_of(cohort: Iterable[Study], name: str | Coding | None = None) -> Coding:
    """Return a cohort's label coding, after looking at every segmentation.

    Args:
        cohort: The studies; those without a segmentation are passed over.
        name: A coding, or its name; by default one is proposed.

    Raises:
        LabelError: If no study has a segmentation, values do not fit, or names and values leave the coding open.
    """
    paths = [study.seg for study in cohort if study.seg is not None]
    if not paths:
        raise LabelError("no study of the cohort has a segmentation: fill the column 'seg' of the table")
    with ThreadPoolExecutor() as pool:
        found = set().union(*pool.map(_values, paths))
    if name is None:
        return propose_coding([str(path) for path in paths], found)
    coding = find_coding(name) if isinstance(name, str) else name
    check_values(found, coding, "the cohort")
    return coding


def _values(path: File) -> tuple[int, ...]:
    return values_of(read_labels(path)[0])

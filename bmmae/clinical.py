"""Clinical variables and other vectors beside the images: fitted on the training fold, encoded everywhere alike."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bmmae.arrays import Array
from bmmae.errors import CohortError, few
from bmmae.targets import NUMBER, Cell, as_label, warn_of_spellings

COMMA = re.compile(r"[+-]?\d+,\d+")
"""A number as other languages write it."""
FEW = 5
"""A column of so few categories is one of categories, however few patients there are."""


@dataclass(frozen=True)
class ClinicalVariable:
    """One column, and what was fitted for it.

    Attributes:
        name: Of the column.
        kind: `numeric` values are standardised; `categorical` ones are numbers of `categories`.
        mean: Of the training fold.
        deviation: Of the training fold; 1 where all values agree.
        categories: Seen in the training fold, sorted; any other value counts as missing.
        imputed: Encoded value that stands in for a missing one (the median or the most frequent category), if asked
            for; the missing flag stays.
        modality: Of a measure, whose image it was taken from (empty: the segmentation's alone): it is missing where
            that modality is. None for what only the table knows.
    """

    name: str
    kind: Literal["numeric", "categorical"]
    mean: float = 0.0
    deviation: float = 1.0
    categories: tuple[str, ...] = ()
    imputed: float | None = None
    modality: str | None = None

    @property
    def width(self) -> int:
        """Numbers it takes in a design matrix: its value or one a category, and the missing flag."""
        return 1 + (1 if self.kind == "numeric" else len(self.categories))

    def encode(self, cell: Cell) -> tuple[float, bool]:
        """Return the encoded value and whether it is known; unknown values are 0 or imputed.

        Raises:
            CohortError: If a number is expected and something else came.
        """
        absent = (0.0 if self.imputed is None else self.imputed, False)
        if cell is None:
            return absent
        if self.kind == "categorical":
            label = as_label(cell)
            return (float(self.categories.index(label)), True) if label in self.categories else absent
        value = as_number(cell)
        if value is None or np.isinf(value):
            raise CohortError(
                f"column '{self.name}' holds '{cell}': expected a number{point_wanted(cell)}, as in the training data, "
                "or a blank cell"
            )
        return absent if np.isnan(value) else ((value - self.mean) / self.deviation, True)


@dataclass(frozen=True)
class VectorInput:
    """Numbers from elsewhere (another model's embedding, radiomics) that come as one vector, whole or not at all.

    Attributes:
        columns: Of the cohort table.
        mean: Of the training fold, one a column.
        deviation: Of the training fold; 1 where all values agree.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def encode(self, cells: Mapping[str, Cell]) -> tuple[list[float], bool]:
        """Return the standardised vector and whether it is known; zeros if any of it is missing.

        Raises:
            CohortError: If a cell holds something else than a number.
        """
        numbers = []
        for column in self.columns:
            cell = cells.get(column)
            value = np.nan if cell is None else as_number(cell)
            if value is None or np.isinf(value):
                raise CohortError(
                    f"column '{column}' holds '{cell}': expected a number{point_wanted(cell)} or a blank cell"
                )
            numbers.append(value)
        if np.isnan(numbers).any():
            return [0.0] * len(numbers), False
        scaled = (np.array(numbers) - self.mean) / self.deviation
        return [float(value) for value in scaled], True


def as_number(cell: str | float) -> float | None:
    """Return a cell's number; None if it holds something else. A column with any text in it comes as text."""
    if isinstance(cell, str):
        return float(cell) if NUMBER.fullmatch(cell) else None
    return float(cell)


def point_wanted(cell: Cell) -> str:
    """Return what to add to "expected a number" where a cell holds a decimal comma."""
    return " with a decimal point" if isinstance(cell, str) and COMMA.fullmatch(cell) else ""


def fit_clinical(
    name: str, cells: Sequence[Cell], *, impute: bool = False, modality: str | None = None
) -> ClinicalVariable:
    """Fit a variable on the training fold's cells; `modality` as in `ClinicalVariable`.

    Raises:
        CohortError: If all are blank, or most of them are numbers and some are not.

    Warns:
        UserWarning: If text has almost a category a patient, or categories differ in case or blanks only.
    """
    known = [cell for cell in cells if cell is not None]
    if not known:
        raise CohortError(f"clinical column '{name}' is blank for all {len(cells)} training studies: leave it out")
    odd = [str(cell) for cell in known if as_number(cell) is None]
    commas = [cell for cell in odd if COMMA.fullmatch(cell)]
    if commas or 0 < len(odd) < len(known) / 2:
        raise CohortError(
            f"clinical column '{name}' holds numbers and {few(dict.fromkeys(commas or odd))}: write numbers "
            "with a decimal point and leave cells blank that are not known, or give categories names"
        )
    if not odd:
        values = np.array([as_number(cell) for cell in known], float)
        mean, deviation = float(values.mean()), float(spread(values))
        middle = (float(np.median(values)) - mean) / deviation
        return ClinicalVariable(name, "numeric", mean, deviation, (), middle if impute else None, modality)
    counts = Counter(str(as_label(cell)) for cell in known)
    categories = tuple(sorted(counts))
    warn_of_spellings(name, categories)
    if len(categories) > max(FEW, len(known) / 2):
        warnings.warn(
            f"clinical column '{name}' holds text, {len(categories)} different categories among {len(known)} training "
            f"studies ({few(categories, 3)}): most others will count as missing; if these are numbers, write them "
            "without units",
            stacklevel=2,
        )
    commonest = max(categories, key=lambda label: counts[label])
    imputed = float(categories.index(commonest)) if impute else None
    return ClinicalVariable(name, "categorical", categories=categories, imputed=imputed)


def fit_vector(columns: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> VectorInput:
    """Fit the scaling of a vector on the training fold's rows.

    Raises:
        CohortError: If no row has all of its numbers.
    """
    plain = VectorInput(tuple(columns), (0.0,) * len(columns), (1.0,) * len(columns))
    known = [values for values, there in map(plain.encode, rows) if there]
    if not known:
        raise CohortError(
            f"no training study has all of the {len(columns)} numbers {', '.join(columns[:3])} ...: check the columns"
        )
    table = np.array(known)
    return VectorInput(tuple(columns), tuple(table.mean(0).tolist()), tuple(spread(table).tolist()))


def spread(values: Array) -> Array:
    """Return the deviation of each column, 1 where all values agree: rounding would leave some 1e-15 there."""
    return np.asarray(np.where(np.ptp(values, axis=0) > 0, values.std(axis=0), 1.0))

"""Tables of features measured per sequence, one row a patient, as blocks of columns by modality.

Columns are addressed by name: the modality of a column is the one word between its underscores that the modality table
knows (`TEXTURE_GLCM_ET_T1Gd_Energy` is of `t1ce`). Columns of no sequence, such as volumes of regions, belong to none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.clinical import COMMA
from bmmae.data.tables import is_blank, read_rows
from bmmae.errors import CohortError, ModalityError, few
from bmmae.modalities import canonical, find, in_table_order

SHAPE: Final = "shape"
"""The modality that columns of no sequence are given to, when asked: volumes, distances, places, growth models."""

PARTED: Final = re.compile(r"(?<![^_])(t1w?_(gd|ce|post|km)|(ce|gd)_t1w?|t2w?_flair)(?![^_])", re.IGNORECASE)
"""Names of one sequence that hold an underscore themselves; not `T1_Contrast`, which is a texture of T1."""

Blocks = Mapping[str, tuple[int, ...]]
"""Positions of columns by modality, in table order."""


@dataclass(frozen=True)
class FeatureTable:
    """Features of patients; absent cells are NaN.

    Attributes:
        features: One row a patient, one column a feature; all numeric.
        columns: Names of the columns.
        subjects: Names of the patients; no name occurs twice.
        labels: Class of each patient.
        blocks: Which columns are of which modality; every column is of one.
        dropped: Names of the columns that were left out, with the reason.
        repaired: How many cells held no number although they were filled (`#DIV/0!`, infinities); they are NaN now.
    """

    features: Float[Array, "patients columns"]
    columns: tuple[str, ...]
    subjects: tuple[str, ...]
    labels: Array
    blocks: Blocks
    dropped: Mapping[str, str]
    repaired: int = 0

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities with at least one column, in table order."""
        return tuple(self.blocks)

    def without(self, pattern: str) -> FeatureTable:
        """Return the table less the columns in whose name a regular expression is found.

        Raises:
            CohortError: If no column is left.
        """
        left_out = {name: f"matches '{pattern}'" for name in self.columns if re.search(pattern, name)}
        return self._keep([name not in left_out for name in self.columns], left_out)

    def restricted(self, modalities: Iterable[str]) -> FeatureTable:
        """Return the table with the columns of some modalities only.

        Raises:
            ModalityError: If one is unknown or has no column here, or none is named.
        """
        wanted = chosen(modalities, self.modalities)
        columns = {column for name in wanted for column in self.blocks[name]}
        left_out = {name: "of another modality" for place, name in enumerate(self.columns) if place not in columns}
        return self._keep([place in columns for place in range(len(self.columns))], left_out)

    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """Return every non-empty subset of the modalities, small ones first."""
        sizes = range(1, len(self.modalities) + 1)
        return tuple(subset for size in sizes for subset in combinations(self.modalities, size))

    def _keep(self, kept: Sequence[bool], left_out: Mapping[str, str]) -> FeatureTable:
        if not any(kept):
            raise CohortError(f"no column of {len(self.columns)} is left: expected a filter that keeps some")
        places = [place for place, keep in enumerate(kept) if keep]
        owner = {place: name for name, block in self.blocks.items() for place in block}
        return replace(
            self,
            features=self.features[:, places],
            columns=tuple(self.columns[place] for place in places),
            blocks=_blocks([owner[place] for place in places]),
            dropped={**self.dropped, **left_out},
        )


def read_feature_tables(
    tables: Mapping[str, str | Path],
    *,
    subject: str = "ID",
    ignore: Iterable[str] = ("Date",),
    shape: bool = False,
) -> FeatureTable:
    """Read one table for each class and join them.

    Args:
        tables: By class, the file with its patients (.csv, .tsv or .parquet). All have the same columns.
        subject: The column that names the patient.
        ignore: Columns that are no features.
        shape: Whether columns of no sequence form a modality of their own, `shape`; otherwise they are dropped.

    Raises:
        CohortError: If a table cannot be read, columns differ, a patient occurs twice, a cell holds text, or no
            column is left.
    """
    rows = [(label, row) for label, path in tables.items() for row in _rows(Path(path), subject)]
    if not rows:
        raise CohortError("expected at least one table with at least one patient, got none")
    header = list(rows[0][1])
    for label, row in rows:
        if list(row) != header:
            odd = [name for name in (*header, *row) if (name in row) != (name in header)]
            found = f" ({few(odd, 3)} in one of them alone)" if odd else " (in another order)"
            raise CohortError(
                f"the table of '{label}' has other columns than that of '{rows[0][0]}'{found}: expected the same"
            )
        if not row[subject]:
            raise CohortError(f"column '{subject}' of the table of '{label}' is blank in a row: expected a patient")
    subjects = tuple(row[subject] for _, row in rows)
    repeated = sorted({name for name in subjects if subjects.count(name) > 1})
    if repeated:
        raise CohortError(f"patient '{repeated[0]}' occurs twice: expected one row a patient")
    names = [name for name in header if name not in {subject, *ignore}]
    cells = [[_number(row[name], name, f"'{row[subject]}' of '{label}'") for name in names] for label, row in rows]
    values = np.array([[value for value, _ in line] for line in cells]).reshape(len(rows), len(names))
    repaired = sum(mended for line in cells for _, mended in line)
    labels = np.array([label for label, _ in rows])
    return _assemble(values, names, subjects=subjects, labels=labels, shape=shape, repaired=repaired)


def modality_of(column: str) -> str | None:
    """Return the modality that a column was measured on.

    Returns:
        None if its name holds no modality, or more than one: such a column is not of one sequence.
    """
    words = PARTED.sub(lambda name: name[0].replace("_", ""), column).split("_")
    found = {name for name in map(find, words) if name is not None}
    return found.pop() if len(found) == 1 else None


def chosen(wanted: Iterable[str], present: Sequence[str]) -> tuple[str, ...]:
    """Return wanted modalities by canonical name, in the order of those present.

    Raises:
        ModalityError: If one is not among those present, is named twice, or none is wanted.
    """
    names = [canonical(name, present) for name in wanted]
    if not names or len(set(names)) < len(names):
        raise ModalityError(f"expected one modality or more of {', '.join(present)}, each once; got {names}")
    return tuple(name for name in present if name in names)


def hide(features: Float[Array, "patients columns"], blocks: Blocks, present: Iterable[str]) -> Array:
    """Return a copy in which the columns of all modalities but those present are NaN.

    Raises:
        ModalityError: If a modality has no block.
    """
    kept = chosen(present, tuple(blocks))
    hidden = np.array(features, dtype=float)
    for name, block in blocks.items():
        if name not in kept:
            hidden[:, list(block)] = np.nan
    return hidden


def _rows(path: Path, subject: str) -> list[dict[str, str]]:
    rows = read_rows(path)
    if rows and subject not in rows[0]:
        raise CohortError(
            f"{path} has no column '{subject}' that names the patient: its first is '{next(iter(rows[0]))}'"
        )
    return rows


def _number(cell: str, column: str, patient: str) -> tuple[float, bool]:
    """A cell as a number, and whether it was filled with something that is none; errors say whose it is."""
    if is_blank(cell):
        return float("nan"), False
    if cell.startswith("#"):  # what spreadsheets write for an undefined quotient
        return float("nan"), True
    try:
        value = float(cell)
    except ValueError as error:
        hint = "write decimals with a point" if COMMA.fullmatch(cell) else "name it in `ignore`"
        raise CohortError(f"patient {patient}: column '{column}' holds '{cell}': expected numbers; {hint}") from error
    return (value, False) if np.isfinite(value) else (float("nan"), True)


def _assemble(
    values: Array, names: Sequence[str], *, subjects: tuple[str, ...], labels: Array, shape: bool, repaired: int
) -> FeatureTable:
    owners = [modality_of(name) or (SHAPE if shape else None) for name in names]
    dropped = {name: "not of one sequence" for name, owner in zip(names, owners, strict=True) if owner is None}
    empty = {name for name, column in zip(names, values.T, strict=True) if np.isnan(column).all()}
    dropped |= dict.fromkeys(sorted(empty), "no cell is filled")
    kept = [place for place, name in enumerate(names) if name not in dropped]
    if not kept:
        raise CohortError(
            f"none of {len(names)} columns names a modality: expected names such as 'Mean_T1', 'Mean_FLAIR'"
        )
    return FeatureTable(
        features=values[:, kept],
        columns=tuple(names[place] for place in kept),
        subjects=subjects,
        labels=labels,
        blocks=_blocks([str(owners[place]) for place in kept]),
        dropped=dropped,
        repaired=repaired,
    )


def _blocks(owners: Sequence[str]) -> Blocks:
    order = in_table_order(dict.fromkeys(owners))
    return {name: tuple(p for p, owner in enumerate(owners) if owner == name) for name in order}

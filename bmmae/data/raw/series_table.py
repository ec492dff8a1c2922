"""The table of series that a user confirms or edits before anything is converted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bmmae.data.raw.dicom_files import Series
from bmmae.data.raw.privacy import Pseudonym, scrubbed, series_key
from bmmae.data.raw.recognition import Verdict, recognise
from bmmae.data.tables import is_blank, read_numbered_rows, read_rows, write_rows
from bmmae.errors import CohortError, OutputError
from bmmae.modalities import STANDARD, canonical

COLUMNS = ("key", "subject", "session", "number", "modality", "status", "suggestion", "reason", "description", "slices")
SHOWN = ("subject", "session", "number", "modality", "status", "suggestion", "description", "reason")
STRUCTURES = "seg"


@dataclass(frozen=True)
class Row:
    """One series in the table.

    Attributes:
        key: Finds the series again in the same folder.
        name: Patient and visit.
        number: The scanner's number of the series within the visit.
        modality: What it will be converted to: a modality, `seg`, or `""` to leave it out. The column to edit.
        verdict: What was recognised.
        description: The operator's words, identities removed.
        slices: Different slice positions.
    """

    key: str
    name: Pseudonym
    number: int
    modality: str
    verdict: Verdict
    description: str
    slices: int


def propose(
    series: Iterable[Series], names: Mapping[tuple[str, str], Pseudonym], wanted: Sequence[str] = STANDARD
) -> tuple[Row, ...]:
    """Recognise every series; two that would be the same modality of one visit are both left open.

    Args:
        series: All that were found.
        names: `Identity.visit` to pseudonym.
        wanted: Modalities to take.
    """
    rows = [_as_row(item, names[item.identity.visit], wanted) for item in series]
    claims: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.modality:
            claims[row.name.subject, row.name.session, row.modality].append(row)
    rivals = {row.key: len(group) for group in claims.values() if len(group) > 1 for row in group}
    settled = [_left_open(row, rivals[row.key]) if row.key in rivals else row for row in rows]
    return tuple(sorted(settled, key=lambda row: (row.name.subject, row.name.session, row.number, row.key)))


def _as_row(item: Series, name: Pseudonym, wanted: Sequence[str]) -> Row:
    verdict = recognise(item, wanted)
    chosen = {"taken": verdict.modality or "", "structures": STRUCTURES}.get(verdict.status, "")
    description = scrubbed(" / ".join(dict.fromkeys(item.acquisition.description)), item.identity)
    reason = scrubbed(verdict.reason, item.identity)
    return Row(series_key(item), name, item.number, chosen, replace(verdict, reason=reason), description, item.slices)


def _left_open(row: Row, count: int) -> Row:
    likely = row.verdict.modality if row.modality != STRUCTURES else STRUCTURES
    reason = f"one of {count} series that would be {row.modality}: keep one ({row.verdict.reason})"
    return replace(row, modality="", verdict=Verdict("ambiguous", likely, reason))


def write_table(path: str | Path, rows: Iterable[Row]) -> Path:
    """Write the table for editing; one that was edited is never written over.

    Raises:
        OutputError: If there is another table already, or it cannot be written.
    """
    path = Path(path).expanduser()
    cells = [_cells(row) for row in rows]
    if path.exists() and read_rows(path) != cells:
        raise OutputError(
            f"{path} is there already and says something else (edited, or of another folder): apply it with --table "
            f"{path}, or remove it"
        )
    write_rows(path, cells, COLUMNS)
    return path


def apply_table(path: str | Path, rows: Sequence[Row], wanted: Sequence[str] = STANDARD) -> tuple[Row, ...]:
    """Return the rows with the modalities of an edited table; rows that it lacks are left out.

    Raises:
        CohortError: If it is no such table, is of another folder, names other patients than the import would, or gives
            one visit a modality twice.
        ModalityError: If it names an unknown modality.
    """
    path = Path(path).expanduser()
    known = {row.key: row for row in rows}
    edited: dict[str, Row] = {}
    for line, cells in read_numbered_rows(path):
        if "key" not in cells or "modality" not in cells:
            raise CohortError(f"{path} is not a table of series: expected columns {', '.join(COLUMNS)}")
        key = cells["key"] if cells["key"] in known else f"s{cells['key']}"  # keys once began without the letter
        if key not in known:
            raise CohortError(
                f"{path}, line {line}: no series with key '{cells['key']}' in this folder; make the table again by "
                "running import-dicom without --table"
            )
        name = known[key].name
        said = cells.get("subject", name.subject), cells.get("session", name.session)
        if said != (name.subject, name.session):
            raise CohortError(
                f"{path}, line {line}: the series is of {' '.join(said).strip()} there and of "
                f"{' '.join((name.subject, name.session)).strip()} now: patients of a larger folder are numbered anew. "
                "Give the numbers of the first import with --mapping, or make the table again in a new --out"
            )
        cell = "" if is_blank(cells["modality"]) else cells["modality"].lower()
        chosen = cell if cell in {"", STRUCTURES} else canonical(cell, wanted)
        edited[key] = replace(known[key], modality=chosen)
    _refuse_rivals(path, edited.values())
    return tuple(row for row in (edited.get(row.key, replace(row, modality="")) for row in rows))


def _refuse_rivals(path: Path, rows: Iterable[Row]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        place = (row.name.subject, row.name.session, row.modality)
        if row.modality and place in seen:
            raise CohortError(
                f"{path}: {' '.join(place[:2])} has two series for {row.modality}; leave the modality of one blank"
            )
        seen.add(place)


def format_rows(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    cells = [{name: str(cell) for name, cell in _cells(row).items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in SHOWN}
    lines = [{name: name for name in SHOWN}, *cells]
    return "\n".join("  ".join(line[name].ljust(widths[name]) for name in SHOWN).rstrip() for line in lines)


def _cells(row: Row) -> dict[str, str | float | bool | None]:
    return {
        "key": row.key,
        "subject": row.name.subject,
        "session": row.name.session,
        "number": str(row.number),
        "modality": row.modality,
        "status": row.verdict.status,
        "suggestion": row.verdict.modality or "",
        "reason": row.verdict.reason,
        "description": row.description,
        "slices": str(row.slices),
    }

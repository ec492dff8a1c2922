"""A cohort table that someone has filled in is never replaced by one that says less."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from bmmae.data.cohort import Cohort, Study
from bmmae.data.tables import is_blank, read_rows
from bmmae.errors import OutputError, few


def refuse_losing(path: Path, cohort: Cohort) -> None:
    """Refuse to replace a table with rows or filled cells that the new one lacks, or with other groups.

    Args:
        path: Where the cohort is going to be written.
        cohort: What will be there; an image's path may change.

    Raises:
        OutputError: Naming the columns and rows.
        CohortError: If something other than a table is there.
    """
    new = {study.key: {"group": study.group, **filled_cells(study)} for study in cohort}
    columns: dict[str, None] = {}
    rows: list[str] = []
    for row in read_rows(path) if path.is_file() else ():
        # `na` is blank in other columns, and in this one a name.
        subject = row.pop("subject", None)
        old = {name: cell for name, cell in row.items() if not is_blank(cell)}
        key = subject or "", old.pop("session", "")
        if subject is not None and key not in new:
            rows.append(" ".join(key).strip() or "without a subject")
        else:
            columns |= dict.fromkeys(_lost(old, new.get(key, {})))
    _refuse(path, columns, rows)


def refuse_losing_columns(
    path: Path, columns: Collection[str], keys: Collection[tuple[str, str]] | None = None
) -> None:
    """Refuse to replace a table in which other columns than these are filled.

    Args:
        path: Where a table is going to be written.
        columns: What it will have.
        keys: Subjects and sessions that it is about; if given, rows of others are not lost either.

    Raises:
        OutputError: Naming them.
        CohortError: If something other than a table is there.
    """
    held = read_rows(path) if path.is_file() else []
    filled = dict.fromkeys(name for row in held for name, cell in row.items() if not is_blank(cell))
    others = [] if keys is None else [key for row in held if (key := _key(row)) not in keys]
    rows = [" ".join(key).strip() or "without a subject" for key in others]
    _refuse(path, [name for name in filled if name not in columns], rows)


def filled_cells(study: Study) -> dict[str, object]:
    """Return what a study's row says, subject and session apart; a group that is the subject is left out."""
    group = None if study.group == study.subject else study.group
    cells = {"group": group, "split": study.split, "time": study.time, "event": study.event, **study.by_role()}
    return {name: cell for name, cell in {**cells, **study.values}.items() if cell is not None}


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    session = row.get("session", "")
    return row.get("subject", ""), "" if is_blank(session) else session


def _lost(old: Mapping[str, str], new: Mapping[str, object]) -> list[str]:
    return [name for name, cell in old.items() if name not in new or (name == "group" and cell != new[name])]


def _refuse(path: Path, columns: Iterable[str], rows: Iterable[str]) -> None:
    lost = [f"{what} {few(names, quote='')}" for what, names in (("columns", columns), ("rows", rows)) if names]
    if lost:
        raise OutputError(
            f"{path} is there already and the new table lacks its {' and '.join(lost)}: choose another --out and join "
            "the two by subject and session, or move the old one away"
        )

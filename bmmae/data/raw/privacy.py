"""Numbers in place of people: pseudonyms, and free text without names, identifiers, dates and UIDs.

Everything that leaves the import goes through here. What links numbers to people exists only in memory, or in the
mapping file that a user asks for by name.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bmmae.data.contrast import without_accents
from bmmae.data.raw.dicom_files import Identity, Series
from bmmae.data.tables import read_rows, write_rows
from bmmae.errors import CohortError, OutputError

REMOVED = "[removed]"
UID = re.compile(r"\d+(\.\d+){4,}")
MONTH = r"(?:jan|feb|fév|mar|mär|mrz|apr|avr|may|mai|jun|jul|juin|juil|aug|aoû|sep|oct|okt|nov|dec|dez|déc)[^\W\d_]*"
"""In three languages, spelt out or not."""
DATE = re.compile(
    r"(19|20)\d\d[-./_ ]?(0[1-9]|1[0-2])[-./_ ]?(0[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?<!\d)\d{1,2}[-./]\d{1,2}[-./](19|20)?\d\d(?!\d)"
    rf"|(?<!\d)\d{{1,2}}[-./_ ]{{0,2}}{MONTH}[-./_ ]{{0,2}}(19|20)?\d\d(?!\d)"
    rf"|(?<![a-z]){MONTH}[-./_ ]?\d{{1,2}}[-./_, ]{{1,2}}(19|20)\d\d(?!\d)",
    re.IGNORECASE,
)
LONG_NUMBER = re.compile(r"\d{6,}")
"""Accession and record numbers; nothing in a sequence's name has six digits in a row."""

SHORTEST_NAME = 3
"""Bytes; shorter parts of a name are also words of sequence names (`T1`, `AX`). One Chinese letter is as long."""
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa"})

MAPPING = ("subject", "session", "patient_id", "patient_name", "birth_date", "study_uid", "study_date")
"""Columns of the file that says who stands behind each number."""


@dataclass(frozen=True)
class Pseudonym:
    """What stands for a patient's visit in all outputs."""

    subject: str
    session: str


@dataclass(frozen=True)
class MappingRow:
    """One visit in the mapping file."""

    pseudonym: Pseudonym
    identity: Identity


def pseudonyms(series: Iterable[Series], known: Iterable[MappingRow] = ()) -> dict[tuple[str, str], Pseudonym]:
    """Number patients and visits.

    New patients are numbered in the order of a hash, which says nothing about names or about who came first; visits
    are numbered in their order of time.

    Args:
        series: Everything that was found.
        known: Visits numbered before, whose numbers stay.

    Returns:
        `Identity.visit` to pseudonym.
    """
    visits: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for item in series:
        visits[item.identity.person][item.identity.visit] = item.identity.study_date
    given = {row.identity.visit: row.pseudonym for row in known}
    subjects = {row.identity.person: row.pseudonym.subject for row in known}
    new = sorted((person for person in visits if person not in subjects), key=_digest)
    subjects |= dict(zip(new, _free_names("sub-{:04d}", set(subjects.values()), len(new)), strict=True))
    result = {}
    for person, dates in visits.items():
        taken = {name.session for name in given.values() if name.subject == subjects[person]}
        fresh = sorted(
            (visit for visit in dates if visit not in given), key=lambda visit: (dates[visit], _digest(visit[1]))
        )
        sessions = dict(zip(fresh, _free_names("ses-{}", taken, len(fresh)), strict=True))
        for visit in dates:
            result[visit] = given[visit] if visit in given else Pseudonym(subjects[person], sessions[visit])
    return result


def series_key(series: Series) -> str:
    """Return a short one-way hash that finds a series again without saying which it is.

    It begins with a letter: spreadsheets take `7622448e10` for a number, and write another.
    """
    return "s" + _digest(f"{series.uid}/{len(series.files)}")[:10]


def scrubbed(text: str, identity: Identity) -> str:
    """Return free text without the patient's name and identifiers, dates, UIDs and long numbers."""
    secrets = [identity.patient_id, identity.birth_date, identity.study_uid, identity.study_date, *identity.others]
    text = unicodedata.normalize("NFC", text)
    names = [form for name in re.split(r"[\s^=,]+", identity.patient_name) for form in _spellings(name)]
    for secret in sorted({*secrets, *names}, key=len, reverse=True):
        if len(secret.encode()) >= SHORTEST_NAME:
            text = re.sub(re.escape(secret), REMOVED, text, flags=re.IGNORECASE)
    for pattern in (UID, DATE, LONG_NUMBER):
        text = pattern.sub(REMOVED, text)
    return " ".join(text.split())


def _spellings(name: str) -> tuple[str, ...]:
    """Return a name as it is written, without its accents, and with its umlauts spelled out."""
    composed = unicodedata.normalize("NFC", name)
    return name, composed, without_accents(name), composed.lower().translate(UMLAUTS)


def read_mapping(path: str | Path) -> tuple[MappingRow, ...]:
    """Return the visits of an earlier mapping file, none if there is no such file yet.

    Raises:
        CohortError: If it is no such table.
    """
    path = Path(path).expanduser()
    rows = read_rows(path) if path.exists() else []
    lacking = [name for name in MAPPING if rows and name not in rows[0]]
    if lacking:
        raise CohortError(f"{path} is no mapping that import-dicom wrote: it lacks the column '{lacking[0]}'")
    return tuple(
        MappingRow(
            Pseudonym(row["subject"], row["session"]),
            Identity(row["patient_id"], row["patient_name"], row["birth_date"], row["study_uid"], row["study_date"]),
        )
        for row in rows
    )


def write_mapping(
    path: str | Path, series: Iterable[Series], names: dict[tuple[str, str], Pseudonym], out: str | Path
) -> None:
    """Write who stands behind each number, readable by its owner alone.

    Raises:
        OutputError: If it would lie inside `out`, with the data that are passed on, or cannot be written.
    """
    path, out = Path(path).expanduser(), Path(out).expanduser()
    if path.resolve().is_relative_to(out.resolve()):
        raise OutputError(
            f"cannot write the mapping to {path}: it names patients and must not lie inside {out}, which is passed on; "
            "choose a place outside"
        )
    identities = {row.identity.visit: row for row in read_mapping(path)}
    for item in series:
        identities[item.identity.visit] = MappingRow(names[item.identity.visit], item.identity)
    rows = [
        {
            "subject": row.pseudonym.subject,
            "session": row.pseudonym.session,
            **{name: getattr(row.identity, name) for name in MAPPING[2:]},
        }
        for row in identities.values()
    ]
    write_rows(path, sorted(rows, key=lambda row: (str(row["subject"]), str(row["session"]))), MAPPING)
    os.chmod(path, 0o600)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _free_names(pattern: str, taken: set[str], count: int) -> list[str]:
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        if pattern.format(number) not in taken:
            names.append(pattern.format(number))
    return names

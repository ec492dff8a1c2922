"""Read the headers of a folder of DICOM files and gather them into series; no voxel is decoded."""

from __future__ import annotations

import filecmp
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmmae.data.raw.dicom_elements import (
    AMOUNTS,
    GROUPS,
    MalformedError,
    agent_of,
    number_of,
    numbers_of,
    text_of,
    words_of,
)
from bmmae.data.raw.dicom_planes import STRUCTURE_KINDS, Plane, misplaced, plane_problems, planes_of
from bmmae.data.raw.extras import require
from bmmae.errors import ImageError

MAGIC = b"DICM"
PREAMBLE = bytes(128) + MAGIC
"""What a DICOM file begins with; its first 128 bytes may be anything."""
SUFFIXES = (".dcm", ".ima")
"""What calls itself DICOM, though it may lack that beginning."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
IMPLICIT_LENGTHS = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Uncompressed transfer syntaxes, whose voxels have a known number of bytes."""
TIMES = {
    "tr": ("RepetitionTime",),
    "te": ("EchoTime", "EffectiveEchoTime"),
    "ti": ("InversionTime", "InversionTimes"),
}
"""Elements that hold them, the likeliest first."""
PERSONAL = ("OtherPatientIDs", "AccessionNumber", "StudyID", "ReferringPhysicianName", "InstitutionName")
READ = (
    *("SeriesInstanceUID", "SOPInstanceUID", "Modality", "SeriesNumber", "ImageType", "BodyPartExamined"),
    *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyTime", *PERSONAL),
    *("SeriesDescription", "ProtocolName", "SequenceName", "ScanningSequence"),
    *(element for elements in TIMES.values() for element in elements),
    *("ContrastBolusAgent", "ContrastBolusAgentSequence", *AMOUNTS, *GROUPS),
    *("ImagePositionPatient", "ImageOrientationPatient", "PlanePositionSequence", "PlaneOrientationSequence"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
)
"""Elements of a header that are looked at: the others, above all a scanner's own, may take a hundred kilobytes a slice,
and an export has hundreds of thousands of slices."""


@dataclass(frozen=True)
class Acquisition:
    """What the headers of one series say about how it was made; None where they are silent.

    Attributes:
        kind: DICOM modality (`MR`, `CT`, `RTSTRUCT`, `SEG` ...).
        description: Series description and protocol name, as the scanner's operator wrote them.
        contrast: Contrast agent, or how much of one was given; `""` if neither is named.
        tr: Repetition time, ms.
        te: Echo time, ms.
        ti: Inversion time, ms.
        scanning: Values of ScanningSequence (`SE`, `GR`, `IR`, `EP`).
        image_type: Values of ImageType.
        body_part: BodyPartExamined.
    """

    kind: str
    description: tuple[str, ...] = ()
    contrast: str = ""
    tr: float | None = None
    te: float | None = None
    ti: float | None = None
    scanning: tuple[str, ...] = ()
    image_type: tuple[str, ...] = ()
    body_part: str = ""


@dataclass(frozen=True)
class Identity:
    """What must never leave this step: who, when, and the identifiers that lead back to them."""

    patient_id: str
    patient_name: str = ""
    birth_date: str = ""
    study_uid: str = ""
    study_date: str = ""
    others: tuple[str, ...] = ()

    @property
    def person(self) -> str:
        """What tells one patient from another, whichever of the identifiers is filled."""
        return self.patient_id or f"{self.patient_name}{self.birth_date}" or self.study_uid

    @property
    def visit(self) -> tuple[str, str]:
        """What tells one visit from another; a StudyInstanceUID alone may be blanked, or one for all patients."""
        return self.person, self.study_uid or self.study_date


@dataclass(frozen=True)
class Scan:
    """What is below a folder.

    Attributes:
        series: The DICOM series.
        unreadable: Files that are DICOM by their first bytes or their name and whose header cannot be read, or names no
            series: slices may be missing.
    """

    series: tuple[Series, ...]
    unreadable: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Attributes:
        uid: SeriesInstanceUID.
        identity: Whose it is.
        number: SeriesNumber, 0 if absent.
        acquisition: How it was made.
        files: In no particular order.
        slices: Different slice positions.
        problems: What is wrong with its files or geometry, a phrase each.
        refused: Those of its problems with which no volume may be made of it: it would look right, and be wrong.
    """

    uid: str
    identity: Identity
    number: int
    acquisition: Acquisition
    files: tuple[Path, ...]
    slices: int = 0
    problems: tuple[str, ...] = field(default=())
    refused: tuple[str, ...] = ()

    @property
    def is_structures(self) -> bool:
        """Whether it holds contours or masks rather than an image."""
        return self.acquisition.kind in STRUCTURE_KINDS


def scan_folder(folder: str | Path) -> Scan:
    """Find the DICOM series below a folder, whatever the files are called; links are followed.

    Raises:
        ImageError: If it is no folder, holds no DICOM file that can be read, or something in it cannot be opened.
        ConfigError: If pydicom is not installed.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ImageError(f"{root} is not a folder: expected one with DICOM files; check the spelling")
    headers: dict[str, list[_File]] = defaultdict(list)
    unreadable: list[Path] = []
    seen = 0
    for path in _files(root):
        seen += 1
        try:
            file = _read_header(path)
        except _UnreadableError:
            unreadable.append(path)
            continue
        if file is not None:
            headers[str(file.header.SeriesInstanceUID)].append(file)
    series: list[Series] = []
    for uid, found in headers.items():
        try:
            series.append(_as_series(uid, found))
        except Exception:  # a parser's own exceptions, which come only when an element is asked for
            unreadable += [file.path for file in found]
    if not series:
        damaged = f", {len(unreadable)} of them DICOM with unreadable headers" if unreadable else ""
        raise ImageError(
            f"{root} holds no DICOM file ({seen} files looked at{damaged}): expected a scanner's or an archive's "
            "export; for NIfTI files use `bmmae index`"
        )
    return Scan(tuple(series), tuple(unreadable))


def _files(root: Path) -> Iterator[Path]:
    """Yield the files below a folder; no folder twice, however it is linked."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _refuse_folder(error: OSError) -> None:
    """Whole series would be missing unnoticed."""
    raise ImageError(
        f"{error.filename} cannot be opened: {error.strerror or error}; check its permissions or take it away"
    ) from error


@dataclass(frozen=True)
class _File:
    """One file's header, and how many bytes follow it."""

    path: Path
    header: Any
    rest: int


class _UnreadableError(Exception):
    """A file that says it is DICOM, and nothing further that can be understood."""


def _read_header(path: Path) -> _File | None:
    """Return the header, or None if this is no DICOM file of a series (a DICOMDIR, a text).

    Raises:
        ImageError: If the file cannot be opened: a slice would be missing unnoticed.
        _UnreadableError: If it is DICOM by its preamble or its name, and its header is damaged.
    """
    pydicom = require("pydicom", "Reading DICOM")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror or error}; mend it or take it away") from error
    with stream:
        is_dicom = stream.read(len(PREAMBLE))[-len(MAGIC) :] == MAGIC or path.suffix.lower() in SUFFIXES
        stream.seek(0)
        try:
            # Archives hold files without the preamble; whatever is no DICOM at all then fails or has no series.
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(READ))
            if header.get("SeriesInstanceUID") and header.get("Modality"):
                return _File(path, header, path.stat().st_size - stream.tell())
            is_directory = header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY
        except Exception as error:  # a parser's own exceptions: whatever it cannot read, it reads as no series
            if is_dicom:
                raise _UnreadableError from error
            return None
    if is_dicom and not is_directory:
        raise _UnreadableError
    return None


def _as_series(uid: str, files: list[_File]) -> Series:
    found = _without_copies(files)
    first = found[0].header
    acquisition, malformed = _acquisition(first)
    planes: list[Plane] = []
    short = unplaced = nowhere = 0
    for file in found:
        try:
            placed = planes_of(file.header)
            planes += placed
            nowhere += not placed and acquisition.kind not in STRUCTURE_KINDS
            short += _is_short(file)
        except MalformedError as error:
            malformed.append(str(error))
            unplaced += 1
    slices, problems = plane_problems(planes)
    people = {_identity(file.header).person for file in found}
    refused = (
        *([f"files of {len(people)} patients in one series"] if len(people) > 1 else []),
        *([f"{nowhere} of {len(found)} files without position and orientation"] if nowhere else []),
        *misplaced(planes),
    )
    if short:
        problems = (f"{short} of {len(found)} files truncated", *problems)
    return Series(
        uid=uid,
        identity=_identity(first),
        number=_series_number(first),
        acquisition=acquisition,
        files=tuple(file.path for file in found),
        slices=slices + unplaced + nowhere,
        problems=(*refused, *dict.fromkeys(malformed), *problems),
        refused=refused,
    )


def _without_copies(found: list[_File]) -> list[_File]:
    """Leave out files that are there before, byte by byte: an export that was copied is still one series."""
    kept: dict[str, list[_File]] = defaultdict(list)
    for file in found:
        alike = kept[str(file.header.get("SOPInstanceUID"))]
        if not any(filecmp.cmp(file.path, other.path, shallow=False) for other in alike):
            alike.append(file)
    return [file for files in kept.values() for file in files]


def _series_number(header: Any) -> int:
    try:
        return int(numbers_of(header, "SeriesNumber", 1)[0])
    except (MalformedError, IndexError):  # it only serves to be shown
        return 0


def _identity(header: Any) -> Identity:
    return Identity(
        patient_id=text_of(header, "PatientID"),
        patient_name=text_of(header, "PatientName"),
        birth_date=text_of(header, "PatientBirthDate"),
        study_uid=text_of(header, "StudyInstanceUID"),
        study_date=text_of(header, "StudyDate") + text_of(header, "StudyTime"),
        others=tuple(text for name in PERSONAL if (text := text_of(header, name))),
    )


def _acquisition(header: Any) -> tuple[Acquisition, list[str]]:
    """Return how a series was made, and which of its numbers cannot be understood, a phrase each."""
    times: dict[str, float | None] = {}
    malformed = []
    for name, elements in TIMES.items():
        try:
            times[name] = number_of(header, *elements)
        except MalformedError as error:
            malformed.append(str(error))
    acquisition = Acquisition(
        kind=text_of(header, "Modality").upper(),
        description=tuple(
            text for name in ("SeriesDescription", "ProtocolName", "SequenceName") if (text := text_of(header, name))
        ),
        contrast=agent_of(header),
        **times,
        scanning=words_of(header, "ScanningSequence"),
        image_type=words_of(header, "ImageType"),
        body_part=text_of(header, "BodyPartExamined").lower(),
    )
    return acquisition, malformed


def _is_short(file: _File) -> bool:
    """Tell whether a file is too short for its voxels, where their number of bytes is known."""
    header = file.header
    meta = getattr(header, "file_meta", None)
    if not header.get("Rows") or str((meta or {}).get("TransferSyntaxUID", "")) not in IMPLICIT_LENGTHS:
        return False
    names = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    voxels = math.prod(int(number) for name in names for number in numbers_of(header, name, 1))
    bits = numbers_of(header, "BitsAllocated", 1) or [16]
    return file.rest < voxels * int(bits[0]) // 8

"""Read the headers of a folder of DICOM files and gather them into series; no voxel is decoded."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bmmae.arrays import Float
from bmmae.data.contrast import names_agent
from bmmae.data.raw.extras import require
from bmmae.errors import ImageError

GAP_TOLERANCE = 0.2
"""Slices whose distance differs from the usual one by more than this share leave a gap."""

PARALLEL = 0.999
"""Slices whose normals' product is less, at about 2.5 degrees, are not of one volume."""

STRUCTURE_KINDS = ("RTSTRUCT", "SEG")
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
DECIMAL_COMMA = re.compile(r",(?=\d{1,2}$)")
"""Before three digits a comma may part thousands."""


@dataclass(frozen=True)
class Acquisition:
    """What the headers of one series say about how it was made; None where they are silent.

    Attributes:
        kind: DICOM modality (`MR`, `CT`, `RTSTRUCT`, `SEG` ...).
        description: Series description and protocol name, as the scanner's operator wrote them.
        contrast: Contrast agent, `""` if none is named.
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
    """

    uid: str
    identity: Identity
    number: int
    acquisition: Acquisition
    files: tuple[Path, ...]
    slices: int = 0
    problems: tuple[str, ...] = field(default=())

    @property
    def is_structures(self) -> bool:
        """Whether it holds contours or masks rather than an image."""
        return self.acquisition.kind in STRUCTURE_KINDS


def scan_folder(folder: str | Path) -> Scan:
    """Find the DICOM series below a folder, whatever the files are called.

    Raises:
        ImageError: If it is no folder, holds no DICOM file that can be read, or a file of it cannot be opened.
        ConfigError: If pydicom is not installed.
    """
    root = Path(folder)
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
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


@dataclass(frozen=True)
class _File:
    """One file's header, and how many bytes follow it."""

    path: Path
    header: Any
    rest: int


class _UnreadableError(Exception):
    """A file that says it is DICOM, and nothing further that can be understood."""


class _MalformedError(Exception):
    """An element that does not hold the numbers which it should."""


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
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
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


def _as_series(uid: str, found: list[_File]) -> Series:
    first = found[0].header
    acquisition, malformed = _acquisition(first)
    planes: list[_Plane] = []
    short = unplaced = 0
    for file in found:
        try:
            planes += _planes(file.header)
            short += _is_short(file)
        except _MalformedError as error:
            malformed.append(str(error))
            unplaced += 1
    slices, problems = _plane_problems(planes)
    if short:
        problems = (f"{short} of {len(found)} files truncated", *problems)
    return Series(
        uid=uid,
        identity=_identity(first),
        number=_series_number(first),
        acquisition=acquisition,
        files=tuple(file.path for file in found),
        slices=slices + unplaced,
        problems=(*dict.fromkeys(malformed), *problems),
    )


def _series_number(header: Any) -> int:
    try:
        return int(_numbers(header, "SeriesNumber", 1)[0])
    except (_MalformedError, IndexError):  # it only serves to be shown
        return 0


def _identity(header: Any) -> Identity:
    others = ("OtherPatientIDs", "AccessionNumber", "StudyID", "ReferringPhysicianName", "InstitutionName")
    return Identity(
        patient_id=_text(header, "PatientID"),
        patient_name=_text(header, "PatientName"),
        birth_date=_text(header, "PatientBirthDate"),
        study_uid=_text(header, "StudyInstanceUID"),
        study_date=_text(header, "StudyDate") + _text(header, "StudyTime"),
        others=tuple(text for name in others if (text := _text(header, name))),
    )


def _acquisition(header: Any) -> tuple[Acquisition, list[str]]:
    """Return how a series was made, and which of its numbers cannot be understood, a phrase each."""
    times: dict[str, float | None] = {}
    malformed = []
    for name, elements in TIMES.items():
        try:
            times[name] = _number(header, *elements)
        except _MalformedError as error:
            malformed.append(str(error))
    agent = _text(header, "ContrastBolusAgent")
    acquisition = Acquisition(
        kind=_text(header, "Modality").upper(),
        description=tuple(
            text for name in ("SeriesDescription", "ProtocolName", "SequenceName") if (text := _text(header, name))
        ),
        contrast=agent if names_agent(agent) else "",
        **times,
        scanning=_words(header, "ScanningSequence"),
        image_type=_words(header, "ImageType"),
        body_part=_text(header, "BodyPartExamined").lower(),
    )
    return acquisition, malformed


def _text(header: Any, name: str) -> str:
    return str(header.get(name) or "").strip()


def _words(header: Any, name: str) -> tuple[str, ...]:
    value = header.get(name) or ()
    return (value.upper(),) if isinstance(value, str) else tuple(str(word).upper() for word in value)


def _number(header: Any, *names: str) -> float | None:
    """Return the first of these elements that is filled; enhanced files keep them in shared functional groups."""
    groups = [
        header,
        *(item for group in header.get("SharedFunctionalGroupsSequence") or () for item in _nested(group)),
    ]
    for group in groups:
        for name in names:
            if numbers := _numbers(group, name):
                return numbers[0]
    return None


def _numbers(group: Any, name: str, count: int | None = None) -> list[float]:
    """Return the numbers of an element, none where it is not filled.

    Raises:
        _MalformedError: If it holds something else, or not so many of them.
    """
    try:
        value = group.get(name)
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        numbers = [float(DECIMAL_COMMA.sub(".", str(item))) for item in values if item not in (None, "")]
    except Exception as error:  # a parser's own exceptions: whatever it cannot read is no number
        raise _MalformedError(f"{name} is no number") from error
    if not all(map(math.isfinite, numbers)):
        raise _MalformedError(f"{name} is no number")
    if numbers and count and len(numbers) != count:
        raise _MalformedError(f"{name} holds {len(numbers)} numbers: expected {count}")
    return numbers


def _nested(group: Any) -> Iterator[Any]:
    for element in group:
        if element.VR == "SQ":
            yield from element.value


@dataclass(frozen=True)
class _Plane:
    """Where a slice lies: along its own normal, mm."""

    normal: Float[np.ndarray, " 3"]
    place: float


def _planes(header: Any) -> list[_Plane]:
    """Return where each slice lies; one for each frame of a multi-frame file."""
    if header.get("Modality") in STRUCTURE_KINDS:
        return []
    frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
    shared = header.get("SharedFunctionalGroupsSequence") or [header]
    found = []
    for frame in frames:
        position = _numbers(_within(frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
        planes = (_within(group, "PlaneOrientationSequence") for group in (frame, shared[0]))
        orientation = next((o for plane in planes if (o := _numbers(plane, "ImageOrientationPatient", 6))), None)
        if position and orientation:
            normal = np.cross(*np.asarray(orientation).reshape(2, 3))
            found.append(_Plane(normal, float(normal @ np.asarray(position))))
    return found


def _within(group: Any, sequence: str) -> Any:
    items = group.get(sequence)
    return items[0] if items else group


def _plane_problems(planes: list[_Plane]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with where they lie."""
    turned = [plane for plane in planes if plane.normal @ planes[0].normal < PARALLEL]
    if not turned:
        return _spacing_problems([plane.place for plane in planes])
    return len(planes), (f"{len(turned)} of {len(planes)} slices in another orientation than the first",)


def _spacing_problems(positions: list[float]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with their spacing."""
    places = sorted({round(place, 2) for place in positions})
    problems: list[str] = []
    if len(places) > 1 and len(positions) != len(places):
        volumes = len(positions) / len(places)
        problems.append(
            f"{volumes:g} volumes in one series"
            if volumes.is_integer()
            else "slices repeated or missing in one of several volumes"
        )
    gaps = np.diff(places)
    if len(gaps) > 1:
        usual = float(np.median(gaps))
        missing = int(np.rint(gaps / usual - 1).clip(min=0).sum())
        if missing:
            problems.append(f"{missing} of {len(places) + missing} slices missing")
        elif np.any(np.abs(gaps - usual) > GAP_TOLERANCE * usual):
            problems.append(f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart")
    return len(places), tuple(problems)


def _is_short(file: _File) -> bool:
    """Tell whether a file is too short for its voxels, where their number of bytes is known."""
    header = file.header
    meta = getattr(header, "file_meta", None)
    if not header.get("Rows") or str((meta or {}).get("TransferSyntaxUID", "")) not in IMPLICIT_LENGTHS:
        return False
    names = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    voxels = math.prod(int(number) for name in names for number in _numbers(header, name, 1))
    bits = _numbers(header, "BitsAllocated", 1) or [16]
    return file.rest < voxels * int(bits[0]) // 8

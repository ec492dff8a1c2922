"""The cohort table: one row a study, read as text so that no identifier is ever changed.

Columns: `subject` (required), `session`, `group` (the patient; default: the subject), one column of paths a
modality, `seg`, `lesion_probability`, `brain_mask`, `brain_mask_<modality>`, `split`, `time` (months), `event` (1 =
died). Any other column is kept in `Study.values`, paths of modalities that were not asked for as absolute ones. Paths
are relative to the table's folder, or addresses that fsspec can read (`https://`, `s3://` ...); a blank cell means
absent.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bmmae import modalities as table
from bmmae.data.location import File, as_seen_from, locate
from bmmae.data.naming import named_modalities
from bmmae.data.reading import content_hash, is_nifti
from bmmae.data.tables import Cell, is_blank, is_numeric, read_numbered_rows, write_rows
from bmmae.errors import CohortError, few

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}
MASK_PREFIX = "brain_mask_"
LESION = "lesion_probability"
SYNTHETIC = "synthetic"
"""The column that lists which of a study's images are: `bmmae reconstruct --cohort` writes `t1ce+t2`."""
RESERVED = ("subject", "session", "group", "seg", LESION, "brain_mask", "split", "time", "event")

FILE_NAME = re.compile(r"\.[A-Za-z]\w*$")
"""A cell that ends like this names a file: a column called adc may hold numbers or words instead."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Study:
    """One patient's visit.

    Files may be given as texts: paths, which may begin with `~/`, or addresses.

    Attributes:
        subject: Identifier; with `session` the key of the table.
        images: Modality to file, in table order; never empty.
        session: Identifier of the visit, `""` where there is only one.
        group: The patient, whose studies must stay in one split; by default the subject.
        seg: Segmentation file.
        lesion: File of the chance that a voxel is lesion, 0 to 1 (`bmmae segment --probabilities` writes one).
        brain_mask: One brain mask for all modalities.
        brain_masks: Modality to its own brain mask.
        split: `train`, `validation`, `test` or None.
        time: Follow-up in months, or whatever unit the table states.
        event: True if the event (death) was observed at `time`, False if censored.
        values: The other columns; numbers where every cell of the column is one, None where blank.
    """

    subject: str
    images: Mapping[str, File]
    session: str = ""
    group: str = ""
    seg: File | None = None
    lesion: File | None = None
    brain_mask: File | None = None
    brain_masks: Mapping[str, File] = field(default_factory=dict)
    split: str | None = None
    time: float | None = None
    event: bool | None = None
    values: Mapping[str, str | float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.subject)
        for role in ("seg", "lesion", "brain_mask"):
            if (file := getattr(self, role)) is not None:
                object.__setattr__(self, role, locate(file))
        for role in ("images", "brain_masks"):
            object.__setattr__(self, role, {name: locate(file) for name, file in getattr(self, role).items()})

    @property
    def key(self) -> tuple[str, str]:
        """Subject and session."""
        return self.subject, self.session

    @property
    def name(self) -> str:
        """A file name for this study's outputs: subject and session, safe on every file system."""
        joined = f"{self.subject}_{self.session}" if self.session else self.subject
        return re.sub(r"[^\w.-]+", "-", joined).lstrip(".")

    @property
    def synthesised(self) -> tuple[str, ...]:
        """The modalities that no scanner has taken, as the column `synthetic` says."""
        cell = self.values.get(SYNTHETIC)
        return tuple(name for name in re.split(r"[+\s]+", cell) if name) if isinstance(cell, str) else ()

    def brain_mask_of(self, modality: str) -> File | None:
        """Return the brain mask of one modality: its own, else the study's, else None."""
        return self.brain_masks.get(modality, self.brain_mask)

    def files(self) -> tuple[File, ...]:
        """Return every file of the study: images, segmentation, lesion map, brain masks."""
        return tuple(self.by_role().values())

    def by_role(self) -> dict[str, File]:
        """Return the same files by what they are: a modality, `seg`, `brain_mask`, `brain_mask_t1` ..."""
        others = {"seg": self.seg, LESION: self.lesion, "brain_mask": self.brain_mask}
        masks = {MASK_PREFIX + name: mask for name, mask in self.brain_masks.items()}
        return {**self.images, **{role: file for role, file in others.items() if file is not None}, **masks}


@dataclass(frozen=True)
class Cohort:
    """A table of studies that contradicts itself nowhere.

    Attributes:
        studies: In the order of the table.
        modalities: Those asked for, in table order, whether or not any study has them.
        path: The table it was read from, if any.
        bare: Rows without any image, apart from the studies; only where a reader asked to see them.

    Raises:
        CohortError: If it is empty, a key or output name occurs twice, a study has no modality, or a patient is
            in two splits.
    """

    studies: tuple[Study, ...]
    modalities: tuple[str, ...] = table.STANDARD
    path: Path | None = None
    bare: tuple[Study, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "studies", tuple(self.studies))
        where = self.path or "the cohort"
        if not self.studies and not self.bare:
            raise CohortError(f"{where} has no studies: expected at least one row below the header")
        _refuse_duplicates(self.studies + self.bare, where)
        _refuse_imageless(self.studies, self.modalities, where)
        _refuse_leaks(self.studies, where)

    def __len__(self) -> int:
        return len(self.studies)

    def __iter__(self) -> Iterator[Study]:
        return iter(self.studies)

    def __getitem__(self, index: int) -> Study:
        return self.studies[index]

    def subset(self, split: str) -> Cohort:
        """Return the studies of one split.

        Raises:
            CohortError: If the split is unknown or no study is in it.
        """
        wanted = _split(split, f"subset of {self.path or 'the cohort'}")
        chosen = tuple(study for study in self.studies if study.split == wanted)
        if not chosen:
            counts = Counter(study.split or "blank" for study in self.studies)
            raise CohortError(
                f"{self.path or 'the cohort'} has no study in split '{wanted}': its `split` column holds "
                + ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
            )
        return Cohort(chosen, self.modalities, self.path)

    def content_hash(self, workers: int = 2) -> str:
        """Return a sha256 of modalities and voxels, blind to identifiers, paths and row order; reads every image.

        Raises:
            ImageError: If an image cannot be read.
        """
        with ThreadPoolExecutor(workers) as pool:
            digests = sorted(pool.map(study_hash, self.studies))
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def write(self, path: str | Path) -> Path:
        """Write the table (.csv, .tsv, .parquet) with paths relative to its folder where the system allows it.

        Raises:
            OutputError: If it cannot be written.
        """
        path = Path(path).expanduser()
        rows = [_as_row(study, path.parent) for study in self.studies]
        used = dict.fromkeys(name for row in rows for name, cell in row.items() if cell not in (None, ""))
        images = (*self.modalities, "seg", LESION, "brain_mask", *(MASK_PREFIX + name for name in self.modalities))
        first = [name for name in ("subject", "session", "group", *images, "split", "time", "event") if name in used]
        write_rows(path, rows, [*first, *(name for name in used if name not in first)])
        return path


def study_hash(study: Study) -> str:
    """Return the sha256 of a study's modalities and voxels, in table order.

    Raises:
        ImageError: If an image cannot be read.
    """
    digest = hashlib.sha256()
    for name in table.in_table_order(study.images):
        digest.update(f"{name}:{content_hash(study.images[name])};".encode())
    return digest.hexdigest()


def read_cohort(
    path: str | Path, modalities: Sequence[str] = table.STANDARD, *, set_bare_apart: bool = False
) -> Cohort:
    """Read a cohort table. Files are not opened; `bmmae check` does that.

    Args:
        path: A .csv (comma, semicolon or tab), .tsv or .parquet file.
        modalities: Which columns are images, in any order, aliases included; other columns are kept as values.
        set_bare_apart: Keep rows without any image in `Cohort.bare`; by default they are refused.

    Raises:
        CohortError: If the table cannot be read or contradicts itself.
        ModalityError: If `modalities` repeats a name or holds an unusable one.
    """
    path = Path(path).expanduser()
    names = named_modalities(modalities)
    numbered = read_numbered_rows(path)
    rows = [row for _, row in numbered]
    if not rows:
        raise CohortError(f"{path} has no rows: expected one row a study below the header")
    columns = _named_columns(path, rows[0], names)
    numeric = {name for name in rows[0] if name not in columns and is_numeric(row[name] for row in rows)}
    studies = tuple(
        _as_study({columns.get(name, name): cell for name, cell in row.items()}, names, numeric, path, line)
        for line, row in numbered
    )
    bare = tuple(study for study in studies if set_bare_apart and not study.images)
    return Cohort(tuple(study for study in studies if study.images or not set_bare_apart), names, path, bare)


def _named_columns(path: Path, columns: Iterable[str], modalities: tuple[str, ...]) -> dict[str, str]:
    """Map the columns that mean something here to their canonical names."""
    found: dict[str, str] = {}
    for column in columns:
        name = _canonical_column(column, modalities)
        if name is None:
            continue
        twin = next((other for other, taken in found.items() if taken == name), None)
        if twin is not None:
            raise CohortError(f"{path}: columns '{twin}' and '{column}' both mean '{name}'; delete or rename one")
        found[column] = name
    listed = ", ".join(columns)
    if "subject" not in found.values():
        raise CohortError(f"{path} has no 'subject' column: expected one identifier a patient, got columns {listed}")
    if not set(modalities) & set(found.values()):
        raise CohortError(
            f"{path} has no image column: expected at least one of {', '.join(modalities)}, got columns {listed}; "
            "rename one, or name other modalities (--modalities of commands, model.modalities of a pretraining)"
        )
    return found


def _canonical_column(column: str, modalities: tuple[str, ...]) -> str | None:
    plain = column.strip().lower()
    if plain in RESERVED:
        return plain
    prefix, stem = (MASK_PREFIX, plain[len(MASK_PREFIX) :]) if plain.startswith(MASK_PREFIX) else ("", plain)
    name = stem if stem in modalities else table.find(stem)
    return prefix + name if name in modalities else None


def _as_study(row: Row, modalities: tuple[str, ...], numeric: set[str], path: Path, line: int) -> Study:
    where = f"{path}, line {line}"
    masks = {name: MASK_PREFIX + name for name in modalities}
    paths = ("seg", LESION, "brain_mask", *modalities, *masks.values())
    if not row["subject"]:
        raise CohortError(f"{where}: the subject is blank; expected an identifier")
    file = {name: locate(row[name], path.parent) for name in paths if not is_blank(row.get(name, ""))}
    return Study(
        subject=row["subject"],
        session="" if is_blank(row.get("session", "")) else row["session"],
        group="" if is_blank(row.get("group", "")) else row["group"],
        images={name: file[name] for name in modalities if name in file},
        seg=file.get("seg"),
        lesion=file.get(LESION),
        brain_mask=file.get("brain_mask"),
        brain_masks={name: file[mask] for name, mask in masks.items() if mask in file},
        split=_split(row.get("split", ""), where),
        time=_time(row.get("time", ""), where),
        event=_event(row.get("event", ""), where),
        values={
            name: _absolute(cell, path.parent) if _is_image(name, cell, path.parent) else _value(cell, name in numeric)
            for name, cell in row.items()
            if name not in {*RESERVED, *paths}
        },
    )


def _value(cell: str, numeric: bool) -> str | float | None:
    if is_blank(cell):
        return None
    return float(cell) if numeric else cell


def _is_image(column: str, cell: Cell, folder: Path | None = None) -> bool:
    """Tell whether a column that was not asked for names an image, or the brain mask of one.

    Modalities may have names of the user's own, which only a file that is there tells from other words.
    """
    stem = column.strip().lower().removeprefix(MASK_PREFIX)
    if not isinstance(cell, str) or not FILE_NAME.search(cell):
        return False
    if table.find(stem) is not None:
        return True
    file = locate(cell, folder)
    return isinstance(file, Path) and is_nifti(file) and os.path.isfile(file)  # its folder may be locked


def _absolute(cell: str, folder: Path) -> str:
    file = locate(cell, folder)
    return str(file.absolute()) if isinstance(file, Path) else file.url


def _split(cell: str, where: str) -> str | None:
    if is_blank(cell):
        return None
    name = SPLIT_ALIASES.get(cell.lower(), cell.lower())
    if name not in SPLITS:
        raise CohortError(f"{where}: unknown split '{cell}'; expected {', '.join(SPLITS)} or a blank cell")
    return name


def _time(cell: str, where: str) -> float | None:
    if is_blank(cell):
        return None
    try:
        time = float(cell)
    except ValueError:
        time = -1.0
    if not 0 <= time < float("inf"):
        comma = " with a decimal point" if "," in cell else ""
        raise CohortError(f"{where}: time is '{cell}'; expected a number of months{comma}, zero or more")
    return time


def _event(cell: str, where: str) -> bool | None:
    if is_blank(cell):
        return None
    known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    if cell.lower() not in known:
        raise CohortError(f"{where}: event is '{cell}'; expected 1 (died) or 0 (censored)")
    return known[cell.lower()]


def _refuse_duplicates(studies: tuple[Study, ...], where: object) -> None:
    repeated = [key for key, count in Counter(study.key for study in studies).items() if count > 1]
    if repeated:
        raise CohortError(
            f"{where} lists {few(' '.join(key).strip() for key in repeated)} more than once: expected one row for "
            "each subject and session; tell visits apart in a `session` column"
        )
    names = [name for name, count in Counter(study.name for study in studies).items() if count > 1]
    if names:
        raise CohortError(f"{where}: several studies would be written as {few(names)}; rename subjects or sessions")


def _refuse_imageless(studies: tuple[Study, ...], modalities: tuple[str, ...], where: object) -> None:
    bare = [study.name for study in studies if not study.images]
    if bare:
        raise CohortError(
            f"{where}: {few(bare)} without any of the modalities {', '.join(modalities)}; fill in a path, delete the "
            "row, or name other modalities (--modalities of commands, model.modalities of a pretraining)"
        )


def _refuse_leaks(studies: tuple[Study, ...], where: object) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        splits[study.group] |= {study.split} if study.split else set()
    leaking = [f"{group} ({' and '.join(sorted(names))})" for group, names in splits.items() if len(names) > 1]
    if leaking:
        raise CohortError(
            f"{where} puts {few(leaking)} into more than one split: expected all studies of a patient in one; "
            "correct the `split` column, or the `group` column if these are different patients"
        )


def _as_row(study: Study, folder: Path) -> dict[str, Cell]:
    """One row; a group that is the subject is left out."""
    masks = {MASK_PREFIX + name: path for name, path in study.brain_masks.items()}
    files = {**study.images, "seg": study.seg, LESION: study.lesion, "brain_mask": study.brain_mask, **masks}
    return {
        "subject": study.subject,
        "session": study.session,
        "group": "" if study.group == study.subject else study.group,
        **{name: as_seen_from(folder, path) for name, path in files.items() if path is not None},
        "split": study.split,
        "time": study.time,
        "event": None if study.event is None else int(study.event),
        **{
            name: as_seen_from(folder, locate(str(cell))) if _is_image(name, cell) else cell
            for name, cell in study.values.items()
        },
    }

"""DICOM folders to a cohort of NIfTI files: find, propose, and once the user agrees, convert."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bmmae.arrays import Array, Float
from bmmae.data.cohort import Cohort, Study
from bmmae.data.raw.conversion import convert_series
from bmmae.data.raw.dicom_files import Identity, Series, scan_folder
from bmmae.data.raw.extras import dcm2niix_program
from bmmae.data.raw.privacy import Pseudonym, pseudonyms, read_mapping, series_key
from bmmae.data.raw.series_table import STRUCTURES, Row, propose
from bmmae.data.raw.structures import Choice, choose, draw_labels, read_structures, unmatched
from bmmae.data.replacing import refuse_losing_columns
from bmmae.data.writing import write_image
from bmmae.errors import BmmaeError, CohortError, LabelError, few
from bmmae.modalities import STANDARD, in_table_order
from bmmae.patches import Triple

DESCRIPTION = "bmmae import-dicom"
Grid = tuple[Triple, Float[Array, "4 4"]]


@dataclass(frozen=True)
class Found:
    """What is in a folder: series, the numbers that stand for patients and visits, and the proposed table.

    Attributes:
        series: All of them.
        names: `Identity.visit` to the numbers that stand for patient and visit.
        rows: The proposed table.
        unreadable: DICOM files whose header cannot be read; slices of a series may be missing.
    """

    series: tuple[Series, ...]
    names: dict[tuple[str, str], Pseudonym]
    rows: tuple[Row, ...]
    unreadable: tuple[Path, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What a reader of the table should know, a sentence each."""
        if not self.unreadable:
            return ()
        listed = ", ".join(map(str, self.unreadable[:3])) + (", ..." if len(self.unreadable) > 3 else "")
        return (f"{len(self.unreadable)} DICOM files whose header cannot be read; slices may be missing: {listed}",)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Patients who may be several, and several who may be one, a sentence each."""
        births: dict[str, set[str]] = defaultdict(set)
        alike: dict[tuple[str, str], set[str]] = defaultdict(set)
        shared: dict[str, set[str]] = defaultdict(set)
        for item in self.series:
            subject, identity = self.names[item.identity.visit].subject, item.identity
            births[subject] |= {identity.birth_date} - {""}
            if identity.patient_name and identity.birth_date:
                alike[identity.patient_name.casefold(), identity.birth_date].add(subject)
            if identity.study_uid:
                shared[identity.study_uid].add(subject)
        several = (
            f"{subject} has {len(dates)} dates of birth: if several patients share one identifier, import each from a "
            "folder of its own"
            for subject, dates in sorted(births.items())
            if len(dates) > 1
        )
        one = (
            f"{few(sorted(subjects), quote='')} have the same name and date of birth: if they are one patient, give "
            "them one `group` in cohort.csv"
            for subjects in alike.values()
            if len(subjects) > 1
        )
        visit = (
            f"{few(sorted(subjects), quote='')} share a StudyInstanceUID: if it is one visit of one patient, give all "
            "its files the same PatientID"
            for subjects in shared.values()
            if len(subjects) > 1
        )
        return (*several, *one, *visit)


@dataclass(frozen=True)
class Imported:
    """The cohort written, and what was left out and why, a sentence each."""

    table: Path
    cohort: Cohort
    problems: tuple[str, ...]


def find_series(folder: str | Path, wanted: Sequence[str] = STANDARD, mapping: str | Path | None = None) -> Found:
    """Read all headers below a folder and propose what each series is.

    Args:
        folder: A scanner's or an archive's export.
        wanted: Modalities to take.
        mapping: An earlier mapping file; the visits in it keep their numbers.

    Raises:
        ImageError: If there is no DICOM file.
        CohortError: If the mapping file is no table.
        ConfigError: If pydicom is not installed.
    """
    scan = scan_folder(folder)
    series = _with_images(scan.series)
    names = pseudonyms(series, read_mapping(mapping) if mapping else ())
    return Found(series, names, propose(series, names, wanted), scan.unreadable)


def _with_images(series: Sequence[Series]) -> tuple[Series, ...]:
    """Put structures whose study holds no MR into the patient's visit that holds the series they refer to."""
    images = {item.uid: item.identity for item in series if not item.is_structures}
    visits = {item.identity.visit for item in series if item.acquisition.kind == "MR"}
    return tuple(
        _moved(item, images) if item.is_structures and item.identity.visit not in visits else item for item in series
    )


def _moved(item: Series, images: Mapping[str, Identity]) -> Series:
    own = item.identity
    try:
        references = read_structures(item).references
    except BmmaeError:  # told when it is converted
        return item
    homes = {images[uid].visit: images[uid] for uid in references if uid in images}
    if len(homes) != 1 or (home := homes.popitem()[1]).person != own.person:
        return item
    # Its own date and number must still not get out.
    others = (*own.others, own.study_uid, own.study_date)
    return replace(item, identity=replace(own, study_uid=home.study_uid, study_date=home.study_date, others=others))


def import_series(
    found: Found,
    rows: Iterable[Row],
    out: str | Path,
    *,
    structures: Sequence[Choice] = (),
    wanted: Sequence[str] = STANDARD,
    progress: bool = True,
) -> Imported:
    """Convert the series to which the table gives a modality, and write `cohort.csv` beside them.

    Args:
        found: The folder's series.
        rows: The table, as proposed or edited.
        out: Folder of the cohort.
        structures: Which contours to keep where there are several.
        wanted: Modalities of the cohort.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: If dcm2niix is not installed.
        CohortError: If nothing could be converted.
        OutputError: If the cohort cannot be written, or someone added columns to the one that is there.
    """
    from tqdm import tqdm

    dcm2niix_program()
    out = Path(out).expanduser()
    by_key = {series_key(item): item for item in found.series}
    visits: dict[Pseudonym, list[Row]] = {}
    for row in rows:
        if row.modality:
            visits.setdefault(row.name, []).append(row)
    table = out / "cohort.csv"
    chosen_columns = {row.modality for chosen in visits.values() for row in chosen}
    refuse_losing_columns(table, {"subject", "session", *wanted, *chosen_columns})
    studies: list[Study] = []
    problems = list(found.problems)
    for name, chosen in tqdm(visits.items(), desc="import", unit="visit", disable=not progress, leave=False):
        visit = _Visit(name, out, problems)
        study = visit.convert({row.modality: by_key[row.key] for row in chosen}, structures)
        studies += [study] if study else []
    if not studies:
        listed = "; ".join(problems) or "the table gives no series a modality"
        raise CohortError(
            f"nothing was imported: {listed}; fill in the table's `modality` column, pass it with --table"
        )
    cohort = Cohort(tuple(studies), in_table_order(wanted))
    return Imported(cohort.write(table), cohort, tuple(problems))


@dataclass(frozen=True)
class _Visit:
    """One patient's visit on its way to files; what goes wrong is added to `problems`."""

    name: Pseudonym
    out: Path
    problems: list[str]

    @property
    def folder(self) -> Path:
        return self.out / self.name.subject / self.name.session

    def convert(self, series: dict[str, Series], structures: Sequence[Choice]) -> Study | None:
        """Write the images and the segmentation; None if no image could be converted."""
        if set(series) == {STRUCTURES}:
            alone = "its visit has no image: give the series that it refers to a modality in the table, or leave it out"
            self._report(STRUCTURES, CohortError(alone))
        images: dict[str, Path] = {}
        grids: dict[str, Grid] = {}
        for modality in in_table_order(name for name in series if name != STRUCTURES):
            try:
                array, affine = convert_series(series[modality])
                path = write_image(self.folder / f"{modality}.nii.gz", array, affine, description=DESCRIPTION)
            except BmmaeError as error:
                self._report(modality, error)
                continue
            images[modality] = path
            grids[series[modality].uid] = ((array.shape[0], array.shape[1], array.shape[2]), affine)
        if not images:
            return None
        seg = self._segmentation(series[STRUCTURES], grids, structures) if STRUCTURES in series else None
        return Study(subject=self.name.subject, session=self.name.session, images=images, seg=seg)

    def _segmentation(self, series: Series, grids: dict[str, Grid], choices: Sequence[Choice]) -> Path | None:
        try:
            found = read_structures(series)
            referenced = [grids[uid] for uid in found.references if uid in grids]
            if len(referenced) != 1:
                raise CohortError(
                    f"its contours refer to {len(found.references)} series, {len(referenced)} of which were imported: "
                    "expected one; give that series a modality in the table"
                )
            labels = draw_labels(choose(found.structures, choices), *referenced[0])
            lacking = unmatched(found.structures, choices)
            if lacking:
                named = few(structure.name for structure in found.structures)
                self._report(STRUCTURES, LabelError(f"no structure is called {few(lacking)}: there are {named}"))
            return write_image(self.folder / "seg.nii.gz", labels, referenced[0][1], description=DESCRIPTION)
        except BmmaeError as error:
            self._report(STRUCTURES, error)
            return None

    def _report(self, what: str, error: BmmaeError) -> None:
        self.problems.append(f"{self.name.subject} {self.name.session}, {what}: {error}")

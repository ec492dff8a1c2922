"""Find the studies in a folder from file names: BraTS 2017 to 2024, BIDS, and one folder a patient.

Nothing is guessed. Two files that claim the same place in a study leave it blank, and every file that was left out is
listed with the reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bmmae import modalities as table
from bmmae.data.cohort import Cohort, Study
from bmmae.data.contrast import contrast_of, names_agent
from bmmae.data.naming import NAMELESS, Role, find_modality, named_modalities, role_of
from bmmae.data.problems import counted, in_short
from bmmae.data.reading import is_synthetic
from bmmae.data.visits import is_visit, patient_of, without_series
from bmmae.errors import CohortError

LAYOUTS = """BraTS 2017-2021   Brats18_X/Brats18_X_flair.nii.gz, Brats18_X_t1ce.nii.gz, Brats18_X_seg.nii.gz
BraTS 2023-2024   BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz
BIDS              sub-01/ses-1/anat/sub-01_ses-1_ce-GADOLINIUM_T1w.nii.gz
patient folders   patient01/t1.nii.gz, patient01/T1_post.nii.gz, patient01/mask.nii.gz
DICOM             first `bmmae import-dicom`, which writes a cohort table of its own"""

BRATS = re.compile(r"(BraTS(?:-[A-Z]+)+-\d{4,5})-(\d{1,3})(?=[-_.])", re.IGNORECASE)
BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?_")
T1C = re.compile(r"(t1-?)?c", re.IGNORECASE)
"""Beside what contrast is called anywhere, a value of `acq-` and `rec-` that some sites write in place of `ce-`."""
SCANS = frozenset(
    ("", "s", "se", "ser", "series", "scan", "run", "acq", "e", "echo", "im", "img", "image", "rep", "v", "vol")
)
"""What stands before the number of a scan rather than of a patient."""
CONTAINERS = frozenset(("anat", "nifti", "nii", "mri", "mr", "images", "scans"))
ENDINGS = (".nii", ".nii.gz")
OTHER_ENDINGS = (".nrrd", ".mha", ".mhd", ".mgz", ".mgh", ".hdr")
"""Other formats of images, segmentations above all, which are told and not looked into."""
DIFFERENT = "if they are different patients, fill in the table's `group` column"


@dataclass(frozen=True)
class Problem:
    """One file that did not make it into the table, or that needs a look.

    Attributes:
        path: The file or folder.
        reason: Why.
        advice: What to do about it.
    """

    path: Path
    reason: str
    advice: str

    @property
    def told(self) -> str:
        """Both in one sentence."""
        return f"{self.reason}; {self.advice}"

    def __str__(self) -> str:
        return f"{self.path}: {self.told}"


@dataclass(frozen=True)
class IndexReport:
    """What was found, and what was left out and why."""

    cohort: Cohort
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _File:
    """A file whose name says what it is; `place` are the folders that tell its study."""

    path: Path
    role: Role
    place: tuple[str, ...]
    subject: str = ""
    session: str = ""


@dataclass(frozen=True)
class _Group:
    """The files of one study; `parent` are the folders above the one that names it."""

    parent: tuple[str, ...]
    subject: str
    session: str
    files: tuple[_File, ...]
    patient: str = ""

    @property
    def modalities(self) -> set[str]:
        """Of its images."""
        return {file.role.modality for file in self.files if file.role.kind == "image" and file.role.modality}

    @property
    def may_be_visit(self) -> bool:
        """Only a folder's name tells what it is, and its files do not repeat that name, as a patient's would."""
        told = any(file.subject or _begins_with(file.path.name, self.subject) for file in self.files)
        return bool(self.parent) and not self.session and not told


def index_folder(folder: str | Path, modalities: Sequence[str] = table.STANDARD) -> IndexReport:
    """Find all studies below a folder, whatever mixture of layouts it holds.

    Files are not opened, but for the headers of images named as `bmmae reconstruct` names its own (`t2.nii.gz`).

    Args:
        folder: From one study's folder to the parent of several data sets.
        modalities: Those wanted; others are reported and left out.

    Raises:
        CohortError: If the folder does not exist or holds no study in a known layout.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise CohortError(f"{root} is not a folder: expected one that holds NIfTI files; check the spelling")
    names = named_modalities(modalities)
    problems: list[Problem] = []
    files: list[_File] = []
    for path, parts in _walk(root, problems):
        file = _identify(path, parts, names)
        if isinstance(file, Problem):
            problems.append(file)
        else:
            files.append(file)
    groups = _named(_grouped(files, root, problems), root, problems)
    studies = [study for group in groups if (study := _as_study(group, problems)) is not None]
    if not studies:
        raise CohortError(_nothing_found(root, names, problems))
    studies.sort(key=lambda study: study.key)
    return IndexReport(Cohort(tuple(studies), names), tuple(sorted(problems, key=lambda problem: str(problem.path))))


def _walk(root: Path, problems: list[Problem]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each NIfTI file with the folders between it and the root; no folder twice, however it is linked."""
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    while waiting:
        folder, parts = waiting.pop()
        try:
            status = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(Problem(Path(folder), f"cannot be opened ({error.strerror})", "check its permissions"))
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _may_be_folder(entry):
                # Links come last, so that a folder goes by its own name.
                waiting.insert(0 if entry.is_symlink() else len(waiting), (entry.path, (*parts, entry.name)))
            elif entry.name.lower().endswith(ENDINGS):
                yield Path(entry.path), parts
            elif entry.name.lower().endswith(OTHER_ENDINGS):
                problems.append(Problem(Path(entry.path), "is no NIfTI file", "convert it to .nii.gz if it is needed"))


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for example: opening it will say so
        return True


def _identify(path: Path, parts: tuple[str, ...], modalities: tuple[str, ...]) -> _File | Problem:
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    declared = [name for name in modalities if table.find(name) != name]
    if brats := BRATS.match(stem):
        file = _with_role(path, role_of(stem[brats.end() :], declared), (), brats[1], brats[2])
    elif bids := BIDS.match(stem):
        file = _bids_file(path, parts, stem[bids.end() :], bids, declared)
    else:
        file = _folder_file(path, parts, stem, declared)
    if isinstance(file, _File) and file.role.modality not in (None, *modalities):
        return Problem(path, f"is {file.role.modality}, which is not asked for", "name it with --modalities to use it")
    if isinstance(file, _File) and stem == file.role.modality and is_synthetic(path):
        return Problem(
            path, "is a synthesised image by its header", "left out; keep it in a folder apart from the scans"
        )
    return file


def _with_role(path: Path, role: Role | str, place: tuple[str, ...], subject: str, session: str) -> _File | Problem:
    if isinstance(role, str):
        own = "name its sequence with --modalities, " if role == NAMELESS else ""
        return Problem(path, role, f"{own}rename it, or add it to the table by hand")
    return _File(path, role, place, subject, session)


def _bids_file(
    path: Path, parts: tuple[str, ...], rest: str, identity: re.Match[str], declared: list[str]
) -> _File | Problem:
    """Read a BIDS name by its entities: `space-T1w` says where an image lies, not what it is."""
    *entities, suffix = rest.split("_")
    pairs = dict(entity.partition("-")[::2] for entity in entities)
    instead = [pairs.get(entity, "") for entity in ("acq", "rec")]
    enhanced = names_agent(pairs.get("ce", "")) or any(contrast_of(s) == "with" or T1C.fullmatch(s) for s in instead)
    told = ["contrast"] if enhanced else []
    role = role_of("_".join([*told, pairs.get("desc", ""), pairs.get("label", ""), suffix]), declared)
    depth = next((i for i, part in enumerate(parts) if part.startswith("sub-") or part == "derivatives"), len(parts))
    if "derivatives" in parts and isinstance(role, Role) and role.kind == "image":
        return Problem(path, "is a derivative", "index its own folder to use it instead of the raw image")
    return _with_role(path, role, parts[:depth], identity[1], identity[2] or "")


def _folder_file(path: Path, parts: tuple[str, ...], stem: str, declared: list[str]) -> _File | Problem:
    hint = None
    place = list(parts)
    while place and (place[-1].lower() in CONTAINERS or (named := find_modality([place[-1]], declared))):
        if place.pop().lower() not in CONTAINERS:
            hint = hint or named
    place = without_series(place)
    leaf = place[-1] if place else ""
    own = stem[len(leaf) :] if leaf and _begins_with(stem, leaf) else stem
    return _with_role(path, role_of(own, declared, hint), tuple(place), "", "")


def _begins_with(name: str, start: str) -> bool:
    """Tell whether a name begins with whole words: `p1_t1` begins with `p1`, `pet` does not begin with `p`."""
    rest = name[len(start) :]
    return name.lower().startswith(start.lower()) and not rest[:1].isalnum()


def _grouped(files: Iterable[_File], root: Path, problems: list[Problem]) -> list[_Group]:
    """Gather the files of each study; a folder of many patients' files is told apart by their names' beginnings."""
    together: dict[tuple[tuple[str, ...], str, str], list[_File]] = defaultdict(list)
    for file in files:
        together[file.place, file.subject, file.session].append(file)
    groups = []
    for (place, subject, session), members in together.items():
        if subject:
            groups.append(_Group(place, subject, session, tuple(members)))
        elif patients := _patients_side_by_side(members):
            by_name = {name: tuple(file for file in members if file.role.prefix == name) for name in patients}
            groups += [_folder_group((*place, name), root, own) for name, own in by_name.items()]
            strays = [file for file in members if file.role.prefix not in patients]
            problems += [Problem(f.path, "lies among several patients and names none", "rename it") for f in strays]
        else:
            groups.append(_folder_group(place, root, tuple(members)))
    return groups


def _patients_side_by_side(files: Sequence[_File]) -> list[str]:
    """Return the patients of a flat folder: name beginnings with a number, at least two of them on several files.

    One file each is enough where all names are patients' beyond doubt.
    """
    slots = Counter((file.role.kind, file.role.modality) for file in files)
    owners = Counter(file.role.prefix for file in files if re.search(r"\d", file.role.prefix))
    several = [name for name, count in owners.items() if count > 1]
    return sorted(owners) if max(slots.values()) > 1 and (len(several) > 1 or _all_named(files)) else []


def _all_named(files: Sequence[_File]) -> bool:
    """Tell whether all files begin with the same word and a number, `p01` and `p02`, and no two are the same image.

    A number alone may be that of a series, and so may one after the patient's name, which is the folder's.
    """
    names = [re.match(r"([a-z]*).*\d", file.role.prefix.lower()) for file in files]
    words = {name[1] if name else "" for name in names}
    distinct = len({file.role for file in files}) == len(files)
    in_own_folder = any(file.place and _begins_with(file.path.name, file.place[-1]) for file in files)
    return distinct and len(words) == 1 and not words & SCANS and not in_own_folder


def _folder_group(place: tuple[str, ...], root: Path, files: tuple[_File, ...]) -> _Group:
    chain = (root.resolve().name or "study", *place)
    leaf = chain[-1]
    if is_visit(place):
        return _Group(chain[1:-2], chain[-2], leaf, files)
    return _Group(chain[1:-1], leaf, "", files)


def _named(groups: list[_Group], root: Path, problems: list[Problem]) -> list[_Group]:
    """Give every study its own key where folders in several places have the same name.

    Nothing tells visits of several patients from patients of several sites, so visits are assumed: a patient too
    large cannot leak from one split into another.
    """
    parents = _parents_of_visits(groups)
    problems += [
        Problem(
            root.joinpath(*parent),
            f"holds folders {like}, so '{parent[-1]}' is taken as the patient and they as visits",
            DIFFERENT,
        )
        for parent, like in sorted(parents.items())
    ]
    groups = [_as_visit(g) if g.parent in parents and g.may_be_visit else g for g in groups]
    shared = _in_several_places(groups)
    twins = [group for group in groups if group.subject in shared]
    problems += [
        Problem(
            root.joinpath(*parent),
            "holds subjects named as in other places, so the folder became part of their names",
            "if they are the same patients, delete one copy or give both the same `group`",
        )
        for parent in sorted({group.parent for group in twins})
    ]
    groups = [_with_place(group) if group.subject in shared else group for group in groups]
    return _joined(groups, root, problems)


def _parents_of_visits(groups: Sequence[_Group]) -> dict[tuple[str, ...], str]:
    """Return the folders that are taken as patients, and what there is about the folders in them."""
    shared = _in_several_places(groups)
    visits = Counter((*group.parent, group.subject) for group in groups if group.session)
    others = Counter(group.parent for group in groups if group.may_be_visit)
    found = {parent: "named as visits beside others" for parent, count in others.items() if visits[parent] >= count}
    named_alike = {group.parent for group in groups if group.subject in shared and group.may_be_visit}
    # One image beside folders of patients may be a template.
    scanned = {(*group.parent, group.subject) for group in groups if len(group.modalities) > 1}
    found |= dict.fromkeys(others.keys() & scanned, "beside images of its own")
    return found | dict.fromkeys(named_alike, "named as in other places")


def _joined(groups: Sequence[_Group], root: Path, problems: list[Problem]) -> list[_Group]:
    """Give visits that only a subject's name tells, as in `p01_baseline`, to one patient."""
    joined = [replace(group, patient=patient_of(group.patient or group.subject)) for group in groups]
    subjects: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for group in joined:
        subjects[group.patient][group.subject] = group.parent
    examples: dict[tuple[str, ...], list[str]] = {}
    for patient, names in subjects.items():
        if len(names) > 1 and any(patient_of(name) == patient != name for name in names):
            examples.setdefault(next(iter(names.values())), sorted(names)[:2])
    problems += [
        Problem(
            root.joinpath(*parent),
            f"holds subjects named as visits of one patient, such as {' and '.join(names)}, so they share a `group`",
            DIFFERENT,
        )
        for parent, names in sorted(examples.items())
    ]
    return joined


def _as_visit(group: _Group) -> _Group:
    return replace(group, parent=group.parent[:-1], subject=group.parent[-1], session=group.subject)


def _with_place(group: _Group) -> _Group:
    """Put the folders into the subject's name; a name that files repeat is a patient's, wherever the copy lies."""
    repeated = any(_begins_with(file.path.name, group.subject) for file in group.files)
    copied = repeated and not group.files[0].subject
    name = "_".join((*group.parent, group.subject))
    return replace(group, subject=name, patient=group.subject if copied else "")


def _in_several_places(groups: Iterable[_Group]) -> set[str]:
    places: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for group in groups:
        places[group.subject].add(group.parent)
    return {subject for subject, parents in places.items() if len(parents) > 1}


def _as_study(group: _Group, problems: list[Problem]) -> Study | None:
    slots: dict[tuple[str, str | None], list[Path]] = defaultdict(list)
    for file in group.files:
        slots[file.role.kind, file.role.modality].append(file.path)
    for (kind, modality), paths in slots.items():
        if len(paths) > 1:
            what = table.title(modality) if modality else kind.replace("_", " ")
            listed = ", ".join(path.name for path in paths[:4]) + (" ..." if len(paths) > 4 else "")
            advice = f"left blank; keep one, or enter one in the table's '{modality or kind}' column"
            problems.append(Problem(paths[0], f"{len(paths)} files claim to be the {what} ({listed})", advice))
    single = {slot: paths[0] for slot, paths in slots.items() if len(paths) == 1}
    images = {name: path for (kind, name), path in single.items() if kind == "image" and name}
    if not images:
        where = group.files[0].path
        problems.append(Problem(where, "its study has no usable image", "add one, or resolve the files named above"))
        return None
    return Study(
        subject=group.subject,
        session=group.session,
        group=group.patient,
        images={name: images[name] for name in table.in_table_order(images)},
        seg=single.get(("seg", None)),
        brain_mask=single.get(("brain_mask", None)),
        brain_masks={name: path for (kind, name), path in single.items() if kind == "brain_mask" and name},
    )


def _nothing_found(root: Path, modalities: tuple[str, ...], problems: list[Problem]) -> str:
    # Those of whole studies come last, and are nearer to the reason than the first file left out.
    told = in_short((str(problem.path), problem.told) for problem in reversed(problems))
    unused = counted(len(problems), "file", "files")
    seen = f"{unused} could not be used, such as {told}" if problems else "it has no NIfTI files"
    return f"no study with any of {', '.join(modalities)} found in {root}: {seen}. Recognised layouts:\n{LAYOUTS}"

"""Folds of a cohort by patient, stratified, and kept in a file that only fits the cohort it was made for."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import combinations, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bmmae.arrays import Array
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.loaders import sample_generator
from bmmae.data.origin import image_hashes, study_digest
from bmmae.data.visits import ungrouped_visits
from bmmae.errors import CohortError, OutputError, few

FORMAT = 1
PARTS = ("train", "validation", "test")
QUARTERS = (0.25, 0.5, 0.75)
MANY_VALUES = 10
"""A numeric column with more values than this is stratified by its quarters."""

Key: TypeAlias = tuple[str, str]
"""Subject and session."""

Hashes: TypeAlias = Mapping[str, str]
"""Modality to the hash of its image."""


@dataclass(frozen=True)
class Fold:
    """Who is in which part.

    Attributes:
        train: Trained on.
        validation: Selects the checkpoint.
        test: Held out; scored once, and selects nothing.
    """

    train: tuple[Key, ...]
    validation: tuple[Key, ...]
    test: tuple[Key, ...]


@dataclass(frozen=True)
class FoldPlan:
    """How folds are made.

    Attributes:
        folds: How many parts the patients are divided into; each is the test part of one fold.
        repeats: How many times they are divided anew.
        stratify: Columns whose values are spread evenly over the folds: `event`, `time` or any other. Blank cells
            are a value of their own.
        validation_share: Share of the patients outside the test part that validate; also stratified.
        seed: 0 to 2**32 - 1.
    """

    folds: int = 5
    repeats: int = 1
    stratify: tuple[str, ...] = ()
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.repeats < 1:
            raise CohortError(f"expected 2 folds or more and 1 repeat or more, got {self.folds} and {self.repeats}")
        if not 0 < self.validation_share <= 0.5:
            raise CohortError(f"the validation share must lie in (0, 0.5], got {self.validation_share}")


def make_folds(cohort: Cohort, plan: FoldPlan) -> tuple[Fold, ...]:
    """Divide a cohort's patients; those with a study that the table marks `test` are in no fold.

    Returns:
        `repeats * folds` folds, those of the first repeat first. They depend on the table's content, not on its order.

    Raises:
        CohortError: If there are too few patients or a column is unknown.

    Warns:
        UserWarning: If subjects are named as visits of one patient, and no `group` says so.
    """
    apart = _apart(cohort.studies)
    studies = sorted((study for study in cohort if study.group not in apart), key=lambda study: study.key)
    if doubt := ungrouped_visits(cohort):
        warnings.warn(doubt, stacklevel=2)
    strata = _strata(studies, plan.stratify)
    needed = max(plan.folds + 1, 3)
    patients = len({study.group for study in studies})
    if patients < needed:
        raise CohortError(f"{plan.folds} folds need {needed} patients or more, got {patients} that are not in test")
    return tuple(fold for repeat in range(plan.repeats) for fold in _repeat(studies, strata, plan, repeat))


def _apart(studies: Iterable[Study]) -> set[str]:
    """Patients of whom the table sets a study apart as `test`: their other visits would tell of them."""
    return {study.group for study in studies if study.split == "test"}


def _repeat(studies: Sequence[Study], strata: Array, plan: FoldPlan, repeat: int) -> Iterator[Fold]:
    for number, test in enumerate(_divide(studies, strata, plan.folds, (plan.seed, repeat, 0))):
        rest = [index for index in range(len(studies)) if index not in test]
        patients = len({studies[index].group for index in rest})
        if patients < 2:
            raise CohortError(
                f"fold {number} of {plan.folds} would leave {patients} patient to train and to validate on: some have "
                "many visits; add patients, or choose another number of folds"
            )
        finest = min(max(20, round(1 / plan.validation_share)), patients)
        share = max(Fraction(1, finest), Fraction(plan.validation_share).limit_denominator(finest))
        inner = [studies[index] for index in rest]
        parts = _divide(inner, strata[rest], share.denominator, (plan.seed, repeat, 1 + number))
        held = {rest[index] for part in islice(parts, share.numerator) for index in part}
        train = [index for index in rest if index not in held]
        yield Fold(*(tuple(studies[index].key for index in sorted(part)) for part in (train, held, test)))


def _divide(
    studies: Sequence[Study], strata: Array, parts: int, address: tuple[int, int, int]
) -> Iterator[frozenset[int]]:
    """Yield the parts, as indices of studies; every patient is in one."""
    from sklearn.model_selection import StratifiedGroupKFold

    seed = int(sample_generator(*address, purpose="folds").integers(2**31))
    groups = [study.group for study in studies]
    if max(Counter(strata.tolist()).values()) < parts:
        strata = np.zeros(len(studies))  # too few of every class to spread any
    with warnings.catch_warnings():
        # A class of fewer studies than parts cannot be in each of them; there is nothing to do about it.
        warnings.filterwarnings("ignore", message="The least populated class")
        divided = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(groups, strata, groups)
        yield from [frozenset(int(index) for index in held) for _, held in divided]


def _strata(studies: Sequence[Study], columns: Sequence[str]) -> Array:
    """One class a study: the combination of its values. Combinations too rare to stratify by are one class."""
    values = zip(*(_classes(studies, column) for column in columns), strict=True) if columns else [()] * len(studies)
    combined = [" / ".join(row) for row in values]
    counts = Counter(combined)
    return np.array([name if counts[name] > 1 else "rare" for name in combined])


def _classes(studies: Sequence[Study], column: str) -> list[str]:
    known = {"time", "event"}.union(*(study.values for study in studies))
    if column not in known:
        raise CohortError(f"no column '{column}' to stratify by: the table has {', '.join(sorted(known))}")
    cells = [getattr(study, column) if column in {"time", "event"} else study.values[column] for study in studies]
    numbers = [float(cell) for cell in cells if isinstance(cell, float)]
    if len(set(numbers)) > MANY_VALUES:
        edges = np.quantile(numbers, QUARTERS)
        cells = [None if cell is None else f"quarter {1 + np.searchsorted(edges, cell)}" for cell in cells]
    return [f"{column} {'blank' if cell is None else cell}" for cell in cells]


def write_folds(
    path: str | Path, cohort: Cohort, folds: Sequence[Fold], plan: FoldPlan, cache: StudyCache | None = None
) -> Path:
    """Write folds as JSON, with a hash of each image's content: every image is read, those marked `test` too.

    Raises:
        CohortError: If a fold shares a patient between parts, or two patients hold the same voxels.
        ImageError: If an image cannot be read.
        OutputError: If the file cannot be written.
    """
    path = Path(path)
    for fold in folds:
        _refuse_shared(fold, cohort.studies, path)
    used = {key for fold in folds for part in PARTS for key in getattr(fold, part)}
    content = content_of(cohort.studies, cache)
    _refuse_twins(cohort.studies, content)
    written = {
        "format": FORMAT,
        "plan": asdict(plan),
        "modalities": cohort.modalities,
        "studies": [
            {"subject": key[0], "session": key[1], "images": hashes} for key, hashes in content.items() if key in used
        ],
        "folds": [asdict(fold) for fold in folds],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(written, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write the folds to {path}: {error.strerror or error}") from error
    return path


def read_fold(path: str | Path, cohort: Cohort, number: int, cache: StudyCache | None = None) -> dict[str, list[Study]]:
    """Return the studies of one fold's parts: `train`, `validation` and `test`.

    Args:
        path: As `write_folds` wrote it.
        cohort: The cohort that it was made for, read with the same modalities or with others. Studies that have none of
            them (`Cohort.bare`) are in no part; the others stay in theirs.
        number: Which fold, from 0; repeats follow one another.
        cache: Where content hashes may be known already, so that the images need not be read again.

    Raises:
        CohortError: If the file is no file of folds, was made for another cohort, images of modalities that both have
            changed since, there is no such fold, or it shares a patient or an image between parts.
        ImageError: If an image cannot be read.

    Warns:
        UserWarning: If studies that the file lists have none of the modalities.
    """
    path = Path(path)
    folds, content, modalities = _parse(path)
    if not 0 <= number < len(folds):
        raise CohortError(f"{path} has folds 0 to {len(folds) - 1}, got {number}")
    fold = folds[number]
    _refuse_shared(fold, (*cohort.studies, *cohort.bare), path)
    now = _refuse_other_cohort(content, modalities, cohort, path, cache)
    refuse_parted_twins(fold, now, f"fold {number} of {path}")
    by_key = {study.key: study for study in cohort}
    return {part: [by_key[key] for key in getattr(fold, part) if key in by_key] for part in PARTS}


def format_folds(cohort: Cohort, folds: Sequence[Fold], plan: FoldPlan) -> str:
    """Return a table for the terminal: each fold's patients and, for the test part, what it was stratified by."""
    patient = {study.key: study.group for study in cohort}
    stratum = dict(zip(patient, _strata(cohort.studies, plan.stratify), strict=True))
    lines = [f"{'fold':6}{'train':>8}{'validation':>12}{'test':>8}   patients; strata of the test part"]
    for number, fold in enumerate(folds):
        counts = [len({patient[key] for key in getattr(fold, part)}) for part in PARTS]
        strata = Counter(str(stratum[key]) for key in fold.test) if plan.stratify else {}
        named = ", ".join(f"{name}: {count}" for name, count in sorted(strata.items()))
        lines.append(f"{number:<6}{counts[0]:>8}{counts[1]:>12}{counts[2]:>8}   {named}".rstrip())
    return "\n".join(lines)


def _parse(path: Path) -> tuple[list[Fold], dict[Key, Hashes | str], tuple[str, ...]]:
    """Return the folds, the hashes of each study, and the modalities that the cohort was read with.

    Files of earlier versions have one hash for all images of a study, and do not say of which modalities.
    """
    try:
        written = json.loads(path.read_text())
    except OSError as error:
        raise CohortError(f"cannot read the folds {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CohortError(f"{path} is no file of folds: expected what `bmmae split` writes, got no JSON") from error
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        raise CohortError(f"{path} is no file of folds of format {FORMAT}: make it with `bmmae split`")
    try:
        content: dict[Key, Hashes | str] = {
            (row["subject"], row["session"]): dict(row["images"]) if "images" in row else str(row["content"])
            for row in written["studies"]
        }
        return [_as_fold(values) for values in written["folds"]], content, tuple(written.get("modalities", ()))
    except (KeyError, TypeError, ValueError) as error:
        raise CohortError(f"{path} is damaged: make it again with `bmmae split`") from error


def _as_fold(values: Mapping[str, Any]) -> Fold:
    parts = [tuple((str(subject), str(session)) for subject, session in values[part]) for part in PARTS]
    return Fold(*parts)


def _refuse_shared(fold: Fold, studies: Sequence[Study], path: Path) -> None:
    """A patient, as the table's column `group` says now, may be in one part only."""
    patient = {study.key: study.group for study in studies}
    listed = {key for part in PARTS for key in getattr(fold, part)}
    members = {patient[key] for key in listed if key in patient}
    leaking = sorted(_apart(study for study in studies if study.key not in listed) & members)
    if leaking:
        raise CohortError(
            f"{path} holds visits of {few(leaking)}, of whom the table marks another visit as test: make the folds "
            "again with `bmmae split`"
        )
    refuse_parted_patients(fold, patient, str(path))


def refuse_parted_patients(fold: Fold, patient: Mapping[Key, str], where: str) -> None:
    """Refuse a fold with studies of one patient in two parts.

    Args:
        fold: As any code may have made it.
        patient: Whose each study is; those that it lacks are passed over.
        where: What to call the fold.

    Raises:
        CohortError: If there is such a patient.
    """
    members = {part: {patient[key] for key in getattr(fold, part) if key in patient} for part in PARTS}
    for one, two in combinations(PARTS, 2):
        shared = sorted(members[one] & members[two])
        if shared:
            raise CohortError(
                f"{where} puts {few(shared)} into {one} and into {two}: expected all studies of a patient in one part; "
                "make the folds again with `bmmae split` or `make_folds`"
            )


def _refuse_other_cohort(
    content: Mapping[Key, Hashes | str],
    modalities: Collection[str],
    cohort: Cohort,
    path: Path,
    cache: StudyCache | None,
) -> dict[Key, Hashes]:
    """Return what the listed studies hold; of modalities that the cohort is read without, as the file says."""
    apart = _apart((*cohort.studies, *cohort.bare))
    studies = [study for study in cohort if study.group not in apart or study.key in content]
    bare: dict[Key, Hashes] = {study.key: {} for study in cohort.bare if study.key in content}
    here = {*bare, *(study.key for study in studies)}
    missing, new = sorted(content.keys() - here), sorted(here - content.keys())
    if missing or new:
        found = [f"{len(missing)} of its studies are missing ({few(map(_said, missing))})"] if missing else []
        found += [f"{len(new)} are new ({few(map(_said, new))})"] if new else []
        raise CohortError(
            f"{path} was made for another cohort than {cohort.path or 'this one'}: {' and '.join(found)}; name the "
            "table that it was made for, or make folds for this one with `bmmae split`"
        )
    if bare:
        warnings.warn(  # always from this line: a run that reads its folds twice says it once
            f"{len(bare)} of the {len(content)} studies of {path} have none of the modalities "
            f"{', '.join(cohort.modalities)} and are left out",
            stacklevel=1,
        )
    now, shared = bare | content_of(studies, cache), set(modalities) & set(cohort.modalities)
    changed = sorted(key for key, before in content.items() if not _same(before, now[key], shared))
    if changed:
        raise CohortError(
            f"the images of {len(changed)} studies have changed since {path} was made ({few(map(_said, changed))}): "
            "restore them, or make the folds again with `bmmae split`"
        )
    return {key: now[key] if isinstance(before, str) else {**before, **now[key]} for key, before in content.items()}


def _refuse_twins(studies: Sequence[Study], content: Mapping[Key, Hashes]) -> None:
    """The same voxels under two names are one patient, who might fall into two parts."""
    found = _twins(content, {study.key: study.group for study in studies})
    if found:
        one, two, alike = found
        raise CohortError(f"{_said(one)} and {_said(two)} {alike}: delete one, or give both the same `group`")


def refuse_parted_twins(fold: Fold, content: Mapping[Key, Hashes], where: str) -> None:
    """Refuse a fold that has the same voxels in two parts, under two names.

    Args:
        fold: As any code may have made it, without looking.
        content: The hashes of each study's images.
        where: What to call the fold.

    Raises:
        CohortError: If it has.
    """
    part = {key: name for name in PARTS for key in getattr(fold, name) if key in content}
    found = _twins({key: content[key] for key in part}, part)
    if found:
        one, two, alike = found
        raise CohortError(
            f"{where} has {_said(one)} in {part[one]} and {_said(two)} in {part[two]}, which {alike}: delete one, or "
            "give both the same `group`, and make the folds again with `bmmae split`"
        )


def _twins(content: Mapping[Key, Hashes], side: Mapping[Key, str]) -> tuple[Key, Key, str] | None:
    """Return the first two studies on two sides that share an image, and what to say of them; None if none do."""
    found: dict[tuple[Key, Key], list[str]] = {}
    first: dict[str, Key] = {}
    for key, images in content.items():
        for name, digest in images.items():
            twin = first.setdefault(digest, key)
            if side[twin] != side[key]:
                found.setdefault((twin, key), []).append(name)
    if not found:
        return None
    (one, two), names = next(iter(found.items()))
    more = f" (and {len(found) - 1} more pairs likewise)" if len(found) > 1 else ""
    return one, two, f"hold the same voxels ({', '.join(names)}){more}"


def _same(before: Hashes | str, now: Hashes, shared: Collection[str]) -> bool:
    if isinstance(before, str):
        return study_digest(now) == before
    return all(now.get(name) == before.get(name) for name in shared)


def content_of(studies: Sequence[Study], cache: StudyCache | None) -> dict[Key, Hashes]:
    """Return the hashes of each study's images, by modality; those that the cache does not know are read.

    Raises:
        ImageError: If an image cannot be read.
    """
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(lambda study: image_hashes(study, cache), studies)
        return {study.key: images for study, images in zip(studies, hashes, strict=True)}


def _said(key: Key) -> str:
    return " ".join(key).strip()

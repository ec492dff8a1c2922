"""Folds kept in a JSON file that fits only the cohort, and the images, that it was made for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.folds import PARTS, Fold, FoldPlan, Key, name_of, refuse_parted_patients, set_apart
from bmmae.data.origin import study_digest
from bmmae.data.twins import Hashes, content_of, refuse_parted_twins, refuse_twins
from bmmae.errors import CohortError, OutputError, few

FORMAT = 1


def write_folds(
    path: str | Path, cohort: Cohort, folds: Sequence[Fold], plan: FoldPlan, cache: StudyCache | None = None
) -> Path:
    """Write folds as JSON, with a hash of each image's content: every image is read, those marked `test` too.

    Raises:
        CohortError: If a fold shares a patient between parts, or two patients hold the same voxels.
        ImageError: If an image cannot be read.
        OutputError: If the file cannot be written.
    """
    path = Path(path).expanduser()
    for fold in folds:
        _refuse_shared(fold, cohort.studies, path)
    used = {key for fold in folds for part in PARTS for key in getattr(fold, part)}
    content = content_of(cohort.studies, cache)
    refuse_twins(cohort.studies, content)
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
    path = Path(path).expanduser()
    folds, content, modalities = _parse(path)
    if not 0 <= number < len(folds):
        raise CohortError(f"{path} has folds 0 to {len(folds) - 1}, got {number}")
    fold = folds[number]
    _refuse_shared(fold, (*cohort.studies, *cohort.bare), path)
    now = _refuse_other_cohort(content, modalities, cohort, path, cache)
    refuse_parted_twins(fold, now, f"fold {number} of {path}")
    by_key = {study.key: study for study in cohort}
    return {part: [by_key[key] for key in getattr(fold, part) if key in by_key] for part in PARTS}


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
    leaking = sorted(set_apart(study for study in studies if study.key not in listed) & members)
    if leaking:
        raise CohortError(
            f"{path} holds visits of {few(leaking)}, of whom the table marks another visit as test: make the folds "
            "again with `bmmae split`"
        )
    refuse_parted_patients(fold, patient, str(path))


def _refuse_other_cohort(
    content: Mapping[Key, Hashes | str],
    modalities: Collection[str],
    cohort: Cohort,
    path: Path,
    cache: StudyCache | None,
) -> dict[Key, Hashes]:
    """Return what the listed studies hold; of modalities that the cohort is read without, as the file says."""
    apart = set_apart((*cohort.studies, *cohort.bare))
    studies = [study for study in cohort if study.group not in apart or study.key in content]
    bare: dict[Key, Hashes] = {study.key: {} for study in cohort.bare if study.key in content}
    here = {*bare, *(study.key for study in studies)}
    missing, new = sorted(content.keys() - here), sorted(here - content.keys())
    if missing or new:
        found = [f"{len(missing)} of its studies are missing ({few(map(name_of, missing))})"] if missing else []
        found += [f"{len(new)} are new ({few(map(name_of, new))})"] if new else []
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
            f"the images of {len(changed)} studies have changed since {path} was made ({few(map(name_of, changed))}): "
            "restore them, or make the folds again with `bmmae split`"
        )
    return {key: now[key] if isinstance(before, str) else {**before, **now[key]} for key, before in content.items()}


def _same(before: Hashes | str, now: Hashes, shared: Collection[str]) -> bool:
    if isinstance(before, str):
        return study_digest(now) == before
    return all(now.get(name) == before.get(name) for name in shared)

"""The same voxels under two names: one patient, whom folds would part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.folds import PARTS, Fold, Key, name_of
from bmmae.data.origin import image_hashes
from bmmae.errors import CohortError

Hashes: TypeAlias = Mapping[str, str]
"""Modality to the hash of its image."""


def content_of(studies: Sequence[Study], cache: StudyCache | None) -> dict[Key, Hashes]:
    """Return the hashes of each study's images, by modality; those that the cache does not know are read.

    Raises:
        ImageError: If an image cannot be read.
    """
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(lambda study: image_hashes(study, cache), studies)
        return {study.key: images for study, images in zip(studies, hashes, strict=True)}


def refuse_twins(studies: Sequence[Study], content: Mapping[Key, Hashes]) -> None:
    """The same voxels under two names are one patient, who might fall into two parts."""
    found = _twins(content, {study.key: study.group for study in studies})
    if found:
        one, two, alike = found
        raise CohortError(f"{name_of(one)} and {name_of(two)} {alike}: delete one, or give both the same `group`")


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
            f"{where} has {name_of(one)} in {part[one]} and {name_of(two)} in {part[two]}, which {alike}: delete one, "
            "or give both the same `group`, and make the folds again with `bmmae split`"
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

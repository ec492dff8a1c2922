"""What a model will remember of its training data: hashes of image content, and whether it was synthetic."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bmmae.data.cohort import Cohort, Study
from bmmae.data.reading import content_hash

GENERATOR_FILE = "ceilings.json"
"""What the synthetic generator leaves beside its cohort table."""


def content_hashes(studies: Iterable[Study]) -> tuple[str, ...]:
    """Return one hash an image, sorted; of the voxels alone, so that neither names nor headers matter.

    Raises:
        ImageError: If a file is broken.
    """
    return tuple(sorted(content_hash(path) for study in studies for path in study.images.values()))


def generator_of(cohort: Cohort) -> str | None:
    """Return the version of the generator that made a synthetic cohort, or None for other cohorts."""
    if cohort.path is None or not (Path(cohort.path).parent / GENERATOR_FILE).is_file():
        return None
    written = json.loads((Path(cohort.path).parent / GENERATOR_FILE).read_text())
    return str(written["generator_version"])

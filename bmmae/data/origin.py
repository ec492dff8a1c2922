"""What a model will remember of its training data: hashes of image content, and whether it was synthetic."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.reading import content_hash
from bmmae.provenance import Provenance

GENERATOR_FILE = "ceilings.json"
"""What the synthetic generator leaves beside its cohort table."""

LIMITS = (
    "Research software: not a medical device, not for diagnosis or treatment.",
    "Synthesised sequences are guesses from those given; a lesion that shows on the absent sequence alone is lost.",
)


def training_provenance(
    cohort: Cohort, train: Sequence[Study], parent: str | None = None, cache: StudyCache | None = None
) -> Provenance:
    """Describe the data of a training run, as it will travel with the weights.

    Args:
        cohort: The table the studies come from.
        train: The studies trained on.
        parent: The weights that training starts from.
        cache: Where hashes may be known already, so that the images need not be read again.

    Raises:
        ImageError: If an image cannot be read.
    """
    generator = generator_of(cohort)
    patients = {study.group for study in train}
    kind = "synthetic" if generator else "real"
    return Provenance(
        data=f"{len(train)} {kind} studies of {len(patients)} patients",
        subjects=len(patients),
        content_hashes=content_hashes(train, cache),
        synthetic=generator is not None,
        generator=generator,
        command=shlex.join(sys.argv),
        limits=LIMITS,
        parent=parent,
    )


def content_hashes(studies: Iterable[Study], cache: StudyCache | None = None) -> tuple[str, ...]:
    """Return one hash an image, sorted; of the voxels alone, so that neither names nor headers matter.

    Raises:
        ImageError: If a file is broken.
    """

    def hashes(study: Study) -> list[str]:
        entry = cache.find(study) if cache else None
        known = entry.content if entry else {}
        return [known.get(name) or content_hash(file) for name, file in study.images.items()]

    with ThreadPoolExecutor() as pool:
        return tuple(sorted(digest for found in pool.map(hashes, studies) for digest in found))


def generator_of(cohort: Cohort) -> str | None:
    """Return the version of the generator that made a synthetic cohort, or None for other cohorts."""
    if cohort.path is None or not (cohort.path.parent / GENERATOR_FILE).is_file():
        return None
    written = json.loads((cohort.path.parent / GENERATOR_FILE).read_text())
    return str(written["generator_version"])

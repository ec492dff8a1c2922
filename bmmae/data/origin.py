"""What a model will remember of its training data: hashes of image content, and whether it was synthetic."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.population import describe_population
from bmmae.data.reading import content_hash
from bmmae.modalities import in_table_order
from bmmae.provenance import Provenance

GENERATOR_FILE = "ceilings.json"
"""What the synthetic generator leaves beside its cohort table."""

LIMITS = (
    "Research software: not a medical device, not for diagnosis or treatment.",
    "Synthesised sequences are guesses from those given; a lesion that shows on the absent sequence alone is lost.",
)


def training_provenance(
    cohort: Cohort,
    train: Sequence[Study],
    parent: str | None = None,
    cache: StudyCache | None = None,
    inherited: Provenance | None = None,
) -> Provenance:
    """Describe the data of a training run, as it will travel with the weights.

    Args:
        cohort: The table the studies come from.
        train: The studies trained on.
        parent: The weights that training starts from.
        cache: Where hashes may be known already, so that the images need not be read again. Without one, what the
            images look like is not recorded: that needs them preprocessed.
        inherited: What is known of these weights' own training.

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
        parent_hashes=inherited.seen if inherited else (),
        population=describe_population(train, cache) if cache else None,
    )


def content_hashes(studies: Iterable[Study], cache: StudyCache | None = None) -> tuple[str, ...]:
    """Return one hash an image, sorted; of the voxels alone, so that neither names nor headers matter.

    Raises:
        ImageError: If a file is broken.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda study: image_hashes(study, cache), studies)
        return tuple(sorted(digest for hashes in found for digest in hashes.values()))


def image_hashes(study: Study, cache: StudyCache | None = None) -> dict[str, str]:
    """Return a study's modalities, in table order, and the hash of each one's voxels.

    Raises:
        ImageError: If a file is broken.
    """
    entry = cache.find(study) if cache else None
    known = entry.content if entry else {}
    return {name: known.get(name) or content_hash(study.images[name]) for name in in_table_order(study.images)}


def study_digest(study: Study, cache: StudyCache | None = None) -> str:
    """Return one hash of a study's modalities and voxels.

    Raises:
        ImageError: If a file is broken.
    """
    return hashlib.sha256(json.dumps(image_hashes(study, cache)).encode()).hexdigest()


def generator_of(cohort: Cohort) -> str | None:
    """Return the version of the generator that made a synthetic cohort, or None for other cohorts."""
    if cohort.path is None or not (cohort.path.parent / GENERATOR_FILE).is_file():
        return None
    written = json.loads((cohort.path.parent / GENERATOR_FILE).read_text())
    return str(written["generator_version"])

"""What a model will remember of its training data: hashes of image content, and whether it was synthetic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.population import describe_population
from bmmae.data.reading import content_hash, is_synthetic
from bmmae.errors import OutputError
from bmmae.modalities import in_table_order
from bmmae.provenance import Provenance, command_line
from bmmae.sources import public_name

GENERATOR_FILE = "ceilings.json"
"""What the synthetic generator leaves beside its cohort table, in the folder that holds the subjects' folders."""

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
    *,
    validation: Sequence[Study] = (),
) -> Provenance:
    """Describe the data of a training run, as it will travel with the weights.

    Args:
        cohort: The table the studies come from.
        train: The studies trained on.
        parent: The weights that training starts from.
        cache: Where hashes may be known already, so that the images need not be read again. Without one, what the
            images look like is not recorded: that needs them preprocessed.
        inherited: What is known of these weights' own training.
        validation: The studies whose scores will choose among the weights.

    Raises:
        ImageError: If an image cannot be read.

    Warns:
        UserWarning: If some of the images were synthesised by `bmmae reconstruct`; the limits tell it too.
    """
    generator = generator_of(cohort, train)
    guesses = _synthesised_among(train)
    started_from = None if parent is None else public_name(parent)
    patients = {study.group for study in train}
    kind = "synthetic" if generator else "real"
    made = Provenance(
        data=f"{len(train)} {kind} studies of {len(patients)} patients",
        subjects=len(patients),
        content_hashes=content_hashes(train, cache),
        selection_hashes=content_hashes(validation, cache),
        synthetic=generator is not None,
        generator=generator,
        command=command_line(sys.argv, keep=started_from),
        limits=(*LIMITS, *guesses),
        parent=started_from,
        population=describe_population(train, cache) if cache else None,
    )
    return made.inherit(inherited) if inherited else made


def _synthesised_among(studies: Sequence[Study]) -> tuple[str, ...]:
    """Return a sentence, and warn, if images are guesses of a model: by the table, or by their headers."""
    files = [(name in study.synthesised, file) for study in studies for name, file in study.images.items()]
    count = sum(told or (isinstance(file, Path) and is_synthetic(file)) for told, file in files)
    if not count:
        return ()
    said = f"{count} of its {len(files)} training images were not acquired but synthesised by a model."
    warnings.warn(
        f"{count} of {len(files)} training images were synthesised by a model: what is learned of them is that model's "
        "guess; leave their cells blank to train on what was acquired",
        stacklevel=3,
    )
    return (said,)


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


def study_digest(images: Mapping[str, str]) -> str:
    """Return one hash of a study's modalities and voxels, from what `image_hashes` returns."""
    return hashlib.sha256(json.dumps(images).encode()).hexdigest()


def generator_of(cohort: Cohort, studies: Sequence[Study]) -> str | None:
    """Return the version of the generator that made a synthetic cohort, or None for other cohorts."""
    found = _mark_of(cohort, studies)
    return None if found is None else str(json.loads(found.read_text())["generator_version"])


def pass_mark_on(cohort: Cohort, folder: Path) -> None:
    """Put the generator's file of a synthetic cohort into a folder of images that were made from that cohort's.

    Raises:
        OutputError: If it cannot be written.
    """
    found = _mark_of(cohort, cohort.studies)
    if found is not None and found.parent != folder.resolve():
        try:
            shutil.copyfile(found, folder / GENERATOR_FILE)
        except OSError as error:
            raise OutputError(f"{folder / GENERATOR_FILE} cannot be written: {error.strerror or error}") from error


def _mark_of(cohort: Cohort, studies: Sequence[Study]) -> Path | None:
    """Return the file that the generator left.

    It is looked for beside the table and, as a table may be written elsewhere, in the images' folders and up to two
    above them.
    """
    files = [file for study in studies for file in study.images.values() if isinstance(file, Path)]
    folders = sorted({file.parent.resolve() for file in files})
    places = [cohort.path.parent.resolve()] if cohort.path else []
    places += [place for folder in folders for place in (folder, *folder.parents[:2])]
    marks = (place / GENERATOR_FILE for place in dict.fromkeys(places))
    return next((mark for mark in marks if os.path.isfile(mark)), None)  # a folder may be locked

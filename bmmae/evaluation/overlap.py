"""Has a model seen the images that it is tested on? Said wherever a metric is printed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from bmmae.checkpoint import provenance_of
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.origin import image_hashes
from bmmae.errors import few
from bmmae.model.pretrained import PretrainedModel


@dataclass(frozen=True)
class Overlap:
    """Test images that a model was trained on, or the weights that its training started from, or was chosen by.

    Attributes:
        studies: Names of the test studies with such an image.
        tested: How many test studies there are.
        images: How many such images.
        known: Whether the model says what it was itself trained on; else only what it inherited can be found.
        parent_unknown: Whether the model's training started from weights that do not say it.
        chosen: Names of the other test studies whose scores chose among its weights: of its validation part.
    """

    studies: tuple[str, ...]
    tested: int
    images: int
    known: bool
    parent_unknown: bool = False
    chosen: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """Why scores cannot be trusted; empty if nothing of the kind was found."""
        if not self.studies:
            return ""
        return (
            f"THE MODEL WAS TRAINED ON {len(self.studies)} OF THESE {self.tested} TEST STUDIES "
            f"({self.images} images with the same voxels: {few(self.studies, quote='')}): the scores say nothing about "
            "new patients"
        )

    @property
    def nothing_found(self) -> bool:
        """Whether all training images are known, and neither they nor the validation part's are among the test's."""
        return self.known and not self.studies and not self.chosen and not self.parent_unknown

    def __str__(self) -> str:
        """One sentence that stands above every table of metrics; in capitals where they cannot be trusted."""
        if self.studies:
            return f"WARNING: {self.warning}"
        if self.chosen:
            return (
                f"WARNING: {len(self.chosen)} of these {self.tested} test studies chose among the model's weights, as "
                f"its validation part ({few(self.chosen, quote='')}): their scores flatter it"
            )
        if not self.known:
            return "NOT KNOWN whether the model was trained on these test studies: it carries no hashes of its images"
        if self.parent_unknown:
            return (
                "NOT KNOWN whether the weights that training started from have seen these test studies; the training "
                "itself has not"
            )
        return f"None of the {self.tested} test studies was in the model's training or pretraining (compared by voxels)"


def overlap(model: PretrainedModel, studies: Iterable[Study], cache: StudyCache | None = None) -> Overlap:
    """Compare the content of test images with that of a model's training images, and of its pretraining's.

    Args:
        model: As loaded: the hashes are in its provenance.
        studies: The test studies.
        cache: Where hashes may be known already, so that the images need not be read again.

    Raises:
        CheckpointError: If what the model carries is no provenance.
        ImageError: If an image cannot be read.
    """
    origin = provenance_of(model)
    seen, chosen = set(origin.seen), set(origin.selection_hashes)
    tested = list(studies)
    hashes = {study.name: set(image_hashes(study, cache).values()) for study in tested} if seen | chosen else {}
    found = {name: len(seen & own) for name, own in hashes.items()}
    return Overlap(
        studies=tuple(name for name, count in found.items() if count),
        tested=len(tested),
        images=sum(found.values()),
        known=bool(origin.content_hashes),
        parent_unknown=origin.parent is not None and not origin.parent_hashes,
        chosen=tuple(name for name, own in hashes.items() if chosen & own and not found[name]),
    )


def warn_of_overlap(model: PretrainedModel, studies: Iterable[Study], cache: StudyCache | None = None) -> None:
    """Warn if the model has seen some of the studies that are going to judge it; the arguments are `overlap`'s.

    Raises:
        CheckpointError: If what the model carries is no provenance.
        ImageError: If an image cannot be read.

    Warns:
        UserWarning: Naming the studies.
    """
    if told := overlap(model, studies, cache).warning:
        warnings.warn(told, stacklevel=2)

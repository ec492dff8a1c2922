"""The images of one study, as read from files and as a model sees them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bmmae.checkpoint import preprocessing_of
from bmmae.data.preprocess import PreparedStudy, check_same_grid, prepare_images, read_on_grid
from bmmae.data.reading import Image, read_image
from bmmae.errors import ModalityError
from bmmae.modalities import canonical
from bmmae.model.pretrained import PretrainedModel


class UnlikeTrainingWarning(UserWarning):
    """The images differ from those the model was trained on; the result deserves more doubt than usual."""


@dataclass(frozen=True)
class LoadedStudy:
    """Images of one study as read, and as the model sees them.

    Attributes:
        images: By canonical modality, in table order, on their own grid.
        prepared: The same on the model's grid.
    """

    images: Mapping[str, Image]
    prepared: PreparedStudy

    @property
    def reference(self) -> Image:
        """The image whose grid and header results take over."""
        return next(iter(self.images.values()))


def load_study(
    model: PretrainedModel, images: Mapping[str, str | Path], brain_mask: str | Path | None = None
) -> LoadedStudy:
    """Read and preprocess the images of one study.

    Args:
        model: Says which modalities are known and how they are preprocessed.
        images: Files by modality name or alias, in any order.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.

    Raises:
        ModalityError: If none is given, one is unknown to the model, or one is given twice.
        ImageError: If a file is broken.
        GeometryError: If the images are on different grids.
    """
    known = model.model_config.modalities
    if not images:
        raise ModalityError(f"no image given: expected at least one of {', '.join(known)}")
    named = {canonical(name, known): path for name, path in images.items()}
    if len(named) < len(images):
        raise ModalityError(f"a modality is given twice under two names: {', '.join(images)}")
    names = tuple(name for name in known if name in named)
    read = read_all({name: Path(named[name]) for name in names})
    check_same_grid(list(read.values()))
    mask = None if brain_mask is None else read_on_grid(Path(brain_mask), read[names[0]], "the brain mask ")
    prepared = prepare_images(names, list(read.values()), preprocessing_of(model), masks=[mask] * len(names))
    _warn_if_unlike(prepared)
    return LoadedStudy(read, prepared)


def read_all(paths: Mapping[str, Path]) -> dict[str, Image]:
    """Read images by modality."""
    return {name: read_image(path) for name, path in paths.items()}


def caveat(study: LoadedStudy) -> str:
    """Return what a header has to add about the input."""
    return "; input not skull-stripped" if study.prepared.brain_source == "foreground" else ""


def _warn_if_unlike(prepared: PreparedStudy) -> None:
    if prepared.brain_source == "foreground":
        warnings.warn(
            "the images are not skull-stripped: the whole head was used as the brain. Results are less reliable; "
            "strip the skull first, or give a brain mask",
            UnlikeTrainingWarning,
            stacklevel=3,
        )
    thickest = max(prepared.geometry.canonical_spacing)
    if thickest > 2 * max(prepared.geometry.spacing):
        warnings.warn(
            f"the images' coarsest spacing is {thickest:.1f} mm, more than twice the model's "
            f"{max(prepared.geometry.spacing):.1f} mm: detail is invented between slices",
            UnlikeTrainingWarning,
            stacklevel=3,
        )

"""The images of one study, as read from files and as a model sees them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from bmmae.arrays import Array, Bool
from bmmae.checkpoint import preprocessing_of, provenance_of
from bmmae.data.location import File, RemoteFile, locate
from bmmae.data.preprocess import (
    PreparedStudy,
    PreprocessConfig,
    check_same_grid,
    no_finer_than,
    prepare_images,
    read_on_grid,
)
from bmmae.data.reading import Image, array_hash, content_hash, read_header, read_image, read_labels
from bmmae.errors import ImageError, ModalityError
from bmmae.inference.likeness import UnlikeTrainingWarning, unlike_training
from bmmae.modalities import canonical, title
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel


@dataclass(frozen=True)
class LoadedStudy:
    """Images of one study as read, and as the model sees them.

    Attributes:
        images: By canonical modality, in table order, on their own grid.
        prepared: The same on the model's grid.
        remarks: How the study differs from those the model was trained on, one sentence each.
    """

    images: Mapping[str, Image]
    prepared: PreparedStudy
    remarks: tuple[str, ...] = ()

    @property
    def reference(self) -> Image:
        """The image whose grid and header results take over."""
        return next(iter(self.images.values()))

    @property
    def brain(self) -> Bool[np.ndarray, "X Y Z"]:
        """The brain on the images' own grid."""
        return np.asarray(self.prepared.geometry.from_canonical(cast(Array, self.prepared.native_brain)))


@dataclass(frozen=True)
class StudyFiles:
    """What a study is read from.

    Attributes:
        images: By canonical modality.
        masks: Brain masks by modality; those without one share the others'.
    """

    images: Mapping[str, File]
    masks: Mapping[str, File]

    def content(self) -> dict[str, str]:
        """Return the hash of every file's voxels, by role.

        Raises:
            ImageError: If a file is broken.
            LabelError: If a mask holds other than whole numbers.
        """
        images = {name: content_hash(path) for name, path in self.images.items()}
        # A mask may hold one value alone, which an image may not.
        masks = {path: array_hash(read_labels(path)[0].astype(np.float32)) for path in set(self.masks.values())}
        return {**images, **{f"brain_mask_{name}": masks[path] for name, path in self.masks.items()}}

    def place(self) -> dict[str, list[float]]:
        """Return every file's affine, row by row, by role: the same voxels elsewhere are another image.

        Raises:
            ImageError: If a file is broken.
        """
        masks = {f"brain_mask_{name}": path for name, path in self.masks.items()}
        return {role: read_header(path).affine.ravel().tolist() for role, path in {**self.images, **masks}.items()}


def require_loaded(model: PretrainedModel) -> None:
    """Refuse what is no model, its name for example.

    Raises:
        ModalityError: Saying how to load one.
    """
    if not isinstance(model, PretrainedModel):
        raise ModalityError(f"expected a loaded model, got {model!r}: load one first, with bmmae.load_model(...)")


def name_files(
    model: PretrainedModel, images: Mapping[str, str | Path], brain_mask: str | Path | None = None
) -> StudyFiles:
    """Return a study's files under the model's names, in its order.

    Raises:
        ModalityError: If none is given, one is unknown to the model, or one is given twice.
        ImageError: If something else than a path is given, or paths without names.
    """
    known = model.model_config.modalities
    if not images:
        raise ModalityError(f"no image given: expected at least one of {', '.join(known)}")
    _require_names(images, known)
    named = {canonical(name, known): _located(path, name) for name, path in images.items()}
    if len(named) < len(images):
        raise ModalityError(f"a modality is given twice under two names: {', '.join(images)}")
    masks = {} if brain_mask is None else dict.fromkeys(named, _located(brain_mask, "brain_mask"))
    return StudyFiles({name: named[name] for name in known if name in named}, masks)


def _require_names(images: object, known: Sequence[str]) -> None:
    """Refuse files without names.

    Raises:
        ImageError: If they are not given by name.
    """
    if not isinstance(images, Mapping):
        like = f"{{'{known[0]}': '{known[0]}.nii.gz'}}"
        raise ImageError(f"expected image files by modality name, such as {like}, got {images!r}")


def _located(path: str | Path | RemoteFile, name: str) -> File:
    if not isinstance(path, str | os.PathLike | RemoteFile):
        raise ImageError(
            f"{name}: expected the path of an image file, got {type(path).__name__}; leave out what is absent, and "
            "save what is in memory first, for example with nibabel.save(image, path)"
        )
    return locate(path)


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

    Warns:
        UnlikeTrainingWarning: For each way in which the images differ from those of the training.
    """
    return load_files(model, name_files(model, images, brain_mask))


def load_files(model: PretrainedModel, files: StudyFiles, absent: Sequence[str] | None = None) -> LoadedStudy:
    """Read and preprocess a study from its named files; raises and warns as `load_study`.

    Args:
        model: Any model.
        files: The study's.
        absent: What is going to be synthesised; by default all that is absent.
    """
    names = tuple(files.images)
    read = read_all(files.images)
    check_same_grid(list(read.values()))
    first = read[names[0]]
    masks = [read_on_grid(files.masks[n], first, "the brain mask ") if n in files.masks else None for n in names]
    prepared = prepare_images(names, list(read.values()), grid_for(model, names, first, absent), masks=masks)
    unlike = unlike_training(prepared, provenance_of(model).population, preprocessing_of(model).spacing)
    remarks = (*_not_acquired(read), *_open_axes(first), *unlike)
    for remark in remarks:
        warnings.warn(remark, UnlikeTrainingWarning, stacklevel=3)
    return LoadedStudy(read, prepared, remarks)


def _not_acquired(images: Mapping[str, Image]) -> tuple[str, ...]:
    """Say so if an image was synthesised: a completed cohort is a table like any other."""
    made = [title(name) for name, image in images.items() if image.synthetic]
    if not made:
        return ()
    return (
        f"{', '.join(made)} {'is' if len(made) == 1 else 'are'} synthetic by the header: a guess is made from guesses",
    )


def _open_axes(image: Image) -> tuple[str, ...]:
    """Say so if left and right are open: the images of a study share a grid, so one is enough."""
    advice = "Right and left may be swapped, in the result too; convert it again from DICOM or repair the header"
    return (f"{image.open_axes}. {advice}",) if image.open_axes else ()


def grid_for(
    model: PretrainedModel, given: Sequence[str], like: Image, absent: Sequence[str] | None = None
) -> PreprocessConfig:
    """Return how to prepare a study: on the model's grid, or a finer one if all it wants is regressed voxel by voxel.

    Args:
        model: Any model.
        given: The modalities that the study has.
        like: One of its images; the grid is no finer than its own.
        absent: What is going to be synthesised; by default all that is absent.
    """
    config = preprocessing_of(model)
    if not isinstance(model, MAE) or model.synthesis is None:
        return config
    names = model.config.modalities
    asked = [name for name in names if name not in given] if absent is None else absent
    known = model.synthesis.knows([names.index(name) for name in given], [names.index(name) for name in asked])
    if not all(known):
        return config
    fine = replace(config, spacing=model.config.synthesis.spacing)
    h, w, d = like.array.shape
    return no_finer_than(fine, (h, w, d), like.affine)


def read_all(paths: Mapping[str, File]) -> dict[str, Image]:
    """Read images by modality."""
    return {name: read_image(path) for name, path in paths.items()}


def caveat(study: LoadedStudy) -> str:
    """Return what a header has to add about the input."""
    return "; input not skull-stripped" if study.prepared.brain_source == "foreground" else ""

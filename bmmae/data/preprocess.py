"""From images of one study to arrays on the model's grid, and what is needed to go back.

Canonical orientation, one resampling to the model's spacing, a crop to the brain, a z-score inside the brain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.data.brain import Brain, Source, box_of, find_brain
from bmmae.data.cohort import Study
from bmmae.data.geometry import Geometry, grid_difference, same_grid, sheared, turned_like
from bmmae.data.location import File, locate
from bmmae.data.reading import Image, array_hash, read_chances, read_image, read_labels
from bmmae.errors import ConfigError, GeometryError, ImageError
from bmmae.patches import Triple

VERSION = 4
"""Raised whenever the same images would give other arrays; part of every cache key."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How images become model input. Travels with the weights.

    Attributes:
        spacing: Millimetres between voxels along the canonical axes (right, anterior, superior).
        clip: Z-scores beyond this many deviations are clipped.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    clip: float = 8.0

    def __post_init__(self) -> None:
        given: object = self.spacing
        sides = tuple(float(side) for side in given) if isinstance(given, Iterable) else ()
        if len(sides) != 3 or not all(0 < side < math.inf for side in sides):
            raise ConfigError(f"preprocess.spacing must be three positive millimetres, got {given}")
        object.__setattr__(self, "spacing", sides)
        object.__setattr__(self, "clip", float(self.clip))  # 8 is 8.0, in the keys of a cache too
        if not self.clip > 0:
            raise ConfigError(f"preprocess.clip must be positive, got {self.clip}")

    def __str__(self) -> str:
        return f"{self.grid}, clipped at {self.clip:g} deviations"

    @property
    def grid(self) -> str:
        """The spacing in words."""
        return " x ".join(f"{side:g}" for side in self.spacing) + " mm"


@dataclass(frozen=True)
class PreprocessChoice:
    """How images become model input in a fine-tuning; what is not chosen is as the pretrained weights know it.

    Attributes:
        spacing: Millimetres between voxels; from scratch 1.
        clip: Z-scores beyond this many deviations are clipped; from scratch 8.
    """

    spacing: tuple[float, float, float] | None = None
    clip: float | None = None

    def over(self, known: PreprocessConfig) -> PreprocessConfig:
        """Return what the weights know, with what was chosen.

        Raises:
            ConfigError: If a value makes no sense.
        """
        return PreprocessConfig(self.spacing or known.spacing, known.clip if self.clip is None else self.clip)


@dataclass(frozen=True)
class PreparedStudy:
    """One study on the model's grid, cropped to its brain.

    Attributes:
        names: The available modalities, in table order.
        images: Float32[K, H, W, D], z-scored inside the brain, exactly 0 outside it and where not scanned.
        valid: Bool[K, H, W, D], inside each modality's coverage (background counts as scanned).
        brain: Bool[H, W, D], the union over the modalities.
        label: Int16[H, W, D] in the source's coding, or None.
        lesion: Float32[H, W, D], the chance that a voxel is lesion, or None.
        geometry: How to go back to the native grid.
        scales: Mean and deviation of each modality inside its brain, in the source's intensity units.
        brain_source: Where the brain mask comes from.
        native_brain: Bool[X, Y, Z] on the canonical native grid, or None when read from a cache.
        content: Modality to the hash of its image's voxels (`array_hash`), if it was read from files.
    """

    names: tuple[str, ...]
    images: Float[np.ndarray, "K H W D"]
    valid: Bool[np.ndarray, "K H W D"]
    brain: Bool[np.ndarray, "H W D"]
    label: Int[np.ndarray, "H W D"] | None
    geometry: Geometry
    scales: tuple[tuple[float, float], ...]
    brain_source: Source
    native_brain: Bool[np.ndarray, "X Y Z"] | None = None
    lesion: Float[np.ndarray, "H W D"] | None = None
    content: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Triple:
        """Voxels of the arrays."""
        return self.geometry.shape

    @property
    def shown(self) -> tuple[bool, ...]:
        """Whether each modality has any voxel inside the brain."""
        return tuple(bool((valid & self.brain).any()) for valid in self.valid)

    def lesion_voxels(self) -> Int[np.ndarray, "n 3"]:
        """Return a sample of the labelled voxels, some of every lesion; empty when there is none."""
        return np.zeros((0, 3), np.int16) if self.label is None else sample_voxels(self.label)

    def lesion_numbers(self) -> Int[np.ndarray, " n"]:
        """Return which lesion each of `lesion_voxels` belongs to."""
        if self.label is None:
            return np.zeros(0, np.int16)
        return np.asarray(number_lesions(self.label)[tuple(self.lesion_voxels().T)])

    def window(self, start: Triple, size: Triple) -> Window:
        """Cut a window out; it may reach beyond the arrays."""
        there, here = overlap(start, size, self.shape)
        label = None if self.label is None else self.label[there]
        part = Part(self.images[(..., *there)], self.valid[(..., *there)], self.brain[there], label)
        return place_window(self.names, part, here, size)


@dataclass(frozen=True)
class Window:
    """A window of a prepared study. Beyond the study's arrays: background, scanned, without label.

    Attributes:
        names: The available modalities.
        images: Float32[K, h, w, d].
        valid: Bool[K, h, w, d].
        brain: Bool[h, w, d].
        label: Int16[h, w, d] or None.
    """

    names: tuple[str, ...]
    images: Float[np.ndarray, "K h w d"]
    valid: Bool[np.ndarray, "K h w d"]
    brain: Bool[np.ndarray, "h w d"]
    label: Int[np.ndarray, "h w d"] | None


Slices = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Part:
    """The arrays of a study inside some box, in whatever types they are stored."""

    images: Array
    valid: Array
    brain: Array
    label: Array | None


def overlap(start: Triple, size: Triple, extent: Triple) -> tuple[Slices, Slices]:
    """Return where a window and an array overlap: as slices of the array, and as slices of the window."""
    there, here = [], []
    for first, wanted, whole in zip(start, size, extent, strict=True):
        low = min(max(first, 0), whole)
        high = max(low, min(first + wanted, whole))
        there.append(slice(low, high))
        here.append(slice(low - first, high - first) if high > low else slice(0, 0))
    return (there[0], there[1], there[2]), (here[0], here[1], here[2])


def place_window(names: tuple[str, ...], part: Part, here: Slices, size: Triple) -> Window:
    """Lay the part of a study that a window covers into the window; the rest is background."""

    def place(array: Array, fill: int, dtype: type) -> Array:
        out = np.full((*array.shape[:-3], *size), fill, dtype=dtype)
        out[(..., *here)] = array
        return out

    return Window(
        names=names,
        images=place(part.images, 0, np.float32),
        valid=place(part.valid, 1, np.bool_),
        brain=place(part.brain, 0, np.bool_),
        label=None if part.label is None else place(part.label, 0, np.int16),
    )


def number_lesions(label: Int[np.ndarray, "H W D"]) -> Int[np.ndarray, "H W D"]:
    """Return the number of the lesion that each voxel belongs to, from 1 on; 0 outside.

    Labelled voxels that touch by a face, an edge or a corner are one lesion.
    """
    return np.asarray(ndimage.label(label > 0, structure=np.ones((3, 3, 3)))[0])


def sample_voxels(label: Int[np.ndarray, "H W D"], count: int = 512) -> Int[np.ndarray, "n 3"]:
    """Return labelled voxels: `count` evenly spread over the list of all of them, and one of each lesion at least."""
    numbers = number_lesions(label)
    voxels = np.argwhere(numbers).astype(np.int16)
    if len(voxels) <= count:
        return voxels
    spread = np.linspace(0, len(voxels) - 1, count).astype(int)
    one_each = np.unique(numbers[numbers > 0], return_index=True)[1]
    missed = np.setdiff1d(numbers[tuple(voxels[one_each].T)], numbers[tuple(voxels[spread].T)])
    return np.asarray(voxels[np.union1d(spread, one_each[missed - 1])])


def prepare_study(study: Study, config: PreprocessConfig, modalities: tuple[str, ...]) -> PreparedStudy:
    """Read and preprocess the modalities that a study has among those asked for.

    Raises:
        ImageError: If a file is broken, or the study has none of the modalities.
        GeometryError: If its images are on different grids, or on one whose axes are not at right angles.
    """
    names = tuple(name for name in modalities if name in study.images)
    if not names:
        have = ", ".join(study.images) or "none"
        raise ImageError(f"study '{study.subject}' has none of the modalities {', '.join(modalities)}; it has: {have}")
    images = [read_image(study.images[name]) for name in names]
    check_same_grid(images)
    masks = [_read_mask(study, name, images[0]) for name in names]
    prepared = prepare_images(names, images, config, masks=masks, label=_read_label(study, images[0]))
    if study.lesion is not None:
        prepared = replace(prepared, lesion=_read_lesion(study.lesion, images[0], prepared.geometry))
    content = {name: array_hash(image.array) for name, image in zip(names, images, strict=True)}
    return replace(prepared, content=content)


def prepare_images(
    names: tuple[str, ...],
    images: list[Image],
    config: PreprocessConfig,
    masks: list[Array | None] | None = None,
    label: Array | None = None,
) -> PreparedStudy:
    """Preprocess images that share a grid; masks and label are native arrays.

    Raises:
        ImageError: If no brain is found, or a modality is constant inside it.
        GeometryError: If the images' axes are not at right angles.
    """
    first = images[0]
    if sheared(first.affine):
        raise GeometryError(
            f"the axes of {first.path.name} are not at right angles (its affine has a shear): expected a grid without; "
            "run `bmmae preprocess` on the study, which resamples it"
        )
    whole = Geometry.of(_triple(first.array), first.affine, config.spacing)
    volumes = np.stack([whole.to_canonical(image.array) for image in images])
    turned = [None if mask is None else whole.to_canonical(mask) for mask in masks or [None] * len(names)]
    brain = find_brain(volumes, turned)
    mask = whole.to_model(brain.mask) >= 0.5
    geometry = whole.cropped(*bounding_box(mask))
    scales = tuple(_scale(v[c], n) for v, c, n in zip(volumes, brain.covered, names, strict=True))
    arrays, valid = _resample_all(volumes, brain, scales, geometry, config.clip)
    return PreparedStudy(
        names=names,
        images=arrays,
        valid=valid,
        brain=mask[geometry.window],
        label=None if label is None else _resample_label(whole.to_canonical(label), geometry),
        geometry=geometry,
        scales=scales,
        brain_source=brain.source,
        native_brain=brain.mask,
    )


def no_finer_than(config: PreprocessConfig, shape: Triple, affine: Array) -> PreprocessConfig:
    """Return a config whose spacing is along no axis finer than that of an image: there is nothing to see between."""
    own = Geometry.of(shape, affine, config.spacing).canonical_spacing
    coarser = [max(wanted, round(step, 3)) for wanted, step in zip(config.spacing, own, strict=True)]
    return replace(config, spacing=(coarser[0], coarser[1], coarser[2]))


def check_same_grid(images: list[Image]) -> None:
    """Refuse images of one study that are on different grids.

    Raises:
        GeometryError: Naming the first two files that differ.
    """
    first = images[0]
    for other in images[1:]:
        if not same_grid(other.shape, other.affine, first.shape, first.affine):
            raise GeometryError(
                f"{first.path.name} {first.shape} and {other.path.name} {other.shape} are on different grids"
                f"{grid_difference(first.shape, first.affine, other.shape, other.affine)}: register and resample the "
                "study with `bmmae preprocess` first"
            )


def read_on_grid(path: str | File, like: Image, subject: str = "") -> Int[np.ndarray, "X Y Z"]:
    """Read the whole numbers of a mask or segmentation that has to share an image's grid, but for the axes' order.

    Args:
        path: The file.
        like: The image.
        subject: What the file is, for the message: "the brain mask ".

    Raises:
        GeometryError: If it is on another grid.
        ImageError: If the file is broken.
        LabelError: If it holds other than whole numbers.
    """
    path = locate(path)
    return _on_grid(f"{subject}{path.name}", *read_labels(path), like)


def _on_grid(name: str, array: Array, affine: Array, like: Image) -> Array:
    """Turn voxels as an image has them; they have to be in the same places."""
    array, affine = turned_like(array, affine, like.affine)
    if not same_grid(array.shape, affine, like.shape, like.affine):
        difference = grid_difference(array.shape, affine, like.shape, like.affine)
        raise GeometryError(
            f"{name} {array.shape} is not on the grid of {like.path.name} {like.array.shape}{difference}: resample it "
            "to that grid, whole numbers by nearest neighbour"
        )
    return array


def bounding_box(mask: Bool[np.ndarray, "H W D"]) -> tuple[Triple, Triple]:
    """Return first voxel and extent of the smallest box around the flagged voxels.

    Raises:
        ImageError: If nothing is flagged.
    """
    if not mask.any():
        raise ImageError("the brain is smaller than one voxel of the model's grid: check the image's spacing")
    a, b, c = box_of(mask)
    return (a.start, b.start, c.start), (a.stop - a.start, b.stop - b.start, c.stop - c.start)


def _triple(array: Array) -> Triple:
    return (array.shape[0], array.shape[1], array.shape[2])


def _scale(values: Float[np.ndarray, " N"], name: str) -> tuple[float, float]:
    """Mean and deviation between the 0.5 and 99.5 percentiles, so that a few huge voxels do not decide."""
    if not len(values):
        return 0.0, 1.0  # nothing of this modality lies inside the brain: no voxel of it is used
    low, high = np.percentile(values, (0.5, 99.5))
    inner = np.clip(values.astype(np.float64), low, high)
    deviation = float(inner.std())
    if deviation <= 1e-12 * max(1.0, abs(float(inner.mean()))):
        raise ImageError(f"the {name} image has one constant value inside the brain: it holds no picture")
    return float(inner.mean()), deviation


def _resample_all(
    volumes: Array, brain: Brain, scales: tuple[tuple[float, float], ...], geometry: Geometry, clip: float
) -> tuple[Array, Array]:
    """Z-score and resample, weighting by coverage so that background never bleeds into tissue."""
    images = np.zeros((len(volumes), *geometry.shape), dtype=np.float32)
    valid = np.zeros(images.shape, dtype=bool)
    inside = geometry.to_model(brain.mask)
    for index, (volume, covered, (mean, deviation)) in enumerate(zip(volumes, brain.covered, scales, strict=True)):
        # Clipped first: one huge voxel must neither overflow nor bleed into its neighbours.
        clipped = np.clip(volume, mean - clip * deviation, mean + clip * deviation)
        scored = np.where(covered, (clipped - mean) / deviation, 0).astype(np.float32)
        share = geometry.to_model(covered)
        has_data = share >= 0.5 * np.maximum(inside, 1e-6)
        tissue = (inside >= 0.5) & has_data
        values = geometry.to_model(scored) / np.maximum(share, 1e-6)
        images[index][tissue] = np.clip(values[tissue], -clip, clip)  # rounding may leave the range by a little
        valid[index] = has_data | (inside < 0.5)
    return images, valid


def _resample_label(label: Array, geometry: Geometry) -> Array:
    """Resample soft masks: a voxel that is half lesion or more takes its strongest class.

    Background competes with all classes together, else a lesion of many classes would shrink at its rim.
    """
    values = np.unique(label[label != 0])
    if not len(values):
        return np.zeros(geometry.shape, dtype=np.int16)
    scores = np.stack([geometry.to_model(label == value) for value in values])
    return np.where(scores.sum(axis=0) >= 0.5, values[scores.argmax(axis=0)], 0).astype(np.int16)


def _read_mask(study: Study, name: str, like: Image) -> Array | None:
    path = study.brain_mask_of(name)
    return None if path is None else read_on_grid(path, like)


def _read_label(study: Study, like: Image) -> Array | None:
    return None if study.seg is None else read_on_grid(study.seg, like)


def _read_lesion(file: File, like: Image, geometry: Geometry) -> Float[np.ndarray, "H W D"]:
    """Resample a map of chances linearly: what is soft stays soft."""
    chances = read_chances(file)
    array = _on_grid(f"the lesion map {chances.path.name}", chances.array, chances.affine, like)
    return np.asarray(np.clip(geometry.to_model(geometry.to_canonical(array)), 0, 1), np.float32)

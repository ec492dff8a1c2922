"""Labels for one study, from any subset of its modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float, Tensor
from bmmae.data.labels import labels_from_regions
from bmmae.data.location import file_name
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ConfigError, ImageError, ModalityError
from bmmae.inference.decision import Cut, parse_cut, regions_of
from bmmae.inference.postprocess import Cleaned, PostprocessConfig, clean_regions
from bmmae.inference.study import LoadedStudy, caveat, load_study, require_loaded
from bmmae.inference.windows import over_windows, to_native
from bmmae.inference.writing import image_like
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationModel
from bmmae.tasks.segmentation import label_coding


@dataclass(frozen=True)
class SegmentOptions:
    """How a study is segmented.

    Attributes:
        overlap: Share by which neighbouring windows overlap, at least.
        flips: Average with the prediction from the left-right mirror image; twice the time.
        fitted: Take windows no larger than the overlap needs: about twice as fast, with less context.
        postprocess: Cleaning of the regions; None for none.
        cut: Probability above which a voxel belongs to a region, or `dice`; see `bmmae.inference.decision`.

    Raises:
        ConfigError: If `overlap` is not below 1, `cut` is neither, or `postprocess` something else.
    """

    overlap: float = 0.25
    flips: bool = False
    fitted: bool = False
    postprocess: PostprocessConfig | None = None
    cut: Cut = 0.5

    def __post_init__(self) -> None:
        parse_cut(str(self.cut))
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap of windows must lie in [0, 1), got {self.overlap:g}")
        if self.postprocess is not None and not isinstance(self.postprocess, PostprocessConfig):
            raise ConfigError(f"postprocess must be a PostprocessConfig or None, got {self.postprocess!r}")


@dataclass(frozen=True)
class Segmentation:
    """What a model found in one study, on the input's grid.

    Attributes:
        study: As loaded.
        regions: Names of the regions.
        coding: Name of the label coding.
        labels: Uint8 or Int16[X, Y, Z], values of the coding.
        probabilities: Float32[R, X, Y, Z].
        cleaned: What postprocessing changed, by region; empty where there was none.
        cuts: The probability that each region was cut at.
    """

    study: LoadedStudy
    regions: tuple[str, ...]
    coding: str
    labels: Array
    probabilities: Float[np.ndarray, "R X Y Z"]
    cleaned: Mapping[str, Cleaned] = field(default_factory=dict)
    cuts: tuple[float, ...] = ()

    def image(self) -> nib.Nifti1Image:
        """Return the labels as an image over the input."""
        text = f"bmmae segmentation, {self.coding}{caveat(self.study)}"
        return image_like(self.labels, self.study.reference, text)

    def probability_images(self) -> dict[str, nib.Nifti1Image]:
        """Return `probability_<region>` and `lesion_probability` (of any region: their maximum) as images."""
        parts = [*self.probabilities, self.probabilities.max(axis=0)]
        maps = dict(zip(probability_names(self.regions), parts, strict=True))
        text = f"bmmae probability, {self.coding}{caveat(self.study)}"
        return {name: image_like(values, self.study.reference, text) for name, values in maps.items()}


def probability_names(regions: Sequence[str]) -> tuple[str, ...]:
    """Return what the probability maps are called, as files may be: one a region, and that of any region."""
    return (*("probability_" + file_name(name) for name in regions), "lesion_probability")


def segment(
    model: PretrainedModel,
    images: Mapping[str, str | Path],
    *,
    brain_mask: str | Path | None = None,
    options: SegmentOptions | None = None,
) -> nib.Nifti1Image:
    """Segment one study from any subset of its modalities.

    Args:
        model: A segmentation model.
        images: Files by modality name or alias, in any order.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.
        options: How.

    Returns:
        Label values in the model's coding, on the grid of the input.

    Raises:
        ModalityError: If none is given, one is unknown to the model, or the model has no segmentation head.
        ImageError: If a file is broken or holds a single slice, or there is no brain.
    """
    segmenter = require_segmenter(model)
    return segment_study(segmenter, load_study(model, images, brain_mask), options).image()


def require_segmenter(model: PretrainedModel) -> SegmentationModel:
    """Return a segmentation model as what it is.

    Raises:
        ModalityError: If it has no segmentation head.
    """
    require_loaded(model)
    if not isinstance(model, SegmentationModel):
        raise ModalityError(f"a {model.kind} model cannot segment: fine-tune it with finetune/segmentation.py first")
    return model


def segment_study(model: SegmentationModel, study: LoadedStudy, options: SegmentOptions | None = None) -> Segmentation:
    """Segment a loaded study.

    Raises:
        ImageError: If its images hold a single slice.
    """
    options = options or SegmentOptions()
    shape = study.reference.array.shape
    if min(shape) < 2:
        raise ImageError(
            f"{study.reference.path.name} holds a single slice {shape}: segmentation needs a volume, with two slices "
            "or more along every axis"
        )
    found = segment_prepared(model, study.prepared, overlap=options.overlap, flips=options.flips, fitted=options.fitted)
    native = np.stack([to_native(study.prepared, part, within_brain=False) for part in found])
    regions = model.config.regions
    cleaned: Mapping[str, Cleaned] = {}
    masks, cuts = regions_of(native, options.cut)
    coding = label_coding(model.config)
    if options.postprocess is not None:
        masks, cleaned = clean_regions(masks, coding, voxel_spacing(study), options.postprocess)
    labels = labels_from_regions(masks, coding)
    if labels.max(initial=0) <= np.iinfo(np.uint8).max:
        labels = labels.astype(np.uint8)
    return Segmentation(study, regions, model.config.coding, labels, native, cleaned, cuts)


def voxel_spacing(study: LoadedStudy) -> Sequence[float]:
    """Return the millimetres between voxels along the input's axes."""
    return [float(size) for size in np.linalg.norm(study.reference.affine[:3, :3], axis=0)]


def segment_prepared(
    model: SegmentationModel,
    prepared: PreparedStudy,
    *,
    overlap: float = 0.25,
    flips: bool = False,
    fitted: bool = False,
) -> Float[np.ndarray, "R H W D"]:
    """Return region probabilities on the model's grid; 0 outside the brain.

    Args:
        model: In eval mode.
        prepared: The study; of the modalities that it has, each region is taken from those that the model's config
            relies on (`relied_on`): from all, if it says nothing, and in windows that those do not cover.
        overlap: Share by which neighbouring windows overlap, at least.
        flips: Average with the prediction from the left-right mirror image.
        fitted: Take windows no larger than the overlap needs.
    """
    config, parts = model.config.model, model.config.regions_by_subset(prepared.names)

    def probabilities(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        tissue = brain if config.tissue_only else None
        found: Tensor | None = None
        for subset, regions in parts.items():
            available = _relied_on(valid, brain, [name in subset for name in config.modalities])
            said = cast(Tensor, model(images, available, tissue, valid)).float().sigmoid()
            found = said if found is None else found
            found[:, regions] = said[:, regions]
        return cast(Tensor, found)

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        faster = images.dtype == torch.float32 and _has_matrix_units(images.device)  # half weights bring their own
        with torch.autocast(images.device.type, torch.bfloat16, enabled=faster):
            found = probabilities(images, valid, brain)
            if flips:
                mirrored = probabilities(*(volume.flip(2) for volume in (images, valid, brain))).flip(2)
                found = (found + mirrored) / 2
        return found * brain

    return over_windows(model, prepared, predict, share=overlap, fitted=fitted)


def _relied_on(valid: Bool[Tensor, "1 M H W D"], brain: Bool[Tensor, "1 1 H W D"], chosen: Sequence[bool]) -> Tensor:
    """Return which modalities a window is segmented from, Bool[1, M]: the chosen ones, or all where these have gaps."""
    there = valid.flatten(2).any(2)
    some = there & torch.tensor([chosen], device=valid.device)
    uncovered = brain[:, 0] & valid.any(1) & ~valid[:, some[0]].any(1)
    return there if bool(uncovered.any()) else some


def _has_matrix_units(device: torch.device) -> bool:
    """Whether bf16 is several times as fast; elsewhere casting costs what it saves."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())

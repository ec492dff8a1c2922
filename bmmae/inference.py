"""From image files to results on the same grid: any subset of modalities in, native-space images out."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch

from bmmae._version import __version__
from bmmae.arrays import Array, Float, Tensor
from bmmae.checkpoint import preprocessing_of
from bmmae.data.labels import find_coding, labels_from_regions
from bmmae.data.preprocess import GRID_TOLERANCE, PreparedStudy, check_same_grid, prepare_images
from bmmae.data.reading import Header, Image, read_header, read_image, read_labels, write_image
from bmmae.errors import GeometryError, ModalityError, OutputError
from bmmae.modalities import canonical, in_table_order, title
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationModel
from bmmae.patches import any_in_patch

NOTE = "reconstruction.json"
OVERLAP = 0.5
"""Share by which neighbouring windows overlap where the brain is larger than one."""


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
    read = _read_all({name: Path(named[name]) for name in names})
    check_same_grid(list(read.values()))
    mask = None if brain_mask is None else _read_mask(Path(brain_mask), read[names[0]])
    prepared = prepare_images(names, list(read.values()), preprocessing_of(model), masks=[mask] * len(names))
    _warn_if_unlike(prepared)
    return LoadedStudy(read, prepared)


def reconstruct(
    model: PretrainedModel,
    images: Mapping[str, str | Path],
    *,
    brain_mask: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, nib.Nifti1Image]:
    """Synthesise the absent modalities of one study.

    Intensities: inside the brain, z-scores brought to the scale of the given images (the median of their means and
    deviations); 0 outside. MR intensities have no unit, so an absent sequence's own scale cannot be known.

    Args:
        model: A masked autoencoder.
        images: Files by modality name or alias, in any order.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.
        only: Synthesise just these of the absent modalities.

    Returns:
        The absent modalities by name, on the grid of the input.

    Raises:
        ModalityError: If none is given, none is absent, or the model cannot reconstruct.
        ImageError: If a file is broken.
    """
    if not isinstance(model, MAE):
        raise ModalityError(f"a {model.kind} model cannot reconstruct: use a pretrained model (kind 'mae')")
    study = load_study(model, images, brain_mask)
    absent = _absent(model, study, only)
    scores = reconstruct_prepared(model, study.prepared, absent)
    mean, deviation = np.median(np.asarray(study.prepared.scales), axis=0)
    out = {}
    for name in absent:
        native = to_native(study.prepared, scores[name])
        brain = study.prepared.geometry.from_canonical(cast(Array, study.prepared.native_brain))
        values = np.where(brain, native * deviation + mean, 0).astype(np.float32)
        out[name] = _image(values, study.reference, f"bmmae SYNTHETIC {title(name)}, not acquired{_caveat(study)}")
    return out


def _absent(model: MAE, study: LoadedStudy, only: Sequence[str] | None) -> list[str]:
    """The modalities to synthesise, in the model's order."""
    names = model.config.modalities
    wanted = names if only is None else [canonical(name, names) for name in only]
    given = [name for name in wanted if name in study.images]
    if only is not None and given:
        raise ModalityError(f"{', '.join(given)} cannot be synthesised: it is among the images given")
    absent = [name for name in names if name in wanted and name not in study.images]
    if not absent:
        raise ModalityError(f"no modality is left to reconstruct: all of {', '.join(names)} are given")
    return absent


def reconstruct_prepared(
    model: MAE, prepared: PreparedStudy, absent: Sequence[str]
) -> dict[str, Float[np.ndarray, "H W D"]]:
    """Predict modalities on the model's grid, from all those that a prepared study has except the ones asked for.

    Returns:
        Z-scores by modality; 0 outside the brain.
    """
    names = model.config.modalities

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        wanted = torch.tensor([name in absent for name in names], device=images.device)[:, None]
        # A model trained on background too sees and decodes it, as in training; it is cut off below.
        tissue = brain if model.config.tissue_only else torch.ones_like(brain)
        visible = any_in_patch(valid & tissue, model.config.patch) & ~wanted
        targets = any_in_patch(tissue, model.config.patch) & wanted
        if not bool(visible.any()) or not bool(targets.any()):
            return torch.zeros_like(images)
        return model.predict(images, visible, targets)

    volumes = over_windows(model, prepared, predict)
    return {name: np.where(prepared.brain, volumes[names.index(name)], 0) for name in absent}


def segment(
    model: PretrainedModel, images: Mapping[str, str | Path], *, brain_mask: str | Path | None = None
) -> nib.Nifti1Image:
    """Segment one study from any subset of its modalities.

    Returns:
        Label values in the model's coding, on the grid of the input.

    Raises:
        ModalityError: If none is given, or the model has no segmentation head.
        ImageError: If a file is broken.
    """
    if not isinstance(model, SegmentationModel):
        raise ModalityError(f"a {model.kind} model cannot segment: fine-tune it with finetune/segmentation.py first")
    study = load_study(model, images, brain_mask)
    probabilities = segment_prepared(model, study.prepared)
    regions = np.stack([to_native(study.prepared, p, within_brain=False) for p in probabilities]) > 0.5
    labels = labels_from_regions(regions, find_coding(model.config.coding)).astype(np.uint8)
    return _image(labels, study.reference, f"bmmae segmentation, {model.config.coding}{_caveat(study)}")


def segment_prepared(model: SegmentationModel, prepared: PreparedStudy) -> Float[np.ndarray, "R H W D"]:
    """Return region probabilities on the model's grid; 0 outside the brain."""
    config = model.config.model

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        regions = len(model.config.regions)
        if not bool(brain.any()):
            return images.new_zeros(1, regions, *images.shape[2:])
        available = torch.tensor([[name in prepared.names for name in config.modalities]], device=images.device)
        tissue = brain if config.tissue_only else None
        return cast(Tensor, model(images, available, tissue, valid)).sigmoid() * brain

    return over_windows(model, prepared, predict)


def over_windows(
    model: PretrainedModel, prepared: PreparedStudy, predict: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Float[np.ndarray, "C H W D"]:
    """Apply a function to overlapping windows of a prepared study and blend what it returns.

    Args:
        model: Says how large a window is and in which order modalities come.
        prepared: The study.
        predict: From images Float[1, M, h, w, d], valid Bool[1, M, h, w, d] (False for absent modalities) and brain
            Bool[1, 1, h, w, d], on the model's device, to Float[1, C, h, w, d].
    """
    from monai.inferers.utils import sliding_window_inference

    config = model.model_config
    count = len(config.modalities)
    device = next(model.parameters()).device
    # Windows are padded with zeros, and beyond a study is background, which counts as scanned: so, `unscanned`.
    channels = torch.zeros(1, 2 * count + 1, *prepared.shape)
    for index, name in enumerate(prepared.names):
        slot = config.modalities.index(name)
        channels[0, slot] = torch.from_numpy(np.asarray(prepared.images[index], np.float32))
        channels[0, count + slot] = torch.from_numpy(np.asarray(~prepared.valid[index], np.float32))
    channels[0, -1] = torch.from_numpy(np.asarray(prepared.brain, np.float32))

    def on_window(window: Tensor) -> Tensor:
        images, unscanned, brain = torch.split(window, [count, count, 1], dim=1)
        available = torch.tensor([name in prepared.names for name in config.modalities], device=window.device)
        return predict(images, (unscanned < 0.5) & available[:, None, None, None], brain > 0.5)

    with torch.inference_mode():
        blended = sliding_window_inference(
            channels, config.size, 1, on_window, OVERLAP, mode="gaussian", sw_device=device, device="cpu"
        )
    return np.asarray(cast(Tensor, blended)[0].numpy())


def to_native(
    prepared: PreparedStudy,
    volume: Float[np.ndarray, "H W D"],
    *,
    within_brain: bool = True,
) -> Float[np.ndarray, "X Y Z"]:
    """Bring a volume from the model's grid to the input's.

    Args:
        prepared: The study that the volume belongs to.
        volume: On the model's grid.
        within_brain: Only brain voxels carry values: what lies outside must not bleed in.
    """
    geometry = prepared.geometry
    if not within_brain:
        return geometry.from_canonical(geometry.to_native_spacing(volume))
    weights = prepared.brain.astype(np.float32)
    total = geometry.to_native_spacing(volume * weights)
    share = geometry.to_native_spacing(weights)
    return geometry.from_canonical(np.where(share > 1e-3, total / np.maximum(share, 1e-3), 0).astype(np.float32))


def reconstruct_to_folder(
    model: PretrainedModel,
    images: Mapping[str, str | Path],
    folder: str | Path,
    *,
    brain_mask: str | Path | None = None,
    complete: bool = False,
) -> dict[str, Path]:
    """Synthesise the absent modalities and write each to `<folder>/<modality>.nii.gz`.

    Args:
        model: A masked autoencoder.
        images: Files by modality name or alias, in any order.
        folder: Created if need be. Beside the images, `reconstruction.json` says how they were made.
        brain_mask: A mask on the same grid, for images that are not skull-stripped.
        complete: Write the given images as well, unchanged in values.

    Returns:
        The files by modality.

    Raises:
        BmmaeError: As `reconstruct`; nothing is written then.
        OutputError: If the folder cannot be written.
    """
    made = reconstruct(model, images, brain_mask=brain_mask)
    known = model.model_config.modalities
    given = {canonical(name, known): Path(path) for name, path in images.items()}
    if complete:
        made |= {name: _image(image.array, image, "") for name, image in _read_all(given).items()}
    note = {
        "bmmae": __version__,
        "synthetic": [name for name in in_table_order(made) if name not in given],
        "given": {name: path.name for name, path in given.items()},
        "intensity": "z-scores inside the brain, times the median deviation plus the median mean of the given images",
        "model": {key: value for key, value in model.metadata.provenance.items() if key != "content_hashes"},
        "notice": "Synthetic images made by research software; not acquired, not for diagnosis.",
    }
    return _write_all({name: made[name] for name in in_table_order(made)}, note, Path(folder))


def _write_all(images: Mapping[str, nib.Nifti1Image], note: Mapping[str, object], folder: Path) -> dict[str, Path]:
    """Write images and note beside each other first, then move all into place: a full disk leaves nothing behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            names = [save_image(image, Path(partial) / f"{name}.nii.gz").name for name, image in images.items()]
            (Path(partial) / NOTE).write_text(json.dumps(note, indent=2, default=str))
            for name in (*names, NOTE):
                (Path(partial) / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return {name: folder / f"{name}.nii.gz" for name in images}


def save_image(image: nib.Nifti1Image, path: str | Path) -> Path:
    """Write an image in one step, its header's codes, units and description kept.

    Raises:
        OutputError: If it cannot be written.
    """
    array = np.asanyarray(image.dataobj)
    like = Header(Path(path), array.shape, image.affine, array.dtype, image.header)
    return write_image(path, array, image.affine, like, bytes(image.header["descrip"]).decode().rstrip("\0"))


def _caveat(study: LoadedStudy) -> str:
    """What a header has to add about the input."""
    return "; input not skull-stripped" if study.prepared.brain_source == "foreground" else ""


def _image(values: Array, like: Image, description: str) -> nib.Nifti1Image:
    source = read_header(like.path).raw
    image = nib.Nifti1Image(values, like.affine)
    if isinstance(source, nib.Nifti1Header):
        for kind in ("qform", "sform"):
            matrix, code = getattr(source, f"get_{kind}")(coded=True)
            getattr(image, f"set_{kind}")(matrix, code)
        image.header.set_xyzt_units(*source.get_xyzt_units())
    image.header["descrip"] = description.encode()[:79]
    return image


def _read_all(paths: Mapping[str, Path]) -> dict[str, Image]:
    return {name: read_image(path) for name, path in paths.items()}


def _read_mask(path: Path, like: Image) -> Array:
    array, affine = read_labels(path)
    if array.shape != like.array.shape or not np.allclose(affine, like.affine, atol=GRID_TOLERANCE):
        raise GeometryError(f"the brain mask {path.name} {array.shape} is not on the images' grid {like.array.shape}")
    return array


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

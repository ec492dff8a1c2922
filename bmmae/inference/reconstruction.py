"""Absent modalities of one study, synthesised from those it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch

from bmmae._version import __version__
from bmmae.arrays import Array, Float, Tensor
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ModalityError
from bmmae.inference.study import LoadedStudy, caveat, load_study, read_all
from bmmae.inference.windows import over_windows, to_native
from bmmae.inference.writing import image_like, write_together
from bmmae.modalities import canonical, in_table_order, title
from bmmae.model.mae import MAE
from bmmae.model.pretrained import PretrainedModel
from bmmae.patches import any_in_patch

NOTE = "reconstruction.json"


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
        out[name] = image_like(values, study.reference, f"bmmae SYNTHETIC {title(name)}, not acquired{caveat(study)}")
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
        made |= {name: image_like(image.array, image, "") for name, image in read_all(given).items()}
    note = {
        "bmmae": __version__,
        "synthetic": [name for name in in_table_order(made) if name not in given],
        "given": {name: path.name for name, path in given.items()},
        "intensity": "z-scores inside the brain, times the median deviation plus the median mean of the given images",
        "model": {key: value for key, value in model.metadata.provenance.items() if key != "content_hashes"},
        "notice": "Synthetic images made by research software; not acquired, not for diagnosis.",
    }
    return write_together({name: made[name] for name in in_table_order(made)}, note, Path(folder), NOTE)

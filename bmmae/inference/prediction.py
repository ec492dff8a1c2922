"""What a masked autoencoder predicts for the absent modalities of a prepared study, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bmmae.arrays import Float, Tensor
from bmmae.checkpoint import preprocessing_of
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ConfigError
from bmmae.inference.windows import over_windows
from bmmae.model.mae import MAE
from bmmae.model.synthesis import Voxels
from bmmae.model.tokens import existing_tokens
from bmmae.patches import as_triple


@dataclass(frozen=True)
class Synthesis:
    """Predicted modalities on the model's grid; 0 outside the brain.

    Attributes:
        means: Z-scores Float[H, W, D] by modality.
        variances: Their variances Float[H, W, D] by modality; empty if not asked for.
    """

    means: Mapping[str, Float[np.ndarray, "H W D"]]
    variances: Mapping[str, Float[np.ndarray, "H W D"]] = field(default_factory=dict)


def reconstruct_prepared(
    model: MAE, prepared: PreparedStudy, absent: Sequence[str]
) -> dict[str, Float[np.ndarray, "H W D"]]:
    """Predict modalities on the model's grid, from all those that a prepared study has except the ones asked for.

    Returns:
        Z-scores by modality; 0 outside the brain.
    """
    return dict(predict_absent(model, prepared, absent).means)


def predict_absent(
    model: MAE, prepared: PreparedStudy, absent: Sequence[str], *, uncertainty: bool = False
) -> Synthesis:
    """Predict modalities on a prepared study's grid, from all those that it has except the ones asked for.

    Voxels come from the model's regression (see `bmmae.model.synthesis`), which works on any grid. Where it knows
    nothing, they come from the decoder's patches if the study is on the grid that the transformer was trained on;
    on any other they are 0, the mean.

    Args:
        model: The masked autoencoder.
        prepared: The study, see `bmmae.inference.study.grid_for`.
        absent: The modalities wanted.
        uncertainty: Predict variances as well.

    Raises:
        ConfigError: If variances are asked for and the model predicts none.
    """
    if uncertainty:
        require_uncertainty(model)
    voxels = _voxelwise(model, prepared, absent)
    variances = _variances(model, voxels, prepared, absent) if voxels is not None and uncertainty else {}
    if voxels is not None and (bool(voxels.known[:, prepared.brain].all()) or not _on_models_grid(model, prepared)):
        return Synthesis(dict(zip(absent, voxels.values.numpy(), strict=True)), variances)
    patches = _patchwise(model, prepared, absent)
    if voxels is None:
        return Synthesis(patches)
    known, values = voxels.known.numpy(), voxels.values.numpy()
    named = {name: np.where(known[n], values[n], patches[name]) for n, name in enumerate(absent)}
    return Synthesis(named, variances)


def _variances(
    model: MAE, voxels: Voxels, prepared: PreparedStudy, absent: Sequence[str]
) -> dict[str, Float[np.ndarray, "H W D"]]:
    """Those of what the regression knows somewhere in this brain; 1, as of a z-score, where it does not.

    Z-scores are clipped: of what lies between -a and a, no variance is larger than a squared (Popoviciu 1935). The
    regression is of the logarithm, and far from what it was fitted to it gives any number.
    """
    largest = preprocessing_of(model).clip ** 2
    found = (voxels.log_variance.exp().clamp(max=largest) * torch.from_numpy(prepared.brain)).numpy()
    inside = voxels.known.numpy()[:, prepared.brain]
    return {name: found[n] for n, name in enumerate(absent) if inside[n].any()}


def _on_models_grid(model: MAE, prepared: PreparedStudy) -> bool:
    return bool(np.allclose(prepared.geometry.spacing, preprocessing_of(model).spacing))


@torch.inference_mode()
def _voxelwise(model: MAE, prepared: PreparedStudy, absent: Sequence[str]) -> Voxels | None:
    """What the regression predicts, if the model has one."""
    if model.synthesis is None:
        return None
    names = model.config.modalities
    device = model.synthesis.coefficients.device
    images = torch.zeros(len(names), *prepared.shape)
    scanned = torch.zeros(len(names), *prepared.shape, dtype=torch.bool)
    for number, name in enumerate(prepared.names):
        images[names.index(name)] = torch.from_numpy(np.asarray(prepared.images[number], np.float32))
        scanned[names.index(name)] = torch.from_numpy(prepared.valid[number] & prepared.brain)
    wanted = [names.index(name) for name in absent]
    brain = torch.from_numpy(prepared.brain)
    made = model.synthesis.predict(
        images.to(device), scanned.to(device), brain.to(device), prepared.geometry.spacing, wanted
    )
    return Voxels(made.values.cpu(), made.log_variance.cpu(), made.known.cpu())


def _patchwise(model: MAE, prepared: PreparedStudy, absent: Sequence[str]) -> dict[str, Float[np.ndarray, "H W D"]]:
    """What the decoder predicts, blended over windows; 0 outside the brain."""
    names = model.config.modalities

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        size, patch = as_triple(images.shape[-3:]), model.config.patch
        wanted = torch.tensor([name in absent for name in names], device=images.device).expand(len(images), -1)
        # A model trained on background too sees and decodes it, as in training; it is cut off below.
        tissue = brain if model.config.tissue_only else torch.ones_like(brain)
        visible = existing_tokens(~wanted, size, patch, valid, tissue)
        targets = existing_tokens(wanted, size, patch, tissue)
        if not bool(visible.any()) or not bool(targets.any()):
            return torch.zeros_like(images)
        return model.place(model(images, visible, targets).values, targets, size)

    volumes = over_windows(model, prepared, predict)
    return {name: np.where(prepared.brain, volumes[names.index(name)], 0) for name in absent}


def require_uncertainty(model: MAE) -> None:
    """Find out before the work whether a model predicts variances.

    Raises:
        ConfigError: If it does not.
    """
    if model.synthesis is None or not bool(model.synthesis.fitted.any()):
        raise ConfigError(
            "this model was pretrained without an uncertainty output: leave --uncertainty out, or pretrain one with "
            "model.synthesis.units above 0"
        )

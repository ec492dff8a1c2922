"""What a masked autoencoder predicts for the absent modalities of a prepared study, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bmmae.arrays import Bool, Float, Tensor
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ConfigError
from bmmae.inference.windows import over_windows
from bmmae.model.mae import MAE
from bmmae.patches import any_in_patch, as_triple


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
    """Predict modalities on the model's grid, from all those that a prepared study has except the ones asked for.

    Where windows overlap, variances are blended with the weights of the means: the error of windows that see almost
    the same is almost the same, so nothing is gained by averaging them.

    Args:
        model: The masked autoencoder.
        prepared: The study.
        absent: The modalities wanted.
        uncertainty: Predict variances as well.

    Raises:
        ConfigError: If variances are asked for and the model predicts none.
    """
    names = model.config.modalities
    patch = model.config.patch

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        wanted = torch.tensor([name in absent for name in names], device=images.device)[:, None]
        # A model trained on background too sees and decodes it, as in training; it is cut off below.
        tissue = brain if model.config.tissue_only else torch.ones_like(brain)
        visible = any_in_patch(valid & tissue, patch) & ~wanted
        targets = any_in_patch(tissue, patch) & wanted
        if not bool(visible.any()) or not bool(targets.any()):
            return images.new_zeros(1, (1 + uncertainty) * len(names), *images.shape[2:])
        images = images * valid  # what was not scanned is not read, whatever it holds
        if not uncertainty:
            return model.predict(images, visible, targets)
        return torch.cat(mean_and_variance(model, images, visible, targets), dim=1)

    volumes = over_windows(model, prepared, predict)

    def inside(first: int) -> dict[str, Float[np.ndarray, "H W D"]]:
        return {name: np.where(prepared.brain, volumes[first + names.index(name)], 0) for name in absent}

    return Synthesis(inside(0), inside(len(names)) if uncertainty else {})


def mean_and_variance(
    model: MAE,
    images: Float[Tensor, "B M H W D"],
    visible: Bool[Tensor, "B M L"],
    targets: Bool[Tensor, "B M L"],
) -> tuple[Float[Tensor, "B M H W D"], Float[Tensor, "B M H W D"]]:
    """Return volumes of the predicted target patches and of their variances, zero elsewhere.

    Raises:
        ConfigError: If the model predicts no variances.
    """
    prediction = model(images, visible, targets)
    if prediction.log_variance is None:
        raise ConfigError(
            "this model was pretrained without an uncertainty output: leave --uncertainty out, or pretrain one with it"
        )
    size = as_triple(images.shape[-3:])
    mean, variance = (model.place(v, targets, size) for v in (prediction.values, prediction.log_variance.exp()))
    return mean, variance


@torch.inference_mode()
def require_uncertainty(model: MAE) -> None:
    """Find out before the work whether a model predicts variances: for one patch.

    Raises:
        ConfigError: If it does not.
    """
    device = next(model.parameters()).device
    modalities = len(model.config.modalities)
    order = torch.arange(modalities, device=device)[None, :, None]
    nothing = torch.zeros(1, modalities, *model.config.patch, device=device)
    mean_and_variance(model, nothing, order == 0, order == modalities - 1)

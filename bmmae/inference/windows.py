"""A model over the overlapping windows of a study, and from the model's grid back to the input's."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from bmmae.arrays import Float, Tensor
from bmmae.data.preprocess import PreparedStudy
from bmmae.model.pretrained import PretrainedModel

OVERLAP = 0.5
"""Share by which neighbouring windows overlap where the brain is larger than one."""


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

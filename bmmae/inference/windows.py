"""A model over the overlapping windows of a study, and from the model's grid back to the input's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product

import numpy as np
import torch

from bmmae.arrays import Array, Float, Tensor
from bmmae.data.preprocess import PreparedStudy, Window, overlap
from bmmae.errors import ConfigError
from bmmae.model.pretrained import PretrainedModel
from bmmae.patches import Triple

OVERLAP = 0.5
"""Share by which neighbouring windows overlap, at least, where the brain is larger than one."""

DEVIATION = 0.125
"""Of the Gaussian that windows are blended by, over their size; MONAI's and nnU-Net's."""
LEAST_WEIGHT = 1e-3
"""Of a window's corners, so that every voxel of it counts."""


def over_windows(
    model: PretrainedModel,
    prepared: PreparedStudy,
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    share: float = OVERLAP,
    fitted: bool = False,
) -> Float[np.ndarray, "C H W D"]:
    """Apply a function to overlapping windows of a prepared study and blend what it returns by a Gaussian.

    Windows without brain are left out; what only they would have covered is 0.

    Args:
        model: Says how large a window is and in which order modalities come.
        prepared: The study.
        predict: From images Float[1, M, h, w, d], valid Bool[1, M, h, w, d] (False for absent modalities) and brain
            Bool[1, 1, h, w, d], on the model's device and in its precision, to Float[1, C, h, w, d].
        share: By how much neighbouring windows overlap, at least.
        fitted: Take windows no larger than that needs: as many, but with less to compute and less context.

    Raises:
        ConfigError: If the share is not in [0, 1).
    """
    config = model.model_config
    size = fitted_size(prepared.shape, config.size, config.patch, share) if fitted else config.size
    like = next(model.parameters())
    weight = _weight(size)
    total: Array | None = None
    weights = np.zeros(prepared.shape, dtype=np.float32)
    with torch.inference_mode():
        for start in window_starts(prepared.shape, size, share):
            window = prepared.window(start, size)
            if not window.brain.any():
                continue
            found = predict(*_as_tensors(window, config.modalities, like))[0].float().cpu().numpy()
            there, here = overlap(start, size, prepared.shape)
            if total is None:
                total = np.zeros((len(found), *prepared.shape), dtype=np.float32)
            total[(slice(None), *there)] += found[(slice(None), *here)] * weight[here]
            weights[there] += weight[here]
    if total is None:
        raise ConfigError("the study has no brain voxel to look at")
    return np.divide(total, weights, out=total, where=weights > 0)


def window_starts(extent: Triple, size: Triple, share: float) -> Iterator[Triple]:
    """Yield where windows start: as few as overlap by the share, evenly spread; one, centred, along a shorter axis.

    Raises:
        ConfigError: If the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the overlap of windows must lie in [0, 1), got {share}")
    for start in product(*(_starts(*axis, share) for axis in zip(extent, size, strict=True))):
        yield (start[0], start[1], start[2])


def fitted_size(extent: Triple, size: Triple, patch: Triple, share: float) -> Triple:
    """Return the smallest window that covers an extent with as many windows of the same overlap as a larger one."""
    sizes = []
    for whole, largest, step in zip(extent, size, patch, strict=True):
        count = len(_starts(whole, largest, share))
        needed = whole / (count - (count - 1) * share)
        multiples = range(math.ceil(needed / step) * step, largest, step)
        # Steps are whole voxels, so that the size needed may be a little too small.
        sizes.append(next((side for side in multiples if len(_starts(whole, side, share)) == count), largest))
    return (sizes[0], sizes[1], sizes[2])


def _starts(extent: int, size: int, share: float) -> list[int]:
    spare = extent - size
    if spare <= 0:
        return [-(-spare // 2)]
    count = math.ceil(spare / max(1, math.floor(size * (1 - share)))) + 1
    return [round(place) for place in np.linspace(0, spare, count)]


@lru_cache(maxsize=4)
def _weight(size: Triple) -> Array:
    """A Gaussian around a window's centre, 1 at its peak."""
    axes = []
    for voxels in size:
        places = np.arange(voxels) - (voxels - 1) / 2
        axes.append(np.exp(-0.5 * (places / (DEVIATION * voxels)) ** 2))
    bell = axes[0][:, None, None] * axes[1][None, :, None] * axes[2]
    return np.asarray(np.maximum(bell / bell.max(), LEAST_WEIGHT), dtype=np.float32)


def _as_tensors(window: Window, modalities: tuple[str, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay a window out in the model's modality order, on the device and in the precision of its weights."""
    shape = window.brain.shape
    images = torch.zeros(1, len(modalities), *shape)
    valid = torch.zeros(1, len(modalities), *shape, dtype=torch.bool)
    for index, name in enumerate(window.names):
        slot = modalities.index(name)
        images[0, slot] = torch.from_numpy(window.images[index])
        valid[0, slot] = torch.from_numpy(window.valid[index])
    brain = torch.from_numpy(window.brain)[None, None]
    return images.to(like), valid.to(like.device), brain.to(like.device)


def to_native(
    prepared: PreparedStudy,
    volume: Float[np.ndarray, "H W D"],
    *,
    within_brain: bool = True,
    elsewhere: float = 0.0,
) -> Float[np.ndarray, "X Y Z"]:
    """Bring a volume from the model's grid to the input's.

    Args:
        prepared: The study that the volume belongs to.
        volume: On the model's grid.
        within_brain: Only brain voxels carry values: what lies outside must not bleed in.
        elsewhere: What voxels get that no brain voxel of the model's grid is near to.
    """
    geometry = prepared.geometry
    if not within_brain:
        return geometry.from_canonical(geometry.to_native_spacing(volume))
    weights = prepared.brain.astype(np.float32)
    total = geometry.to_native_spacing(volume * weights)
    share = geometry.to_native_spacing(weights)
    native = np.where(share > 1e-3, total / np.maximum(share, 1e-3), elsewhere)
    return geometry.from_canonical(native.astype(np.float32))

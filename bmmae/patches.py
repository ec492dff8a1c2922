"""Volumes to patches and back, for any grid and any patch, cubic or not.

Patches are numbered (h, w, d) over the grid of patches, voxels (h, w, d) inside a patch: the published order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import index
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange, reduce
from numpy.typing import NDArray

from bmmae.arrays import Bool, Float, Int, Shaped, Tensor
from bmmae.errors import ConfigError

Triple = tuple[int, int, int]
AnyArray = TypeVar("AnyArray", Tensor, NDArray[np.bool_])


def as_triple(value: int | Sequence[int]) -> Triple:
    """Return `(n, n, n)` for a number, or the three numbers given.

    Raises:
        ConfigError: If there are not one or three positive whole numbers.
    """
    try:
        values = tuple(map(index, value if isinstance(value, Iterable) else (value,) * 3))
    except TypeError:  # 8.0, or a text
        values = ()
    if len(values) != 3 or any(v < 1 for v in values):
        raise ConfigError(f"expected one or three positive numbers for the axes H, W, D, all whole, got {value!r}")
    return (values[0], values[1], values[2])


def patch_grid(size: Sequence[int], patch: Triple) -> Triple:
    """Return how many patches fit along each axis.

    Raises:
        ConfigError: If the size is not a multiple of the patch.
    """
    if len(size) != 3 or any(s % p or s < p for s, p in zip(size, patch, strict=True)):
        raise ConfigError(
            f"volumes of {tuple(size)} voxels do not divide into patches of {patch}: "
            "pad or crop them to a multiple of the patch"
        )
    return (size[0] // patch[0], size[1] // patch[1], size[2] // patch[2])


def patchify(volume: Float[Tensor, "*batch H W D"], patch: Triple) -> Float[Tensor, "*batch L P"]:
    """Cut volumes into patches.

    Raises:
        ConfigError: If the size is not a multiple of the patch.
    """
    patch_grid(volume.shape[-3:], patch)
    p, q, r = patch
    return rearrange(volume, "... (h p) (w q) (d r) -> ... (h w d) (p q r)", p=p, q=q, r=r)


def unpatchify(patches: Shaped[Tensor, "*batch L P"], grid: Triple, patch: Triple) -> Shaped[Tensor, "*batch H W D"]:
    """Put patches back together: the inverse of `patchify`."""
    h, w, d = grid
    p, q, r = patch
    return rearrange(patches, "... (h w d) (p q r) -> ... (h p) (w q) (d r)", h=h, w=w, d=d, p=p, q=q, r=r)


def spread(flags: Bool[Tensor, "*batch L"], grid: Triple, patch: Triple) -> Bool[Tensor, "*batch H W D"]:
    """Give every voxel the flag of its patch."""
    voxels = flags[..., None].expand(*flags.shape, math.prod(patch))
    return unpatchify(voxels, grid, patch)


def any_in_patch(flags: AnyArray, patch: Triple) -> AnyArray:
    """Return, per patch, whether any of its voxels is flagged: Bool[..., H, W, D] to Bool[..., L].

    Raises:
        ConfigError: If the size is not a multiple of the patch.
    """
    patch_grid(flags.shape[-3:], patch)
    p, q, r = patch
    pattern = "... (h p) (w q) (d r) -> ... (h w d)"
    if isinstance(flags, Tensor):
        return reduce(flags.to(torch.uint8), pattern, "max", p=p, q=q, r=r).bool()
    return np.asarray(reduce(flags, pattern, "max", p=p, q=q, r=r))


def gather_patches(
    volumes: Float[Tensor, "B M H W D"] | Bool[Tensor, "B M H W D"],
    patch: Triple,
    sample: Int[Tensor, " T"],
    modality: Int[Tensor, " T"],
    place: Int[Tensor, " T"],
) -> Tensor:
    """Return the voxels of T chosen patches, [T, P], without cutting up the rest of the volume.

    Args:
        volumes: Where to take them from.
        patch: Voxels of a patch along each axis.
        sample: Index into B of each patch.
        modality: Index into M of each patch.
        place: Which patch of its volume, numbered as `patchify` does.
    """
    grid = patch_grid(volumes.shape[-3:], patch)
    (h, w, d), (p, q, r) = grid, patch
    tiles = rearrange(volumes, "b m (h p) (w q) (d r) -> b m h w d p q r", h=h, w=w, d=d, p=p, q=q, r=r)
    chosen = tiles[sample, modality, place // (w * d), place // d % w, place % d]
    return chosen.flatten(1)

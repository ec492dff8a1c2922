"""How studies and samples are stored and travel: float16 images, and one bit a voxel for the brain and each modality.

A sample as loaded is 17 MB for four modalities of 128^3 voxels this way, and 44 MB as float32 and booleans. It is
packed in the worker and unpacked on the training device, so what is copied on the way is less than half. Float16 keeps
a z-score to one part in two thousand, far below the noise of a scan.

Bit 0 of a flag is the brain; bit 1 + k says that modality k was scanned there. Packed samples have `images` Float16
[M, H, W, D] (Float32 if they were augmented) and `flags` Int[H, W, D] in place of `images`, `valid` and `brain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float, Shaped, Tensor
from bmmae.data.blocks import Place, anywhere
from bmmae.data.preprocess import Part, PreparedStudy, Slices, Window, overlap, place_window
from bmmae.patches import Triple, patch_grid

BRAIN = 1
CERTAIN = 255
"""What a chance of one is stored as."""


@dataclass(frozen=True)
class PackedStudy:
    """A prepared study in stored types, in memory or memory-mapped.

    Attributes:
        names: The available modalities, in the order of the arrays.
        images: Float16[K, H, W, D].
        flags: Unsigned[H, W, D].
        label: Int16[H, W, D] in the source's coding, or None.
        lesions: A sample of the labelled voxels, Int[n, 3].
        lesion_numbers: Which lesion each of them belongs to, Int[n].
        chance: Uint8[H, W, D], the chance that a voxel is lesion in 255ths, or None.
    """

    names: tuple[str, ...]
    images: Array
    flags: Array
    label: Array | None
    lesions: Array
    lesion_numbers: Array = field(default_factory=lambda: np.zeros(0, np.int16))
    chance: Array | None = None

    @property
    def shape(self) -> Triple:
        """Voxels of the arrays."""
        return (self.flags.shape[0], self.flags.shape[1], self.flags.shape[2])

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        arrays = (self.images, self.flags, self.label, self.lesions, self.chance)
        return sum(array.nbytes for array in arrays if array is not None)

    def window(self, start: Triple, size: Triple) -> Window:
        """Cut a window out; it may reach beyond the arrays."""
        there, here = overlap(start, size, self.shape)
        flags = np.asarray(self.flags[there])
        label = None if self.label is None else self.label[there]
        part = Part(self.images[(..., *there)], scanned(flags, len(self.names)), flags & BRAIN, label)
        return place_window(self.names, part, here, size)

    def sample(
        self,
        start: Triple,
        size: Triple,
        modalities: Sequence[str],
        *,
        labelled: bool = True,
        soft: bool = False,
        place: Place = anywhere,
    ) -> dict[str, Array]:
        """Cut a window out as a packed sample: each array is copied once, in the type it is stored in.

        Args:
            start: First voxel; the window may reach beyond the arrays, where there is scanned background.
            size: Voxels of the window.
            modalities: The slots of the sample's axis M.
            labelled: Whether the label is wanted, if there is one.
            soft: Whether the map of the chance of lesion is wanted, if there is one.
            place: Where the images and flags go.

        Returns:
            `images` Float16[M, h, w, d], `flags` Int[h, w, d], `available` Bool[M] and, where the study has one,
            `label` Int16[h, w, d] and `lesion` Uint8[h, w, d].
        """
        there, here = overlap(start, size, self.shape)
        slots = [modalities.index(name) for name in self.names]
        available = np.zeros(len(modalities), bool)
        available[slots] = True
        images = place("images", (len(modalities), *size), np.float16)
        images[~available] = 0
        for slot, image in zip(slots, self.images, strict=True):
            _lay(image[there], images[slot], here, 0)
        flags = place("flags", size, flag_type(len(modalities)))
        _lay(_moved_bits(self.flags[there], slots), flags, here, _bits(available))
        sample = {"images": images, "flags": flags, "available": available}
        if labelled and self.label is not None:
            sample["label"] = np.empty(size, np.int16)
            _lay(self.label[there], sample["label"], here, 0)
        if soft and self.chance is not None:
            sample["lesion"] = np.empty(size, np.uint8)
            _lay(self.chance[there], sample["lesion"], here, 0)
        return sample


def _lay(part: Array, out: Array, here: Slices, background: int) -> None:
    """Fill an array: a part of it is given, the rest is background."""
    if part.shape != out.shape:
        out[...] = background
    out[here] = part


def pack_study(prepared: PreparedStudy) -> PackedStudy:
    """Bring a prepared study into stored types."""
    return PackedStudy(
        names=prepared.names,
        images=prepared.images.astype(np.float16),
        flags=pack_flags(prepared.valid, prepared.brain),
        label=prepared.label,
        lesions=prepared.lesion_voxels(),
        lesion_numbers=prepared.lesion_numbers(),
        chance=None if prepared.lesion is None else np.rint(prepared.lesion * CERTAIN).astype(np.uint8),
    )


def flag_type(modalities: int) -> type[np.generic]:
    """Return the smallest type that holds the bits and that torch can compute with."""
    return next(kind for bits, kind in ((8, np.uint8), (31, np.int32), (63, np.int64)) if 1 + modalities <= bits)


def pack_flags(valid: Bool[Array, "M H W D"], brain: Bool[Array, "H W D"]) -> Shaped[Array, "H W D"]:
    """Return one bit a voxel for the brain and for each modality's coverage."""
    kind = flag_type(len(valid))
    flags = brain.astype(kind)
    for index, covered in enumerate(valid):
        flags |= covered.astype(kind) << (1 + index)
    return np.asarray(flags)


def scanned(flags: Shaped[Array, "H W D"], modalities: int) -> Bool[Array, "M H W D"]:
    """Return each modality's coverage."""
    return np.stack([flags & (2 << index) != 0 for index in range(modalities)])


def pack_sample(sample: Mapping[str, Array]) -> dict[str, Array]:
    """Pack `valid` and `brain`. Images stay as they are: rounding them again would cost what it saves."""
    rest = {key: value for key, value in sample.items() if key not in {"valid", "brain"}}
    return {**rest, "flags": pack_flags(sample["valid"], sample["brain"])}


def unpack_arrays(sample: Mapping[str, Array]) -> dict[str, Array]:
    """Turn a packed sample into `images` Float32[M, H, W, D], `valid` Bool[M, H, W, D] and `brain` Bool[H, W, D]."""
    tensors = unpack({key: torch.from_numpy(sample[key]) for key in ("images", "flags")})
    rest = {key: value for key, value in sample.items() if key not in {"images", "flags"}}
    return {**rest, **{key: tensor.numpy() for key, tensor in tensors.items()}}


def unpack(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Unpack a batch or a sample of tensors, on whichever device they are; what is not packed is kept.

    Returns:
        `images` Float[..., M, H, W, D], `valid` Bool[..., M, H, W, D] and `brain` Bool[..., H, W, D] in place of
        packed `images` and `flags`.
    """
    if "flags" not in batch:
        return dict(batch)
    rest = {key: value for key, value in batch.items() if key != "flags"}
    flags: Tensor = batch["flags"]
    shifts = torch.arange(1, 1 + batch["images"].shape[-4], dtype=flags.dtype, device=flags.device)
    return {
        **rest,
        "images": _as_float(batch["images"]),
        "valid": _lowest_bit(flags.unsqueeze(-4) >> shifts[:, None, None, None]),
        "brain": _lowest_bit(flags),
    }


def _lowest_bit(flags: Shaped[Tensor, "*axes"]) -> Bool[Tensor, "*axes"]:
    """Return it as a boolean. A byte that is 0 or 1 is one already; to compare with 0 costs five times as much."""
    return (flags & 1).to(torch.uint8).view(torch.bool)


def _as_float(images: Shaped[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Cast to float32. On a CPU into memory of numpy's, which asks for large pages: faults of small ones cost most."""
    if images.device.type != "cpu" or images.dtype == torch.float32:
        return images.float()
    return torch.from_numpy(np.empty(images.shape, np.float32)).copy_(images)


def packed_tokens(flags: Shaped[Array, "H W D"], modalities: int, patch: Triple, *, tissue_only: bool) -> Array:
    """Return which tokens exist, Bool[M, L]: scanned somewhere and, if so asked, with some brain.

    A window that misses the brain altogether keeps its scanned patches, so that it still is a sample.
    """
    if tissue_only:
        tokens = _any_bits(flags * (flags & BRAIN).astype(flags.dtype), modalities, patch)
        if tokens.any():
            return tokens
    return _any_bits(flags, modalities, patch)


def _any_bits(flags: Array, modalities: int, patch: Triple) -> Array:
    """Whether any voxel of a patch has a modality's bit, Bool[M, L]; an axis at a time, which is ten times faster."""
    (h, w, d), (p, q, r) = patch_grid(flags.shape, patch), patch
    rows = np.bitwise_or.reduce(flags.reshape(h, p, w * q * d * r), axis=1)
    columns = np.bitwise_or.reduce(rows.reshape(h * w, q, d * r), axis=1)
    patches = np.bitwise_or.reduce(columns.reshape(h * w * d, r), axis=1)
    return np.stack([patches & (2 << index) != 0 for index in range(modalities)])


def _bits(available: Array) -> int:
    """The flag of scanned background."""
    return sum(2 << int(index) for index in np.flatnonzero(available))


def _moved_bits(flags: Array, slots: Sequence[int]) -> Array:
    """Move bit 1 + k to bit 1 + slots[k]."""
    if list(slots) == list(range(len(slots))):
        return flags
    if flags.dtype == np.uint8:
        values = np.arange(256, dtype=np.int64)
        return np.take(_move(values, slots).astype(flag_type(max(slots) + 1)), flags)
    return _move(flags.astype(np.int64), slots)


def _move(flags: Array, slots: Sequence[int]) -> Array:
    moved = flags & BRAIN
    for index, slot in enumerate(slots):
        moved |= (flags >> (1 + index) & 1) << (1 + slot)
    return np.asarray(moved)

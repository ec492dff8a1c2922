"""Token bookkeeping: from a Bool[B, M, L] choice of tokens to padded sequences and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bmmae.arrays import Bool, Float, Int, Tensor
from bmmae.errors import ConfigError
from bmmae.patches import Triple, any_in_patch, patch_grid


@dataclass(frozen=True)
class TokenIndex:
    """The chosen tokens of a batch, in order (sample, modality, place), and where each stands in its sequence.

    Attributes:
        sample: Int[T], which sample each token belongs to.
        modality: Int[T], its modality's index.
        place: Int[T], its patch's number.
        slot: Int[T], its position in its sample's sequence.
        counts: Int[B], tokens of each sample.
        width: The longest sequence.
        chosen: Bool[B, M, L], the choice itself.
    """

    sample: Int[Tensor, " T"]
    modality: Int[Tensor, " T"]
    place: Int[Tensor, " T"]
    slot: Int[Tensor, " T"]
    counts: Int[Tensor, " B"]
    width: int
    chosen: Bool[Tensor, "B M L"]

    @classmethod
    def of(cls, chosen: Bool[Tensor, "B M L"]) -> TokenIndex:
        """Index the tokens where `chosen` is True."""
        sample, modality, place = chosen.nonzero(as_tuple=True)
        counts = chosen.sum(dim=(1, 2))
        starts = counts.cumsum(0) - counts
        slot = torch.arange(len(sample), device=chosen.device) - starts[sample]
        return cls(sample, modality, place, slot, counts, int(counts.max()), chosen)

    @property
    def padded(self) -> bool:
        """Whether some sequence is shorter than the longest."""
        return len(self.sample) < len(self.counts) * self.width

    def among(self, other: TokenIndex) -> Bool[Tensor, " T"]:
        """Return which of these tokens `other` chose as well."""
        return other.chosen[self.sample, self.modality, self.place]

    @property
    def padding_share(self) -> float:
        """Share of the padded sequences that is padding: the cost of mixing subsets in one batch."""
        return 1 - len(self.sample) / max(1, len(self.counts) * self.width)

    def keep(self) -> Bool[Tensor, "B N"]:
        """Return which positions of the padded sequences hold a token."""
        return torch.arange(self.width, device=self.counts.device) < self.counts[:, None]

    def pad(self, flat: Float[Tensor, "T E"]) -> Float[Tensor, "B N E"]:
        """Lay the tokens out in one sequence a sample, zeros behind the shorter ones."""
        if not self.padded:
            return flat.view(len(self.counts), self.width, flat.shape[-1])
        out = flat.new_zeros(len(self.counts), self.width, flat.shape[-1])
        out[self.sample, self.slot] = flat
        return out

    def flatten(self, sequences: Float[Tensor, "B N E"]) -> Float[Tensor, "T E"]:
        """Take the tokens out of padded sequences: the inverse of `pad`."""
        if not self.padded:
            return sequences.reshape(-1, sequences.shape[-1])
        return sequences[self.sample, self.slot]


def existing_tokens(
    available: Bool[Tensor, "B M"],
    size: Sequence[int],
    patch: Triple,
    *within: Bool[Tensor, "B _ H W D"] | None,
) -> Bool[Tensor, "B M L"]:
    """Return which tokens exist: the patches of available modalities that hold a voxel which all of `within` flag.

    Args:
        available: Which modalities each sample has.
        size: Voxels of the volumes.
        patch: Voxels of a patch.
        *within: Where there is tissue, where a modality was scanned; None for everywhere.

    Raises:
        ConfigError: If the size is not a multiple of the patch, or flags are no bools of the volumes.
    """
    if available.dtype != torch.bool or available.ndim != 2:
        raise ConfigError(f"available: expected bools [B, M], got {available.dtype} {tuple(available.shape)}")
    exists = available[:, :, None].expand(-1, -1, math.prod(patch_grid(size, patch)))
    given = [flags for flags in within if flags is not None]
    for flags in given:
        _require_flags(flags, available, size)
    return exists & any_in_patch(functools.reduce(torch.logical_and, given), patch) if given else exists


def _require_flags(flags: Tensor, available: Tensor, size: Sequence[int]) -> None:
    """Refuse what would be read otherwise than it was meant: chances, and masks without an axis of modalities.

    Raises:
        ConfigError: If they are no bools of the volumes.
    """
    fits = flags.shape in ((len(available), modalities, *size) for modalities in (1, available.shape[1]))
    if flags.dtype != torch.bool or not fits:
        raise ConfigError(
            f"expected a mask of bools [B, 1, H, W, D] or [B, M, H, W, D] with B = {len(available)} and H W D = "
            f"{tuple(size)}, got {flags.dtype} {tuple(flags.shape)}"
        )


def attention_mask(*keeps: Bool[Tensor, "B _"] | None) -> Bool[Tensor, "B 1 1 N"] | None:
    """Join the `keep` flags of consecutive pieces of a sequence into a mask over keys; True = attend.

    Returns None when nothing is padded, which leaves the fastest attention kernels open.
    """
    pieces = [keep for keep in keeps if keep is not None]
    joined = torch.cat(pieces, dim=1)
    return None if bool(joined.all()) else joined[:, None, None, :]

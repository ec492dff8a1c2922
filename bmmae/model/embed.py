"""From visible patches to tokens: a projection and an embedding per modality, and positions for any grid."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import nn

from bmmae.arrays import Float, Tensor
from bmmae.errors import ConfigError
from bmmae.model.tokens import TokenIndex
from bmmae.patches import Triple, gather_patches, patch_grid


@lru_cache(maxsize=32)
def _sincos(grid: Triple, dim: int) -> Tensor:
    per_axis = dim // 6
    rates = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    # MONAI writes the second axis first; its order is kept, so that published weights find their positions.
    angles = [axes[axis].flatten()[:, None] * rates for axis in (1, 0, 2)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    padding = torch.zeros(math.prod(grid), dim - table.shape[1], dtype=torch.float64)
    return torch.cat([table, padding], dim=1).float()


def sincos_positions(grid: Triple, dim: int) -> Float[Tensor, "L E"]:
    """Return fixed 3D sine-cosine position embeddings for the patches of a grid.

    The three axes share the embedding in equal parts; what `dim` leaves over six is zero. The tables are those of
    MONAI's `build_sincos_position_embedding`.
    """
    return _sincos(grid, dim)


class PatchEmbedding(nn.Module):
    """Projects the visible patches of each modality with its own weights.

    Weights are slices of one parameter, so that modalities absent from a batch still receive a (zero) gradient and
    distributed training needs no search for unused parameters.

    Args:
        modalities: How many modalities there are.
        patch: Voxels of a patch along each axis.
        dim: Length of a token.
    """

    def __init__(self, modalities: int, patch: Triple, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(modalities, dim, math.prod(patch)))
        self.bias = nn.Parameter(torch.zeros(modalities, dim))
        self.modality = nn.Parameter(torch.empty(modalities, dim))
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        nn.init.trunc_normal_(self.modality, std=0.02)

    def forward(self, images: Float[Tensor, "B M H W D"], tokens: TokenIndex) -> Float[Tensor, "T E"]:
        """Return the embedded tokens in the order of `tokens`, positions and modality embeddings added.

        Raises:
            ConfigError: If the images have another number of modalities.
        """
        if images.shape[1] != len(self.weight):
            raise ConfigError(
                f"expected images [B, M, H, W, D] of M = {len(self.weight)} modalities, got {tuple(images.shape)}"
            )
        patches = gather_patches(images, self.patch, tokens.sample, tokens.modality, tokens.place)
        grid = patch_grid(images.shape[-3:], self.patch)
        positions = sincos_positions(grid, self.bias.shape[1]).to(self.bias)
        start = (self.bias + self.modality)[tokens.modality] + positions[tokens.place]
        return start + project_by_modality(patches, tokens.modality, self.weight)


def project_by_modality(
    rows: Float[Tensor, "T P"], modality: Tensor, weight: Float[Tensor, "M E P"]
) -> Float[Tensor, "T E"]:
    """Multiply each row by the matrix of its modality, one product a modality."""
    order = modality.argsort(stable=True)
    counts = torch.bincount(modality, minlength=len(weight)).tolist()
    pieces = torch.split(rows[order], counts)
    products = [piece @ matrix.T for piece, matrix in zip(pieces, weight, strict=True)]
    out = torch.cat(products)
    return torch.zeros_like(out).index_copy(0, order, out)

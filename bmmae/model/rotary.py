"""Rotary positions in three dimensions: attention sees how far apart two patches lie, wherever the window is.

Each pair of values of a query or key is turned by an angle that grows with the patch's place along one axis, so that
their product depends on the difference of places alone (Su et al., arXiv 2104.09864; by axis: Heo et al., 2403.13298).
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.model.feed_forward import feed_forward
from bmmae.model.tokens import TokenIndex
from bmmae.patches import Triple

BASE = 100.0
"""Between the fastest and the slowest turn; grids have few patches along an axis."""
AXES = 3
Turn: TypeAlias = tuple[Tensor, Tensor]
"""Cosine and sine of each pair's angle, Float[B, 1, S, K], for heads of 2 K values."""


def turns(tokens: TokenIndex, grid: Triple, length: int) -> Turn:
    """Return by how much the pairs of each token of padded sequences are turned; the class token is not.

    Args:
        tokens: The tokens behind the class token.
        grid: Patches along each axis.
        length: Values of a head; its pairs are shared out evenly, and what three axes leave over is not turned.
    """
    per_axis = length // (2 * AXES)
    rates = BASE ** (-torch.arange(per_axis, device=tokens.place.device) / per_axis)
    _, width, depth = grid
    along = (tokens.place // (width * depth), tokens.place // depth % width, tokens.place % depth)
    angles = torch.cat([place[:, None] * rates for place in along], dim=1)
    padded = F.pad(tokens.pad(F.pad(angles, (0, length // 2 - angles.shape[1]))), (0, 0, 1, 0))[:, None]
    return padded.cos(), padded.sin()


def turned(values: Float[Tensor, "B heads S two_K"], turn: Turn) -> Float[Tensor, "B heads S two_K"]:
    """Return queries or keys with their pairs turned; a pair is one value of each half."""
    first, second = values.float().chunk(2, dim=-1)
    cosine, sine = turn
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(values.dtype)


class RotaryAttention(nn.Module):
    """Self-attention with turned queries and keys; its parameters are named as timm's `Attention` names them."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, sequence: Float[Tensor, "B S E"], mask: Bool[Tensor, "B 1 1 S"] | None, turn: Turn
    ) -> Float[Tensor, "B S E"]:
        """Return the sequence after attending to itself where `mask` is True."""
        q, k, v = rearrange(self.qkv(sequence), "b s (three h k) -> three b h s k", three=3, h=self.heads)
        attended = F.scaled_dot_product_attention(turned(q, turn), turned(k, turn), v, attn_mask=mask)
        return cast(Tensor, self.proj_drop(self.proj(rearrange(attended, "b h s k -> b s (h k)"))))


class RotaryBlock(nn.Module):
    """Pre-norm block; its parameters are named as timm's `Block` names them, so that either takes the other's."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = RotaryAttention(dim, heads, dropout)
        self.mlp = feed_forward(dim, int(dim * mlp_ratio), dropout)

    def forward(
        self, sequence: Float[Tensor, "B S E"], attn_mask: Bool[Tensor, "B 1 1 S"] | None, turn: Turn
    ) -> Float[Tensor, "B S E"]:
        """Return the sequence after attention and a two-layer network."""
        sequence = sequence + self.attn(self.norm1(sequence), attn_mask, turn)
        return sequence + cast(Tensor, self.mlp(self.norm2(sequence)))

"""From the encoder's tokens to features of hidden tokens: the published `self` form and the faster `cross` form."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.model.config import DecoderConfig
from bmmae.model.embed import sincos_positions
from bmmae.model.encoder import initialise, transformer_block
from bmmae.model.feed_forward import feed_forward
from bmmae.model.tokens import TokenIndex, attention_mask
from bmmae.patches import Triple


class CrossBlock(nn.Module):
    """Pre-norm block whose queries attend to another sequence (CrossMAE, arXiv 2401.14391), never to each other."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.heads = heads
        self.norm1, self.norm_context, self.norm2 = norm(dim), norm(dim), norm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = feed_forward(dim, int(dim * mlp_ratio))

    def forward(
        self,
        queries: Float[Tensor, "B Q E"],
        context: Float[Tensor, "B N E"],
        mask: Bool[Tensor, "B 1 1 N"] | None,
    ) -> Float[Tensor, "B Q E"]:
        """Return the queries after attending to the context where `mask` is True."""
        q = rearrange(self.q(self.norm1(queries)), "b n (h e) -> b h n e", h=self.heads)
        keys = self.kv(self.norm_context(context))
        k, v = rearrange(keys, "b n (two h e) -> two b h n e", two=2, h=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        queries = queries + self.proj(rearrange(attended, "b h n e -> b n (h e)"))
        return queries + cast(Tensor, self.mlp(self.norm2(queries)))


class Decoder(nn.Module):
    """Predicts features of any tokens from the encoder's output; linear heads turn them into voxels.

    Args:
        modalities: How many modalities there are.
        encoder_dim: Length of the encoder's tokens.
        config: Its shape.
    """

    def __init__(self, modalities: int, encoder_dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(encoder_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, config.dim))
        self.modality = nn.Parameter(torch.empty(modalities, config.dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.modality, std=0.02)
        make = transformer_block if config.kind == "self" else CrossBlock
        shape = (config.dim, config.heads, config.mlp_ratio)
        self.blocks = nn.ModuleList(make(*shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-5)
        self.apply(initialise)

    def forward(
        self,
        encoded: Float[Tensor, "B S E"],
        visible: TokenIndex,
        targets: TokenIndex,
        grid: Triple,
    ) -> Float[Tensor, "T C"]:
        """Return features of the target tokens.

        Args:
            encoded: The encoder's output.
            visible: The tokens it encoded.
            targets: Which tokens to predict; visible ones may be among them.
            grid: Patches along each axis.
        """
        context = self.embed(encoded)
        placed = self._placed(context, visible, grid)
        starts = self._starts(placed, visible, targets, grid)
        if self.config.kind == "cross":
            return self._cross(torch.cat([context[:, :1], visible.pad(placed)], 1), starts, visible, targets)
        return self._self(context[:, :1], placed, starts, visible, targets)

    def _placed(self, context: Tensor, visible: TokenIndex, grid: Triple) -> Float[Tensor, "T C"]:
        """The visible tokens, with the decoder's positions and modality embeddings."""
        return visible.flatten(context[:, 1:]) + self._address(visible, grid)

    def _address(self, tokens: TokenIndex, grid: Triple) -> Float[Tensor, "T C"]:
        positions = sincos_positions(grid, self.config.dim).to(self.modality)
        return positions[tokens.place] + self.modality[tokens.modality]

    def _starts(self, placed: Tensor, visible: TokenIndex, targets: TokenIndex, grid: Triple) -> Float[Tensor, "T C"]:
        """What the target tokens start from: the mask token and, if so configured, what is visible in their place."""
        starts = self.mask_token + self._address(targets, grid)
        if not self.config.colocated:
            return starts
        places = visible.chosen.shape[-1]
        sums = placed.new_zeros(len(visible.counts) * places, self.config.dim)
        sums = sums.index_add(0, visible.sample * places + visible.place, placed)
        here = targets.sample * places + targets.place
        count = visible.chosen.sum(1).flatten().clamp(min=1)
        return starts + sums[here] / count[here, None]

    def _cross(self, context: Tensor, starts: Tensor, visible: TokenIndex, targets: TokenIndex) -> Float[Tensor, "T C"]:
        mask = None
        if visible.padded:
            keep = visible.keep()
            mask = attention_mask(torch.ones_like(keep[:, :1]), keep)
        queries = targets.pad(starts)
        for block in self.blocks:
            queries = block(queries, context, mask)
        return cast(Tensor, self.norm(targets.flatten(queries)))

    def _self(
        self, cls_token: Tensor, placed: Tensor, starts: Tensor, visible: TokenIndex, targets: TokenIndex
    ) -> Float[Tensor, "T C"]:
        """Attention ignores order, so the sequence is simply: class token, visible tokens, targets that are hidden.

        A target that is visible takes the place of its own visible token: it must not be attended to twice.
        """
        hidden = TokenIndex.of(targets.chosen & ~visible.chosen)
        sequence = torch.cat([cls_token, visible.pad(placed), hidden.pad(starts[~targets.among(visible)])], 1)
        ones = torch.ones_like(visible.keep()[:, :1])
        mask = None
        if visible.padded or hidden.padded:
            mask = attention_mask(ones, visible.keep(), hidden.keep())
        for block in self.blocks:
            sequence = block(sequence, attn_mask=mask)
        sequence = self.norm(sequence)
        out = torch.empty_like(starts)
        out[~targets.among(visible)] = hidden.flatten(sequence[:, 1 + visible.width :])
        shown = visible.flatten(sequence[:, 1 : 1 + visible.width])
        out[targets.among(visible)] = shown[visible.among(targets)]
        return out

"""The one encoder: a vision transformer over the visible tokens of all modalities at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bmmae.arrays import Bool, Float, Tensor
from bmmae.model.config import EncoderConfig
from bmmae.model.embed import PatchEmbedding
from bmmae.model.rotary import RotaryBlock, turns
from bmmae.model.tokens import TokenIndex, attention_mask
from bmmae.patches import Triple, patch_grid


def transformer_block(dim: int, heads: int, mlp_ratio: float, dropout: float = 0.0) -> nn.Module:
    """Return a pre-norm block with fused attention (timm's, with the published layer-norm epsilon)."""
    from timm.models.vision_transformer import Block

    norm = partial(nn.LayerNorm, eps=1e-5)
    block = Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=True, proj_drop=dropout, norm_layer=norm)
    return cast(nn.Module, block)


def initialise(module: nn.Module) -> None:
    """Initialise linear layers as the MAE papers do: Xavier weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """Pre-norm ViT; one sequence of tokens across modalities, so attention is cross-modal from the first layer.

    Args:
        modalities: How many modalities there are.
        patch: Voxels of a patch along each axis.
        config: Its shape.
    """

    def __init__(self, modalities: int, patch: Triple, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embedding = PatchEmbedding(modalities, patch, config.dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        shape = (config.dim, config.heads, config.mlp_ratio, config.dropout)
        make = RotaryBlock if config.rotary else transformer_block
        self.blocks = nn.ModuleList(make(*shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-5)
        self.blocks.apply(initialise)

    def forward(self, images: Float[Tensor, "B M H W D"], tokens: TokenIndex) -> Float[Tensor, "B S E"]:
        """Encode the visible tokens.

        Args:
            images: Only the patches named by `tokens` are read.
            tokens: The visible tokens.

        Returns:
            The class token, then each sample's tokens in the order of `tokens` (S = 1 + N); behind shorter sequences,
            padding.
        """
        last = deque(self.layers(images, tokens), maxlen=1).pop()
        return cast(Tensor, self.norm(last))

    def layers(self, images: Float[Tensor, "B M H W D"], tokens: TokenIndex) -> Iterator[Float[Tensor, "B S E"]]:
        """Yield the tokens before the first block and after each one, without the final norm."""
        sequence = tokens.pad(self.embedding(images, tokens))
        cls_token = self.cls_token.to(sequence.dtype).expand(len(sequence), -1, -1)
        sequence = torch.cat([cls_token, sequence], dim=1)
        given: dict[str, Any] = {"attn_mask": self.attention_mask(tokens)}
        if self.config.rotary:
            grid = patch_grid(images.shape[-3:], self.embedding.patch)
            given["turn"] = turns(tokens, grid, self.config.dim // self.config.heads)
        yield sequence
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                sequence = cast(Tensor, checkpoint(block, sequence, use_reentrant=False, **given))
            else:
                sequence = block(sequence, **given)
            yield sequence

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what enters each block for the backward pass, and compute the rest again (timm's name)."""
        self.recompute = enable

    @staticmethod
    def layer_patterns(prefix: str = "encoder") -> dict[str, str | list[tuple[str, tuple[int] | None]]]:
        """Say which parameters of a model belong to which layer, for learning rates that fall with depth.

        Returns:
            timm's form of a `group_matcher`: the embedding first, then each block, the final norm with the last one;
            what matches nothing (decoder, heads) counts as the layer after.
        """
        last: tuple[int] = (99999,)  # timm's mark for "with the layer before"
        return {
            "stem": rf"^{prefix}\.(?:embedding|cls_token)",
            "blocks": [(rf"^{prefix}\.blocks\.(\d+)", None), (rf"^{prefix}\.norm", last)],
        }

    @staticmethod
    def attention_mask(tokens: TokenIndex) -> Bool[Tensor, "B 1 1 S"] | None:
        """Return which keys may be attended to, or None when nothing is padded."""
        if not tokens.padded:
            return None
        keep = tokens.keep()
        return attention_mask(torch.ones_like(keep[:, :1]), keep)

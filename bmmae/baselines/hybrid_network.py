"""Convolutions around a bottleneck of transformers: the segmentation network of "Deep learning ... brain metastasis".

The paper describes it in words (its section "Tumor segmentation network design"; the table that would settle details is
not public), for slices. What is ours: three dimensions; its ten down-sampling blocks are read as two a level, of which
the second halves the grid, because its five up-sampling blocks undo five halvings and not ten; a sigmoid a region.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import nn

from bmmae.arrays import Float, Tensor
from bmmae.errors import ConfigError
from bmmae.model.embed import sincos_positions
from bmmae.model.encoder import transformer_block

MOST_GROUPS = 8
TRANSFORMERS = 12
LEVELS = 5


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3x3 convolution with group norm and ReLU."""
    groups = next(count for count in range(min(MOST_GROUPS, outputs), 0, -1) if outputs % count == 0)
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(inplace=True),
    )


class TwoArmBlock(nn.Module):
    """Three convolutions, the second with the stride, beside one with the stride; the two arms are added.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: 2 halves the grid, 1 keeps it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(
            convolution(inputs, outputs), convolution(outputs, outputs, stride), convolution(outputs, outputs)
        )
        self.second = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C2 H2 W2 D2"]:
        """Return the sum of the arms."""
        out: Tensor = self.first(x) + self.second(x)
        return out


class UpBlock(nn.Module):
    """Two convolutions, then twice the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(inputs, outputs), convolution(outputs, outputs))
        self.enlarge = nn.Upsample(scale_factor=2, mode="trilinear")

    def forward(self, x: Float[Tensor, "B C h w d"]) -> Float[Tensor, "B C2 H W D"]:
        """Return features on the finer grid."""
        return cast(Tensor, self.enlarge(self.convolutions(x)))


class TransformerBottleneck(nn.Module):
    """Feature maps as a sequence of tokens, through identical transformer blocks, and back.

    Args:
        dim: Channels, and length of a token.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(transformer_block(dim, heads, mlp_ratio=2.0) for _ in range(depth))

    def forward(self, x: Float[Tensor, "B C h w d"]) -> Float[Tensor, "B C h w d"]:
        """Let every place attend to every other."""
        h, w, d = x.shape[2:]
        positions = sincos_positions((h, w, d), x.shape[1]).to(x)
        tokens = x.flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class HybridNetwork(nn.Module):
    """Two-arm down-sampling, a transformer bottleneck, up-sampling with a skip from each level.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, as logits.
        width: Channels of the first level; doubled at each, to at most eight times.
        levels: Halvings of the grid.
        transformers: Blocks of the bottleneck.
        heads: Their attention heads.

    Raises:
        ConfigError: If the deepest level's channels do not divide into the heads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 16,
        *,
        levels: int = LEVELS,
        transformers: int = TRANSFORMERS,
        heads: int = 4,
    ) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(levels)]
        if widths[-1] % heads:
            raise ConfigError(f"{widths[-1]} channels in the bottleneck do not divide into {heads} attention heads")
        self.factor = 2**levels
        self.down = nn.ModuleList(
            nn.Sequential(TwoArmBlock(a, b, stride=1), TwoArmBlock(b, b, stride=2))
            for a, b in pairwise([inputs, *widths])
        )
        self.bottleneck = TransformerBottleneck(widths[-1], transformers, heads)
        deepest_first = widths[::-1]
        coming = [widths[-1], *deepest_first[:-1]]
        self.up = nn.ModuleList(UpBlock(below + skip, skip) for below, skip in zip(coming, deepest_first, strict=True))
        self.head = nn.Conv3d(width, outputs, 1)

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B R H W D"]:
        """Return logits on the input's grid, whose sides must be multiples of `factor`."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([x, skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

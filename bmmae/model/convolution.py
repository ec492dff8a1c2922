"""Convolutional parts that take any subset of modalities: fusion over those that are there, and a stem for detail."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Literal

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from bmmae.arrays import Bool, Float, Tensor

FusionKind = Literal["mean_max", "mean_variance", "attention"]
SLOPE = 0.01
"""Of the leaky rectifiers, below zero."""


class Norm(nn.GroupNorm):
    """Group norm in float32: in bf16 its backward pass takes four times as long where channels come last.

    Args:
        channels: Of the features; in eight groups, or in one group a channel if there are fewer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(8, channels), channels)

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C H W D"]:
        """Return the features with mean 0 and variance 1 in each group, scaled and shifted."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class Conv3d(nn.Conv3d):
    """A 3D convolution that computes in float32 where a CPU's bf16 cannot be trusted.

    On a grid of one or two voxels along some side, the gradient of a 3x3x3 convolution's weights in bf16 is arbitrary
    numbers, infinite ones among them (oneDNN in torch 2.15).
    """

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C2 H2 W2 D2"]:
        """Return the convolution's output, in float32 under autocast where the grid is that small."""
        tiny = x.device.type == "cpu" and min(x.shape[2:]) <= 2
        with torch.autocast("cpu", enabled=False) if tiny else nullcontext():
            return super().forward(x.to(self.weight.dtype) if tiny else x)


class Pointwise(nn.Linear):
    """A 1x1x1 convolution as the matrix product that it is: on a CPU many times as fast where channels come last."""

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C2 H W D"]:
        """Return another number of channels at each voxel."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvBlock(nn.Module):
    """Two 3x3x3 convolutions with group norm, residual.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: 2 halves the grid.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second = Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = Norm(outputs), Norm(outputs)
        plain = inputs == outputs and stride == 1
        self.stride = stride
        self.skip = nn.Identity() if plain else Pointwise(inputs, outputs, bias=False)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C2 H2 W2 D2"]:
        """Return the block's output."""
        y = self.act(self.norm1(self.first(x)))
        n = self.stride
        out: Tensor = self.act(self.norm2(self.second(y)) + self.skip(x[..., ::n, ::n, ::n]))
        return out


class Fusion(nn.Module):
    """Brings the features of any number of modalities into one, twice as wide; their order does not matter.

    `mean_max`: mean and maximum over the modalities that are there at a place. `mean_variance`: mean and variance
    (HeMIS, Havaei 2016). `attention`: a mean weighted by a learned score of each modality's features, and the maximum.
    A place where no modality is there is zero.

    Args:
        kind: Which of these.
        channels: Of one modality's features.
    """

    def __init__(self, kind: FusionKind, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.score = nn.Conv3d(channels, 1, 1) if kind == "attention" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)  # start from the plain mean

    def forward(
        self, features: Float[Tensor, "K C H W D"], there: Bool[Tensor, "K 1 H W D"] | None
    ) -> Float[Tensor, "1 C2 H W D"]:
        """Return the fused features of one sample; `there` says where each modality counts (None: everywhere)."""
        fused = self._over_all(features)
        gaps = None if there is None else ~there.all(0)[0]
        if there is None or gaps is None or not bool(gaps.any()):
            return fused
        # Gaps are few as a rule: fused again where they are, instead of weighing every voxel.
        again = self._over_some(features[:, :, gaps][..., None, None], there[:, :, gaps][..., None, None])
        fused[:, :, gaps] = again[..., 0, 0].to(fused.dtype)
        return fused

    def _over_all(self, features: Float[Tensor, "K C H W D"]) -> Float[Tensor, "1 C2 H W D"]:
        if self.score is None:
            mean = features.mean(0, keepdim=True)
        else:
            weights = torch.softmax(self.score(features), dim=0).to(features.dtype)
            mean = (features * weights).sum(0, keepdim=True)
        if self.kind == "mean_variance":
            return torch.cat([mean, (features - mean).square().mean(0, keepdim=True)], dim=1)
        return torch.cat([mean, features.amax(0, keepdim=True)], dim=1)

    def _over_some(
        self, features: Float[Tensor, "K C H W D"], there: Bool[Tensor, "K 1 H W D"]
    ) -> Float[Tensor, "1 C2 H W D"]:
        lowest = torch.finfo(features.dtype).min
        if self.score is None:
            weights = there / there.sum(0, keepdim=True).clamp(min=1)
        else:
            weights = torch.softmax(self.score(features).masked_fill(~there, lowest), dim=0) * there
        weights = weights.to(features.dtype)
        mean = (features * weights).sum(0, keepdim=True)
        if self.kind == "mean_variance":
            return torch.cat([mean, ((features - mean).square() * weights).sum(0, keepdim=True)], dim=1)
        highest = features.masked_fill(~there, lowest).amax(0, keepdim=True) * there.any(0, keepdim=True)
        return torch.cat([mean, highest], dim=1)


class SubsetStem(nn.Module):
    """Features of the images themselves at each halving of the grid, from any subset of modalities.

    All modalities enter one convolution without bias, to which each adds its own kernels' output, and an absent one
    nothing. One channel more of each says where it is there, so that absence is not taken for tissue of mean intensity.

    Nothing is computed at full resolution, where a CPU spends most of its time moving a few channels: each 2x2x2 voxels
    enter as eight channels on the half grid (sub-pixel convolution, Shi 2016, in reverse), which loses nothing.

    Args:
        modalities: How many modalities there are.
        widths: Channels after each halving.
    """

    def __init__(self, modalities: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs = 9 * modalities
        first = ConvBlock(self.inputs, widths[0])
        self.down = nn.ModuleList([first, *(ConvBlock(a, b, stride=2) for a, b in pairwise(widths))])

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        valid: Bool[Tensor, "B M H W D"] | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Return the images with their flags on the half grid, and then the features after each halving.

        Args:
            images: Volumes of even sides; those of absent modalities are not read.
            available: Which modalities each sample has; at least one.
            valid: Where each modality was scanned; default: everywhere.
        """
        there = available[:, :, None, None, None].expand_as(images)
        there = there if valid is None else there & valid
        packed = pack_voxels(torch.where(there, images, 0))
        seen = torch.cat([packed, F.avg_pool3d(there.float(), 2).to(images.dtype)], dim=1)
        features = [seen.contiguous(memory_format=torch.channels_last_3d)]
        for block in self.down:
            features.append(block(features[-1]))
        return features


class VoxelHead(nn.Module):
    """Logits at full resolution from the half grid: of features around each voxel, and of the images at it.

    Args:
        channels: Of the features.
        inputs: Of the images as `SubsetStem` packs them.
        regions: Logits a voxel.
    """

    def __init__(self, channels: int, inputs: int, regions: int) -> None:
        super().__init__()
        self.around = Conv3d(channels, 8 * regions, 3, padding=1)
        self.here = Pointwise(inputs, 8 * regions, bias=False)
        with torch.no_grad():  # the eight voxels start alike, so that no checkerboard has to be unlearned (Aitken 2017)
            kernels = self.around.weight
            kernels.copy_(kernels[:regions].repeat(8, 1, 1, 1, 1))

    def forward(
        self, features: Float[Tensor, "B C H2 W2 D2"], seen: Float[Tensor, "B _ H2 W2 D2"]
    ) -> Float[Tensor, "B R H W D"]:
        """Return the logits."""
        return unpack_voxels(self.around(features) + self.here(seen))


def pack_voxels(volumes: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C8 H2 W2 D2"]:
    """Return each 2x2x2 voxels as eight channels on the half grid, place by place: all channels at the first, ..."""
    return rearrange(volumes, "b c (h p) (w q) (d r) -> b (p q r c) h w d", p=2, q=2, r=2)


def unpack_voxels(packed: Float[Tensor, "B C8 H2 W2 D2"]) -> Float[Tensor, "B C H W D"]:
    """Return what `pack_voxels` packed."""
    return rearrange(packed, "b (p q r c) h w d -> b c (h p) (w q) (d r)", p=2, q=2, r=2)

"""Segmentation on the shared encoder: any subset of modalities, one set of weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.errors import ConfigError
from bmmae.model.config import ModelConfig
from bmmae.model.encoder import Encoder
from bmmae.model.mae import stack_modalities
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.tokens import TokenIndex
from bmmae.patches import any_in_patch, patch_grid


@dataclass(frozen=True)
class SegmentationConfig:
    """A segmentation model: the encoder's model, the regions, and the width of the decoder.

    Attributes:
        model: Shape of the pretrained model; its decoder is not used.
        regions: Names of the regions, one output channel each (they may overlap).
        coding: Name of the label coding that the regions are defined by.
        width: Channels at full resolution; doubled at each halving, to at most four times.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    regions: tuple[str, ...] = ("ET", "TC", "WT")
    coding: str = "brats2017"
    width: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        if not self.regions:
            raise ConfigError("a segmentation model needs at least one region, got none")
        exponent = int(math.log2(self.model.patch[0]))
        if exponent < 1 or any(p != 2**exponent for p in self.model.patch):
            raise ConfigError(f"segmentation needs a cubic patch whose side is a power of 2, got {self.model.patch}")


class ConvBlock(nn.Module):
    """Two 3x3x3 convolutions with group norm, residual."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.GroupNorm(min(8, outputs), outputs) for _ in range(2))
        plain = inputs == outputs and stride == 1
        self.skip = nn.Identity() if plain else nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C2 H2 W2 D2"]:
        """Return the block's output."""
        y = self.act(self.norm1(self.first(x)))
        out: Tensor = self.act(self.norm2(self.second(y)) + self.skip(x))
        return out


class AnySubsetStem(nn.Module):
    """Full-resolution features of any subset: one shared convolution a modality, fused over the available ones.

    Every modality passes the same convolutions, told apart by an embedding that scales and shifts its features; mean
    and maximum over the modalities scanned at a voxel do not depend on their number or order.

    Args:
        modalities: How many modalities there are.
        widths: Channels at each resolution, full resolution first; each step halves the grid.
    """

    def __init__(self, modalities: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.entry = nn.Conv3d(1, widths[0], 3, padding=1)
        self.scale = nn.Parameter(torch.ones(modalities, widths[0]))
        self.shift = nn.Parameter(torch.zeros(modalities, widths[0]))
        nn.init.trunc_normal_(self.scale, mean=1.0, std=0.2)
        self.fuse = ConvBlock(2 * widths[0], widths[0])
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise(widths))

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        valid: Bool[Tensor, "B M H W D"] | None = None,
    ) -> list[Float[Tensor, "B _ _ _ _"]]:
        """Return fused features at each resolution, full resolution first; see `SegmentationModel.forward`."""
        sample, modality = available.nonzero(as_tuple=True)
        features = self.entry(images[sample, modality][:, None])
        scale, shift = self.scale[modality], self.shift[modality]
        features = features * scale[:, :, None, None, None] + shift[:, :, None, None, None]
        features = nn.functional.leaky_relu(features, 0.01)
        counts = torch.bincount(sample, minlength=len(images)).tolist()
        groups = torch.split(features, counts)
        scanned = [None] * len(groups) if valid is None else torch.split(valid[sample, modality][:, None], counts)
        fused = [self.fuse(torch.stack([_mean_and_max(*pair) for pair in zip(groups, scanned, strict=True)]))]
        for block in self.down:
            fused.append(block(fused[-1]))
        return fused


def _mean_and_max(
    features: Float[Tensor, "K C H W D"], scanned: Bool[Tensor, "K 1 H W D"] | None
) -> Float[Tensor, "C2 H W D"]:
    """Mean and maximum over the modalities scanned at each voxel, as channels; zero where there is none."""
    if scanned is None or bool(scanned.all()):
        return torch.cat([features.mean(0), features.amax(0)])
    mean = (features * scanned).sum(0) / scanned.sum(0).clamp(min=1)
    lowest = torch.finfo(features.dtype).min
    return torch.cat([mean, features.masked_fill(~scanned, lowest).amax(0) * scanned.any(0)])


class SegmentationModel(PretrainedModel):
    """The shared encoder, a stem for detail, and a light convolutional decoder.

    Args:
        config: Its shape.
    """

    kind = "segmentation"

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        model = config.model
        self.encoder = Encoder(len(model.modalities), model.patch, model.encoder)
        steps = int(math.log2(model.patch[0]))
        widths = tuple(config.width * min(2**step, 4) for step in range(steps))
        self.stem = AnySubsetStem(len(model.modalities), widths)
        deepest = 2 * widths[-1]
        self.bottom = nn.Linear(model.encoder.dim, deepest)
        ins = (deepest, *reversed(widths[1:]))
        outs = tuple(reversed(widths))
        self.up = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, stride=2) for i, o in zip(ins, outs, strict=True))
        self.merge = nn.ModuleList(ConvBlock(2 * o, o) for o in outs)
        self.head = nn.Conv3d(widths[0], len(config.regions), 1)
        if self.head.bias is not None:  # lesions are rare: start from "no region anywhere"
            nn.init.constant_(self.head.bias, -3.0)

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
    ) -> Float[Tensor, "B R H W D"]:
        """Return a logit a region and voxel.

        Args:
            images: Volumes, z-scored; those of absent modalities are not read.
            available: Which modalities each sample has; at least one.
            tissue: Patches without any of it are left out of the tokens; default: all patches are tokens.
            valid: Where each modality was scanned: elsewhere it counts as absent; default: everywhere.
        """
        patch = self.config.model.patch
        grid = patch_grid(images.shape[-3:], patch)
        places = math.prod(grid)
        exists = available[:, :, None].expand(-1, -1, places)
        within = [flags for flags in (valid, tissue) if flags is not None]
        if within:
            exists = exists & any_in_patch(functools.reduce(torch.logical_and, within), patch)
        tokens = TokenIndex.of(exists)
        encoded = self.bottom(tokens.flatten(self.encoder(images, tokens)[:, 1:]))
        x = self._to_grid(encoded, tokens, grid)
        skips = self.stem(images, available, valid)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

    @staticmethod
    def _to_grid(
        encoded: Float[Tensor, "T C"], tokens: TokenIndex, grid: tuple[int, int, int]
    ) -> Float[Tensor, "B C h w d"]:
        """Average the tokens of the available modalities at each place; places without a token are zero."""
        batch, _, places = tokens.chosen.shape
        sums = encoded.new_zeros(batch * places, encoded.shape[-1])
        sums = sums.index_add(0, tokens.sample * places + tokens.place, encoded)
        counts = tokens.chosen.sum(1).clamp(min=1).reshape(-1, 1)
        h, w, d = grid
        return rearrange(sums / counts, "(b h w d) c -> b c h w d", b=batch, h=h, w=w, d=d)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are embeddings, scales and shifts rather than weights."""
        tokens = {"encoder.cls_token", "encoder.embedding.modality", "encoder.embedding.bias"}
        return tokens | {"stem.scale", "stem.shift"}

    def group_matcher(self, coarse: bool = False) -> Mapping[str, object]:  # noqa: ARG002 - timm's signature
        """Name the layers, for `optim.layer_decay`; see `Encoder.layer_patterns`."""
        return self.encoder.layer_patterns()

    @torch.no_grad()
    def segment(
        self,
        images: Mapping[str, Float[Tensor, "B 1 H W D"]],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
    ) -> Float[Tensor, "B R H W D"]:
        """Return region probabilities.

        Args:
            images: Preprocessed volumes by modality name, in any order.
            tissue: Where the brain is; if given, patches without brain are left out of the tokens.

        Raises:
            ModalityError: If none is given, or one is not known to the model.
        """
        volumes, available = stack_modalities(images, self.config.model)
        probabilities: Tensor = self(volumes, available, tissue=tissue).sigmoid()
        return probabilities

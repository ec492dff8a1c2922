"""Segmentation on the shared encoder: any subset of modalities, one set of weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, cast

import torch
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.errors import ConfigError
from bmmae.modalities import subset_label
from bmmae.model.config import ModelConfig
from bmmae.model.convolution import Conv3d, ConvBlock, Fusion, FusionKind, SubsetStem, VoxelHead
from bmmae.model.encoder import Encoder
from bmmae.model.encoder_model import EncoderModel
from bmmae.model.tokens import TokenIndex, existing_tokens
from bmmae.patches import Triple, patch_grid


@dataclass(frozen=True)
class SegmentationConfig:
    """A segmentation model: the encoder's model, the regions, and the decoder's shape.

    Attributes:
        model: Shape of the pretrained model; its decoder is not used.
        regions: Names of the regions, one output channel each (they may overlap).
        coding: Name of the label coding that the regions are defined by.
        width: Half the channels at half resolution; doubled at each further halving, to at most eight times.
        decoder: `light` has skips from the stem alone; `unetr` also from the encoder's intermediate layers (UNETR).
        fusion: How the tokens of the available modalities become one; see `bmmae.model.convolution.Fusion`.
        supervision: How many of the coarser resolutions predict the regions too (deep supervision).
        classes: Class name to label value, where the coding is the user's own.
        united: Region name to the label values that it unites, where the coding is the user's own.
        relied_on: Region name to the modalities (`"t1ce+flair"`) that it is taken from in use, by those that are given;
            what is not listed is taken from all. See `bmmae.evaluation.subsets.choose_subsets`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    regions: tuple[str, ...] = ("ET", "TC", "WT")
    coding: str = "brats2017"
    width: int = 8
    decoder: Literal["light", "unetr"] = "light"
    fusion: FusionKind = "mean_max"
    supervision: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    united: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    relied_on: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        if not self.regions:
            raise ConfigError("a segmentation model needs at least one region, got none")
        if len(set(self.regions)) < len(self.regions):
            raise ConfigError(f"a segmentation model names each region once, got {', '.join(self.regions)}")
        exponent = int(math.log2(self.model.patch[0]))
        if exponent < 1 or any(p != 2**exponent for p in self.model.patch):
            raise ConfigError(f"segmentation needs a cubic patch whose side is a power of 2, got {self.model.patch}")
        if not 0 <= self.supervision < exponent:
            raise ConfigError(
                f"supervision counts coarser resolutions: expected 0 to {exponent - 1}, got {self.supervision}"
            )
        for region, given, used in self._reliances():
            if region not in self.regions or not set(used.split("+")) <= set(given.split("+")):
                raise ConfigError(f"relied_on: region '{region}' cannot be taken from '{used}' of '{given}'")

    def _reliances(self) -> Iterator[tuple[str, str, str]]:
        for region, table in self.relied_on.items():
            for given, used in table.items():
                yield region, given, used

    def regions_by_subset(self, given: Collection[str]) -> dict[tuple[str, ...], list[int]]:
        """Return which regions (their numbers) are taken from which of the modalities given."""
        label, found = subset_label(given), dict[tuple[str, ...], list[int]]()
        for number, region in enumerate(self.regions):
            used = self.relied_on.get(region, {}).get(label, label)
            found.setdefault(tuple(used.split("+")), []).append(number)
        return found

    @property
    def steps(self) -> int:
        """Halvings between full resolution and one voxel a patch."""
        return int(math.log2(self.model.patch[0]))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels by level: 0 is full resolution, which has no features of its own; the last is one voxel a patch."""
        return tuple(self.width * min(2**step, 8) for step in range(self.steps + 1))


class TokenSkip(nn.Module):
    """Tokens of one encoder layer as features on a grid: projected, fused over modalities, brought to a resolution.

    Args:
        dim: Length of a token.
        channels: Of the features.
        doublings: How often the grid of patches is doubled.
        fusion: How the modalities' features become one.
    """

    def __init__(self, dim: int, channels: int, doublings: int, fusion: FusionKind) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(dim, eps=1e-5), nn.Linear(dim, channels))
        self.fusion = Fusion(fusion, channels)
        ups = [
            nn.ConvTranspose3d(2 * channels if n == 0 else channels, channels, 2, stride=2) for n in range(doublings)
        ]
        self.ups = nn.ModuleList(nn.Sequential(up, ConvBlock(channels, channels)) for up in ups)

    def forward(self, sequence: Float[Tensor, "B S E"], tokens: TokenIndex, grid: Triple) -> Float[Tensor, "B _ _ _ _"]:
        """Return the features; `sequence` starts with the class token, which is not used."""
        flat = self.project(tokens.flatten(sequence[:, 1:]))
        dense = flat.new_zeros(*tokens.chosen.shape, flat.shape[-1])
        dense[tokens.chosen] = flat
        h, w, d = grid
        maps = rearrange(dense, "b m (h w d) c -> b m c h w d", h=h, w=w, d=d)
        there = rearrange(tokens.chosen, "b m (h w d) -> b m 1 h w d", h=h, w=w, d=d)
        x = torch.cat([self.fusion(*sample) for sample in zip(maps, there, strict=True)])
        for up in self.ups:
            x = up(x)
        return x


class SegmentationModel(EncoderModel):
    """The shared encoder, a stem for detail, and a convolutional decoder.

    Args:
        config: Its shape.
    """

    kind = "segmentation"
    config: SegmentationConfig

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = SegmentationModel.checked(config)
        model, widths, steps = config.model, config.widths, config.steps
        self.encoder = Encoder(len(model.modalities), model.patch, model.encoder)
        self.stem = SubsetStem(len(model.modalities), widths[1:])
        self.bottom = TokenSkip(model.encoder.dim, widths[-1], 0, config.fusion)
        # UNETR's skips: the deeper the layer, the coarser the resolution that it joins; full resolution has the images.
        self.skip_layers = _skip_layers(config)
        self.skips = nn.ModuleDict(
            {
                str(level): TokenSkip(model.encoder.dim, widths[level], steps - level, config.fusion)
                for level in self.skip_layers
            }
        )
        # From the grid of patches to half resolution. The head's last channels there are the voxels at full resolution.
        joined = [3 if level in self.skip_layers or level == steps else 2 for level in range(1, steps + 1)]
        self.merge = nn.ModuleList(ConvBlock(n * w, w) for n, w in zip(joined, widths[1:], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(widths[1:]))
        regions, coarser = len(config.regions), widths[1 : config.supervision + 1]
        full = VoxelHead(widths[1], self.stem.inputs, regions)
        others = [Conv3d(channels, regions, 3, padding=1) for channels in coarser]
        for head in (full.around, *others):
            if head.bias is not None:  # lesions are rare: start from "no region anywhere"
                nn.init.constant_(head.bias, -3.0)
        self.heads = nn.ModuleList([full, *others])
        # Two to three times as fast on a CPU, where these few channels fit no vector otherwise.
        self.to(memory_format=torch.channels_last_3d)

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
        *,
        visible: Bool[Tensor, "B M L"] | None = None,
        every_scale: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return a logit a region and voxel, Float[B, R, H, W, D].

        Args:
            images: Volumes, z-scored; those of absent modalities are not read.
            available: Which modalities each sample has; at least one.
            tissue: Patches without any of it are left out of the tokens; default: all patches are tokens.
            valid: Where each modality was scanned: elsewhere it counts as absent; default: everywhere.
            visible: The tokens that the encoder sees of those; default: all. What is hidden from it, the stem sees.
            every_scale: Return the logits of each supervised resolution, full resolution first.
        """
        patch = self.config.model.patch
        grid = patch_grid(images.shape[-3:], patch)
        exists = existing_tokens(available, images.shape[-3:], patch, valid, tissue)
        tokens = TokenIndex.of(exists if visible is None else exists & visible)
        x, skips = self._encode(images, tokens, grid)
        seen, *details = self.stem(images, available, valid)
        logits: list[Tensor] = []
        for level in reversed(range(1, self.config.steps + 1)):
            x = self.merge[level - 1](torch.cat([x, details[level - 1], *skips.get(level, ())], dim=1))
            if every_scale and level < len(self.heads):
                logits.insert(0, self.heads[level](x))
            x = self.up[level - 2](x) if level > 1 else x
        logits.insert(0, self.heads[0](x, seen))
        return tuple(logits) if every_scale else logits[0]

    def _encode(
        self, images: Float[Tensor, "B M H W D"], tokens: TokenIndex, grid: Triple
    ) -> tuple[Float[Tensor, "B C h w d"], dict[int, tuple[Tensor, ...]]]:
        """Return the encoder's output on the grid of patches, and the intermediate layers' by decoder level."""
        skips: dict[int, tuple[Tensor, ...]] = {}
        sequence = images
        for layer, sequence in enumerate(self.encoder.layers(images, tokens)):
            for level in (level for level, own in self.skip_layers.items() if own == layer):
                skips[level] = (self.skips[str(level)](sequence, tokens, grid),)
        return self.bottom(self.encoder.norm(sequence), tokens, grid), skips

    def take_decoder(self, donor: SegmentationModel) -> bool:
        """Copy what stands around another segmentation model's encoder: stem and decoder, and heads of equal regions.

        Regions are equal by name, in any order. Heads of coarser resolutions that the donor lacks stay as they are.

        Args:
            donor: Trained for the same modalities.

        Returns:
            Whether it was copied: only between decoders of one shape.
        """
        one, other = self.config, donor.config
        free = ("regions", "coding", "classes", "united", "relied_on", "supervision")
        same = {key: getattr(one, key) for key in free}
        if replace(other, **same) != one:
            return False
        state = {key: value for key, value in donor.state_dict().items() if not key.startswith("encoder.")}
        heads = [key for key in state if key.startswith("heads.")]
        if sorted(one.regions) == sorted(other.regions):
            order = [other.regions.index(region) for region in one.regions]
            # A head's channels are those of all regions, at each of the eight voxels of a place where it has them.
            state |= {key: state[key].unflatten(0, (-1, len(order)))[:, order].flatten(0, 1) for key in heads}
        else:
            state = {key: value for key, value in state.items() if key not in heads}
        self.load_state_dict(state, strict=False)
        return True

    @torch.no_grad()
    def segment(
        self,
        images: Mapping[str, Float[Tensor, "B 1 H W D"]],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
    ) -> Float[Tensor, "B R H W D"]:
        """Return region probabilities, each region's from the modalities that the config relies on (`relied_on`).

        Args:
            images: Preprocessed volumes by modality name, in any order; see `stack`.
            tissue: Where the brain is; if given, patches without brain are left out of the tokens.

        Raises:
            ModalityError: If none is given, or one is not known to the model.
            ConfigError: As `stack`, and if `tissue` is no mask of the volumes.

        Warns:
            UnpreparedWarning: As `stack`.
        """
        volumes, available = self.stack(images)
        names = self.config.model.modalities
        given = [name for name, there in zip(names, available[0].tolist(), strict=True) if there]
        found: Tensor | None = None
        for subset, regions in self.config.regions_by_subset(given).items():
            used = available & torch.tensor([name in subset for name in names], device=available.device)
            said = self(volumes, used, tissue=tissue).sigmoid()
            found = said if found is None else found
            found[:, regions] = said[:, regions]
        return cast(Tensor, found)


def _skip_layers(config: SegmentationConfig) -> dict[int, int]:
    """Decoder level (0 is full resolution) to the encoder layer whose tokens join it; empty for the light decoder.

    A shallow encoder's layer may join two levels.
    """
    if config.decoder == "light":
        return {}
    depth, steps = config.model.encoder.depth, config.steps
    layers = {level: round(depth * level / steps) for level in range(1, steps)}
    return {level: layer for level, layer in layers.items() if 0 < layer < depth}

"""Segmentation networks that others would try first, behind one adapter: absent modalities are zero-filled channels.

The networks are MONAI's, but for the hybrid of `bmmae.baselines.hybrid_network`. The adapter is called as the
library's own segmentation model is, so that all learn from the same batches by the same loss: half cross-entropy, half
Dice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.baselines.hybrid_network import LEVELS, HybridNetwork
from bmmae.baselines.precision import float32_on_cpu
from bmmae.errors import ConfigError
from bmmae.modalities import STANDARD, in_table_order
from bmmae.patches import Triple, as_triple

RARE = -3.0
"""Where the logits start: lesions are rare, and the library's own model starts there too."""


@dataclass(frozen=True)
class NetworkConfig:
    """One comparator.

    Attributes:
        name: A key of `SEGMENTATION_NETWORKS`.
        modalities: Canonical names, one channel each; always in table order.
        regions: Names of the regions, one output channel each.
        window: Voxels of the window it is trained on.
        width: Channels at the finest resolution, or what comes nearest to it in the network's own terms.
    """

    name: str
    modalities: tuple[str, ...] = STANDARD
    regions: tuple[str, ...] = ("ET", "TC", "WT")
    window: Triple = (64, 64, 64)
    width: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", in_table_order(self.modalities))
        object.__setattr__(self, "window", as_triple(self.window))
        if self.name not in SEGMENTATION_NETWORKS:
            known = ", ".join(SEGMENTATION_NETWORKS)
            raise ConfigError(f"unknown segmentation network '{self.name}': expected one of {known}")
        factor = SEGMENTATION_NETWORKS[self.name].factor
        if any(side % factor for side in self.window) or max(self.window) == factor:
            raise ConfigError(
                f"{self.name} needs a window whose sides are multiples of {factor}, at least one of them twice that: "
                f"got {self.window}"
            )


class ZeroFilledNetwork(nn.Module):
    """A network with one channel a modality, called as `SegmentationModel` is.

    Channels of absent modalities, and voxels that were not scanned, are zero: the network cannot tell them from tissue
    of mean intensity, which is what this baseline is about.

    Args:
        config: Which network, and its channels.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.network = SEGMENTATION_NETWORKS[config.name].build(config)
        self.prior = nn.Parameter(torch.full((len(config.regions),), RARE))

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,  # noqa: ARG002 - the library's own model reads it
        valid: Bool[Tensor, "B M H W D"] | None = None,
    ) -> Float[Tensor, "B R H W D"]:
        """Return a logit a region and voxel; see `bmmae.model.segmentation.SegmentationModel`.

        Args:
            images: Volumes, z-scored; those of absent modalities are not read.
            available: Which modalities each sample has.
            tissue: Not used.
            valid: Where each modality was scanned; default: everywhere.
        """
        coarse = min(self.config.window) <= 2 * SEGMENTATION_NETWORKS[self.config.name].factor
        with float32_on_cpu(images.device) if coarse else nullcontext():
            logits = self.network(zero_filled(images, available, valid))
        final: Tensor = logits[-1] if isinstance(logits, list | tuple) else logits
        return final + self.prior[:, None, None, None]


def zero_filled(
    images: Float[Tensor, "B M H W D"], available: Bool[Tensor, "B M"], valid: Bool[Tensor, "B M H W D"] | None
) -> Float[Tensor, "B M H W D"]:
    """Return the volumes with zeros for whatever is absent."""
    there = available[:, :, None, None, None]
    return torch.where(there if valid is None else there & valid, images, torch.zeros_like(images))


@dataclass(frozen=True)
class Network:
    """How to build one network.

    Attributes:
        build: From its config to the module.
        factor: What the sides of its window must be multiples of.
        source: Where it was published.
    """

    build: Callable[[NetworkConfig], nn.Module]
    factor: int
    source: str


def _channels(config: NetworkConfig) -> dict[str, Any]:
    return {"in_channels": len(config.modalities), "out_channels": len(config.regions)}


def _doubling(width: int, levels: int) -> tuple[int, ...]:
    return tuple(width * 2**level for level in range(levels))


def _unet(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import UNet

    network: nn.Module = UNet(
        spatial_dims=3,
        channels=_doubling(config.width, 5),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        **_channels(config),
    )
    return network


def _attention_unet(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import AttentionUnet

    network: nn.Module = AttentionUnet(
        spatial_dims=3, channels=_doubling(config.width, 5), strides=(2, 2, 2, 2), **_channels(config)
    )
    return network


def _unet_plus_plus(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    one, two, four, eight, _ = _doubling(config.width, 5)
    network: nn.Module = BasicUNetPlusPlus(
        spatial_dims=3, features=(one, one, two, four, eight, one), **_channels(config)
    )
    return network


def _segresnet(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import SegResNet

    norm = ("GROUP", {"num_groups": math.gcd(8, config.width)})
    network: nn.Module = SegResNet(spatial_dims=3, init_filters=config.width, norm=norm, **_channels(config))
    return network


def _swin_unetr(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    # Its features must be a multiple of twelve: of the heads of its first stage, and four of those.
    features = 12 * max(1, round(config.width / 12))
    network: nn.Module = SwinUNETR(feature_size=features, spatial_dims=3, **_channels(config))
    return network


def _unetr(config: NetworkConfig) -> nn.Module:
    from monai.networks.nets import UNETR

    # A transformer of the size of the recipe `tiny`; its twelve layers and its patch of 16 are fixed in MONAI.
    network: nn.Module = UNETR(
        img_size=config.window,
        feature_size=config.width,
        hidden_size=192,
        mlp_dim=384,
        num_heads=6,
        **_channels(config),
    )
    return network


def _hybrid(config: NetworkConfig) -> nn.Module:
    return HybridNetwork(len(config.modalities), len(config.regions), config.width)


SEGMENTATION_NETWORKS: dict[str, Network] = {
    "unet": Network(_unet, 16, "residual 3D U-Net (Kerfoot 2018)"),
    "attention_unet": Network(_attention_unet, 16, "Attention U-Net (Oktay 2018)"),
    "unet_plus_plus": Network(_unet_plus_plus, 16, "U-Net++ (Zhou 2018)"),
    "segresnet": Network(_segresnet, 8, "SegResNet, without its autoencoder branch (Myronenko 2018)"),
    "swin_unetr": Network(_swin_unetr, 32, "Swin UNETR, without its pretraining (Hatamizadeh 2022)"),
    "unetr": Network(_unetr, 16, "UNETR from scratch (Hatamizadeh 2021)"),
    "hybrid": Network(_hybrid, 2**LEVELS, "two-arm convolutions around twelve transformers (Lyu 2021)"),
}
"""The comparators by name."""

"""Models small enough for any test: two blocks in all, 24 values a token, patches of eight voxels a side."""

from __future__ import annotations

from typing import Any

import torch

from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig, SynthesisConfig
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.patches import Triple

DECODERS: tuple[dict[str, Any], ...] = (
    {"kind": "self"},
    {"kind": "cross"},
    {"kind": "cross", "colocated": True, "synthesis": 8},
    {"kind": "self", "colocated": True, "synthesis": 8},
)


def tiny_config(size: Triple = (16, 16, 16), patch: Triple = (8, 8, 8), **decoder: Any) -> ModelConfig:
    """A config of 24 values a token; further arguments are the decoder's, but for `synthesis`, its units."""
    units = decoder.pop("synthesis", 0)
    return ModelConfig(
        patch=patch,
        size=size,
        encoder=EncoderConfig(dim=24, depth=1, heads=2),
        decoder=DecoderConfig(**{"dim": 24, "depth": 1, "heads": 2, **decoder}),
        synthesis=SynthesisConfig(units=units, scales=(2.0,)),
    )


def tiny_mae(size: Triple = (16, 16, 16), patch: Triple = (8, 8, 8), **decoder: Any) -> MAE:
    """A model whose every value matters: the voxel-wise regression would know nothing."""
    torch.manual_seed(0)
    model = MAE(tiny_config(size, patch, **decoder))
    if model.synthesis is not None:
        torch.nn.init.normal_(model.synthesis.coefficients, std=0.2)
        model.synthesis.fitted[1:] = True
    return model.eval()


def tiny_segmentation(size: Triple = (16, 16, 16), **shape: Any) -> SegmentationModel:
    """Three regions from 24 values a token; further arguments are the segmentation config's."""
    torch.manual_seed(0)
    model = SegmentationModel(SegmentationConfig(tiny_config(size), width=4, **shape)).eval()
    torch.nn.init.zeros_(model.heads[0].around.bias)  # an untrained model finds nothing otherwise
    return model


def volumes(batch: int = 1, modalities: int = 4, size: Triple = (16, 16, 16), seed: int = 0) -> torch.Tensor:
    """Standard normal voxels, Float[B, M, H, W, D]."""
    return torch.randn(batch, modalities, *size, generator=torch.Generator().manual_seed(seed))


def flags(*shape: int, share: float = 0.5, seed: int = 0) -> torch.Tensor:
    """Random flags, True with the given chance."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share

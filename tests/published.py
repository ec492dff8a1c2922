"""State dicts by the published key names, filled by the rule that the reference numbers were made with."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from bmmae.conversion import published_shapes
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig
from bmmae.model.embed import sincos_positions
from bmmae.patches import patch_grid

SMALL = ModelConfig(
    patch=(8, 8, 8),
    size=(16, 16, 24),
    encoder=EncoderConfig(48, 3, 12, 2.0),
    decoder=DecoderConfig(dim=24, depth=1, heads=12),
    tissue_only=False,
)
"""The published architecture, small enough for a test."""


def generator(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)


def published_state(config: ModelConfig) -> dict[str, Tensor]:
    """A state dict as the authors' code would save it."""
    grid = patch_grid(config.size, config.patch)
    state = {}
    for key, shape in ((key, tuple(value.shape)) for key, value in published_shapes(config).items()):
        if key.endswith("position_embeddings"):
            state[key] = sincos_positions(grid, shape[-1])[None].clone()
            continue
        values = (generator(key).standard_normal(shape) * 0.02).astype(np.float32)
        state[key] = torch.from_numpy(values + 1 if "norm" in key and key.endswith("weight") else values)
    return state

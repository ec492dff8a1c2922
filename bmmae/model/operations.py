"""How many operations a forward pass takes, by counting: what speed is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bmmae.model.config import ModelConfig


def encoder_operations(config: ModelConfig, tokens: Sequence[int]) -> float:
    """Count the encoder's operations on samples with these numbers of visible tokens.

    A multiplication and its addition are two operations; norms, activations and the softmax are left out. A step
    with gradients takes three times as many.
    """
    shape = config.encoder
    project = 2 * math.prod(config.patch) * shape.dim
    return sum(project * n + _blocks(n + 1, shape.dim, shape.depth, shape.mlp_ratio) for n in tokens)


def decoder_operations(config: ModelConfig, visible: Sequence[int], targets: Sequence[int]) -> float:
    """Count the operations of the decoder and its head on samples with these numbers of visible and target tokens."""
    shape, voxels = config.decoder, math.prod(config.patch)
    total = 0.0
    for shown, asked in zip(visible, targets, strict=True):
        total += 2 * (shown + 1) * config.encoder.dim * shape.dim + 2 * asked * shape.dim * voxels
        if shape.kind == "self":
            total += _blocks(shown + 1 + asked, shape.dim, shape.depth, shape.mlp_ratio)
        else:
            total += shape.depth * _cross_block(asked, shown + 1, shape.dim, shape.mlp_ratio)
    return total


def _blocks(tokens: int, dim: int, depth: int, mlp_ratio: float) -> float:
    per_token = 2 * dim * dim * (4 + 2 * mlp_ratio) + 4 * tokens * dim
    return depth * tokens * per_token


def _cross_block(queries: int, keys: int, dim: int, mlp_ratio: float) -> float:
    return 2 * dim * dim * (queries * (2 + 2 * mlp_ratio) + 2 * keys) + 4 * queries * keys * dim

"""The two-layer network of transformer blocks."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def feed_forward(dim: int, hidden: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a two-layer network with GELU whose parameters are named as those of timm's `Mlp`.

    It is built here, as importing timm's layers imports all of torchvision, which takes as long as importing torch.
    """
    layers = {
        "fc1": nn.Linear(dim, hidden),
        "act": nn.GELU(),
        "drop1": nn.Dropout(dropout),
        "fc2": nn.Linear(hidden, dim),
        "drop2": nn.Dropout(dropout),
    }
    return nn.Sequential(OrderedDict(layers))

"""Where networks must not compute in bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def float32_on_cpu(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast on CPUs, and an empty one elsewhere.

    For networks that halve a window down to two voxels: there the gradients of a 3x3x3 convolution's weights in bf16
    are arbitrary numbers, infinite ones among them (CPU, torch 2.15).
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()

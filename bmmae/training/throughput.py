"""How fast the device multiplies matrices, and what share of that a run reaches."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices of the probe; other devices take that of the CPU."""


@lru_cache(maxsize=8)
def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Measure the device's rate of matrix products, in operations per second: the peak that MFU is a share of.

    The best of several products counts, for that is the least disturbed one.

    Args:
        device: What to measure.
        dtype: Of the matrices.
        seconds: How long to go on.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    one = torch.ones(side, side, device=device, dtype=dtype)
    other, out = one.clone(), torch.empty_like(one)
    best, end = float("inf"), time.perf_counter() + seconds
    torch.mm(one, other, out=out)
    _finish(device)
    while True:
        started = time.perf_counter()
        torch.mm(one, other, out=out)
        _finish(device)
        now = time.perf_counter()
        best = min(best, now - started)
        if now > end:
            return 2.0 * side**3 / max(best, 1e-9)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

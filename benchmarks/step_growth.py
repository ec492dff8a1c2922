"""How the cost of a step grows: modalities, window, batch; time and memory per visible token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import seconds
from step_contestants import Inputs

from bmmae.data.loaders import Batch
from bmmae.model.config import ModelConfig
from bmmae.model.mae import MAE
from bmmae.patches import patch_grid
from bmmae.tasks.reconstruction import ReconstructionTask

MODALITIES, SIDES, BATCHES = (1, 2, 3, 4), (96, 128, 160, 192), (1, 2, 4, 8)
PLAIN = (4, 128, 2)
"""Modalities, side of the window and batch that the others are varied from."""


def cases() -> list[tuple[int, int, int]]:
    """Return (modalities, side, batch): one of them varied at a time."""
    count, side, batch = PLAIN
    varied = [(n, side, batch) for n in MODALITIES] + [(count, n, batch) for n in SIDES]
    return sorted({*varied, *((count, side, n) for n in BATCHES)})


def grow(config: ModelConfig, quick: bool, inputs: Inputs) -> list[dict[str, Any]]:
    """Measure forward and backward of each case, in bf16, every patch being tissue."""
    del inputs  # noise is as good here
    factor = 8 if quick else 1
    chosen = cases()[:3] if quick else cases()
    model = MAE(config)
    rows = []
    for modalities, side, batch in chosen:
        data = _noise(config, modalities, max(side // factor, config.patch[0]), batch)
        rows.append({"part": "growth", "modalities": modalities, "side": side // factor, "batch": batch})
        rows[-1] |= _measure(model, data)
        print(rows[-1])
    return rows


def _noise(config: ModelConfig, modalities: int, side: int, batch: int) -> Batch:
    size, count = (side,) * 3, len(config.modalities)
    places = math.prod(patch_grid(size, config.patch))
    draws = torch.Generator().manual_seed(0)
    order = torch.rand(batch, modalities * places, generator=draws).argsort(1).view(batch, modalities, places)
    shown, asked = torch.zeros(2, batch, count, places, dtype=torch.bool)
    total = modalities * places
    shown[:, :modalities] = order < total // 4
    asked[:, :modalities] = order >= total - total * 3 // 16
    valid = torch.zeros(batch, count, *size, dtype=torch.bool)
    valid[:, :modalities] = True
    images = torch.randn(batch, count, *size, generator=draws) * valid
    return {"images": images, "mask": ~shown, "decode": asked, "valid": valid, "brain": valid[:, 0]}


def _measure(model: MAE, batch: Batch) -> dict[str, float]:
    task = ReconstructionTask(replace(model.config, tissue_only=False))
    mask = batch["mask"]
    assert isinstance(mask, torch.Tensor)
    saved: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return value

    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def step(watched: bool) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
        with torch.autocast("cpu", torch.bfloat16):
            if watched:
                with hooks:
                    output = task.step(model, batch)
            else:
                output = task.step(model, batch)
        (output.loss_sum / output.loss_count).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    step(watched=True)
    kept = sum(size for place, size in saved.items() if place not in weights)
    took = min(seconds(lambda: step(watched=False)) for _ in range(2))
    tokens = int((~mask).sum())
    return {
        "visible_tokens": tokens,
        "longest_sequence": tokens // len(mask),
        "milliseconds_a_token": 1000 * took / tokens,
        "megabytes_kept_a_token": kept / 1e6 / tokens,
    }


def plot_growth(rows: list[dict[str, Any]], path: Path) -> Path:
    """Draw time and memory per visible token over the number of visible tokens."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    canvas = Figure(figsize=(9, 3.6), layout="constrained")
    axes = canvas.subplots(1, 2)
    names = ("modalities", "side", "batch")
    for varied, name in enumerate(names):
        others = [index for index in range(3) if index != varied]
        line = [row for row in rows if all(row[names[i]] == PLAIN[i] for i in others)]
        line.sort(key=lambda row: row["visible_tokens"])
        tokens = [row["visible_tokens"] for row in line]
        for axis, key in zip(axes, ("milliseconds_a_token", "megabytes_kept_a_token"), strict=True):
            axis.plot(tokens, [row[key] for row in line], marker="o", label=f"more {name}".replace("side", "voxels"))
    for axis, text in zip(axes, ("milliseconds", "megabytes kept for backward"), strict=True):
        axis.set(xscale="log", xlabel="visible tokens in the batch", title=f"{text} a visible token", ylim=(0, None))
        axis.xaxis.set_major_locator(FixedLocator([250, 500, 1000, 2000, 4000]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].legend()
    canvas.savefig(path, dpi=110)
    return path

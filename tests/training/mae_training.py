"""Trains a masked autoencoder of the smallest shape: what the tests of several processes run.

Usage: python mae_training.py RUN_DIR [--KEY VALUE ...], keys being those of `TrainConfig`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from bmmae.data.loaders import Address, sample_generator
from bmmae.masking import MaskingConfig, draw_tokens
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig
from bmmae.model.mae import MAE
from bmmae.tasks.reconstruction import ReconstructionTask
from bmmae.training import FitResult, OptimConfig, TrainConfig, fit
from bmmae.training.devices import end_process

SMALLEST = ModelConfig(
    modalities=("t1", "t2"),
    patch=(4, 4, 4),
    size=(8, 8, 8),
    encoder=EncoderConfig(dim=24, depth=2, heads=2, mlp_ratio=1.0),
    decoder=DecoderConfig(kind="cross", dim=12, depth=1, heads=2, mlp_ratio=1.0, colocated=True),
)


class Noise:
    """Eleven samples of noise; every third lacks a modality."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, address: Address) -> dict[str, torch.Tensor]:
        rng, size = sample_generator(5, *address), SMALLEST.size
        exists = np.ones((2, 8), bool)
        exists[1] = address[1] % 3 != 0
        draw = draw_tokens(rng, exists, MaskingConfig(visible_share=0.5))
        images = rng.standard_normal((2, *size)).astype(np.float32) + 1
        arrays = {"images": images, "mask": draw.mask, "decode": draw.decode, "available": exists.any(1)}
        arrays |= {"valid": np.ones((2, *size), bool), "brain": np.ones(size, bool)}
        return {key: torch.from_numpy(array) for key, array in arrays.items()}


def train_smallest(run_dir: Path, **changes: object) -> tuple[MAE, FitResult]:
    """Train in float32, six steps of four samples unless said otherwise."""
    torch.manual_seed(0)
    model = MAE(SMALLEST)
    values = {"steps": 6, "batch_size": 2, "precision": "no", "workers": 0, "log_every": 1, "progress": False}
    result = fit(
        model,
        ReconstructionTask(SMALLEST),
        Noise(),
        Noise(),
        train=TrainConfig(**{"evaluate_every": 3, "checkpoint_every": 3, **values, **changes}),  # type: ignore[arg-type]
        optim=OptimConfig(lr=1e-2, warmup_steps=1, clip_norm=0.1),
        run_dir=run_dir,
        save_model=MAE.save_pretrained,
    )
    return model, result


def main() -> None:
    torch.set_num_threads(1)
    options = {key.removeprefix("--"): json.loads(value) for key, value in zip(sys.argv[2::2], sys.argv[3::2])}  # noqa: B905
    _, result = train_smallest(Path(sys.argv[1]), **options)
    end_process(result.exit_code)


if __name__ == "__main__":
    main()

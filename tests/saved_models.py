"""A small model, and what is saved beside it: what the tests of saving and loading start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bmmae.checkpoint import Metric, Provenance, describe, save_model
from bmmae.data.preprocess import PreprocessConfig
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig, SynthesisConfig
from bmmae.model.mae import MAE

CONFIG = ModelConfig(
    modalities=("flair", "t1", "dwi"),
    patch=(8, 8, 4),
    size=(16, 16, 16),
    encoder=EncoderConfig(24, 2, 2),
    decoder=DecoderConfig(kind="cross", dim=12, depth=1, heads=2, colocated=True),
    synthesis=SynthesisConfig(units=8, scales=(2.0,)),
)
PROVENANCE = Provenance(
    data="a test",
    subjects=2,
    content_hashes=("ab" * 32, "cd" * 32),
    command="pretrain/train.py",
    metrics={"psnr": Metric(30.0, 29.0, 31.0, "dB, higher is better", 2)},
    licence="CC-BY-4.0",
)


def save(model: MAE, folder: Path) -> Path:
    return save_model(model, folder, preprocessing=PreprocessConfig(spacing=(1.0, 1.0, 2.0)), provenance=PROVENANCE)


def save_run(folder: Path) -> Path:
    """Two checkpoints as training leaves them; their `data` tell them apart."""
    for step in (1, 2):
        describe(made := MAE(CONFIG), provenance=Provenance(data=f"step {step}"))
        save_model(made, folder / "checkpoints" / f"step-{step:08d}")
    index = {"best": "step-00000001", "last": "step-00000002"}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    return folder


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(name="model")
def model_fixture() -> MAE:
    """A new model of `CONFIG`."""
    return MAE(CONFIG)


@pytest.fixture(name="saved")
def saved_fixture(model: MAE, tmp_path: Path) -> Path:
    """The folder it was saved to."""
    return save(model, tmp_path / "model")


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path) -> Path:
    """A run folder with two checkpoints."""
    return save_run(tmp_path / "run")

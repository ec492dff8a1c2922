"""Two ranks train an autoencoder like one, divided (FSDP) or not (DDP), whatever modalities their batches lack."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mae_training import train_smallest
from toy_training import rows

from bmmae.checkpoint import load_model
from bmmae.errors import ConfigError
from bmmae.training import TrainConfig, find_checkpoint
from bmmae.training.checkpointing import read_state
from bmmae.training.sharding import refuse_what_cannot_be_sharded

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("mae_training.py"))
PATIENCE = 600  # a busy machine takes minutes to import torch
KEYS = ("train/loss", "grad_norm", "val/loss")


def two_ranks(run_dir: Path, sharded: bool = True, **changes: object) -> None:
    """Train an autoencoder on two ranks."""
    options = [part for key, value in changes.items() for part in (f"--{key}", json.dumps(value))]
    start_two([SCRIPT, str(run_dir), *options], sharded=sharded)


def start_two(words: list[str], *, sharded: bool = True) -> None:
    """Start a script twice over gloo, as a scheduler does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    shared = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_USE_FSDP": str(sharded).lower(),
        "OMP_NUM_THREADS": "1",
    }
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *words],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)


def histories(run_dir: Path) -> list[list[tuple[int, float]]]:
    return [rows(run_dir, key) for key in KEYS]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would take the GPUs")
def test_a_divided_run_that_goes_on_equals_one_that_never_stopped_and_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    two_ranks(tmp_path / "whole", recompute=True)
    for name in ("divided", "alone"):  # as if it had been killed before its last checkpoint
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000006")
    two_ranks(tmp_path / "divided", resume=True, recompute=True)
    assert histories(tmp_path / "divided") == histories(tmp_path / "whole")

    with pytest.warns(UserWarning, match="train.accumulate"):
        alone, _ = train_smallest(tmp_path / "alone", accumulate=2, resume=True)
    one, _ = train_smallest(tmp_path / "one", accumulate=2)
    for run in ("divided", "alone"):
        for mine, expected in zip(histories(tmp_path / run), histories(tmp_path / "one"), strict=True):
            assert dict(mine) == pytest.approx(dict(expected), rel=1e-4)
        trained = load_model(find_checkpoint(tmp_path / run, "last"))
        mine, expected = (
            torch.cat([value.detach().flatten() for value in each.parameters()]) for each in (trained, one)
        )
        # Not value by value: Adam makes as much of a gradient that is zero but for rounding (of the keys' biases).
        assert float((mine - expected).norm() / expected.norm()) < 3e-3
    kept = read_state(find_checkpoint(tmp_path / "divided", "last"))["model"]
    assert {name: value.shape for name, value in kept.items()} == {n: v.shape for n, v in alone.state_dict().items()}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would take the GPUs")
def test_a_modality_absent_from_a_ranks_batch_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one sample: in some steps one rank has a modality that the other lacks."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    two_ranks(tmp_path / "two", sharded=False, batch_size=1)
    train_smallest(tmp_path / "one", batch_size=1, accumulate=2)
    for two, one in zip(histories(tmp_path / "two"), histories(tmp_path / "one"), strict=True):
        assert dict(two) == pytest.approx(dict(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would take the GPUs")
def test_a_divided_segmentation_model_learns_and_no_rank_waits_for_the_others_teacher() -> None:
    start_two([str(Path(__file__).with_name("segmentation_ranks.py"))])


@pytest.mark.parametrize(("change", "name"), [({"ema_decay": 0.9}, "ema_decay"), ({"compile": True}, "compile")])
def test_what_does_not_go_together_with_sharding_is_refused(change: dict[str, object], name: str) -> None:
    refuse_what_cannot_be_sharded(TrainConfig(steps=1))
    with pytest.raises(ConfigError, match=rf"train.{name} does not go together with FSDP.*configs/accelerate/"):
        refuse_what_cannot_be_sharded(TrainConfig(steps=1, **change))  # type: ignore[arg-type]


def test_the_shipped_configuration_asks_for_sharding() -> None:
    assert yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp.yaml").read_text())["distributed_type"] == "FSDP"

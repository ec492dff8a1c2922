"""Options of the loop: averaged weights and recomputation change what they should and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import flags, tiny_mae, volumes
from toy_training import ToyModel, rows, same_weights, train_toy

from bmmae.errors import ConfigError
from bmmae.training import find_checkpoint
from bmmae.training.plan import TrainConfig
from bmmae.training.run import _running_mean


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def saved(run_dir: Path, which: str) -> ToyModel:
    model = ToyModel()
    folder = find_checkpoint(run_dir, which)  # type: ignore[arg-type]
    model.load_state_dict(torch.load(folder / "weights.bin", weights_only=True))
    return model


def test_the_average_follows_its_formula_and_leaves_training_alone(tmp_path: Path) -> None:
    every = {"checkpoint_every": 1, "evaluate_every": 12, "steps": 4, "keep": 9}
    plain, _ = train_toy(tmp_path / "plain", **every)
    averaged, _ = train_toy(tmp_path / "averaged", ema_decay=0.5, **every)
    assert same_weights(plain, averaged)
    torch.manual_seed(0)
    expected = [value.detach().clone() for value in ToyModel().parameters()]
    for step, folder in enumerate(sorted((tmp_path / "plain" / "checkpoints").glob("step-*"))):
        weights = torch.load(folder / "weights.bin", weights_only=True)
        decay = min(0.5, 1 - (1 + step) ** (-2 / 3))  # none of the initial weights is left after the first step
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights.values(), strict=True)]
    for found, wanted in zip(saved(tmp_path / "averaged", "last").parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted)


def test_the_average_is_what_is_evaluated(tmp_path: Path) -> None:
    train_toy(tmp_path / "plain")
    train_toy(tmp_path / "averaged", ema_decay=0.99)
    assert rows(tmp_path / "plain") == rows(tmp_path / "averaged")
    assert rows(tmp_path / "plain", "val/loss")[-1][1] < rows(tmp_path / "averaged", "val/loss")[-1][1]


def test_a_resumed_average_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", ema_decay=0.9)
    train_toy(tmp_path / "parts", ema_decay=0.9, steps=12, time_limit_hours=1e-9)
    train_toy(tmp_path / "parts", ema_decay=0.9, resume=True)
    assert same_weights(saved(tmp_path / "whole", "last"), saved(tmp_path / "parts", "last"))


def test_infinities_in_buffers_stay_what_they_are_in_the_average() -> None:
    model = ToyModel()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = _running_mean(model, 0.9)
    for step in (1, 2):
        average.update(model, step=step)
    assert torch.equal(average.module.mask, model.mask)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"train\.ema_decay must lie between 0 and 1"):
        TrainConfig(steps=1, ema_decay=decay)


def test_recomputing_gives_the_same_gradients_from_less() -> None:
    model, images = tiny_mae(kind="cross").train(), volumes(2)
    visible = flags(2, 4, 8)
    kept, gradients = [], []
    for recompute in (False, True):
        model.encoder.set_grad_checkpointing(recompute)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            loss = model(images, visible, ~visible).values.square().mean()
        model.zero_grad()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    assert kept[1] < kept[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_recomputing_needs_a_model_that_can(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.recompute: ToyModel cannot"):
        train_toy(tmp_path, recompute=True)

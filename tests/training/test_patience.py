"""A run ends when it no longer improves, and an encoder may wait for a new head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_segmentation, volumes
from toy_training import ToyTask, rows, train_toy

from bmmae.data.loaders import Batch
from bmmae.errors import ConfigError
from bmmae.tasks.task import StepOutput
from bmmae.training.optim import OptimConfig, make_optimizer, set_learning_rate


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


class BestAtTheSecond(ToyTask):
    """Gets worse after its second evaluation."""

    def __init__(self) -> None:
        self.count = 0

    def evaluate(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        self.count += 1
        value = torch.tensor(float(abs(self.count - 2)))
        return StepOutput(value, torch.tensor(1.0), {"error": (value, torch.tensor(1.0))})


def test_a_run_without_a_new_best_ends_and_is_finished(tmp_path: Path) -> None:
    wanted = {"steps": 40, "evaluate_every": 2, "checkpoint_every": 40, "batch_size": 7, "patience": 3}
    _, result = train_toy(tmp_path, task=BestAtTheSecond(), **wanted)
    assert (result.status, result.steps, result.best_step) == ("finished", 10, 4)
    assert rows(tmp_path)[-1][0] == 10
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {"step-00000004", "step-00000010"}


def test_evaluations_are_counted_though_they_come_more_often_after_a_resume(tmp_path: Path) -> None:
    task, optim = BestAtTheSecond(), OptimConfig(schedule_steps=100)
    train_toy(tmp_path, task=task, optim=optim, batch_size=7, patience=3)  # at steps 4, 8 and 12
    more = {"steps": 40, "evaluate_every": 1, "batch_size": 7, "patience": 3, "resume": True}
    with pytest.warns(UserWarning, match="evaluate_every: 4 -> 1"):
        _, result = train_toy(tmp_path, task=task, optim=optim, **more)
    assert (result.status, result.steps, result.best_step) == ("finished", 14, 8)


def test_a_patience_of_none_is_endless(tmp_path: Path) -> None:
    _, result = train_toy(tmp_path, task=BestAtTheSecond(), steps=12, evaluate_every=2, batch_size=7)
    assert result.steps == 12


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_encoder_waits_and_then_learns(layer_decay: float | None) -> None:
    model = tiny_segmentation().train()
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, frozen_steps=1, layer_decay=layer_decay))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    moved: list[set[str]] = []
    for step in range(2):
        model(volumes(), torch.ones(1, 4, dtype=torch.bool)).square().mean().backward()
        set_learning_rate(optimizer.param_groups, 0.1, step)
        optimizer.step()
        moved.append({name for name, value in model.named_parameters() if not torch.equal(value, before[name])})
    assert not [name for name in moved[0] if name.startswith("encoder.")]
    assert "stem.down.0.first.weight" in moved[0]
    assert "encoder.blocks.0.attn.qkv.weight" in moved[1]


def test_waiting_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match=r"optim\.frozen_steps needs a model with an encoder; Linear has none"):
        make_optimizer(torch.nn.Linear(2, 2), OptimConfig(frozen_steps=3))


def test_negative_waits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.frozen_steps"):
        OptimConfig(frozen_steps=-1)
    with pytest.raises(ConfigError, match=r"train\.patience"):
        train_toy(Path("never"), patience=0)

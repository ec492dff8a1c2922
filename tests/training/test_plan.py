"""A configuration laid over a dataset and processes."""

from __future__ import annotations

import pytest

from bmmae.errors import ConfigError
from bmmae.training import OptimConfig, TrainConfig
from bmmae.training.plan import make_plan


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({}, "exactly one of train.steps and train.epochs"),
        ({"steps": 1, "epochs": 1}, "exactly one of train.steps and train.epochs.* add --train.epochs null"),
        ({"steps": 0}, "train.steps"),
        ({"steps": 1, "workers": -1}, "train.workers"),
        ({"steps": 1, "seed": -1}, "train.seed"),
        ({"steps": 1, "time_limit_hours": 0.0}, "train.time_limit_hours .* above 0 .* null is no limit"),
        ({"steps": 1, "time_limit_hours": 86400.0}, "24:00:00 is 24, where YAML reads 86400"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TrainConfig(**wrong)  # type: ignore[arg-type]


def test_epochs_are_rounded_up_to_steps() -> None:
    plan = make_plan(TrainConfig(epochs=3, batch_size=4), OptimConfig(), length=10, world=1)
    assert plan.steps == 8
    assert (plan.evaluate_every, plan.checkpoint_every) == (3, 3)


def test_whole_steps_are_not_rounded_up() -> None:
    config = TrainConfig(epochs=25, batch_size=5)
    assert make_plan(config, OptimConfig(), length=11, world=1).steps == 55
    schedule = make_plan(config, OptimConfig(schedule_epochs=50), length=11, world=1).schedule
    assert schedule.horizon == 110


def test_steps_of_more_processes_are_fewer() -> None:
    plan = make_plan(TrainConfig(epochs=4, batch_size=2, accumulate=2), OptimConfig(), length=16, world=2)
    assert plan.steps == 8

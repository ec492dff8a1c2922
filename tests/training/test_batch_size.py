"""The largest batch that fits is found without changing the global batch, or the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import ToyDataset, ToyModel, ToyTask, settings, train_toy

from bmmae.errors import ConfigError, TrainingError
from bmmae.training import TrainConfig
from bmmae.training.batch_size import largest_fitting, trial


class Device:
    """Memory for so many samples."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, list[int]()

    def attempt(self, size: int) -> None:
        self.tried.append(size)
        if size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("given", "room", "found", "tried"),
    [((4, 6), 100, (24, 1), [24]), ((4, 6), 9, (8, 3), [24, 12, 8]), ((7, 1), 3, (1, 7), [7, 1])],
)
def test_the_global_batch_stays(given: tuple[int, int], room: int, found: tuple[int, int], tried: list[int]) -> None:
    device = Device(room)
    config = largest_fitting(TrainConfig(steps=1, batch_size=given[0], accumulate=given[1]), device.attempt, int)
    assert (config.batch_size, config.accumulate) == found
    assert device.tried == tried


def test_the_rank_with_the_least_room_decides() -> None:
    config = largest_fitting(TrainConfig(steps=1, batch_size=12), Device(100).attempt, lambda own: min(own, 3))
    assert (config.batch_size, config.accumulate) == (3, 4)


def test_a_model_that_does_not_fit_at_all_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"Not even one sample fits into memory: set train.recompute=true"):
        largest_fitting(TrainConfig(steps=1, batch_size=4), Device(0).attempt, int)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(size: int) -> None:
        raise RuntimeError(f"shapes of {size} do not fit")

    with pytest.raises(RuntimeError, match="shapes of 4"):
        largest_fitting(TrainConfig(steps=1, batch_size=4), broken, int)


def test_trying_leaves_no_trace() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6), ToyModel())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trial(torch.device("cpu"), model, ToyTask(), ToyDataset(), settings())(16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_gpu_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=r"train.find_batch_size tries .* needs a GPU; training runs on cpu"):
        train_toy(tmp_path, find_batch_size=True)

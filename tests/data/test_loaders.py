"""Samples have addresses: batches do not depend on workers, ranks or history."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from bmmae.data.loaders import (
    EVALUATION_EPOCH,
    Address,
    SampleStream,
    collate,
    evaluation_batches,
    sample_generator,
    training_batches,
)
from bmmae.errors import TrainingError


class Numbers:
    """Ten random numbers per address; optionally with a sample that fails, or kills its worker."""

    def __init__(self, length: int = 10, broken: int | None = None, deadly: int | None = None) -> None:
        self.length, self.broken, self.deadly = length, broken, deadly

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, address: Address) -> dict[str, object]:
        if address[1] == self.broken:
            raise ValueError("torn file t1.nii.gz")
        if address[1] == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": sample_generator(7, *address).normal(size=10), "subject": f"p{address[1]}"}


def draws(workers: int) -> list[torch.Tensor]:
    stream = SampleStream(length=10, batch_size=3, accumulate=2)
    return [batch["x"] for batch in training_batches(Numbers(), stream, rank=0, first=1, stop=4, workers=workers)]


def test_an_epoch_holds_every_sample_once() -> None:
    stream = SampleStream(length=10, batch_size=4)
    addresses = [stream.address(position) for position in range(30)]
    assert set(addresses) == set(product(range(3), range(10)))


def test_epochs_are_ordered_differently_and_by_seed() -> None:
    orders = {
        tuple(SampleStream(length=20, batch_size=4, seed=seed).address(20 * epoch + i)[1] for i in range(20))
        for seed, epoch in product(range(2), range(2))
    }
    assert len(orders) == 4


def test_accumulation_processes_and_larger_batches_draw_the_same() -> None:
    def group(stream: SampleStream, step: int) -> list[Address]:
        parts = product(range(stream.accumulate), range(stream.world))
        return [address for micro, rank in parts for address in stream.micro_batch(step, rank, micro)]

    wide = SampleStream(length=10, batch_size=6)
    accumulated = SampleStream(length=10, batch_size=3, accumulate=2)
    two = SampleStream(length=10, batch_size=3, world=2)
    for step in range(5):
        assert group(wide, step) == group(accumulated, step) == group(two, step)


def test_the_step_number_restores_the_position() -> None:
    stream = SampleStream(length=10, batch_size=3, accumulate=2)
    assert list(stream.micro_batches(0, 0, 6))[6:] == list(stream.micro_batches(0, 3, 6))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than a small machine has cores
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_batches(workers: int) -> None:
    for alone, shared in zip(draws(0), draws(workers), strict=True):
        assert torch.equal(alone, shared)


def test_no_two_addresses_or_purposes_draw_the_same() -> None:
    keys = product((0, 1), (EVALUATION_EPOCH, 0, 1), (0, 1, 2), ("sample", "mask"))
    first = [float(sample_generator(*key).random()) for key in keys]
    assert len(set(first)) == len(first)


def test_evaluation_sees_each_sample_once_over_the_ranks() -> None:
    seen: Counter[Address] = Counter()
    for rank in range(3):
        for batch in evaluation_batches(Numbers(), 2, rank=rank, world=3):
            seen.update(batch["address"])
    assert seen == Counter({(EVALUATION_EPOCH, index): 1 for index in range(10)})


def test_evaluation_can_be_repeated() -> None:
    batches = evaluation_batches(Numbers(), 4)
    first, again = (torch.cat([batch["x"] for batch in batches]) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sample_that_fails_is_named(workers: int) -> None:
    stream = SampleStream(length=10, batch_size=5)
    batches = training_batches(Numbers(broken=4), stream, rank=0, first=0, stop=2, workers=workers)
    with pytest.raises(TrainingError, match=r"Sample 4 \(epoch 0\) cannot be loaded: ValueError: torn file t1.nii.gz"):
        list(batches)


@pytest.mark.slow
def test_a_worker_that_dies_is_one_clear_error() -> None:
    stream = SampleStream(length=1, batch_size=1)
    batches = training_batches(Numbers(1, deadly=0), stream, rank=0, first=0, stop=1, workers=1)
    with pytest.raises(TrainingError, match=r"A data worker died while samples \(epoch, index\) \[\(0, 0\)\]"):
        list(batches)


FAILS_BETWEEN_BATCHES = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loaders import Numbers
from bmmae.data.loaders import SampleStream, training_batches
if __name__ == "__main__":
    arriving = iter(training_batches(Numbers(), SampleStream(10, 2), rank=0, first=0, stop=99, workers=1))
    next(arriving)
    raise KeyError("a bug in a task")
"""


@pytest.mark.slow
def test_an_exception_in_training_ends_the_process_and_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILS_BETWEEN_BATCHES)
    ended = subprocess.run(
        [sys.executable, script, Path(__file__).parent], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "KeyError: 'a bug in a task'" in ended.stderr


def test_an_empty_dataset_cannot_be_streamed() -> None:
    with pytest.raises(TrainingError, match="training dataset is empty"):
        SampleStream(length=0, batch_size=1)


def test_collate_stacks_what_is_numeric_and_lists_the_rest() -> None:
    batch = collate([{"a": np.ones(2), "n": 1, "s": "x"}, {"a": np.zeros(2), "n": 2, "s": "y"}])
    assert torch.equal(batch["a"], torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(batch["n"], torch.tensor([1, 2]))
    assert batch["s"] == ["x", "y"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"a": np.ones(2)}, {"a": np.ones(3)}], r"'a' has \[\(2,\), \(3,\)\]"),
        ([{"a": 1}, {"a": 1, "b": 2}], r"\['b'\] are not in all"),
    ],
)
def test_collate_refuses_samples_that_differ_in_form(samples: list[dict[str, object]], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        collate(samples)

"""A batch is put together in place, and is what stacking would have made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmmae.arrays import Array
from bmmae.data.blocks import BatchBlocks, Place, anywhere
from bmmae.data.loaders import Address, SampleStream, collate, training_batches
from bmmae.data.packing import PackedStudy, pack_flags, unpack

NAMES = ("t1", "t2", "flair")


class Packed:
    """Windows of a random study that some samples put in their place, and others do not."""

    def __init__(self, stray: int | None = None) -> None:
        self.stray = stray
        rng = np.random.default_rng(0)
        images, valid = rng.normal(size=(2, 12, 12, 12)).astype(np.float16), rng.random((2, 12, 12, 12)) < 0.7
        flags = pack_flags(valid, rng.random((12, 12, 12)) < 0.5)
        self.study = PackedStudy(NAMES[:2], images, flags, None, np.zeros((0, 3), np.int16))

    def __len__(self) -> int:
        return 6

    def packed(self, address: Address, place: Place = anywhere) -> dict[str, torch.Tensor]:
        epoch, index = address
        own = anywhere if index == self.stray else place
        sample = self.study.sample((index - 2, epoch, 3), (8, 8, 8), NAMES, place=own)
        return {key: torch.from_numpy(array) for key, array in sample.items()}

    def __getitem__(self, address: Address) -> dict[str, torch.Tensor]:
        return unpack(self.packed(address))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stray", [None, 1])
def test_batches_put_together_in_place_are_their_samples_stacked(workers: int, stray: int | None) -> None:
    data = Packed(stray)
    found = list(training_batches(data, SampleStream(6, batch_size=3), rank=0, first=0, stop=4, workers=workers))
    for batch in found:
        expected = collate([data[address] for address in batch["address"]])
        arrived = unpack(batch)
        assert all(torch.equal(arrived[key], expected[key]) for key in ("images", "valid", "brain", "available"))
    assert len({batch["images"].data_ptr() for batch in found}) == 4


def fill(blocks: BatchBlocks, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    arrays = [blocks.place(index)("x", shape, np.float32) for index, shape in enumerate(shapes)]
    for value, array in enumerate(arrays):
        array[...] = value
    return [torch.from_numpy(array) for array in arrays]


def test_what_lies_in_its_place_is_not_copied() -> None:
    blocks = BatchBlocks(2)
    values = fill(blocks, [(2, 3), (2, 3)])
    batch = collate([{"x": value} for value in values], blocks)
    assert batch["x"].data_ptr() == values[0].data_ptr()  # type: ignore[union-attr]
    assert batch["x"].tolist() == [[[0] * 3] * 2, [[1] * 3] * 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [lambda x: x.clone(), lambda x: x.view(3, 2), lambda x: x.view(torch.int32)])
def test_what_is_not_the_memory_of_its_place_is_not_taken_for_it(change: object) -> None:
    blocks = BatchBlocks(2)
    first, second = fill(blocks, [(2, 3), (2, 3)])
    assert blocks.filled("x", [first, change(second)]) is None  # type: ignore[operator]
    assert blocks.filled("x", [second, first]) is None
    assert blocks.filled("x", [first]) is None
    assert blocks.filled("y", [first, second]) is None


@pytest.mark.parametrize(("shape", "kind"), [((3, 2), np.float32), ((2, 3), np.float16)])
def test_an_array_that_does_not_fit_its_place_gets_memory_of_its_own(shape: tuple[int, int], kind: type) -> None:
    blocks = BatchBlocks(2)
    first: Array = blocks.place(0)("x", (2, 3), np.float32)
    other = blocks.place(1)("x", shape, kind)
    assert (other.shape, other.dtype) == (shape, kind)
    assert not np.shares_memory(blocks.blocks["x"].numpy(), other)
    assert np.shares_memory(blocks.blocks["x"].numpy(), first)

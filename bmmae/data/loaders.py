"""Which samples make a batch, and how they arrive: the same for any number of workers and processes.

A sample has an address, (epoch, index). Everything random about it is drawn from `sample_generator(seed, *address)`,
so it depends neither on the worker that loads it, nor on the rank that trains on it, nor on what came before.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import traceback
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext, ForkServerProcess
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from bmmae.arrays import Array
from bmmae.data.blocks import BatchBlocks, Place
from bmmae.errors import TrainingError

Address: TypeAlias = tuple[int, int]
"""(epoch, index of the sample in the dataset)."""
Sample: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Tensor | list[Any]]
"""Tensors with a leading axis B, and lists of length B (`subject`: names; `address`: (epoch, index) pairs)."""

EVALUATION_EPOCH = -1
"""Validation samples live at this epoch, so that they are the same whenever they are looked at."""


@runtime_checkable
class AddressedDataset(Protocol):
    """A map-style dataset whose samples are pure functions of their address."""

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        ...

    def __getitem__(self, address: Address) -> Sample:
        """Load the sample at (epoch, index): tensors of one shape per key, numbers, strings."""
        ...


def sample_generator(seed: int, epoch: int, index: int, purpose: str = "sample") -> np.random.Generator:
    """Generator of everything random about one sample.

    Args:
        seed: The run's seed, 0 to 2**32 - 1.
        epoch: Epoch, or `EVALUATION_EPOCH`.
        index: Index of the sample in its dataset.
        purpose: What is drawn ("crop", "mask" ...); different purposes are independent streams.

    Returns:
        A counter-based generator whose stream is a function of the arguments alone.
    """
    key = (seed, epoch + 1, index, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> Array:
    return sample_generator(seed, epoch, 0, purpose="order").permutation(length)


@dataclass(frozen=True)
class SampleStream:
    """The endless training stream: one permutation of the dataset after another, cut into global batches.

    Optimiser step s takes positions [s * G, (s + 1) * G), where G = `global_batch`. Each micro-step of each rank takes
    a contiguous slice of these, so one process with `accumulate=2`, two processes, and one process with twice the
    batch train on the same samples; and the step number alone restores the position. Groups are never short: the
    last one of an epoch is filled from the next.
    """

    length: int
    batch_size: int
    seed: int = 0
    accumulate: int = 1
    world: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise TrainingError("The training dataset is empty: expected at least one sample. Check the split.")

    @property
    def global_batch(self) -> int:
        """Samples in one optimiser step, over all ranks and micro-steps (G)."""
        return self.batch_size * self.accumulate * self.world

    def address(self, position: int) -> Address:
        """Address of the sample at a position of the stream."""
        epoch, place = divmod(position, self.length)
        return epoch, int(_order(self.seed, epoch, self.length)[place])

    def slice_number(self, rank: int, micro: int) -> int:
        """Which slice of the global batch a rank's micro-step takes, 0 to accumulate * world - 1."""
        return micro * self.world + rank

    def micro_batch(self, step: int, rank: int = 0, micro: int = 0) -> list[Address]:
        """Addresses of one rank's micro-step of one optimiser step."""
        start = step * self.global_batch + self.slice_number(rank, micro) * self.batch_size
        return [self.address(position) for position in range(start, start + self.batch_size)]

    def micro_batches(self, rank: int, first: int, stop: int) -> Iterator[list[Address]]:
        """One rank's micro-batches of the optimiser steps first <= step < stop, in order."""
        for step in range(first, stop):
            for micro in range(self.accumulate):
                yield self.micro_batch(step, rank, micro)


@dataclass(frozen=True)
class _StreamPart:
    """One rank's part of a stream, as an iterable that can be iterated over again."""

    stream: SampleStream
    rank: int
    first: int
    stop: int

    def __iter__(self) -> Iterator[list[Address]]:
        return self.stream.micro_batches(self.rank, self.first, self.stop)

    def __len__(self) -> int:
        return (self.stop - self.first) * self.stream.accumulate


def collate(samples: Sequence[Sample], blocks: BatchBlocks | None = None) -> Batch:
    """Stack tensors, arrays and numbers along a new axis B; everything else becomes a list.

    Args:
        samples: What to stack.
        blocks: Where the samples may have put some of their tensors, which then need no stacking.

    Raises:
        TrainingError: Keys or shapes differ between the samples.
    """
    keys = samples[0].keys()
    for sample in samples[1:]:
        if sample.keys() != keys:
            odd = sorted(sample.keys() ^ keys)
            raise TrainingError(f"Samples of one batch must have the same keys; {odd} are not in all of them.")
    return {key: _stack(key, [sample[key] for sample in samples], blocks) for key in keys}


def _stack(key: str, values: list[Any], blocks: BatchBlocks | None) -> Tensor | list[Any]:
    if not isinstance(values[0], Tensor | np.ndarray | np.generic | bool | int | float):
        return values
    stacked: Tensor | None = None if blocks is None else blocks.filled(key, values)
    if stacked is None:
        tensors = [torch.as_tensor(value) for value in values]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            raise TrainingError(f"Samples of one batch must have one shape; {key!r} has {sorted(shapes)}.")
        stacked = default_collate(tensors)  # in a worker, straight into shared memory
    return stacked


@dataclass(frozen=True)
class _Failure:
    """An error met in a worker, carried to the training process (exceptions lose their form on the way)."""

    message: str
    details: str


@runtime_checkable
class PackedDataset(AddressedDataset, Protocol):
    """A dataset whose samples have a smaller form to travel in, which `to_device` unpacks."""

    def packed(self, address: Address, place: Place) -> Sample:
        """Load the sample at (epoch, index) in that form, its largest arrays in `place`."""
        ...


class _Addressed(TorchDataset[Sample]):
    """Loads whole batches, adds their addresses, and turns an error into a value that names the sample."""

    def __init__(self, dataset: AddressedDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, addresses: Sequence[Address]) -> Batch | _Failure:
        """Load the samples and put them together."""
        blocks = BatchBlocks(len(addresses))
        samples: list[Sample] = []
        for index, address in enumerate(addresses):
            try:
                samples.append({**self._load(address, blocks.place(index)), "address": address})
            except Exception as error:  # whatever it is, the main process raises it with the sample's name
                place = "validation" if address[0] == EVALUATION_EPOCH else f"epoch {address[0]}"
                message = f"Sample {address[1]} ({place}) cannot be loaded: {type(error).__name__}: {error}"
                return _Failure(message, traceback.format_exc())
        try:
            return collate(samples, blocks)
        except TrainingError as error:
            return _Failure(f"{error} Samples (epoch, index): {list(addresses)}.", traceback.format_exc())

    def _load(self, address: Address, place: Place) -> Sample:
        if isinstance(self.dataset, PackedDataset):
            return self.dataset.packed(address, place)
        return self.dataset[address]


def _as_it_is(batch: Any) -> Any:
    return batch


def end_with_parent(_worker: int = 0) -> None:
    """Let a worker end with the process it works for, even if that is killed.

    The parent of a forkserver's child is the forkserver, so torch's own watch for a killed parent sees nothing; and
    a pool's workers would wait for work for ever.
    """
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _kill_workers() -> None:
    """End the workers that are left when the process ends, above all after an exception, whose traceback keeps them.

    Without this, multiprocessing would send them a SIGTERM, which they have blocked, and wait for ever.
    """
    for process in multiprocessing.active_children():
        if process.daemon and isinstance(process, ForkServerProcess):
            process.kill()


def _worker_context() -> BaseContext:
    """How workers start. Not by fork: a training process has OpenMP and CUDA threads, whose locks a fork can freeze.

    A forkserver imports the libraries once and forks clean workers; where there is none (Windows), they are spawned.
    A scheduler signals every process of a job, and the data must keep coming until the checkpoint is written: so the
    server starts with these signals blocked, which its workers inherit.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    atexit.unregister(_kill_workers)
    atexit.register(_kill_workers)
    context.set_forkserver_preload(["__main__", __name__])
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # the tracker's start has unblocked some
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class Batches:
    """Batches for a list of address lists, loaded by worker processes; may be iterated over again.

    Samples of a `PackedDataset` arrive packed; `bmmae.data.packing.unpack` undoes that, once they are on the device.
    """

    def __init__(
        self,
        dataset: AddressedDataset,
        addresses: Sequence[list[Address]] | _StreamPart,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        persistent: bool = False,
    ) -> None:
        self.addresses = addresses
        self.loader: DataLoader[Any] = DataLoader(
            _Addressed(dataset),
            batch_sampler=addresses,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=end_with_parent,
            multiprocessing_context=_worker_context() if workers else None,
            persistent_workers=persistent and workers > 0,
            # The loader seeds its workers from this, and leaves the training's own random state alone.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises:
            TrainingError: A sample cannot be loaded, or a worker died; the message names the samples.
        """
        arriving = iter(self.loader)
        for addresses in self.addresses:
            try:
                batch = next(arriving)
            except RuntimeError as error:
                raise TrainingError(
                    f"A data worker died while samples (epoch, index) {addresses} were awaited: {error} Usual "
                    "causes: not enough memory or shared memory (lower the number of workers), or a crash in a "
                    "library (0 workers shows where)."
                ) from error
            if isinstance(batch, _Failure):
                raise TrainingError(batch.message) from RuntimeError(batch.details)
            yield batch


def training_batches(
    dataset: AddressedDataset,
    stream: SampleStream,
    *,
    rank: int,
    first: int,
    stop: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Batches:
    """One rank's micro-batches of the optimiser steps first <= step < stop."""
    part = _StreamPart(stream, rank, first, stop)
    return Batches(dataset, part, workers=workers, pin_memory=pin_memory)


def evaluation_batches(
    dataset: AddressedDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Batches:
    """Batches that together hold every sample exactly once over the ranks, at `EVALUATION_EPOCH`.

    Ranks may get different numbers of batches, so nothing inside an evaluation may synchronise per batch.
    """
    own = [(EVALUATION_EPOCH, index) for index in range(rank, len(dataset), world)]
    addresses = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    return Batches(dataset, addresses, workers=workers, pin_memory=pin_memory, persistent=True)

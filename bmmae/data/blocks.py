"""Memory that a batch is put together in: each sample writes its large arrays straight to their place.

A worker then copies them once, from the memory map into the block that it shares with the training process, instead
of into an array of the sample's own and from there into the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from bmmae.arrays import Array

Place: TypeAlias = Callable[[str, tuple[int, ...], type[np.generic]], Array]
"""Where an array goes, by its key, shape and type; what is in that memory is left over from before."""


def anywhere(_key: str, shape: tuple[int, ...], kind: type[np.generic]) -> Array:
    """Return memory of the array's own."""
    return np.empty(shape, kind)


class BatchBlocks:
    """One block for each key of a batch, with a place for each of its samples.

    Args:
        samples: Samples of the batch.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.blocks: dict[str, Tensor] = {}

    def place(self, index: int) -> Place:
        """Return where the arrays of one sample go."""
        return partial(self._place, index)

    def _place(self, index: int, key: str, shape: tuple[int, ...], kind: type[np.generic]) -> Array:
        if key not in self.blocks:
            self.blocks[key] = _block((self.samples, *shape), kind)
        part: Array = self.blocks[key][index].numpy()
        fits = part.shape == shape and part.dtype == kind
        return part if fits else anywhere(key, shape, kind)

    def filled(self, key: str, values: Sequence[Any]) -> Tensor | None:
        """Return the block of a key if the samples' tensors are its parts; None if any of them lies elsewhere."""
        block = self.blocks.get(key)
        if block is None or len(values) != len(block):
            return None
        return block if all(_same(value, part) for value, part in zip(values, block, strict=True)) else None


def _same(value: object, part: Tensor) -> bool:
    """Whether a tensor is this memory, as it is."""
    return (
        isinstance(value, Tensor)
        and value.data_ptr() == part.data_ptr()
        and value.shape == part.shape
        and value.dtype == part.dtype
        and value.is_contiguous()
    )


def _block(shape: tuple[int, ...], kind: type[np.generic]) -> Tensor:
    """Allocate a tensor; in a worker in memory that the training process can read, as torch's collate does."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty(shape, kind))
    empty = torch.from_numpy(np.empty(0, kind))
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * empty.element_size())  # type: ignore[no-untyped-call]
    return empty.set_(storage, 0, shape)  # type: ignore[call-overload,no-any-return]

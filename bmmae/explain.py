"""Why a model answers as it does: shares of inputs, of places, and what changes when a place is hidden.

Everything here takes a function from what is given to an answer, and so works for any model. None of it is a cause: it
tells what the model used, not what the disease did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.errors import ConfigError
from bmmae.patches import Triple

MOST_PLAYERS = 12
"""Of exact Shapley values: 4096 answers."""


def coalitions(players: Sequence[str]) -> tuple[frozenset[str], ...]:
    """Return every subset of the inputs, the empty one first.

    Raises:
        ConfigError: If there are too many inputs to try all subsets, or one is there twice.
    """
    if len(players) > MOST_PLAYERS or len(set(players)) < len(players):
        raise ConfigError(
            f"exact Shapley values take different inputs, {MOST_PLAYERS} at most (2^n answers), got {len(players)}: "
            "leave some out, or join them to one"
        )
    return tuple(frozenset(chosen) for size in range(len(players) + 1) for chosen in combinations(players, size))


def shapley_values(answer: Callable[[frozenset[str]], float], players: Sequence[str]) -> dict[str, float]:
    """Divide an answer among the inputs that it was given: each one's mean gain over all orders of giving them.

    The values add up to the answer from all inputs less that from none. An input that never changes the answer gets 0,
    and two that always change it alike get the same. Source: Shapley (1953); all 2^n subsets are asked for, once each.

    Args:
        answer: The answer from a subset of the inputs. From none it is what one would say of anybody.
        players: Names of the inputs.

    Raises:
        ConfigError: If there are too many inputs, or one is there twice.
    """
    known = {chosen: answer(chosen) for chosen in coalitions(players)}
    count = len(players)
    values = dict.fromkeys(players, 0.0)
    for chosen, value in known.items():
        for player in players:
            if player not in chosen:
                share = 1 / (count * math.comb(count - 1, len(chosen)))
                values[player] += share * (known[chosen | {player}] - value)
    return values


def modality_shares(attention: Float[Array, "M L"], modalities: Sequence[str]) -> dict[str, float]:
    """Return how the weight of a pooling is divided among modalities; adds up to 1 (NaN if there is no weight at all).

    A modality with more patches has more weight to begin with. Attention tells where a model looked; it is no proof
    that the answer rests on it (occlusion tests that).
    """
    total = float(attention.sum())
    return {
        name: float(part.sum()) / total if total else math.nan for name, part in zip(modalities, attention, strict=True)
    }


def occlusion_map(
    answer: Callable[[Bool[Array, "K H W D"]], Float[Array, " K"]],
    inside: Bool[Array, "H W D"],
    window: Triple,
    stride: Triple,
    *,
    batch: int = 8,
) -> Float[Array, "H W D"]:
    """Return by how much the answer falls, on average over the windows that hide a voxel, when it is hidden.

    Positive: what is there raises the answer. 0 where no window was tried. Source: Zeiler and Fergus, ECCV 2014.

    Args:
        answer: The answers when some voxels are hidden, True = hidden; how they are hidden is the model's affair
            (`fill_hidden`, or tokens left out).
        inside: The brain: windows without any of it are not tried.
        window: Voxels of a window along each axis.
        stride: Voxels from one window to the next.
        batch: Windows asked about at a time.

    Raises:
        ConfigError: If window or stride are not positive, or the stride leaves voxels between windows.
    """
    if min(window) < 1 or min(stride) < 1 or any(step > size for step, size in zip(stride, window, strict=True)):
        raise ConfigError(f"windows {window} must be positive and meet each other at strides {stride}")
    whole = float(answer(np.zeros((1, *inside.shape), bool))[0])
    places = [place for place in _windows(inside.shape, window, stride) if inside[place].any()]
    total, count = np.zeros(inside.shape), np.zeros(inside.shape)
    for first in range(0, len(places), batch):
        group = places[first : first + batch]
        hidden = np.zeros((len(group), *inside.shape), bool)
        for row, place in enumerate(group):
            hidden[row][place] = True
        for place, found in zip(group, np.asarray(answer(hidden)).tolist(), strict=True):
            total[place] += whole - found
            count[place] += 1
    return np.asarray(np.divide(total, count, out=total, where=count > 0))


def _windows(shape: tuple[int, ...], window: Triple, stride: Triple) -> Iterator[tuple[slice, ...]]:
    starts = [
        range(0, max(length - size, 0) + step, step) for length, size, step in zip(shape, window, stride, strict=True)
    ]
    for corner in product(*starts):
        yield tuple(slice(start, start + size) for start, size in zip(corner, window, strict=True))


def fill_hidden(
    volume: Float[Array, "H W D"], hidden: Bool[Array, "H W D"], inside: Bool[Array, "H W D"]
) -> Float[Array, "H W D"]:
    """Return a copy whose hidden brain voxels hold the median of the brain: unremarkable tissue, no hole of zeros."""
    filled = volume.copy()
    filled[hidden & inside] = np.median(volume[inside]) if inside.any() else 0
    return filled

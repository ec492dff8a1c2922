"""Explanations: the laws that define them, on answers whose reasons are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from bmmae.arrays import Array
from bmmae.errors import ConfigError
from bmmae.explain import fill_hidden, modality_shares, occlusion_map, shapley_values

PLAYERS = ("t1", "t1ce", "flair", "age")


def drawn(seed: int) -> Callable[[frozenset[str]], float]:
    """Any answer at all, by subset."""
    return lambda chosen: float(np.random.default_rng([seed, *(PLAYERS.index(p) for p in sorted(chosen))]).random())


@pytest.mark.parametrize("seed", range(3))
def test_values_are_the_mean_gain_over_all_orders(seed: int) -> None:
    answer = drawn(seed)
    gains = dict.fromkeys(PLAYERS, 0.0)
    orders = list(permutations(PLAYERS))
    for order in orders:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            gains[player] += (answer(before | {player}) - answer(before)) / len(orders)
    found = shapley_values(answer, PLAYERS)
    assert found == pytest.approx(gains)
    assert sum(found.values()) == pytest.approx(answer(frozenset(PLAYERS)) - answer(frozenset()))


def test_what_changes_nothing_gets_nothing_and_alike_get_the_same() -> None:
    found = shapley_values(lambda chosen: float(bool(chosen & {"t1", "t1ce"})), PLAYERS)
    assert found == pytest.approx({"t1": 0.5, "t1ce": 0.5, "flair": 0, "age": 0})


def test_each_subset_is_asked_for_once() -> None:
    asked: list[frozenset[str]] = []
    shapley_values(lambda chosen: float(asked.append(chosen) is None), PLAYERS)
    assert len(asked) == len(set(asked)) == 2 ** len(PLAYERS)


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 at most"):
        shapley_values(lambda _: 0.0, [f"x{i}" for i in range(13)])
    with pytest.raises(ConfigError, match="different"):
        shapley_values(lambda _: 0.0, ["t1", "t1"])


def test_shares_of_modalities_add_up() -> None:
    assert modality_shares(np.array([[0.1, 0.2], [0.0, 0.3]]), ("t1", "t2")) == pytest.approx({"t1": 0.5, "t2": 0.5})
    assert math.isnan(modality_shares(np.zeros((1, 2)), ("t1",))["t1"])


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (4, 4, 4)])
def test_occlusion_finds_the_place_that_the_answer_rests_on(stride: tuple[int, int, int]) -> None:
    volume = np.zeros((8, 9, 10))
    volume[2:4, 6:8, 4:6] = 5  # the lesion
    volume[0, 0, 0] = -8
    inside = np.ones(volume.shape, bool)
    inside[:, :2] = False

    def answer(hidden: Array) -> Array:
        return np.where(hidden, 0, volume).sum(axis=(1, 2, 3))

    window = (max(stride),) * 3
    found = occlusion_map(answer, inside, window, stride, batch=3)
    assert found.shape == volume.shape
    peak = np.unravel_index(found.argmax(), found.shape)
    assert all(abs(at - centre) <= window[0] for at, centre in zip(peak, (3, 7, 5), strict=True))
    assert found.max() > 0
    if stride == (2, 2, 2):
        assert found[2:4, 6:8, 4:6].tolist() == np.full((2, 2, 2), 40.0).tolist()
        assert found[0, 0, 0] == 0  # outside the brain nothing is tried
        assert np.count_nonzero(found) == 8


def test_every_voxel_of_the_brain_is_tried() -> None:
    inside = np.ones((7, 5, 6), bool)
    found = occlusion_map(lambda hidden: -hidden.sum(axis=(1, 2, 3)).astype(float), inside, (3, 3, 3), (2, 3, 3))
    assert (found > 0).all()
    with pytest.raises(ConfigError, match="meet each other"):
        occlusion_map(lambda hidden: np.zeros(len(hidden)), inside, (2, 2, 2), (3, 2, 2))


def test_hidden_tissue_becomes_unremarkable_and_the_rest_stays() -> None:
    volume = np.array([[[0.0, 1.0, 2.0, 9.0]]])
    filled = fill_hidden(volume, np.array([[[True, False, False, True]]]), volume > 0)
    assert filled.tolist() == [[[0.0, 1.0, 2.0, 2.0]]]

"""Where probabilities are cut: at the largest expected Dice, checked against simulated truths."""

from __future__ import annotations

import numpy as np
import pytest

from bmmae.errors import ConfigError
from bmmae.inference.decision import best_cut, parse_cut, regions_of
from bmmae.inference.segmentation import SegmentOptions
from bmmae.metrics import dice


def mean_dice(chances: np.ndarray, predicted: np.ndarray, draws: int = 2000) -> float:
    """Over truths drawn voxel by voxel; nothing predicted where nothing is scores 1."""
    rng = np.random.default_rng(1)
    found = [dice(predicted, rng.random(chances.shape) < chances) for _ in range(draws)]
    return float(np.nan_to_num(found, nan=1.0).mean())


@pytest.mark.parametrize("seed", range(6))
def test_no_other_cut_has_a_larger_expected_dice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chances = rng.beta(0.4, rng.uniform(0.5, 3), (5, 5, 5)).astype(np.float32)
    cuts = np.quantile(chances, np.linspace(0, 0.99, 34))
    best = max(mean_dice(chances, chances > cut) for cut in cuts)
    assert mean_dice(chances, chances > best_cut(chances)) > best - 0.005


def test_what_is_half_believed_is_a_region() -> None:
    chances = np.full((6, 6, 6), 0.4, np.float32)
    assert 0 < best_cut(chances) < 0.4
    (mask,), cuts = regions_of(chances[None], "dice")
    assert mask.all()
    assert cuts == (best_cut(chances),)
    (mask,), cuts = regions_of(chances[None], 0.5)
    assert not mask.any()
    assert cuts == (0.5,)


def test_where_hardly_anything_is_nothing_is_predicted() -> None:
    chances = np.zeros((6, 6, 6), np.float32)
    assert best_cut(chances) == 1
    chances[:2] = 0.004
    assert best_cut(chances) == 1
    chances[0, 0, :3] = 0.9
    assert np.array_equal(chances > best_cut(chances), chances > 0.5)


def test_certainty_is_left_as_it_is() -> None:
    chances = (np.random.default_rng(0).random((6, 6, 6)) < 0.2).astype(np.float32)
    assert np.array_equal(chances > best_cut(chances), chances > 0.5)


def test_each_region_has_a_cut_of_its_own() -> None:
    chances = np.stack([np.full((4, 4, 4), 0.3), np.zeros((4, 4, 4))]).astype(np.float32)
    masks, cuts = regions_of(chances, "dice")
    assert masks[0].all()
    assert not masks[1].any()
    assert cuts[0] < 0.3 < cuts[1]


def test_a_cut_is_dice_or_a_probability() -> None:
    assert (parse_cut("dice"), parse_cut("0.25")) == ("dice", 0.25)
    for text in ("half", "0", "1", "-0.5", "nan"):
        with pytest.raises(ConfigError, match=f"between 0 and 1, or at 'dice'; got '{text}'"):
            parse_cut(text)
    with pytest.raises(ConfigError, match=r"got '2\.0'"):
        SegmentOptions(cut=2.0)

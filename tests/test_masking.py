"""Masks: exact counts, never nothing hidden, and only tokens that exist are shown or asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bmmae.arrays import Array
from bmmae.errors import ConfigError
from bmmae.masking import MaskingConfig, draw_tokens, split_counts, visible_count

CONFIGS = [
    MaskingConfig(),
    MaskingConfig(visible_share=1.0),
    MaskingConfig(visible_share=0.01, alpha=0.05),
    MaskingConfig(drop_share=1.0),
    MaskingConfig(visible_share=0.1, drop_share=0.5, decode_share=0.25),
]


def patterns(count: int = 200) -> Iterator[tuple[np.random.Generator, Array]]:
    """Eligible tokens of many shapes: whole modalities absent, few tokens, sometimes one."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(1, 5)), int(rng.integers(1, 30)))
        eligible = (rng.random(shape) < rng.random()) & (rng.random((shape[0], 1)) < 0.7)
        if eligible.any():
            yield rng, eligible


@pytest.mark.parametrize("config", CONFIGS)
def test_only_tokens_that_exist_are_visible_or_decoded(config: MaskingConfig) -> None:
    for rng, eligible in patterns():
        draw = draw_tokens(rng, eligible, config)
        assert not (~draw.mask & ~eligible).any()
        assert not (draw.decode & ~eligible).any()


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_decoded_is_hidden(config: MaskingConfig) -> None:
    for rng, eligible in patterns():
        draw = draw_tokens(rng, eligible, config)
        assert not (draw.decode & ~draw.mask).any()


@pytest.mark.parametrize("config", CONFIGS)
def test_something_is_decoded_and_something_visible_where_two_tokens_exist(config: MaskingConfig) -> None:
    for rng, eligible in patterns():
        draw = draw_tokens(rng, eligible, config)
        assert draw.decode.any()
        assert (~draw.mask).any() == (eligible.sum() > 1)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_the_number_of_visible_tokens_is_exact(share: float) -> None:
    for rng, eligible in patterns():
        draw = draw_tokens(rng, eligible, MaskingConfig(visible_share=share))
        total = int(eligible.sum())
        assert (~draw.mask).sum() == visible_count(total, share)
        assert visible_count(total, share) == np.clip(round(total * share), min(1, total - 1), total - 1)
        assert np.array_equal(draw.decode, eligible & draw.mask)


def test_the_number_of_decoded_tokens_is_the_share_of_the_hidden_ones() -> None:
    eligible = np.ones((4, 64), bool)
    draw = draw_tokens(np.random.default_rng(0), eligible, MaskingConfig(decode_share=0.25))
    assert draw.decode.sum() == 48


def test_the_same_generator_draws_the_same() -> None:
    eligible = np.ones((4, 64), bool)
    first, again, other = (draw_tokens(np.random.default_rng(seed), eligible, MaskingConfig()) for seed in (0, 0, 1))
    assert np.array_equal(first.mask, again.mask)
    assert np.array_equal(first.decode, again.decode)
    assert not np.array_equal(first.mask, other.mask)


def test_whole_modalities_are_dropped_and_asked_for() -> None:
    eligible = np.ones((4, 27), bool)
    for seed in range(50):
        draw = draw_tokens(np.random.default_rng(seed), eligible, MaskingConfig(drop_share=1.0))
        dropped, asked = draw.mask.all(axis=1), draw.decode.any(axis=1)
        assert np.array_equal(dropped, asked)
        assert 1 <= dropped.sum() <= 3
        kept = 4 - int(dropped.sum())
        assert (~draw.mask).sum() == kept * round(27 / kept)
        assert np.array_equal(np.unique((~draw.mask)[~dropped], axis=0), draw.decode[dropped][:1])


def test_the_dirichlet_draw_drops_whole_modalities_too() -> None:
    draws = [
        draw_tokens(np.random.default_rng(seed), np.ones((4, 16), bool), MaskingConfig(alpha=0.1)) for seed in range(20)
    ]
    assert any(draw.mask.all(axis=1).any() for draw in draws)


def test_a_single_token_is_hidden_and_decoded() -> None:
    eligible = np.zeros((4, 8), bool)
    eligible[2, 3] = True
    draw = draw_tokens(np.random.default_rng(0), eligible, MaskingConfig(drop_share=1.0))
    assert draw.mask.all()
    assert np.array_equal(draw.decode, eligible)


def test_a_single_modality_is_never_dropped() -> None:
    eligible = np.zeros((4, 8), bool)
    eligible[1] = True
    draw = draw_tokens(np.random.default_rng(0), eligible, MaskingConfig(drop_share=1.0))
    assert (~draw.mask[1]).sum() == 2


def test_modalities_without_a_common_place_can_be_dropped() -> None:
    eligible = np.zeros((2, 8), bool)
    eligible[0, :4] = eligible[1, 4:] = True
    for seed in range(20):
        draw = draw_tokens(np.random.default_rng(seed), eligible, MaskingConfig(visible_share=0.1, drop_share=1.0))
        assert draw.decode.any()
        assert (~draw.mask).any()


def test_counts_are_split_near_the_shares_and_never_above_capacity() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        capacity = rng.integers(0, 20, size=5)
        shares = rng.dirichlet(np.full(5, rng.choice([0.01, 0.3, 1.0, 10.0])))
        total = int(rng.integers(0, capacity.sum() + 1))
        counts = split_counts(shares, capacity, total)
        assert counts.sum() == total
        assert (counts <= capacity).all()
        if (shares * total <= capacity).all():
            assert (np.abs(counts - shares * total) < 1).all()


def test_a_sample_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="a sample without any token cannot be masked"):
        draw_tokens(np.random.default_rng(0), np.zeros((4, 8), bool), MaskingConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visible_share": 0.0}, r"masking.visible_share must lie in \(0, 1\], got 0.0"),
        ({"decode_share": 1.5}, r"masking.decode_share must lie in \(0, 1\], got 1.5"),
        ({"drop_share": -0.1}, r"masking.drop_share must lie in \[0, 1\], got -0.1"),
        ({"alpha": 0.0}, "masking.alpha must be positive, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskingConfig(**changes)

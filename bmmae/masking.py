"""Which tokens to hide: a generator in, a mask out. True = hidden.

The published scheme (BM-MAE, arXiv 2505.00568) shows a fixed share of a sample's tokens and splits it over the
modalities by a Dirichlet draw. Beside it, a share of the samples can lose whole modalities instead: the task that
the model faces when a sequence is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array, Bool
from bmmae.errors import ConfigError


@dataclass(frozen=True)
class MaskingConfig:
    """How tokens are hidden in pretraining.

    Attributes:
        visible_share: Share of a sample's tokens that the encoder sees.
        alpha: Concentration of the Dirichlet draw over modalities; small values drop whole modalities often.
        drop_share: Share of samples that lose whole modalities instead: the others show as many tokens as in any
            other sample, all at the same places, and the lost ones are asked for at those places.
        decode_share: Share of the hidden tokens that are decoded (CrossMAE, arXiv 2401.14391).
    """

    visible_share: float = 0.25
    alpha: float = 1.0
    drop_share: float = 0.0
    decode_share: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ConfigError(f"masking.alpha must be positive, got {self.alpha}")
        for name in ("visible_share", "decode_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"masking.{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.drop_share <= 1:
            raise ConfigError(f"masking.drop_share must lie in [0, 1], got {self.drop_share}")


@dataclass(frozen=True)
class TokenDraw:
    """What one sample shows and what it is asked for.

    Attributes:
        mask: Bool[M, L], True = hidden; tokens that do not exist in the sample are hidden too.
        decode: Bool[M, L], True = predict this token; a subset of the hidden tokens that exist.
    """

    mask: Array
    decode: Array


def draw_tokens(rng: np.random.Generator, eligible: Bool[np.ndarray, "M L"], config: MaskingConfig) -> TokenDraw:
    """Draw the visible and the decoded tokens of one sample.

    At least one token is visible where two exist, and at least one is hidden and decoded. Counts are exact.

    Args:
        rng: The sample's own generator.
        eligible: Tokens that exist: of an available modality, inside its coverage, with tissue if so configured.
        config: How to draw.

    Raises:
        ConfigError: If no token exists; such a sample must be refused when it is loaded.
    """
    if not eligible.any():
        raise ConfigError("a sample without any token cannot be masked")
    present = np.flatnonzero(eligible.any(axis=1))
    drop = len(present) > 1 and rng.random() < config.drop_share
    if drop:
        visible, asked = _drop_modalities(rng, eligible, present, config)
    else:
        visible = _dirichlet(rng, eligible, config)
        asked = eligible & ~visible
    return TokenDraw(mask=~visible, decode=_thin(rng, asked, config.decode_share))


def visible_count(total: int, share: float) -> int:
    """Return how many of `total` tokens are visible: the share, but one hidden and, if it can be, one visible."""
    return min(max(round(total * share), 1), total - 1)


def split_counts(shares: Array, capacity: Array, total: int) -> Array:
    """Split `total` into whole numbers near `shares * total`, none above its capacity.

    What exceeds a capacity goes to the others in proportion to their shares; roundings go by largest remainder.

    Args:
        shares: Float[K], positive.
        capacity: Int[K], with a sum of at least `total`.
        total: What to split.
    """
    counts = np.zeros(len(capacity), dtype=np.int64)
    while (rest := total - int(counts.sum())) > 0:
        room = capacity - counts
        weights = np.where(room > 0, np.maximum(shares, 1e-9), 0.0)
        wanted = np.minimum(rest * weights / weights.sum(), room)
        grant = np.floor(wanted).astype(np.int64)
        for index in np.argsort(grant - wanted, kind="stable")[: rest - int(grant.sum())]:
            grant[index] += counts[index] + grant[index] < capacity[index]
        counts += grant
    return counts


def _dirichlet(rng: np.random.Generator, eligible: Array, config: MaskingConfig) -> Array:
    capacity = eligible.sum(axis=1)
    present = np.flatnonzero(capacity)
    shares = np.zeros(len(capacity))
    shares[present] = rng.dirichlet(np.full(len(present), config.alpha))
    counts = split_counts(shares, capacity, visible_count(int(capacity.sum()), config.visible_share))
    return _choose(rng, eligible, counts)


def _drop_modalities(
    rng: np.random.Generator, eligible: Array, present: Array, config: MaskingConfig
) -> tuple[Array, Array]:
    hidden = rng.permutation(present)[: rng.integers(1, len(present))]
    kept = np.setdiff1d(present, hidden)
    places: Array = np.asarray(eligible.any(axis=0))
    budget = visible_count(int(np.count_nonzero(eligible)), config.visible_share)
    count = min(max(1, round(budget / len(kept))), int(np.count_nonzero(places)))
    shown = _choose(rng, places[None], np.array([count]))[0]
    visible = np.zeros_like(eligible)
    visible[kept] = eligible[kept] & shown
    asked = np.zeros_like(eligible)
    asked[hidden] = eligible[hidden] & shown
    if not asked.any():  # the dropped modalities cover none of the places drawn: ask for them elsewhere
        asked[hidden] = eligible[hidden]
    if not visible.any():
        visible[kept] = eligible[kept]
    return visible, asked


def _thin(rng: np.random.Generator, asked: Array, share: float) -> Array:
    if share >= 1:
        return asked
    flat = asked.reshape(1, -1)
    count = np.array([max(1, round(int(flat.sum()) * share))])
    return _choose(rng, flat, count).reshape(asked.shape)


def _choose(rng: np.random.Generator, eligible: Array, counts: Array) -> Array:
    """Choose `counts[k]` of the eligible tokens of each row, uniformly."""
    order = np.where(eligible, rng.random(eligible.shape), np.inf).argsort(axis=1, kind="stable")
    chosen = np.zeros_like(eligible)
    for row, count in enumerate(counts):
        chosen[row, order[row, :count]] = True
    return chosen

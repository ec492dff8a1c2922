"""How often training shows each subset of the modalities: what inference warns by."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from bmmae.modalities import in_table_order, subset_label


def subset_shares(
    studies: Iterable[Sequence[str]], modality_dropout: float, single_share: float = 0.0
) -> dict[str, float]:
    """Return the share of training samples with each subset, by label, commonest first.

    Args:
        studies: The modalities that each training study has.
        modality_dropout: As in `AugmentConfig`: the chance that a random subset is kept, all sizes equally likely.
        single_share: As in `AugmentConfig`: how often that subset is one modality, whatever size was drawn.
    """
    shares: dict[str, float] = defaultdict(float)
    listed = [in_table_order(names) for names in studies]
    for names in listed:
        shares[subset_label(names)] += 1 - modality_dropout
        for subset in subsets_of(names):
            size = len(subset)
            of_this_size = (1 - single_share) / len(names) + single_share * (size == 1)
            shares[subset_label(subset)] += modality_dropout * of_this_size / math.comb(len(names), size)
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return {name: share / len(listed) for name, share in ordered if share > 0}


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every non-empty subset, small ones first, in the order of `names`."""
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]

"""Token bookkeeping: padded sequences and flat lists are two views of one choice."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from tiny_models import flags

from bmmae.model.embed import project_by_modality, sincos_positions
from bmmae.model.tokens import TokenIndex, attention_mask, existing_tokens
from bmmae.patches import Triple


def index(seed: int = 0) -> TokenIndex:
    chosen = flags(3, 4, 10, seed=seed)
    chosen[1] = False  # a sample without a token
    return TokenIndex.of(chosen)


@pytest.mark.parametrize("chosen", [index().chosen, torch.ones(2, 3, 4, dtype=torch.bool), torch.zeros(2, 3, 4) > 0])
def test_flatten_undoes_pad(chosen: torch.Tensor) -> None:
    tokens = TokenIndex.of(chosen)
    flat = torch.randn(int(chosen.sum()), 5)
    assert torch.equal(tokens.flatten(tokens.pad(flat)), flat)


def test_tokens_are_ordered_by_sample_modality_and_place() -> None:
    tokens = index()
    found = torch.stack([tokens.sample, tokens.modality, tokens.place], dim=1)
    assert torch.equal(found, tokens.chosen.nonzero())


def test_padding_is_zero_and_marked() -> None:
    tokens = index()
    sequences = tokens.pad(torch.ones(len(tokens.sample), 5))
    assert torch.equal(sequences[..., 0] == 1, tokens.keep())
    assert tokens.keep().sum(1).tolist() == tokens.counts.tolist()
    assert tokens.padding_share == 1 - len(tokens.sample) / (3 * tokens.width)


def test_tokens_among_others_are_those_that_both_chose() -> None:
    some, others = index(0), index(1)
    assert int(some.among(others).sum()) == int((some.chosen & others.chosen).sum())


def test_attention_needs_no_mask_where_nothing_is_padded() -> None:
    full = torch.ones(2, 3, dtype=torch.bool)
    assert attention_mask(full, None, full) is None
    assert attention_mask(full, index().keep()[:2]) is not None


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # MONAI's
@pytest.mark.parametrize(("grid", "dim"), [((4, 4, 4), 24), ((2, 3, 5), 24), ((3, 1, 2), 32), ((8, 8, 8), 384)])
def test_positions_are_those_of_monai(grid: Triple, dim: int) -> None:
    padded = sincos_positions(grid, dim)
    used = dim // 6 * 6
    theirs = build_sincos_position_embedding(list(grid), used, 3)
    torch.testing.assert_close(padded[:, :used], theirs.detach()[0], atol=2e-6, rtol=0)
    assert not padded[:, used:].any()


def test_no_two_places_have_the_same_position() -> None:
    assert len(sincos_positions((3, 4, 5), 24).unique(dim=0)) == 60


def test_each_row_is_projected_by_its_own_modality() -> None:
    rows, modality, weight = torch.randn(20, 6), torch.randint(0, 3, (20,)), torch.randn(4, 5, 6)
    expected = torch.stack([weight[m] @ row for row, m in zip(rows, modality, strict=True)])
    torch.testing.assert_close(project_by_modality(rows, modality, weight), expected)


def test_tokens_exist_where_one_voxel_of_an_available_modality_is_within_all_that_is_given() -> None:
    tissue, valid = (torch.zeros(1, m, 4, 2, 2, dtype=torch.bool) for m in (1, 3))
    tissue[0, 0, 0, 0, 0] = tissue[0, 0, 2, 0, 0] = True
    valid[0, :, 0, 0, 0] = valid[0, :, 3, 0, 0] = True  # of the second patch, tissue and scan share no voxel
    available, patch = torch.tensor([[True, False, True]]), (2, 2, 2)
    assert existing_tokens(available, (4, 2, 2), patch, None).tolist() == [[[True] * 2, [False] * 2, [True] * 2]]
    found = existing_tokens(available, (4, 2, 2), patch, valid, tissue)
    assert found.tolist() == [[[True, False], [False] * 2, [True, False]]]

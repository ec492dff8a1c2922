"""Rotary positions: attention sees differences of places, and weights go from one kind of encoder to the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import flags, tiny_config, volumes

from bmmae.errors import ConfigError
from bmmae.model.config import EncoderConfig
from bmmae.model.mae import MAE
from bmmae.model.rotary import turned, turns
from bmmae.model.tokens import TokenIndex

GRID = (4, 3, 2)
ONE_OF_EACH = torch.ones(1, 1, 24, dtype=torch.bool)


def rotary_mae() -> MAE:
    config = tiny_config(kind="cross")
    torch.manual_seed(0)
    return MAE(replace(config, encoder=replace(config.encoder, rotary=True))).eval()


def test_products_depend_on_the_difference_of_places_alone() -> None:
    turn = turns(TokenIndex.of(ONE_OF_EACH), GRID, 12)
    one, other = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    same = [turned(value.expand(1, 1, 25, 12), turn)[0, 0, 1:].view(*GRID, 12) for value in (one, other)]
    products = torch.einsum("abcp,defp->abcdef", *same)
    torch.testing.assert_close(products[0, 0, 0, 1, 1, 1], products[2, 1, 0, 3, 2, 1])
    assert not torch.isclose(products[0, 0, 0, 1, 1, 1], products[0, 0, 0, 1, 2, 1], atol=1e-3)


def test_turning_keeps_lengths_and_leaves_the_class_token() -> None:
    turn = turns(TokenIndex.of(ONE_OF_EACH), GRID, 12)
    values = torch.randn(1, 2, 25, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(values, turn).norm(dim=-1), values.norm(dim=-1))
    assert torch.equal(turned(values, turn)[:, :, 0], values[:, :, 0])


def test_an_encoded_sample_is_the_same_in_any_batch() -> None:
    model, images, visible = rotary_mae(), volumes(3), flags(3, 4, 8)
    visible[0, 1:] = False
    together = model.encoder(images, TokenIndex.of(visible))
    for i in range(3):
        alone = model.encoder(images[[i]], TokenIndex.of(visible[[i]]))
        torch.testing.assert_close(together[[i], : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)


def test_either_encoder_takes_the_others_weights_and_where_patches_lie_matters() -> None:
    turned_model, plain = rotary_mae(), MAE(tiny_config(kind="cross")).eval()
    plain.load_state_dict(turned_model.state_dict())
    images, alone, all_of_them = volumes(1), torch.zeros(1, 4, 8, dtype=torch.bool), flags(1, 4, 8)
    alone[0, 0, 0] = True  # the first place is not turned
    encoded = [model.encoder(images, TokenIndex.of(alone)) for model in (turned_model, plain)]
    torch.testing.assert_close(*encoded)
    encoded = [model.encoder(images, TokenIndex.of(all_of_them)) for model in (turned_model, plain)]
    assert not torch.allclose(*encoded, atol=1e-4)


def test_recomputing_activations_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = rotary_mae().train()
        model.encoder.set_grad_checkpointing(recompute)
        model.encoder(volumes(1), TokenIndex.of(flags(1, 4, 8))).square().sum().backward()
        gradients.append(model.encoder.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("dim", "heads"), [(16, 4), (21, 3)])
def test_heads_without_a_pair_for_each_axis_are_refused(dim: int, heads: int) -> None:
    with pytest.raises(ConfigError, match="even number of values, 6 or more, got"):
        EncoderConfig(dim=dim, depth=1, heads=heads, rotary=True)

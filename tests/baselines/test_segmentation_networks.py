"""Comparators see absent modalities as zeros, learn from the project's batches, and are what the papers describe."""

from __future__ import annotations

import pytest
import torch
from tiny_models import flags, tiny_segmentation, volumes
from torch import nn

from bmmae.baselines.hybrid_network import HybridNetwork, TransformerBottleneck, TwoArmBlock, UpBlock
from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS, NetworkConfig, ZeroFilledNetwork
from bmmae.errors import ConfigError
from bmmae.tasks.segmentation import SegmentationTask

SIZE = (32, 16, 16)
HEAVY = ("swin_unetr", "hybrid")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in SEGMENTATION_NETWORKS]
AVAILABLE = torch.tensor([[1, 0, 1, 1]]).bool()


def network(name: str) -> ZeroFilledNetwork:
    torch.manual_seed(0)
    return ZeroFilledNetwork(NetworkConfig(name, window=smallest(name), width=4)).eval()


def smallest(name: str) -> tuple[int, int, int]:
    factor = SEGMENTATION_NETWORKS[name].factor
    return (2 * factor, factor, factor)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_an_absent_channel_is_not_read(name: str) -> None:
    model, images = network(name), volumes(size=smallest(name))
    other = images.clone()
    other[0, 1] = torch.nan
    with torch.no_grad():
        logits = model(images, AVAILABLE)
        assert logits.shape == (1, 3, *smallest(name))
        assert torch.equal(logits, model(other, AVAILABLE))
        assert not torch.equal(logits, model(images, ~AVAILABLE))


def test_what_was_not_scanned_is_zero_too() -> None:
    model, images = network("unet"), volumes(size=SIZE)
    valid = flags(1, 4, *SIZE, share=0.8)
    with torch.no_grad():
        logits = model(images, AVAILABLE, None, valid)
        torch.testing.assert_close(logits, model(images * valid, AVAILABLE))


@pytest.mark.slow
def test_it_learns_from_the_projects_batches_by_the_projects_task() -> None:
    batch = {
        "images": volumes(2, size=SIZE),
        "available": AVAILABLE.expand(2, -1),
        "valid": torch.ones(2, 4, *SIZE, dtype=torch.bool),
        "label": volumes(2, size=SIZE)[:, [0, 2, 3]] > 1,
        "brain": torch.ones(2, *SIZE, dtype=torch.bool),
    }
    model, task = network("unet"), SegmentationTask(tiny_segmentation().config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        output = task.step(model, batch)
        optimizer.zero_grad()
        output.loss_sum.backward()
        optimizer.step()
        losses.append(output.loss_sum.item())
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    ("name", "window", "message"),
    [
        ("vnet", SIZE, "unknown segmentation network 'vnet': expected one of unet, attention_unet"),
        ("hybrid", (48, 64, 64), "hybrid needs a window whose sides are multiples of 32"),
        ("swin_unetr", (32, 32, 32), "at least one of them twice that"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, window: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(name, window=window)


def test_the_hybrid_network_has_the_papers_parts() -> None:
    kinds = [type(module) for module in HybridNetwork(2, 1).modules()]
    assert kinds.count(TwoArmBlock) == 10
    assert kinds.count(UpBlock) == 5
    bottleneck = next(module for module in HybridNetwork(2, 1).modules() if isinstance(module, TransformerBottleneck))
    assert len(bottleneck.blocks) == 12
    block = TwoArmBlock(2, 8)
    assert [layer.stride[0] for layer in block.first.modules() if isinstance(layer, nn.Conv3d)] == [1, 2, 1]
    assert sum(isinstance(layer, nn.GroupNorm) for layer in block.first.modules()) == 3


def test_a_two_arm_block_adds_its_arms() -> None:
    block, x = TwoArmBlock(2, 8), volumes(modalities=2, size=(8, 8, 8))
    out = block(x)
    assert out.shape == (1, 8, 4, 4, 4)
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.bias)
    residual = out - block(x)
    for part in block.first:
        nn.init.zeros_(part[1].weight)
    assert not block(x).any()
    assert residual.any()


def test_the_bottleneck_sees_the_whole_window_and_its_places() -> None:
    torch.manual_seed(0)
    bottleneck = TransformerBottleneck(24, 1, 2)
    x = volumes(modalities=24, size=(2, 2, 2)).requires_grad_()
    bottleneck(x)[0, :, 0, 0, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum(1).gt(0).all()
    with torch.no_grad():
        turned = bottleneck(x.flip(2)).flip(2)
        assert not torch.allclose(turned, bottleneck(x))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide into 5 attention heads"):
        HybridNetwork(4, 3, heads=5)

"""Segmentation: any subset with one set of weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from tiny_models import flags, tiny_config, tiny_segmentation, volumes

from bmmae.errors import ConfigError, ModalityError
from bmmae.model.convolution import ConvBlock, Fusion, Pointwise, VoxelHead, pack_voxels, unpack_voxels
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"fusion": "mean_variance", "supervision": 2},
    {"fusion": "attention", "decoder": "unetr", "supervision": 1},
)
SUBSETS = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_order_of_the_modalities_changes_nothing(variant: dict[str, Any]) -> None:
    model, data = tiny_segmentation(**variant), volumes(2)
    named = {name: data[:, [i]] for i, name in enumerate(("t1", "t2", "flair"))}
    expected = model.segment(named)
    assert expected.shape == (2, 3, 16, 16, 16)
    for order in permutations(named):
        assert torch.equal(model.segment({name: named[name] for name in order}), expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_absent_differs_from_zero_filled(variant: dict[str, Any]) -> None:
    model, data = tiny_segmentation(**variant), volumes(1, 1)
    alone = model.segment({"t1": data})
    assert not torch.allclose(alone, model.segment({"t1": data, "t2": torch.zeros_like(data)}), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_absent_volumes_are_not_read(variant: dict[str, Any]) -> None:
    model, images = tiny_segmentation(**variant), volumes(3)
    dirty = torch.where(SUBSETS[:, :, None, None, None], images, 1e6)
    assert torch.equal(model(images, SUBSETS), model(dirty, SUBSETS))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_sample_gets_the_same_output_in_any_batch(variant: dict[str, Any]) -> None:
    model, images = tiny_segmentation(**variant), volumes(3)
    tissue = flags(3, 1, 16, 16, 16, share=0.002)
    together = model(images, SUBSETS, tissue=tissue)
    for i in range(3):
        alone = model(images[[i]], SUBSETS[[i]], tissue=tissue[[i]])
        torch.testing.assert_close(together[[i]], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_modality_scanned_nowhere_is_the_same_as_an_absent_one(variant: dict[str, Any]) -> None:
    model, images = tiny_segmentation(**variant), volumes(1)
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, 1] = False
    absent = model(images, torch.tensor([[True, False, True, True]]))
    torch.testing.assert_close(model(images, torch.ones(1, 4, dtype=torch.bool), valid=valid), absent)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parts_that_were_not_scanned_differ_from_zeros(variant: dict[str, Any]) -> None:
    model, images = tiny_segmentation(**variant), volumes(1)
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, 1, :8] = False
    images = images * valid
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert not torch.allclose(model(images, everything, valid=valid), model(images, everything), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient_though_modalities_are_absent(variant: dict[str, Any]) -> None:
    model = tiny_segmentation(**variant).train()
    available = torch.tensor([[False, True, False, False]]).expand(2, -1)
    scales = model(volumes(2), available, every_scale=True)
    sum(scale.square().sum() for scale in scales).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_window_without_tissue_runs(variant: dict[str, Any]) -> None:
    nothing = torch.zeros(3, 1, 16, 16, 16, dtype=torch.bool)
    assert tiny_segmentation(**variant)(volumes(3), SUBSETS, tissue=nothing).isfinite().all()


def test_packed_voxels_are_unpacked_where_they_were() -> None:
    volume = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    packed = pack_voxels(volume)
    assert packed.shape == (2, 24, 2, 3, 4)
    assert torch.equal(packed[:, :3], volume[..., ::2, ::2, ::2])  # all channels at the first place come first
    assert torch.equal(unpack_voxels(packed), volume)


def test_the_voxels_that_share_a_place_of_the_half_grid_start_alike() -> None:
    model = VoxelHead(4, 9, 3)
    features = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(model.around.bias)
    logits = model(features, torch.zeros(1, 9, 4, 4, 4))
    assert logits.shape == (1, 3, 8, 8, 8)
    blocks = pack_voxels(logits).reshape(1, 8, 3, 4, 4, 4)
    torch.testing.assert_close(blocks, blocks[:, :1].expand_as(blocks))


def test_a_pointwise_layer_is_a_convolution() -> None:
    layer, features = Pointwise(5, 7), torch.randn(2, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.conv3d(features, layer.weight[..., None, None, None], layer.bias)
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize(
    ("depth", "patch", "layers"),
    [(1, 8, []), (2, 8, [1, 1]), (3, 8, [1, 2]), (1, 16, []), (2, 16, [1]), (3, 16, [1, 2, 2])],
)
def test_a_shallow_encoders_layer_may_join_two_levels(depth: int, patch: int, layers: list[int]) -> None:
    model = tiny_config((16, 16, 16), (patch, patch, patch))
    shape = replace(model, encoder=replace(model.encoder, depth=depth))
    segmenter = SegmentationModel(SegmentationConfig(shape, width=2, decoder="unetr"))
    assert list(segmenter.skip_layers.values()) == layers
    segmenter(volumes(1), SUBSETS[:1]).square().sum().backward()
    assert [name for name, p in segmenter.named_parameters() if p.grad is None] == []


def test_a_grid_that_is_not_cubic_runs() -> None:
    assert tiny_segmentation()(volumes(1, 4, (8, 16, 24)), SUBSETS[:1]).shape == (1, 3, 8, 16, 24)


def test_bf16_gradients_are_right_on_the_smallest_grids() -> None:
    block = ConvBlock(16, 32)
    features = torch.randn(2, 16, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(block(features).square().sum(), block.first.weight)[0]
    freed = [torch.full((n,), torch.nan) for n in (1 << k for k in range(6, 18)) for _ in range(8)]
    del freed  # what is read without having been written shows
    with torch.autocast("cpu", torch.bfloat16):
        loss = block(features).float().square().sum()
    found = torch.autograd.grad(loss, block.first.weight)[0]
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_bf16_autocast_trains() -> None:
    model = tiny_segmentation().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(volumes(3), SUBSETS).float().square().mean()
    loss.backward()
    wrong = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert wrong == []


def test_volumes_are_segmented_from_what_the_model_relies_on() -> None:
    plain = tiny_segmentation()
    relying = SegmentationModel(replace(plain.config, relied_on={"TC": {"t1+flair": "flair", "t2": "t2"}})).eval()
    relying.load_state_dict(plain.state_dict())
    flair, t1 = volumes(2, 1), volumes(2, 1, seed=1)
    both, alone = plain.segment({"t1": t1, "flair": flair}), plain.segment({"flair": flair})
    found = relying.segment({"flair": flair, "t1": t1})
    assert torch.equal(found[:, [0, 2]], both[:, [0, 2]])
    assert torch.equal(found[:, 1], alone[:, 1])
    assert not torch.allclose(found[:, 1], both[:, 1], atol=1e-4)
    assert torch.equal(relying.segment({"flair": flair}), alone)


def test_no_modality_is_refused() -> None:
    with pytest.raises(ModalityError, match="no modality given"):
        tiny_segmentation().segment({})


@pytest.mark.parametrize("patch", [(8, 8, 4), (6, 6, 6), (1, 1, 1)])
def test_patches_that_cannot_be_halved_to_voxels_are_refused(patch: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="cubic patch whose side is a power of 2"):
        SegmentationConfig(tiny_config((24, 24, 24), patch))


def test_no_region_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one region"):
        SegmentationConfig(tiny_config(), regions=())


def test_a_region_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="names each region once, got WT, ET, WT"):
        SegmentationConfig(tiny_config(), regions=("WT", "ET", "WT"))


@pytest.mark.parametrize("levels", [3, -1])
def test_more_supervised_scales_than_there_are_is_refused(levels: int) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        SegmentationConfig(tiny_config(), supervision=levels)


def test_each_supervised_scale_is_half_the_one_before() -> None:
    model, everything = tiny_segmentation(supervision=2), torch.ones(1, 4, dtype=torch.bool)
    scales = model(volumes(), everything, every_scale=True)
    assert [tuple(scale.shape) for scale in scales] == [(1, 3, 16, 16, 16), (1, 3, 8, 8, 8), (1, 3, 4, 4, 4)]
    assert torch.equal(scales[0], model(volumes(), everything))


def test_hidden_tokens_are_not_read_by_the_encoder_alone() -> None:
    model, images, everything = tiny_segmentation(), volumes(1), torch.ones(1, 4, dtype=torch.bool)
    visible = torch.zeros(1, 4, 8, dtype=torch.bool)
    visible[:, 0, :4] = True
    plain = model(images, everything)
    hidden = model(images, everything, visible=visible)
    assert torch.equal(model(images, everything, visible=torch.ones_like(visible)), plain)
    assert not torch.allclose(hidden, plain, atol=1e-4)
    model.encoder.embedding.weight.data[1:] = 0  # of modalities whose tokens are all hidden
    assert torch.equal(model(images, everything, visible=visible), hidden)
    more = images.clone()
    more[:, 3] += 1  # hidden from the encoder, seen by the stem
    assert not torch.allclose(model(more, everything, visible=visible), hidden, atol=1e-4)


def test_a_decoder_of_the_same_shape_is_taken_over() -> None:
    donor, other = tiny_segmentation(), tiny_segmentation()
    wider = SegmentationModel(replace(donor.config, width=8))
    fewer = SegmentationModel(replace(donor.config, regions=("lesion",), coding="binary"))
    for parameter in donor.parameters():
        parameter.data.add_(0.01)
    other.encoder.load_state_dict(donor.encoder.state_dict())
    assert other.take_decoder(donor)
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(other(volumes(), everything), donor(volumes(), everything))
    supervised = SegmentationModel(replace(donor.config, supervision=1))
    coarse = supervised.heads[1].state_dict()
    assert supervised.take_decoder(donor)
    taken, given = supervised.state_dict(), donor.state_dict()
    assert all(torch.equal(taken[key], value) for key, value in given.items() if not key.startswith("encoder."))
    assert all(torch.equal(value, coarse[key]) for key, value in supervised.heads[1].state_dict().items())
    before = wider.stem.down[0].first.weight.clone()
    assert not wider.take_decoder(donor)
    assert torch.equal(wider.stem.down[0].first.weight, before)
    head = fewer.heads[0].around.weight.clone()
    assert fewer.take_decoder(donor)
    assert torch.equal(fewer.heads[0].around.weight, head)
    assert torch.equal(fewer.stem.down[0].first.weight, donor.stem.down[0].first.weight)


def test_heads_are_taken_over_by_the_names_of_their_regions() -> None:
    donor = tiny_segmentation()
    for parameter in donor.heads.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    other = SegmentationModel(replace(donor.config, regions=("WT", "ET", "TC"))).eval()
    other.encoder.load_state_dict(donor.encoder.state_dict())
    assert other.take_decoder(donor)
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(other(volumes(), everything), donor(volumes(), everything)[:, [2, 0, 1]])


def test_the_unetr_decoder_reads_intermediate_layers() -> None:
    deep = replace(tiny_config(), encoder=replace(tiny_config().encoder, depth=6))
    model = SegmentationModel(SegmentationConfig(deep, width=4, decoder="unetr"))
    assert model.skip_layers == {1: 2, 2: 4}
    before = model(volumes(), torch.ones(1, 4, dtype=torch.bool))
    torch.nn.init.zeros_(model.skips["1"].project[1].weight)
    assert not torch.allclose(model(volumes(), torch.ones(1, 4, dtype=torch.bool)), before)


def test_fusion_is_over_what_is_there() -> None:
    features = volumes(3, 2, (2, 2, 2))
    there = torch.ones(3, 1, 2, 2, 2, dtype=torch.bool)
    there[1] = False
    there[:, :, 0] = False
    kept = features[[0, 2], :, 1]
    mean_max, spread = (Fusion(kind, 2)(features, there) for kind in ("mean_max", "mean_variance"))
    torch.testing.assert_close(mean_max[0, :, 1], torch.cat([kept.mean(0), kept.amax(0)]))
    torch.testing.assert_close(spread[0, :, 1], torch.cat([kept.mean(0), kept.var(0, correction=0)]))
    assert not mean_max[0, :, 0].any()
    assert not spread[0, :, 0].any()


def test_attention_starts_from_the_mean_and_leaves_it() -> None:
    features = volumes(3, 2, (2, 2, 2))
    fusion = Fusion("attention", 2)
    torch.testing.assert_close(fusion(features, None), Fusion("mean_max", 2)(features, None))
    assert fusion.score is not None
    torch.nn.init.constant_(fusion.score.weight, 3.0)
    assert not torch.allclose(fusion(features, None), Fusion("mean_max", 2)(features, None), atol=1e-2)

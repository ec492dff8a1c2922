"""Segmentation: any subset with one set of weights."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from tiny_models import flags, tiny_config, tiny_segmentation, volumes

from bmmae.errors import ConfigError, ModalityError
from bmmae.model.segmentation import SegmentationConfig

SUBSETS = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()


def test_the_order_of_the_modalities_changes_nothing() -> None:
    model, data = tiny_segmentation(), volumes(2)
    named = {name: data[:, [i]] for i, name in enumerate(("t1", "t2", "flair"))}
    expected = model.segment(named)
    assert expected.shape == (2, 3, 16, 16, 16)
    for order in permutations(named):
        assert torch.equal(model.segment({name: named[name] for name in order}), expected)


def test_absent_differs_from_zero_filled() -> None:
    model, data = tiny_segmentation(), volumes(1, 1)
    alone = model.segment({"t1": data})
    assert not torch.allclose(alone, model.segment({"t1": data, "t2": torch.zeros_like(data)}), atol=1e-3)


def test_absent_volumes_are_not_read() -> None:
    model, images = tiny_segmentation(), volumes(3)
    dirty = torch.where(SUBSETS[:, :, None, None, None], images, 1e6)
    assert torch.equal(model(images, SUBSETS), model(dirty, SUBSETS))


def test_a_sample_gets_the_same_output_in_any_batch() -> None:
    model, images = tiny_segmentation(), volumes(3)
    tissue = flags(3, 1, 16, 16, 16, share=0.002)
    together = model(images, SUBSETS, tissue=tissue)
    for i in range(3):
        alone = model(images[[i]], SUBSETS[[i]], tissue=tissue[[i]])
        torch.testing.assert_close(together[[i]], alone, atol=1e-4, rtol=1e-4)


def test_a_modality_scanned_nowhere_is_the_same_as_an_absent_one() -> None:
    model, images = tiny_segmentation(), volumes(1)
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, 1] = False
    absent = model(images, torch.tensor([[True, False, True, True]]))
    torch.testing.assert_close(model(images, torch.ones(1, 4, dtype=torch.bool), valid=valid), absent)


def test_parts_that_were_not_scanned_differ_from_zeros() -> None:
    model, images = tiny_segmentation(), volumes(1)
    valid = torch.ones_like(images, dtype=torch.bool)
    valid[:, 1, :8] = False
    images = images * valid
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert not torch.allclose(model(images, everything, valid=valid), model(images, everything), atol=1e-3)


def test_every_parameter_gets_a_gradient_though_modalities_are_absent() -> None:
    model = tiny_segmentation().train()
    available = torch.tensor([[False, True, False, False]]).expand(2, -1)
    model(volumes(2), available).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_window_without_tissue_runs() -> None:
    nothing = torch.zeros(3, 1, 16, 16, 16, dtype=torch.bool)
    assert tiny_segmentation()(volumes(3), SUBSETS, tissue=nothing).isfinite().all()


def test_a_grid_that_is_not_cubic_runs() -> None:
    assert tiny_segmentation()(volumes(1, 4, (8, 16, 24)), SUBSETS[:1]).shape == (1, 3, 8, 16, 24)


def test_bf16_autocast_trains() -> None:
    model = tiny_segmentation().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(volumes(3), SUBSETS).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


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

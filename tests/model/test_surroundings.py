"""Surroundings are the moments of the tissue around a place, and published recipes know nothing of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import flags, tiny_config, volumes

from bmmae.data.loaders import Batch
from bmmae.errors import ConfigError
from bmmae.growth import add_modality
from bmmae.model.mae import MAE
from bmmae.model.surroundings import moments_around
from bmmae.tasks.reconstruction import SURROUNDINGS_WEIGHT, ReconstructionTask
from bmmae.tasks.task import tensors

PATCH = (8, 8, 8)


def model_with_surroundings() -> MAE:
    torch.manual_seed(0)
    model = MAE(replace(tiny_config(kind="cross"), surroundings=(1, 3))).eval()
    assert model.surroundings is not None
    torch.nn.init.normal_(model.surroundings.weight, std=0.1)
    return model


def batch(samples: int = 2) -> Batch:
    valid, brain = flags(samples, 4, 16, 16, 16, share=0.8), flags(samples, 16, 16, 16, seed=1)
    valid[0, 2] = False
    tokens = flags(samples, 4, 8, seed=2)
    tokens[0, 2] = False
    return {
        "images": torch.where(valid & brain[:, None], volumes(samples), 0),
        "valid": valid,
        "brain": brain,
        "mask": ~tokens,
        "decode": ~tokens & valid.flatten(2).any(-1)[..., None],
    }


def test_moments_are_those_of_the_voxels_that_count() -> None:
    images, counted = volumes(1, 2, (16, 32, 24)), flags(1, 2, 16, 32, 24)
    moments, known = moments_around(images, counted, PATCH, (1, 3))
    assert moments.shape == (1, 2, 24, 4)
    assert known.all()
    place = 1 * 12 + 1 * 3 + 2  # the second, second and last of 2 x 4 x 3 places
    for column, around in enumerate(
        [(slice(8, 16), slice(8, 16), slice(16, 24)), (slice(0, 16), slice(0, 24), slice(8, 24))]
    ):
        voxels = images[0, 1][around][counted[0, 1][around]]
        assert float(moments[0, 1, place, column]) == pytest.approx(float(voxels.mean()), abs=1e-4)
        deviation = float(voxels.std(correction=0))
        assert float(moments[0, 1, place, 2 + column]) == pytest.approx(deviation, abs=1e-4)


def test_where_nothing_counts_nothing_is_known() -> None:
    counted = torch.zeros(1, 1, 32, 8, 8, dtype=torch.bool)
    counted[..., :8, :, :] = True
    moments, known = moments_around(volumes(1, 1, (32, 8, 8)), counted, PATCH, (1, 3))
    assert known[0, 0, :, 0].tolist() == [True, False, False, False]
    assert known[0, 0, :, 1].tolist() == [True, True, False, False]
    assert moments.isfinite().all()


def test_the_loss_averages_over_voxels_and_surroundings() -> None:
    model, data = model_with_surroundings(), batch()
    together = ReconstructionTask(model.config).step(model, data)
    alone = ReconstructionTask(model.config).step(MAE(replace(model.config, surroundings=())), data)
    error, count = together.metrics["mse_surroundings"]
    images, valid, brain, mask = tensors(data, "images", "valid", "brain", "mask")
    moments, known = moments_around(images, valid & brain[:, None], PATCH, (1, 3))
    predicted, expected = model(images, ~mask, mask).surroundings, 0.0
    for row, (sample, _, place) in enumerate((~mask).nonzero().tolist()):
        there = known[sample, :, place]
        expected += float((predicted[row] - moments[sample, :, place])[there].detach().square().mean())
    assert float(error) == pytest.approx(expected, rel=1e-4)
    assert int(count) == int((~mask).sum())
    assert float(together.loss_count) == float(alone.loss_count) + SURROUNDINGS_WEIGHT * 512 * int(count)
    together.loss_sum.backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad is not None
    assert "mse_surroundings" not in alone.metrics


@torch.no_grad()
def test_a_window_without_brain_has_no_surroundings_to_count() -> None:
    model, data = model_with_surroundings(), batch()
    data["brain"] = torch.zeros_like(tensors(data, "brain")[0])
    out = ReconstructionTask(model.config).step(model, data)
    assert float(out.metrics["mse_surroundings"][1]) == float(out.loss_count) == float(out.loss_sum) == 0


@torch.no_grad()
def test_two_parts_of_a_batch_add_up_to_the_whole() -> None:
    model, data = model_with_surroundings(), batch()
    task = ReconstructionTask(model.config)
    parts = [{key: value[[i]] for key, value in data.items()} for i in range(2)]  # type: ignore[index]
    whole, halves = task.evaluate(model, data), [task.evaluate(model, part) for part in parts]
    assert float(whole.loss_sum) == pytest.approx(sum(float(half.loss_sum) for half in halves), rel=1e-5)
    assert float(whole.loss_count) == sum(float(half.loss_count) for half in halves)


def test_a_new_modality_starts_from_the_one_that_it_is_like() -> None:
    model = model_with_surroundings()
    grown = add_modality(model, "swi", like="t2")
    new, old = (m.config.modalities.index(name) for m, name in ((grown, "swi"), (model, "t2")))
    assert grown.surroundings is not None
    assert model.surroundings is not None
    assert torch.equal(grown.surroundings.weight[new], model.surroundings.weight[old])


@pytest.mark.parametrize("widths", [(2,), (0,), (3, -1)])
def test_cubes_without_a_middle_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="odd numbers of patches"):
        replace(tiny_config(), surroundings=widths)

"""The CycleGAN's losses are the paper's equations; slices meet the ones that tell most about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prepared_studies import prepared
from torch import nn

from bmmae.baselines.cyclegan import BACKGROUND, CycleConfig, CycleGAN, mutual_information, slice_pairs, slices_of
from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import STANDARD

T1, T1CE, T2, FLAIR = STANDARD
TINY = CycleConfig(width=4, blocks=1)


class Line(nn.Module):
    """Stands in for a network: a line."""

    def __init__(self, slope: float, offset: float = 0.0) -> None:
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x + self.offset


def by_hand() -> tuple[CycleGAN, torch.Tensor, torch.Tensor]:
    model = CycleGAN(TINY)
    model.to_second, model.to_first = Line(2.0), Line(0.25)
    model.judge_second, model.judge_first = Line(1.0), Line(1.0, 0.5)
    return model, torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 4, 4), 4.0)


def test_the_generators_minimise_equations_2_to_4() -> None:
    model, x, y = by_hand()
    loss, made_y, made_x = model.generator_loss(x, y)
    assert made_y.unique().item() == 2
    assert made_x.unique().item() == 1
    adversarial = (2 - 1) ** 2 + (1.5 - 1) ** 2
    cycle = (0.5 - 1) ** 2 + (2 - 4) ** 2
    assert loss.item() == pytest.approx(adversarial + 10 * cycle)


def test_the_discriminators_minimise_equations_5_and_6() -> None:
    model, x, y = by_hand()
    _, made_y, made_x = model.generator_loss(x, y)
    expected = 2**2 + (4 - 1) ** 2 + 1.5**2 + (1.5 - 1) ** 2
    assert model.discriminator_loss(x, y, made_y, made_x).item() == pytest.approx(expected)


def test_judging_moves_no_generator() -> None:
    model = CycleGAN(TINY)
    x, y = torch.randn(2, 1, 1, 16, 16)
    _, made_y, made_x = model.generator_loss(x, y)
    model.discriminator_loss(x, y, made_y, made_x).backward()
    assert all(p.grad is None for p in model.generators())
    assert all(p.grad is not None for p in model.discriminators())


def test_slices_are_padded_and_dark_outside() -> None:
    study = prepared(0, shape=(18, 21, 10))
    slices = slices_of(study, T1CE)
    assert slices.shape == (10, 1, 20, 24)
    np.testing.assert_array_equal(
        slices[5, 0, :18, :21][study.brain[..., 5]], study.images[1, ..., 5][study.brain[..., 5]]
    )
    assert (slices[5, 0, :18, :21][~study.brain[..., 5]] == BACKGROUND).all()
    assert (slices[:, :, 18:] == BACKGROUND).all()


def test_a_made_volume_lies_in_the_brain_of_the_other_modality() -> None:
    torch.manual_seed(0)
    model = CycleGAN(TINY).eval()
    study = prepared(0, (T1, T1CE), shape=(18, 21, 10))
    made = model.predict(study, FLAIR)
    assert made.shape == study.shape
    assert not made[~study.brain].any()
    assert np.ptp(made[study.brain]) > 0


def test_other_modalities_are_refused() -> None:
    model = CycleGAN(TINY)
    with pytest.raises(ModalityError, match="cannot make t2 from t1"):
        model.predict(prepared(0, (T1,)), T2)
    with pytest.raises(ModalityError, match="cannot make flair from t1"):
        model.predict(prepared(0, (T1,)), FLAIR)
    with pytest.raises(ConfigError, match="two modalities"):
        CycleConfig(first=T1, second=T1)


def test_mutual_information_is_entropy_of_itself_and_nothing_of_noise() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4, (64, 64)).astype(float)
    assert mutual_information(image, -image) == pytest.approx(np.log(4), abs=0.01)
    assert mutual_information(image, rng.permutation(image.ravel()).reshape(image.shape)) < 0.01


def test_a_slice_meets_the_one_that_tells_most_about_it() -> None:
    study = prepared(0)
    shifted = study.images.copy()
    shifted[3] = np.roll(-2 * study.images[1], 1, axis=-1)
    moved = type(study)(**{**vars(study), "images": shifted, "brain": np.ones_like(study.brain)})
    pairs = slice_pairs(moved, TINY)
    assert pairs is not None
    inner = [(one, other) for one, other in pairs.pairs if 3 < one < 13]
    assert inner == [(one, one + 1) for one, _ in inner]
    assert slice_pairs(prepared(0, (T1, T1CE)), TINY) is None

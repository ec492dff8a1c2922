"""The voxel-wise regression: what it solves, what it may read, what it does not know, and how it grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import tiny_mae, volumes

from bmmae.errors import ConfigError
from bmmae.modalities import STANDARD
from bmmae.model.config import SynthesisConfig
from bmmae.model.synthesis import Examples, VoxelSynthesis

T1, T1CE, T2, FLAIR = range(4)
ONE_MM = (1.0, 1.0, 1.0)


def related(count: int = 4000, seed: int = 0, noise: float = 0.0) -> torch.Tensor:
    """Voxels of four modalities and their copies, the last a function of the first two: Float[N, M, S]."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 2, generator=draw)
    x[:, FLAIR, 0] = 0.3 + 0.5 * x[:, T1, 0] - 0.2 * x[:, T1, 0] * x[:, T1CE, 0] + 0.4 * x[:, T1CE, 1]
    x[:, FLAIR, 0] += noise * x[:, T1, 0].exp() * torch.randn(count, generator=draw)
    return x


def fitted(inputs: torch.Tensor, given: torch.Tensor | None = None, units: int = 16) -> VoxelSynthesis:
    count, modalities, copies = inputs.shape
    scales = tuple(2.0 * (n + 1) for n in range(copies - 1))
    synthesis = VoxelSynthesis(STANDARD[:modalities], SynthesisConfig(units=units, scales=scales, penalty=1e-9))
    known = torch.ones(count, modalities) > 0 if given is None else given
    inputs = inputs * known[..., None]
    synthesis.fit(Examples(inputs, known, torch.arange(count) % 2 == 0, inputs[..., 0]))
    return synthesis


def guess(synthesis: VoxelSynthesis, inputs: torch.Tensor, subset: list[int], target: int) -> torch.Tensor:
    """Mean and logarithm of the variance, Float[N, 2]."""
    code = sum(1 << index for index in subset)
    return synthesis._terms(inputs, code) @ synthesis.coefficients[code, target].T


def test_a_relation_over_products_and_copies_is_found() -> None:
    synthesis, unseen = fitted(related()), related(seed=1)
    torch.testing.assert_close(
        guess(synthesis, unseen, [T1, T1CE], FLAIR)[:, 0], unseen[:, FLAIR, 0], atol=1e-3, rtol=1e-3
    )
    error = (guess(synthesis, unseen, [T2], FLAIR)[:, 0] - unseen[:, FLAIR, 0]).square().mean()
    assert float(error) == pytest.approx(float(unseen[:, FLAIR, 0].var()), rel=0.05)


def test_units_bend_what_products_cannot() -> None:
    inputs = related()[..., :1]
    inputs[:, FLAIR, 0] = inputs[:, T1, 0].abs()
    errors = [
        float((guess(fitted(inputs, units=n), inputs, [T1], FLAIR)[:, 0] - inputs[:, FLAIR, 0]).square().mean())
        for n in (1, 64)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_the_solution_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    inputs = related(noise=0.3)
    synthesis = fitted(inputs)
    code = (1 << T1) + (1 << T2)
    terms = synthesis._terms(inputs, code).double().numpy()
    reference = Ridge(alpha=1e-9 * len(terms), fit_intercept=False).fit(terms, inputs[:, FLAIR, 0].numpy())
    ours = guess(synthesis, inputs, [T1, T2], FLAIR)[:, 0]
    assert np.allclose(ours.numpy(), reference.predict(terms), atol=2e-3)


def test_the_variance_follows_the_error() -> None:
    synthesis, unseen = fitted(related(noise=0.3), units=64), related(seed=1, noise=0.3)
    made = guess(synthesis, unseen, [T1, T1CE], FLAIR)
    z = (unseen[:, FLAIR, 0] - made[:, 0]) / (made[:, 1] / 2).exp()
    assert float((z.abs() < 1.645).float().mean()) == pytest.approx(0.9, abs=0.02)
    loud, quiet = unseen[:, T1, 0] > 1, unseen[:, T1, 0] < -1
    assert made[loud, 1].mean() > made[quiet, 1].mean() + 2


def test_what_was_not_scanned_teaches_nothing() -> None:
    inputs, given = related(), torch.ones(4000, 4) > 0
    given[:1000, T1] = False
    spoiled = inputs.clone()
    spoiled[:1000, T1] = 99.0
    assert torch.allclose(fitted(inputs, given).coefficients, fitted(spoiled, given).coefficients)


def test_subsets_that_training_never_had_are_not_known() -> None:
    inputs, given = related(), torch.ones(4000, 4) > 0
    given[:2000, T1], given[2000:, T2] = False, False
    known = fitted(inputs, given).fitted
    assert not known[1 << T1, T2]
    assert known[1 << T1, FLAIR]
    assert not known[(1 << T1) + (1 << T2)].any()
    assert not known[0].any()


def study(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and where they were scanned: T2 in one half only."""
    images = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    scanned = torch.ones(4, 8, 8, 8) > 0
    scanned[T2, 4:] = False
    return images, scanned


def test_what_is_asked_for_or_was_not_scanned_is_never_read() -> None:
    synthesis, (images, scanned) = fitted(related()), study()
    where = torch.ones(8, 8, 8) > 0
    first = synthesis.predict(images, scanned, where, ONE_MM, [FLAIR, T1])
    images[[FLAIR, T1]] = 7.0
    images[T2, 4:] = 7.0
    second = synthesis.predict(images, scanned, where, ONE_MM, [FLAIR, T1])
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.log_variance, second.log_variance)
    assert first.known.all()


def test_each_voxel_has_the_regression_of_what_is_there() -> None:
    synthesis, (images, scanned) = fitted(related()), study()
    made = synthesis.predict(images, scanned, torch.ones(8, 8, 8) > 0, ONE_MM, [FLAIR])
    scanned[FLAIR] = False
    looks = synthesis.look(images, scanned, ONE_MM)
    for half, subset in ((slice(0, 4), [T1, T1CE, T2]), (slice(4, 8), [T1, T1CE])):
        inputs = looks[..., half, :, :].flatten(2).permute(2, 0, 1)
        expected = guess(synthesis, inputs, subset, FLAIR)[:, 0]
        torch.testing.assert_close(made.values[0, half].flatten(), expected, atol=1e-4, rtol=1e-4)


def test_means_are_those_over_what_was_scanned_in_millimetres() -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=1, scales=(2.0,)))
    images, scanned = study()
    constant = torch.full_like(images, 3.0)
    looks = synthesis.look(constant, scanned, ONE_MM)
    assert torch.allclose(looks[T2, 1, :4], torch.tensor(3.0))
    fine = synthesis.look(images, scanned, ONE_MM)[T1, 1]
    coarse = synthesis.look(images, scanned, (4.0, 4.0, 4.0))[T1, 1]
    assert torch.allclose(coarse, images[T1])  # two millimetres are less than a voxel
    assert fine.std() < 0.6 * images[T1].std()


@pytest.mark.parametrize("length", [32, 33, 39])
def test_means_lie_where_their_cubes_lie(length: int) -> None:
    synthesis = VoxelSynthesis(STANDARD[:1], SynthesisConfig(units=1, scales=(8.0,)))
    ramp = torch.arange(float(length)).expand(1, 16, 16, length)
    mean = synthesis.look(ramp, torch.ones_like(ramp, dtype=torch.bool), ONE_MM)[0, 1, 8, 8]
    torch.testing.assert_close(mean[4:28], torch.arange(4.0, 28))


def test_a_slab_thinner_than_the_cubes_is_predicted() -> None:
    scanned = torch.ones(4, 9, 9, 1) > 0
    looks = VoxelSynthesis(STANDARD, SynthesisConfig(units=1, scales=(4.0,))).look(scanned.float(), scanned, ONE_MM)
    torch.testing.assert_close(looks[:, 1], torch.ones(4, 9, 9, 1))


def test_deviations_are_those_of_what_was_scanned_in_the_cube() -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=1, scales=(), deviations=(8.0,)))
    images, scanned = study()
    looks = synthesis.look(images, scanned, ONE_MM)
    for modality in (T1, T2):  # T2 was scanned in one half; the cube is the whole volume
        expected = images[modality][scanned[modality]].std(correction=0)
        torch.testing.assert_close(looks[modality, 1], expected.expand(8, 8, 8))


def test_depth_is_the_distance_to_the_edge_of_what_was_scanned() -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=1, scales=(), depth=True))
    images, scanned = study()
    scanned[:, 0] = False
    far, near = synthesis.look(images, scanned, (2.0, 1.0, 1.0))[T1, 1:]
    torch.testing.assert_close(far[:, 4, 4], 2 * torch.arange(8.0) / 20)
    torch.testing.assert_close(near[1:, 4, 4], torch.exp(-2 * torch.arange(1.0, 8) / 5))
    assert not near[0].any()
    scanned[T2] = False
    assert not synthesis.look(images, scanned, ONE_MM)[T2].any()


def test_a_hole_is_no_edge() -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=1, scales=(), depth=True))
    images, scanned = study()
    scanned[:, 0] = False
    whole = synthesis.look(images, scanned, ONE_MM)[T1, 1:]
    scanned[T1, 4, 4, 4] = False
    with_hole = synthesis.look(images, scanned, ONE_MM)[T1, 1:]
    assert not with_hole[:, 4, 4, 4].any()
    whole[:, 4, 4, 4] = 0
    torch.testing.assert_close(with_hole, whole)


def test_elsewhere_nothing_is_predicted() -> None:
    synthesis, (images, scanned) = fitted(related()), study()
    where = torch.zeros(8, 8, 8) > 0
    where[2:4] = True
    made = synthesis.predict(images, scanned, where, ONE_MM, [FLAIR])
    assert not made.values[:, ~where].any()
    assert not made.known[:, ~where].any()
    scanned[:] = False
    assert not synthesis.predict(images, scanned, where, ONE_MM, [FLAIR]).known.any()


def test_the_model_prefers_voxels_to_patches_where_they_are_known() -> None:
    model, images = tiny_mae(synthesis=8), volumes()
    visible = torch.zeros(1, 4, 8, dtype=torch.bool)
    visible[:, :2] = True
    targets = torch.zeros_like(visible)
    targets[:, FLAIR] = True
    made = model.predict(images, visible, targets)[0, FLAIR]
    assert model.synthesis is not None
    scanned = torch.zeros(4, 16, 16, 16, dtype=torch.bool)
    scanned[:2] = True
    expected = model.synthesis.predict(images[0], scanned, scanned[0], ONE_MM, [FLAIR]).values[0]
    torch.testing.assert_close(made, expected)
    model.synthesis.fitted[:] = False
    patches = model.place(model(images, visible, targets).values, targets, (16, 16, 16))[0, FLAIR]
    torch.testing.assert_close(model.predict(images, visible, targets)[0, FLAIR], patches)


def test_voxels_that_one_modality_lacks_are_not_read_as_its_mean() -> None:
    """A field of view that ends inside a patch."""
    model, images = tiny_mae(synthesis=8), volumes()
    valid = torch.ones_like(images) > 0
    valid[:, T1CE, :, :, 12:] = False
    images = images * valid
    visible = torch.zeros(1, 4, 8, dtype=torch.bool)
    visible[:, :2] = True
    targets = torch.zeros_like(visible)
    targets[:, FLAIR] = True
    scanned = valid[0].clone()
    scanned[2:] = False
    assert model.synthesis is not None
    expected = model.synthesis.predict(images[0], scanned, scanned.any(0), ONE_MM, [FLAIR])
    assert bool(expected.known.all())
    made = model.predict(images, visible, targets, valid)[0, FLAIR]
    torch.testing.assert_close(made, expected.values[0])
    assert not torch.allclose(model.predict(images, visible, targets)[0, FLAIR], made, atol=1e-3)


@pytest.mark.parametrize("like", [T1, FLAIR])
def test_a_fit_grows_without_forgetting(like: int) -> None:
    synthesis, inputs = fitted(related()), related(seed=2)
    origin = [T1, T1CE, like, T2, FLAIR]  # the new one stands third
    grown = VoxelSynthesis((*STANDARD, "swi"), synthesis.config)
    grown.grow_from(synthesis, origin, 2)
    more = inputs[:, origin]
    torch.testing.assert_close(guess(grown, more, [0, 3], 1), guess(synthesis, inputs, [T1, T2], T1CE))
    torch.testing.assert_close(guess(grown, more, [2, 3], 1), guess(synthesis, inputs, [like, T2], T1CE))
    torch.testing.assert_close(guess(grown, more, [1, 3], 2), guess(synthesis, inputs, [T1CE, T2], like))
    twin = 0 if like == T1 else 4
    assert not grown.fitted[(1 << 2) + (1 << twin)].any()
    assert not grown.fitted[1 << twin, 2]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="penalty above 0"):
        SynthesisConfig(units=8, scales=(0.0,))
    with pytest.raises(ConfigError, match="at most 6 modalities, got 7"):
        VoxelSynthesis(tuple("abcdefg"), SynthesisConfig(units=8))


def test_a_modality_on_a_robust_scale_may_have_any_other() -> None:
    config = SynthesisConfig(units=8, scales=(4.0,), deviations=(4.0,), robust=("T1w",))
    synthesis = VoxelSynthesis(STANDARD, config)
    images, scanned = study()
    looks = synthesis.look(images, scanned, ONE_MM)
    quartiles = torch.quantile(looks[T1, 0][scanned[T1]], torch.tensor([0.25, 0.5, 0.75]))
    assert quartiles[1] == pytest.approx(0, abs=1e-5)
    assert quartiles[2] - quartiles[0] == pytest.approx(1.349, abs=1e-3)
    brighter = images.clone()
    brighter[[T1, T1CE]] = 1.7 * images[[T1, T1CE]] + 0.4
    again = synthesis.look(brighter, scanned, ONE_MM)
    torch.testing.assert_close(again[T1], looks[T1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(again[T1CE], looks[T1CE], atol=0.1)
    assert not looks[:, :, ~scanned.any(0)].any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_has_no_quartiles_is_read_as_it_is(share: float) -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=8, scales=(4.0,), robust=("t1",)))
    images, scanned = torch.full((4, 8, 8, 8), 2.0), torch.full((4, 8, 8, 8), bool(share))
    looks = synthesis.look(images, scanned, ONE_MM)
    torch.testing.assert_close(looks[T1], torch.full_like(looks[T1], 2 * share))


def test_a_background_that_is_almost_even_does_not_blow_up_the_rest() -> None:
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=8, scales=(4.0,), robust=("t1",)))
    images, scanned = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(4, 8, 8, 8) > 0
    images[T1, :6] *= 1e-3
    assert float(synthesis.look(images, scanned, ONE_MM)[T1].abs().max()) == 8


def test_predictions_of_a_robust_modality_are_z_scores() -> None:
    inputs = related()
    truth = inputs[..., 0].clone()
    inputs[:, T1] = 2 * inputs[:, T1] + 1  # the scale that T1 is read on
    synthesis = VoxelSynthesis(STANDARD, SynthesisConfig(units=16, scales=(2.0,), robust=("t1",), penalty=1e-9))
    given = torch.ones(len(inputs), 4) > 0
    synthesis.fit(Examples(inputs, given, torch.arange(len(inputs)) % 2 == 0, truth))
    made = guess(synthesis, inputs, [T2], T1)[:, 0]  # tells nothing: the mean
    assert float(made.mean()) == pytest.approx(float(truth[:, T1].mean()), abs=1e-3)

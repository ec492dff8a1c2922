"""A known displacement is found again, the same on every run, and never makes things worse."""

import numpy as np
import pytest
from synthetic_brain import errors, rigid, synthetic_brain

from bmmae.data.raw.registration import RegistrationConfig, mutual_information, register, similarity
from bmmae.data.raw.resampling import Grid, Volume, coverage, resample
from bmmae.errors import ImageError
from bmmae.modalities import STANDARD

pytest.importorskip("SimpleITK")
T1, T1CE, T2, FLAIR = STANDARD


@pytest.fixture(scope="module")
def brain() -> dict[str, Volume]:
    made = synthetic_brain()
    return {name: Volume(made[name].astype(np.float32), made["affine"]) for name in STANDARD}


@pytest.mark.parametrize("name", [T1, T2, FLAIR])
def test_a_known_displacement_is_recovered(brain: dict[str, Volume], name: str) -> None:
    truth = rigid((8, -5, 6), (9, -6, 4))
    displaced = Volume(resample(brain[name], np.linalg.inv(truth), brain[name].grid), brain[name].affine)
    found = register(brain[T1CE], displaced)
    millimetres, degrees = errors(found.matrix, truth)
    assert millimetres < 1
    assert degrees < 1
    assert found.after > found.before + 0.1


def test_images_that_are_aligned_stay_so(brain: dict[str, Volume]) -> None:
    found = register(brain[T1CE], brain[T2])
    assert found.after >= found.before
    assert max(errors(found.matrix, np.eye(4))) < 0.5


def test_the_same_images_give_the_same_transform_on_every_run(brain: dict[str, Volume]) -> None:
    config = RegistrationConfig(levels=(6.0,), iterations=20)
    first, second = (register(brain[T1CE], brain[FLAIR], config) for _ in range(2))
    assert np.array_equal(first.matrix, second.matrix)


@pytest.mark.slow
def test_an_affine_registration_finds_another_size(brain: dict[str, Volume]) -> None:
    truth = np.diag([1.08, 0.95, 1.05, 1.0])
    scaled = Volume(resample(brain[T1], np.linalg.inv(truth), brain[T1].grid), brain[T1].affine)
    found = register(brain[T1CE], scaled, RegistrationConfig(kind="affine"))
    assert np.abs(np.diag(found.matrix)[:3] - np.diag(truth)[:3]).max() < 0.03
    assert found.after >= similarity(brain[T1CE], scaled, truth)


def test_an_empty_image_cannot_be_registered(brain: dict[str, Volume]) -> None:
    flat = Volume(np.ones((9, 9, 9), np.float32), np.eye(4))
    with pytest.raises(ImageError, match="needs an image with contrast"):
        register(brain[T1CE], flat)


def test_mutual_information_is_entropy_for_equal_images_and_none_for_unrelated_ones() -> None:
    rng = np.random.default_rng(0)
    two = rng.integers(0, 2, (20, 20, 20))
    inside = np.ones(two.shape, bool)
    assert mutual_information(two, 5 - two, inside) == pytest.approx(np.log(2), abs=1e-3)
    assert mutual_information(two, rng.integers(0, 2, two.shape), inside) < 1e-3
    assert mutual_information(two, two, ~inside) == 0


def test_resampling_to_the_same_grid_changes_nothing(brain: dict[str, Volume]) -> None:
    volume = brain[T2]
    assert np.allclose(resample(volume, np.eye(4), volume.grid), volume.array)


def test_a_reoriented_grid_holds_the_same_places() -> None:
    affine = np.array([[0, 0, 3.0, 5], [1, 0, 0, -4], [0, -2, 0.0, 9], [0, 0, 0, 1]])
    grid = Grid((4, 5, 6), affine)
    turned = grid.reoriented()
    assert turned.shape == (6, 4, 5)
    assert np.all(np.sign(np.diag(turned.affine)[:3]) == (-1, -1, 1))
    array = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    assert np.allclose(resample(Volume(array, affine), np.eye(4), turned), array.transpose(2, 0, 1)[::-1, ::-1, ::-1])


def test_a_finer_grid_keeps_the_field_of_view() -> None:
    grid = Grid((4, 4, 4), np.diag([2.0, 2.0, 3.0, 1.0]))
    fine = grid.at_spacing(1.0)
    assert fine.shape == (8, 8, 12)
    corner = fine.affine @ (-0.5, -0.5, -0.5, 1)
    assert np.allclose(corner, grid.affine @ (-0.5, -0.5, -0.5, 1))
    assert coverage(grid, np.eye(4), fine).all()
    shifted = np.eye(4)
    shifted[0, 3] = 4
    assert coverage(grid, shifted, fine).mean() == pytest.approx(0.5)


def test_labels_are_never_mixed() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 4
    labels[4:6, 2:6, 2:6] = 1
    grid = Grid((8, 8, 8), np.eye(4)).at_spacing(0.5)
    assert set(np.unique(resample(Volume(labels, np.eye(4)), np.eye(4), grid, "label"))) == {0, 1, 4}

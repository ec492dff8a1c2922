"""To the model's grid and back: nothing flips, nothing shifts."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from tiny_studies import picture, turn_to

from bmmae.arrays import Array
from bmmae.data.geometry import (
    Geometry,
    grid_difference,
    interpolation_matrix,
    resample,
    same_grid,
    sheared,
    turned_like,
    unsure_axes,
)
from bmmae.errors import ImageError
from bmmae.patches import Triple

ORIENTATIONS = [
    "".join(pairs[axis][side] for axis, side in zip(order, sides, strict=True))
    for order in permutations(range(3))
    for sides in product((0, 1), repeat=3)
    for pairs in [("RL", "AP", "SI")]
]


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_from_canonical_undoes_to_canonical(orientation: str) -> None:
    canonical = picture(shape=(4, 5, 6))
    source = nib.Nifti1Image(canonical, np.diag([1, 2, 3, 1]))
    stored = source.as_reoriented(turn_to(orientation))
    assert "".join(nib.aff2axcodes(stored.affine)) == orientation
    native = np.asarray(stored.dataobj)
    geometry = Geometry.of(native.shape, stored.affine, (1.0, 1.0, 1.0))
    assert np.array_equal(geometry.to_canonical(native), canonical)
    assert np.array_equal(geometry.from_canonical(canonical), native)
    assert geometry.canonical_spacing == (1, 2, 3)
    assert geometry.canonical_shape == (4, 5, 6)
    assert geometry.resampled_shape == (4, 10, 18)


def test_a_grid_of_the_models_spacing_is_never_interpolated() -> None:
    volume = picture(shape=(7, 8, 9))
    geometry = Geometry.of(volume.shape, np.diag([2.0, 2.0001, 2.0, 1.0]), (2.0, 2.0, 2.0))
    assert np.array_equal(geometry.to_model(volume), volume)
    assert np.array_equal(geometry.to_native_spacing(volume), volume)


def test_an_oblique_grid_is_resampled_along_its_own_axes() -> None:
    turn = nib.eulerangles.euler2mat(0.2, 0.1, -0.3) * np.array([1.0, 2.0, 3.0])
    geometry = Geometry.of((10, 10, 10), nib.affines.from_matvec(turn, [5, 6, 7]), (1.0, 1.0, 1.0))
    assert geometry.canonical_spacing == pytest.approx((1, 2, 3))
    assert geometry.resampled_shape == (10, 20, 30)


@pytest.mark.parametrize("step", [1.0, 1.2, 0.9375, 220 / 512, 5.5])
def test_what_a_header_loses_by_rounding_does_not_change_the_voxel_size(step: float) -> None:
    rng = np.random.default_rng(0)
    plain = Geometry.of((9, 9, 9), np.diag([step, step, step, 1.0]), (2.0, 2.0, 2.0))
    assert plain.canonical_spacing == pytest.approx([step] * 3, abs=1e-5)
    for angles in rng.uniform(-0.7, 0.7, (20, 3)):
        turn = (nib.eulerangles.euler2mat(*angles) * step).astype(np.float32)
        turned = Geometry.of((9, 9, 9), nib.affines.from_matvec(turn), (2.0, 2.0, 2.0))
        assert turned.canonical_spacing == plain.canonical_spacing


@pytest.mark.parametrize(
    ("qform", "sform", "told"),
    [
        ((-1, 1, 1), (-1, 1, 1), ""),
        (None, (-1, 1, 1), ""),
        ((-1, 1, 1), None, ""),
        (None, None, "its header does not say (qform and sform codes are 0); LAS is assumed"),
        ((1, 1, 1), (-1, 1, 1), "its header says RAS by the qform and LAS by the sform, which is used"),
    ],
)
def test_axes_that_a_header_leaves_open_are_told(
    qform: tuple[int, ...] | None, sform: tuple[int, ...] | None, told: str
) -> None:
    header = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).header
    for said, put in ((qform, header.set_qform), (sform, header.set_sform)):
        put(None if said is None else np.diag([*said, 1]), 0 if said is None else 1)
    assert unsure_axes(header) == told


def blob(shape: Triple, spacing: tuple[float, ...], centre: tuple[float, ...], width: float = 6.0) -> Array:
    """A Gaussian in millimetres, sampled at voxel centres; the corner of the grid is at 0 mm."""
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)]
    mesh = np.meshgrid(*axes, indexing="ij")
    distance = sum((m - c) ** 2 for m, c in zip(mesh, centre, strict=True))
    return np.exp(-distance / (2 * width**2)).astype(np.float32)


def centre_of_mass(volume: Array, spacing: tuple[float, ...]) -> Array:
    return (np.array(ndimage.center_of_mass(volume)) + 0.5) * spacing


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.7, 1.3, 2.5), (1.0, 3.0, 1.0)])
def test_resampling_moves_nothing(spacing: tuple[float, float, float]) -> None:
    centre = (22.0, 25.0, 27.0)
    volume = blob((48, 48, 48), (1, 1, 1), centre)
    geometry = Geometry.of((48, 48, 48), np.eye(4), spacing)
    coarse = geometry.to_model(volume)
    back = geometry.to_native_spacing(coarse)
    assert centre_of_mass(coarse, spacing) == pytest.approx(centre, abs=0.1)
    assert centre_of_mass(back, (1, 1, 1)) == pytest.approx(centre, abs=0.1)
    assert np.abs(back - volume).max() < 0.15
    assert np.abs(coarse - blob(coarse.shape, spacing, centre)).max() < 0.1


@pytest.mark.parametrize(
    ("source", "target", "ratio"), [(10, 5, 2.0), (5, 10, 0.5), (7, 4, 1.7), (9, 9, 1.0), (1, 4, 0.25)]
)
def test_interpolation_weights_keep_constants_and_straight_lines(source: int, target: int, ratio: float) -> None:
    matrix = interpolation_matrix(source, target, ratio)
    assert matrix.sum(axis=1) == pytest.approx(np.ones(target))
    assert (matrix >= 0).all()
    line = matrix @ np.arange(source) + 0.5
    inner = slice(2, -2)
    assert line[inner] == pytest.approx(((np.arange(target) + 0.5) * ratio)[inner], abs=0.26 if ratio > 1 else 1e-5)


def test_downsampling_averages_instead_of_skipping() -> None:
    stripes = np.indices((16, 16, 16))[0] % 2
    coarse = resample(stripes.astype(np.float32), (4, 16, 16), (4.0, 1.0, 1.0))
    assert coarse[1:-1] == pytest.approx(0.5, abs=0.05)


def test_a_crop_returns_to_its_place() -> None:
    volume = picture(shape=(10, 12, 14))
    geometry = Geometry.of(volume.shape, np.eye(4), (1.0, 1.0, 1.0)).cropped((2, 0, 5), (4, 12, 6))
    crop = geometry.to_model(volume)
    back = geometry.to_native_spacing(crop)
    assert np.array_equal(crop, volume[2:6, :, 5:11])
    assert np.array_equal(back[geometry.window], crop)
    assert np.count_nonzero(back) == np.count_nonzero(crop)


@pytest.mark.parametrize("affine", [np.diag([1.0, 0.0, 1.0, 1.0]), np.full((4, 4), np.nan)])
def test_an_affine_without_a_direction_is_refused(affine: Array) -> None:
    with pytest.raises(ImageError, match=r"cannot be inverted: repair the image's header"):
        Geometry.of((4, 4, 4), affine, (1.0, 1.0, 1.0))


def test_what_two_grids_differ_in_is_said() -> None:
    shape, ras, las, turned = (20, 24, 16), np.eye(4), np.diag([-1.0, 1, 1, 1]), np.eye(4)
    las[0, 3] = 19
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert grid_difference(shape, ras, shape, las) == " (axes point to RAS here and LAS there)"
    assert grid_difference(shape, ras, shape, np.diag([1, 1, 1.1, 1])) == (
        " (by the headers, up to 1.5 mm lie between the same voxels)"
    )
    assert "up to 18.9 mm" in grid_difference(shape, turned, shape, ras)
    assert grid_difference(shape, ras, (20, 24, 15), ras) == ""


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_axes_moves_no_voxel(orientation: str) -> None:
    volume = picture(shape=(4, 5, 6))
    # Nearly half a right angle: which axis is nearest to right depends on rounding, which voxels are the same does not.
    oblique = nib.affines.from_matvec(nib.eulerangles.euler2mat(np.pi / 4, 0.1, 0) * np.array([1, 2, 3]), (5, -7, 11))
    stored = nib.Nifti1Image(volume, oblique).as_reoriented(turn_to(orientation))
    rounded = stored.affine.astype(np.float32)
    array, affine = turned_like(np.asarray(stored.dataobj), rounded, oblique)
    assert np.array_equal(array, volume)
    assert same_grid(array.shape, affine, volume.shape, oblique)


def test_axes_that_are_not_at_right_angles_are_told() -> None:
    turn = nib.eulerangles.euler2mat(0.2, 0.1, -0.3) * np.array([1.0, -2.0, 6.0])
    assert not sheared(nib.affines.from_matvec(turn.astype(np.float32)))
    turn[:, 2] += 0.01 * turn[:, 1]
    assert not sheared(nib.affines.from_matvec(turn))
    turn[:, 2] += 0.1 * turn[:, 1]
    assert sheared(nib.affines.from_matvec(turn))

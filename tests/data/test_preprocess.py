"""From files to arrays: z-scores inside the brain, exactly zero elsewhere, and coverage carried along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_studies import SHAPE, brain, lesion, picture, save, write_study

from bmmae.arrays import Array
from bmmae.data.cohort import Study
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig, bounding_box, prepare_images, prepare_study
from bmmae.data.reading import Image
from bmmae.errors import ConfigError, GeometryError, ImageError
from bmmae.modalities import STANDARD

PLAIN = PreprocessConfig()
COARSE = PreprocessConfig(spacing=(1.6, 2.0, 1.3))


def prepare(
    *volumes: Array, config: PreprocessConfig = PLAIN, mask: Array | None = None, **more: Array
) -> PreparedStudy:
    names = STANDARD[: len(volumes)]
    images = [Image(v, np.eye(4), Path(f"{n}.nii.gz")) for n, v in zip(names, volumes, strict=True)]
    return prepare_images(names, images, config, masks=[mask] * len(names), **more)


@pytest.mark.parametrize("config", [PLAIN, COARSE])
def test_intensities_are_standardised_inside_the_brain(config: PreprocessConfig) -> None:
    prepared = prepare(picture(0), picture(1) * 1000 - 5e6 * brain(), config=config)
    inside = prepared.images[:, prepared.brain]
    assert np.abs(inside.mean(1)).max() < 0.1
    assert inside.std(1) == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("config", [PLAIN, COARSE])
def test_images_are_exactly_zero_outside_the_brain_and_where_not_scanned(config: PreprocessConfig) -> None:
    partial = picture(1)
    partial[:, :, 9:] = 0
    prepared = prepare(picture(0), partial, config=config)
    assert not prepared.images[:, ~prepared.brain].any()
    assert not prepared.images[~prepared.valid].any()
    assert np.count_nonzero(prepared.images[0]) == prepared.brain.sum()


@pytest.mark.parametrize("config", [PLAIN, COARSE])
def test_what_was_not_scanned_is_not_valid_and_background_is(config: PreprocessConfig) -> None:
    partial = picture(1)
    partial[:, :, 9:] = 0
    prepared = prepare(picture(0), partial, config=config)
    limit = round(9 / config.spacing[2]) - prepared.geometry.start[2]
    assert prepared.valid[0].all()
    assert prepared.valid[1][~prepared.brain].all()
    assert prepared.valid[1][..., : limit - 1].all()
    assert not prepared.valid[1][..., limit + 1 :][prepared.brain[..., limit + 1 :]].any()


def test_background_does_not_bleed_into_tissue() -> None:
    config = replace(COARSE, clip=50.0)
    volume = np.where(brain(), 1000 + picture() / 100, 0).astype(np.float32)
    prepared = prepare(volume, config=config)
    assert np.abs(prepared.images).max() < 4


def test_the_arrays_are_cropped_to_the_brain() -> None:
    prepared = prepare(picture())
    for axis in range(3):
        profile = prepared.brain.any(axis=tuple({0, 1, 2} - {axis}))
        assert profile[0]
        assert profile[-1]
    start, size = bounding_box(brain())
    assert (prepared.geometry.start, prepared.shape) == (start, size)


@pytest.mark.parametrize("config", [PLAIN, COARSE])
@pytest.mark.parametrize("huge", [1e9, -1e9, 3e38])
def test_one_huge_voxel_changes_little(huge: float, config: PreprocessConfig) -> None:
    volume = picture()
    volume[10, 12, 8] = huge
    prepared, clean = prepare(volume, config=config), prepare(picture(), config=config)
    assert np.abs(prepared.images).max() <= config.clip
    changed = np.abs(prepared.images - clean.images) > 0.05
    assert changed.sum() <= 64
    assert prepared.scales[0] == pytest.approx(clean.scales[0], rel=0.05)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_intensities_does_not_matter(factor: float) -> None:
    expected = prepare(picture()).images
    assert np.allclose(prepare((picture() * factor).astype(np.float32)).images, expected, atol=1e-4)


def test_negative_intensities_are_tissue() -> None:
    shifted = np.where(brain(), picture() - 100, 0).astype(np.float32)
    assert np.allclose(prepare(shifted).images, prepare(picture()).images, atol=1e-4)


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(ImageError, match="the t1 image has one constant value inside the brain"):
        prepare(np.where(brain(), 7, 0).astype(np.float32))


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(ImageError, match="no brain voxel found"):
        prepare(np.zeros(SHAPE, np.float32))


def test_a_modality_with_nothing_in_the_brain_is_not_valid_there() -> None:
    outside = np.where(brain(radius=0.3), 0, picture(1)).astype(np.float32)
    prepared = prepare(picture(0), outside, mask=brain(radius=0.3))
    assert not prepared.valid[1][prepared.brain].any()
    assert not prepared.images[1].any()


def test_labels_stay_on_the_grid_of_the_images() -> None:
    prepared = prepare(picture(), label=lesion())
    assert prepared.label is not None
    assert np.array_equal(prepared.label, lesion()[prepared.geometry.window])


def test_resampled_labels_keep_their_values_place_and_size() -> None:
    prepared = prepare(picture(), label=lesion(), config=COARSE)
    assert prepared.label is not None
    assert set(np.unique(prepared.label)) <= {0, 1, 2, 4}
    volume = float((prepared.label > 0).sum() * np.prod(COARSE.spacing))
    assert volume == pytest.approx(float((lesion() > 0).sum()), rel=0.15)
    ratio = np.array(COARSE.spacing)
    there = (np.argwhere(prepared.label > 0).mean(0) + prepared.geometry.start + 0.5) * ratio
    assert there == pytest.approx(np.argwhere(lesion() > 0).mean(0) + 0.5, abs=0.5)


def test_a_study_without_a_lesion_has_an_empty_label() -> None:
    prepared = prepare(picture(), label=np.zeros(SHAPE, np.int16), config=COARSE)
    assert prepared.label is not None
    assert prepared.label.shape == prepared.shape
    assert not prepared.label.any()


def test_a_study_is_the_same_in_any_orientation(tmp_path: Path) -> None:
    first = prepare_study(write_study(tmp_path / "ras"), COARSE, STANDARD)
    for orientation in ("LPS", "PIR", "SAL"):
        other = prepare_study(write_study(tmp_path / orientation, orientation=orientation), COARSE, STANDARD)
        assert np.allclose(first.images, other.images, atol=1e-4)
        assert np.array_equal(first.label, other.label)


def test_only_the_modalities_asked_for_are_read_in_their_order(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1", "flair"))
    assert prepare_study(study, PLAIN, STANDARD).names == ("t1", "flair")
    assert prepare_study(study, PLAIN, ("flair", "t1")).names == ("flair", "t1")
    with pytest.raises(ImageError, match="study 'a' has none of the modalities t2; it has: t1, flair"):
        prepare_study(study, PLAIN, ("t2",))


def test_each_modality_may_have_its_own_mask(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1", "t2"))
    small = save(tmp_path / "a" / "mask.nii.gz", brain(radius=0.5).astype(np.uint8))
    large = save(tmp_path / "a" / "mask2.nii.gz", brain(radius=0.6).astype(np.uint8))
    prepared = prepare_study(replace(study, brain_mask=small, brain_masks={"t2": large}), PLAIN, STANDARD)
    assert prepared.brain_source == "mask"
    assert prepared.brain.sum() == brain(radius=0.6).sum()
    assert (prepared.valid[0] & prepared.brain).sum() == brain(radius=0.5).sum()


@pytest.mark.parametrize(
    ("change", "difference"), [("shape", ""), ("affine", r" \(by the headers, up to 1\.5 mm .*\)")]
)
def test_images_on_different_grids_are_refused_by_name(tmp_path: Path, change: str, difference: str) -> None:
    study = write_study(tmp_path / "a", ("t1", "t2"))
    other = picture(shape=(20, 24, 15)) if change == "shape" else picture()
    save(study.images["t2"], other, spacing=(1, 1, 1) if change == "shape" else (1, 1, 1.1))
    names = r"t1\.nii\.gz \(20, 24, 16\) and t2\.nii\.gz \(20, 24, 1[56]\) are on different grids"
    with pytest.raises(GeometryError, match=f"{names}{difference}: register and resample .* `bmmae preprocess`"):
        prepare_study(study, PLAIN, STANDARD)


def test_a_label_on_another_grid_is_refused_by_name(tmp_path: Path) -> None:
    study = write_study(tmp_path / "a", ("t1",))
    assert study.seg is not None
    save(study.seg, lesion((20, 24, 15)))
    with pytest.raises(GeometryError, match=r"seg\.nii\.gz .* is not on the grid of t1\.nii\.gz"):
        prepare_study(study, PLAIN, STANDARD)


@pytest.mark.parametrize("orientation", ["LPS", "PSR", "ILA"])
def test_drawings_with_other_axes_on_the_same_voxels_are_turned(tmp_path: Path, orientation: str) -> None:
    study = write_study(tmp_path / "a", ("t1",))
    assert study.seg is not None
    mask = save(tmp_path / "a" / "mask.nii.gz", brain(radius=0.6).astype(np.uint8))
    chances = save(tmp_path / "a" / "soft.nii.gz", (lesion() / 4).astype(np.float32))
    full = replace(study, brain_mask=mask, lesion=chances)
    before = prepare_study(full, COARSE, STANDARD)
    save(study.seg, lesion(), orientation)
    save(mask, brain(radius=0.6).astype(np.uint8), orientation)
    save(chances, (lesion() / 4).astype(np.float32), orientation)
    after = prepare_study(full, COARSE, STANDARD)
    for name in ("label", "brain", "lesion", "images"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    save(study.seg, lesion(), orientation, spacing=(1, 1, 1.1))
    difference = r"\(by the headers, up to 1\.5 mm lie between the same voxels\)"
    with pytest.raises(GeometryError, match=rf"seg\.nii\.gz .* is not on the grid of t1\.nii\.gz .* {difference}"):
        prepare_study(full, COARSE, STANDARD)


def test_a_grid_with_a_shear_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "t1.nii.gz"
    affine = np.eye(4)
    affine[1, 2] = 0.3
    nib.save(nib.Nifti1Image(picture(), affine), path)
    with pytest.raises(GeometryError, match=r"the axes of t1\.nii\.gz are not at right angles.* `bmmae preprocess`"):
        prepare_study(Study("a", {"t1": path}), PLAIN, STANDARD)


def test_windows_hold_what_the_arrays_hold() -> None:
    prepared = prepare(picture(0), picture(1), label=lesion())
    window = prepared.window((1, 2, 3), (4, 5, 6))
    assert np.array_equal(window.images, prepared.images[:, 1:5, 2:7, 3:9])
    assert np.array_equal(window.brain, prepared.brain[1:5, 2:7, 3:9])


def test_beyond_the_arrays_is_background_that_was_scanned() -> None:
    prepared = prepare(picture(), label=lesion())
    window = prepared.window((-3, -3, -3), tuple(n + 8 for n in prepared.shape))  # type: ignore[arg-type]
    assert window.label is not None
    assert prepared.label is not None
    assert np.array_equal(window.images[:, 3:-5, 3:-5, 3:-5], prepared.images)
    assert window.brain.sum() == prepared.brain.sum()
    assert (window.label > 0).sum() == (prepared.label > 0).sum()
    assert window.valid[:, :3].all()


def test_a_window_far_outside_is_empty() -> None:
    window = prepare(picture()).window((100, -50, 0), (4, 4, 4))
    assert not window.images.any()
    assert window.valid.all()
    assert not window.brain.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (1.0, 0.0, 1.0)}, "preprocess.spacing must be three positive millimetres"),
        ({"clip": 0.0}, "preprocess.clip must be positive, got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PreprocessConfig(**changes)  # type: ignore[arg-type]


def test_phantoms_open_with_the_orientation_they_were_saved_in(tmp_path: Path) -> None:
    stored = nib.load(save(tmp_path / "a.nii.gz", picture(), "PIR"))
    assert nib.aff2axcodes(stored.affine) == ("P", "I", "R")

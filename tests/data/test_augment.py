"""Augmentation is a function of the address, keeps everything aligned, and touches nothing outside the brain."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_studies import brain, picture, write_study

from bmmae.arrays import Array
from bmmae.config import SegmentConfig, parse
from bmmae.data.augment import (
    CHANGING_NOTHING,
    HEAVY,
    NO_AUGMENTATION,
    RANGES,
    AugmentConfig,
    Draw,
    augment_sample,
    draw_turn,
)
from bmmae.data.cache import StudyCache
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.intensity import low_resolution
from bmmae.data.labels import BRATS2017
from bmmae.data.loaders import EVALUATION_EPOCH, SampleStream, training_batches
from bmmae.data.packing import unpack
from bmmae.data.preprocess import PreprocessConfig
from bmmae.data.spatial import Turn, turn_matrix, turn_sample
from bmmae.errors import ConfigError
from bmmae.modalities import STANDARD
from bmmae.patches import Triple

ALWAYS = replace(
    HEAVY,
    **{name: replace(getattr(HEAVY, name), chance=1.0) for name in RANGES},
    modality_dropout=0.0,
    flip_others=1.0,
)
SIZE: Triple = (16, 20, 12)
EFFECTS = ("bias", "gamma", "low_resolution", "blur", "noise")


def sample(shape: Triple = (20, 24, 16)) -> dict[str, Array]:
    """Three slots: complete, scanned in its lower half, absent; the label is where the image is bright."""
    tissue = brain(shape)
    scanned = np.stack([tissue | True, np.broadcast_to(np.arange(shape[2]) < shape[2] // 2, shape), ~(tissue | True)])
    pictures = np.stack([picture(modality, shape) / 20 - 5 for modality in range(3)])
    images = np.where(scanned & tissue, pictures, 0).astype(np.float32)
    label = np.stack([images[0] > 0.5, images[0] > 1])
    return {
        "images": images,
        "available": np.array([True, True, False]),
        "valid": scanned,
        "brain": tissue,
        "label": label,
    }


def only(name: str, low: float, high: float | None = None) -> AugmentConfig:
    return replace(NO_AUGMENTATION, **{name: Draw(1.0, low, low if high is None else high)})


def turned(config: AugmentConfig, seed: int = 0, content: dict[str, Array] | None = None) -> dict[str, Array]:
    """Augment a whole sample as a window that is cut from its middle."""
    whole = content or sample()
    rng = np.random.default_rng(seed)
    turn = draw_turn(config, rng, (1.0, 1.0, 1.0))
    extent = whole["brain"].shape
    if turn is None:
        return augment_sample(whole, config, rng)
    start, size = turn.source((0, 0, 0), (extent[0], extent[1], extent[2]))
    pads = [(-first, total + first - own) for first, total, own in zip(start, size, extent, strict=True)]
    wide = {
        key: value if key == "available" else np.pad(value, [(0, 0)] * (value.ndim - 3) + pads)
        for key, value in whole.items()
    }
    return augment_sample(wide, config, rng, turn, (extent[0], extent[1], extent[2]))


def dataset(folder: Path, augment: AugmentConfig, count: int = 3) -> StudyDataset:
    studies = [write_study(folder / f"p{n}", STANDARD[: n + 2], seed=n) for n in range(count)]
    cache = StudyCache(None, PreprocessConfig(), STANDARD)
    return StudyDataset(studies, View(STANDARD, (16, 16, 16), (8, 8, 8)), cache, coding=BRATS2017, augment=augment)


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in ("images", "available", "valid", "brain", "label"))


def test_samples_are_functions_of_their_address_alone(tmp_path: Path) -> None:
    data = dataset(tmp_path, replace(ALWAYS, modality_dropout=0.5))
    addresses = [(epoch, index) for epoch in range(2) for index in range(3)]
    first = [data[address] for address in addresses]
    again = [data[address] for address in reversed(addresses)][::-1]
    assert all(same(one, two) for one, two in zip(first, again, strict=True))
    assert not any(same(one, two) for rank, one in enumerate(first) for two in first[:rank])


@pytest.mark.slow
def test_workers_draw_the_same(tmp_path: Path) -> None:
    data, stream = dataset(tmp_path, ALWAYS), SampleStream(length=3, batch_size=1)
    alone, shared = (
        [unpack(batch) for batch in training_batches(data, stream, rank=0, first=0, stop=4, workers=workers)]
        for workers in (0, 2)
    )
    assert len(alone) == 4
    assert all(same(one, two) for one, two in zip(alone, shared, strict=True))


def test_evaluation_is_never_augmented(tmp_path: Path) -> None:
    heavy, plain = dataset(tmp_path, ALWAYS), dataset(tmp_path, NO_AUGMENTATION)
    assert same(heavy[EVALUATION_EPOCH, 0], plain[EVALUATION_EPOCH, 0])


@pytest.mark.parametrize("seed", range(4))
def test_outside_all_is_exactly_zero_and_absent_stays_absent(seed: int) -> None:
    out = turned(ALWAYS, seed)
    assert out["available"].tolist() == [True, True, False]
    assert not out["images"][~(out["valid"] & out["brain"])].any()
    assert not out["valid"][2].any()
    assert np.isfinite(out["images"]).all()
    assert np.count_nonzero(out["images"][0]) > 0.99 * np.count_nonzero(out["brain"] & out["valid"][0])


@pytest.mark.parametrize("name", EFFECTS)
def test_each_effect_changes_the_inside_of_every_modality_apart(name: str) -> None:
    before, after = sample(), turned(only(name, RANGES[name][0] or 0.2, 0.5))
    before["images"][1] = np.where(before["valid"][1], before["images"][0], 0)
    after = turned(only(name, 0.3, 0.6), content=before)
    change = after["images"] - before["images"]
    assert np.abs(change[0]).max() > 0.01
    both = before["valid"][1] & before["brain"]
    assert not np.allclose(change[0][both], change[1][both], atol=1e-3)
    for key in ("available", "valid", "brain", "label"):
        assert np.array_equal(before[key], after[key])


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_leave_their_input_alone(name: str) -> None:
    given = sample()
    augment_sample(given, only(name, 0.5), np.random.default_rng(0))
    assert np.array_equal(given["images"], sample()["images"])


@pytest.mark.parametrize("name", EFFECTS)
def test_tissue_of_one_voxel_stays_finite(name: str) -> None:
    given = sample()
    given["brain"] = np.zeros_like(given["brain"])
    given["brain"][10, 12, 3] = True
    out = augment_sample(given, only(name, 0.7), np.random.default_rng(0))
    assert np.isfinite(out["images"]).all()


def test_an_image_that_equals_its_label_still_does_after_flips() -> None:
    content = sample()
    content["images"][0] = content["label"][0]
    out = turned(replace(NO_AUGMENTATION, flip=1.0, flip_others=1.0), content=content)
    assert np.array_equal(out["images"][0] > 0.5, out["label"][0])
    assert not np.array_equal(out["label"], content["label"])
    assert np.array_equal(out["label"], content["label"][:, ::-1, ::-1, ::-1])


@pytest.mark.parametrize("seed", range(5))
def test_an_image_that_equals_its_label_still_does_after_a_turn(seed: int) -> None:
    content = sample((40, 48, 32))
    content["label"] = (ndimage.gaussian_filter(content["images"][0], 2) > 0.4)[None] & content["brain"]
    content["images"][0] = content["label"][0]
    config = replace(only("rotation", -30.0, 30.0), zoom=Draw(1.0, 0.8, 1.2), flip=0.5, flip_others=0.5)
    out = turned(config, seed, content)
    image, label = out["images"][0] > 0.5, out["label"][0]
    assert 2 * (image & label).sum() / (image.sum() + label.sum()) > 0.97
    assert label.sum() > 100


@pytest.mark.parametrize(("degrees", "quarters"), [(0.0, 0), (90.0, -1), (180.0, 2)])
def test_right_angles_only_move_voxels(degrees: float, quarters: int) -> None:
    content = sample((14, 14, 14))
    turn = Turn(turn_matrix(np.array([degrees, 0.0, 0.0]), 1.0, (1.0, 1.0, 1.0)))
    assert turn.source((0, 0, 0), (12, 12, 12)) == ((-1, -1, -1), (14, 14, 14))
    out = turn_sample(content, turn, (12, 12, 12))
    for key in ("images", "valid", "brain", "label"):
        middle = content[key][..., 1:-1, 1:-1, 1:-1]
        assert out[key] == pytest.approx(np.rot90(middle, quarters, (-2, -1)), abs=1e-4)


def test_zoom_scales_volume_and_rotation_keeps_it_on_an_anisotropic_grid() -> None:
    ball = np.zeros((60, 60, 60), bool)
    grid = np.stack(np.meshgrid(*[np.arange(60) - 29.5] * 3, indexing="ij")) * np.reshape([1, 1, 2], (3, 1, 1, 1))
    ball[(grid**2).sum(0) < 15**2] = True
    content = {
        "images": ball[None].astype(np.float32),
        "available": np.array([True]),
        "valid": ball[None] | True,
        "brain": ball,
    }
    for degrees, zoom in ((0.0, 1.25), (40.0, 1.0)):
        turn = Turn(turn_matrix(np.full(3, degrees), zoom, (1.0, 1.0, 2.0)))
        out = turn_sample(content, turn, (40, 40, 22))
        assert out["brain"].sum() == pytest.approx(ball.sum() * zoom**3, rel=0.02)


def test_a_turned_window_shows_what_lies_beyond_its_corners(tmp_path: Path) -> None:
    """With more brain all around, a window inside the brain is full of brain whichever way it is turned."""
    data = dataset(tmp_path, only("rotation", -45.0, 45.0), count=1)
    data.view = replace(data.view, size=(4, 4, 4), patch=(4, 4, 4))
    inner = data.cache.load(data.studies[0])
    centre = tuple(length // 2 - 2 for length in inner.shape)
    turn = draw_turn(data.augment, np.random.default_rng(0), (1.0, 1.0, 1.0))
    assert turn is not None
    window = inner.window(*turn.source((centre[0], centre[1], centre[2]), (4, 4, 4)))
    content = {"images": window.images, "available": np.ones(2, bool), "valid": window.valid, "brain": window.brain}
    assert turn_sample(content, turn, (4, 4, 4))["brain"].all()


def test_blur_and_low_resolution_keep_a_constant_image_to_the_rim() -> None:
    content = sample()
    content["images"] = np.where(content["images"] != 0, np.float32(3), np.float32(0))
    for name in ("blur", "low_resolution"):
        out = turned(only(name, 0.6), content=content)
        assert out["images"] == pytest.approx(content["images"], abs=0.01)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(24, 28, 20), (33, 31, 29)])
def test_low_resolution_moves_nothing(share: float, shape: Triple) -> None:
    centre = np.reshape(shape, (3, 1, 1, 1)) / 2 + 0.3
    image = np.exp(-((np.indices(shape) - centre) ** 2).sum(0) / 18).astype(np.float32)
    out = low_resolution(image, np.ones(shape, bool), share, np.random.default_rng(0))
    assert ndimage.center_of_mass(out) == pytest.approx(ndimage.center_of_mass(image), abs=0.05)
    assert out.max() < 0.99 * image.max()


def test_dropout_removes_the_modality_and_its_coverage() -> None:
    kept = [turned(replace(NO_AUGMENTATION, modality_dropout=1.0), seed) for seed in range(12)]
    assert {tuple(out["available"].tolist()) for out in kept} == {
        (True, False, False),
        (False, True, False),
        (True, True, False),
    }
    for out in kept:
        assert not out["images"][~out["available"]].any()
        assert not out["valid"][~out["available"]].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip_others": -1.0}, r"augment.flip_others must lie in \[0, 1\], got -1"),
        ({"noise": Draw(2.0, 0.0, 1.0)}, r"augment.noise.chance must lie in \[0, 1\], got 2"),
        (
            {"gamma": Draw(0.5, 0.0, 1.0)},
            r"gamma must go from low to high within \[0.1, 10\], got low 0 and high 1",
        ),
        ({"blur": Draw(0.5, 2.0, 1.0)}, "got low 2 and high 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**change)


def test_the_config_knows_whether_anything_happens() -> None:
    assert not replace(NO_AUGMENTATION, lesion_share=1.0, each_lesion=1.0).changes_something
    for item in fields(AugmentConfig):
        value: Any = getattr(ALWAYS, item.name)
        if item.name not in CHANGING_NOTHING:
            assert replace(NO_AUGMENTATION, **{item.name: value or 0.5}).changes_something


def test_the_config_for_few_patients_has_the_librarys_heavy_preset() -> None:
    path = Path(__file__).parents[2] / "configs" / "finetune" / "segmentation_few.yaml"
    given = ["--config", str(path), "--data.cohort", "c.csv", "--model", "m"]
    assert parse(SegmentConfig, given).augment == HEAVY


def test_one_number_of_a_draw_can_be_given_alone() -> None:
    config = parse(
        SegmentConfig, ["--data.cohort", "c.csv", "--model", "m", "--train.steps", "1", "--augment.gamma.chance", "0.3"]
    )
    assert config.augment.gamma == replace(AugmentConfig().gamma, chance=0.3)
    assert config.augment.modality_dropout == 0.8

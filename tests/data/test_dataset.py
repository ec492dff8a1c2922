"""Samples at their addresses: the same whenever and wherever they are drawn."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_studies import SHAPE, picture, save, write_study

from bmmae.data.augment import AugmentConfig, keep_random_subset
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.dataset import StudyDataset, View, centred, token_flags
from bmmae.data.labels import BRATS2017
from bmmae.data.loaders import EVALUATION_EPOCH, SampleStream, collate, training_batches
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import ConfigError
from bmmae.masking import MaskingConfig
from bmmae.modalities import STANDARD
from bmmae.patches import Triple

AUGMENT = AugmentConfig(modality_dropout=0.5, lesion_share=0.5)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Four patients with different subsets; the last FLAIR was scanned in part only."""
    folder = tmp_path_factory.mktemp("cohort")
    subsets = (STANDARD, ("t1",), ("t2", "flair"), ("t1ce", "flair"))
    made = [write_study(folder / f"p{i}", names, seed=i) for i, names in enumerate(subsets)]
    partial = picture(3, seed=3)
    partial[:, :, 8:] = 0
    save(made[3].images["flair"], partial)
    return made


def dataset(studies: list[Study], size: Triple = (16, 16, 16), tissue_only: bool = True, **more: Any) -> StudyDataset:
    cache = more.pop("cache", None) or StudyCache(None, PreprocessConfig(), STANDARD)
    more = {"masking": MaskingConfig(), "coding": BRATS2017, "augment": AUGMENT, **more}
    return StudyDataset(studies, View(STANDARD, size, (8, 8, 8), tissue_only), cache, **more)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(torch.equal(v, second[k]) if isinstance(v, torch.Tensor) else v == second[k] for k, v in first.items())


def test_a_sample_is_a_function_of_its_address(studies: list[Study]) -> None:
    one, other = dataset(studies), dataset(studies)
    one[5, 1], one[0, 0]  # history
    for address in ((0, 0), (3, 2), (EVALUATION_EPOCH, 1)):
        assert same(one[address], other[address])


def test_no_two_addresses_draw_the_same(studies: list[Study]) -> None:
    twins = dataset([studies[0]] * 3)
    drawn = [twins[epoch, index] for epoch in range(3) for index in range(3)]
    assert not any(same(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_sample_has_an_epoch_and_a_place(studies: list[Study]) -> None:
    with pytest.raises(TypeError, match=r"samples stand at \(epoch, index\), got 0: .*training_batches"):
        inspect.unwrap(StudyDataset.__getitem__)(dataset(studies), 0)
    for index in (-1, len(studies)):
        with pytest.raises(IndexError, match=f"no sample {index} of {len(studies)}"):
            dataset(studies)[0, index]


def test_seeds_draw_differently(studies: list[Study]) -> None:
    assert not same(dataset(studies, seed=0)[0, 0], dataset(studies, seed=1)[0, 0])


def test_evaluation_is_centred_and_not_augmented(studies: list[Study]) -> None:
    plain = dataset(studies, augment=AugmentConfig(0.0, 0.0, 0.0))
    sample = dataset(studies)[EVALUATION_EPOCH, 0]
    assert same(sample, plain[EVALUATION_EPOCH, 0])
    assert sample["available"].all()


def test_samples_have_the_contracts_shapes(studies: list[Study]) -> None:
    sample = dataset(studies)[0, 3]
    shapes = {key: (tuple(v.shape), v.dtype) for key, v in sample.items() if isinstance(v, torch.Tensor)}
    flag, volume = torch.bool, (16, 16, 16)
    assert shapes == {
        "images": ((4, *volume), torch.float32),
        "available": ((4,), flag),
        "valid": ((4, *volume), flag),
        "brain": (volume, flag),
        "label": ((3, *volume), flag),
        "mask": ((4, 8), flag),
        "decode": ((4, 8), flag),
    }
    assert sample["subject"] == "p3"


def test_studies_with_different_subsets_make_one_batch(studies: list[Study]) -> None:
    data = dataset(studies)
    batch = collate([data[EVALUATION_EPOCH, index] for index in range(4)])
    expected = [[name in study.images for name in STANDARD] for study in studies]
    assert batch["available"].tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 16, 16), (24, 24, 24), (8, 24, 16)])
def test_nothing_is_anywhere_that_was_not_scanned_or_is_no_brain(studies: list[Study], size: Triple) -> None:
    data = dataset(studies, size)
    for epoch in range(4):
        for index in range(4):
            sample = data[epoch, index]
            assert not sample["images"][~sample["available"]].any()
            assert not sample["valid"][~sample["available"]].any()
            assert not sample["images"][~sample["valid"]].any()
            assert not sample["images"][:, ~sample["brain"]].any()


@pytest.mark.parametrize("size", [(8, 8, 8), (24, 24, 24)])
def test_tokens_are_tissue_of_available_modalities(studies: list[Study], size: Triple) -> None:
    data = dataset(studies, size)
    for epoch in range(6):
        for index in range(4):
            sample = data[epoch, index]
            exists = torch.from_numpy(token_flags({k: np.asarray(sample[k]) for k in TOKEN_KEYS}, data.view))
            assert not (~sample["mask"] & ~exists).any()
            assert not (sample["decode"] & (~exists | ~sample["mask"])).any()
            assert sample["decode"].any() == exists.any()


TOKEN_KEYS = ("valid", "available", "brain")


def test_a_patch_is_a_token_if_some_of_its_tissue_was_scanned() -> None:
    valid, brain = np.zeros((2, 8, 8, 16), bool), np.zeros((8, 8, 16), bool)
    valid[0], valid[1, ..., :8] = True, True
    brain[4, 4, 7:9] = True
    sample = {"valid": valid, "available": np.ones(2, bool), "brain": brain}
    view = View(("t1", "t2"), (8, 8, 16), (8, 8, 8))
    assert token_flags(sample, view).tolist() == [[True, True], [True, False]]
    brain[4, 4, 7] = False
    assert token_flags(sample, view).tolist() == [[False, True], [False, False]]
    assert token_flags(sample, replace(view, tissue_only=False)).tolist() == [[True, True], [True, False]]


def test_a_window_without_brain_keeps_its_scanned_patches() -> None:
    sample = {
        "valid": np.ones((2, 8, 8, 8), bool),
        "available": np.array([True, False]),
        "brain": np.zeros((8, 8, 8)) > 0,
    }
    assert token_flags(sample, View(("t1", "t2"), (8, 8, 8), (8, 8, 8))).tolist() == [[True], [False]]


def test_a_sample_of_which_nothing_was_scanned_shows_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    box = np.pad(picture(shape=(16, 16, 16)) + 1, ((2, 2), (4, 4), (0, 0)))
    part = np.where(np.arange(16) < 6, box, 0).astype(np.float32)
    study = Study("box", {"t1": save(tmp_path / "t1.nii", box), "t2": save(tmp_path / "t2.nii", part)})
    data = dataset([study], (8, 8, 8), coding=None, augment=AugmentConfig(modality_dropout=1.0))
    empty = [s for s in (data[epoch, 0] for epoch in range(40)) if not s["valid"].any()]
    assert empty
    assert all(s["mask"].all() and not s["decode"].any() for s in empty)


def test_modality_dropout_keeps_a_non_empty_subset(studies: list[Study]) -> None:
    data = dataset(studies, augment=AugmentConfig(modality_dropout=1.0))
    kept = torch.stack([data[epoch, 0]["available"] for epoch in range(20)])
    assert kept.any(1).all()
    assert kept.any(0).all()
    assert len({tuple(row.tolist()) for row in kept}) > 4
    assert not data[0, 1]["available"][1:].any()


def test_random_subsets_have_all_sizes_and_invent_nothing() -> None:
    rng, available = np.random.default_rng(0), np.array([True, False, True, True])
    drawn = np.array([keep_random_subset(available, rng) for _ in range(300)])
    assert not drawn[:, 1].any()
    assert np.bincount(drawn.sum(1), minlength=4)[1:] == pytest.approx(100, abs=35)


def test_single_modalities_can_be_drawn_more_often() -> None:
    available, rng = np.array([True, False, True, True]), np.random.default_rng(0)
    alone = [keep_random_subset(available, np.random.default_rng(seed), 1.0) for seed in range(50)]
    assert all(kept.sum() == 1 for kept in alone)
    assert not any(kept[1] for kept in alone)
    assert len({int(kept.argmax()) for kept in alone}) == 3
    sizes = np.bincount([keep_random_subset(available, rng, 0.5).sum() for _ in range(600)], minlength=4)[1:] / 600
    assert sizes == pytest.approx([0.5 + 0.5 / 3, 0.5 / 3, 0.5 / 3], abs=0.05)


def test_lesion_centred_windows_hold_a_lesion_voxel(studies: list[Study], tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.int16)
    label[4, 10, 8] = 4
    study = replace(studies[0], seg=save(tmp_path / "seg.nii", label))
    aimed, free = (
        [dataset([study], (8, 8, 8), augment=AugmentConfig(lesion_share=share))[epoch, 0] for epoch in range(20)]
        for share in (1.0, 0.0)
    )
    assert all(sample["label"].sum() == 3 for sample in aimed)
    assert len({int(sample["label"][0].flatten().byte().argmax()) for sample in aimed}) > 5
    assert not all(sample["label"].any() for sample in free)


@pytest.mark.parametrize("place", [(4, 10, 8), (14, 15, 7), (8, 8, 8)])
def test_what_is_judged_for_its_lesions_is_seen_where_they_are(
    studies: list[Study], tmp_path: Path, place: Triple
) -> None:
    label = np.zeros(SHAPE, np.int16)
    label[place] = 4
    study = replace(studies[0], seg=save(tmp_path / "seg.nii", label))
    assert dataset([study], (8, 8, 8))[EVALUATION_EPOCH, 0]["label"].sum() == 3
    unlabelled = dataset([replace(study, seg=save(tmp_path / "none.nii", np.zeros(SHAPE, np.int16)))], (8, 8, 8))
    plain = StudyDataset([study], unlabelled.view, unlabelled.cache)
    assert torch.equal(unlabelled[EVALUATION_EPOCH, 0]["images"], plain[EVALUATION_EPOCH, 0]["images"])


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 6), (1.0, 18, 42)])
def test_a_lesion_of_one_voxel_is_aimed_at_as_often_as_a_large_one(
    studies: list[Study], tmp_path: Path, share: float, least: int, most: int
) -> None:
    label = np.zeros(SHAPE, np.int16)
    label[4, 12, 8] = 2
    label[12:16, 8:16, 4:12] = 4
    study = replace(studies[0], seg=save(tmp_path / "seg.nii", label))
    data = dataset([study], (8, 8, 8), augment=AugmentConfig(lesion_share=1.0, each_lesion=share, flip=0.0))
    drawn = [data[epoch, 0]["label"] for epoch in range(60)]
    small = sum(bool(sample[2].any() and not sample[0].any()) for sample in drawn)
    assert least <= small <= most


@pytest.mark.parametrize("size", [(24, 24, 24), (8, 24, 8)])
def test_a_window_wider_than_the_study_holds_all_of_it(studies: list[Study], size: Triple) -> None:
    data = dataset(studies, size, augment=AugmentConfig(lesion_share=1.0))
    whole = dataset(studies, (24, 24, 24))[EVALUATION_EPOCH, 0]["brain"]
    for epoch in range(10):
        brain = data[epoch, 0]["brain"]
        assert int(brain.any(0).any(-1).sum()) == int(whole.any(0).any(-1).sum()) or size[0] == 8
        assert size != (24, 24, 24) or int(brain.sum()) == int(whole.sum())


def test_flips_move_images_labels_and_masks_together(studies: list[Study]) -> None:
    flipped = dataset(studies, augment=AugmentConfig(flip=1.0, scale=0.0, shift=0.0), size=(24, 24, 24), masking=None)
    plain = dataset(studies, augment=AugmentConfig(flip=0.0, scale=0.0, shift=0.0), size=(24, 24, 24), masking=None)
    for key in ("images", "valid", "brain", "label"):
        assert torch.equal(flipped[0, 3][key], plain[0, 3][key].flip(-3))


def test_intensities_are_jittered_inside_the_brain_alone(studies: list[Study]) -> None:
    jittered = dataset(studies, augment=AugmentConfig(flip=0.0, scale=0.2, shift=0.2), masking=None)[0, 0]
    plain = dataset(studies, augment=AugmentConfig(flip=0.0, scale=0.0, shift=0.0), masking=None)[0, 0]
    assert not jittered["images"][:, ~jittered["brain"]].any()
    x, y = (sample["images"][0][sample["brain"]] for sample in (plain, jittered))
    gain, shift = np.polyfit(x, y, 1)
    assert y == pytest.approx(gain * x + shift, abs=1e-4)
    assert abs(gain - 1) < 0.2
    assert abs(shift) < 0.2
    assert gain != 1


def test_cached_and_uncached_studies_give_the_same_samples(studies: list[Study], tmp_path: Path) -> None:
    cache = StudyCache(tmp_path, PreprocessConfig(), STANDARD)
    for study in studies:
        cache.store(study)
    for address in ((0, 0), (2, 3), (EVALUATION_EPOCH, 2)):
        direct, cached = dataset(studies)[address], dataset(studies, cache=cache)[address]
        assert torch.allclose(direct.pop("images"), cached.pop("images"), atol=3e-3)
        assert same(direct, cached)


@pytest.mark.slow
def test_workers_draw_the_same_samples(studies: list[Study]) -> None:
    stream = SampleStream(length=4, batch_size=2)
    alone, shared = (
        list(training_batches(dataset(studies), stream, rank=0, first=0, stop=4, workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == 4
    assert all(same(first, second) for first, second in zip(alone, shared, strict=True))


def test_studies_without_what_is_needed_are_left_out(studies: list[Study]) -> None:
    unlabelled = replace(studies[0], seg=None)
    assert len(dataset([*studies, unlabelled])) == 4
    assert len(dataset([*studies, unlabelled], coding=None)) == 5
    foreign = Study("ct", {"ct": Path("ct.nii")}, seg=Path("seg.nii"))
    assert len(dataset([*studies, foreign])) == 4


def test_a_cache_of_other_modalities_is_refused(studies: list[Study]) -> None:
    with pytest.raises(ConfigError, match="the model sees t1, t1ce, t2, flair, but the cache prepares t1"):
        dataset(studies, cache=StudyCache(None, PreprocessConfig(), ("t1",)))


def test_centred_windows_share_the_centre() -> None:
    assert centred((20, 10, 9), (10, 20, 9)) == (5, -5, 0)


def test_chances_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment.flip must lie in \[0, 1\], got 2"):
        AugmentConfig(flip=2.0)

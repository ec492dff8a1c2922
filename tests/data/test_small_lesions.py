"""Synthetic metastases: small, apart, enhancing; found by lesion, and aimed at by lesion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tiny_studies import SHAPE, lesion, save, write_study

from bmmae.data.augment import AugmentConfig
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.labels import BRATS2017, own_coding
from bmmae.data.preprocess import PreprocessConfig
from bmmae.data.small_lesions import warn_of_empty_regions, warn_of_lost_lesions
from bmmae.data.synthetic import SyntheticConfig, make_cohort, make_study
from bmmae.errors import ConfigError
from bmmae.metrics.lesions import TOUCHING, count_lesions

SIZE = 96
VOXEL = 192 / SIZE
SMALL = SyntheticConfig(subjects=1, seed=2, size=SIZE, lesion_radius_mm=(1.0, 3.0))


def test_small_lesions_are_small_apart_and_enhance() -> None:
    study = make_study(SMALL, 0)
    lesions, count = ndimage.label(study.seg > 0, structure=TOUCHING)
    assert 3 <= count <= 8
    assert set(np.unique(study.seg)) == {0, 4}
    volumes = np.bincount(lesions.ravel())[1:] * VOXEL**3
    assert volumes.max() <= 4 / 3 * np.pi * (3.0 + VOXEL / 2) ** 3
    assert volumes.min() >= VOXEL**3
    around = ndimage.binary_dilation(study.seg > 0, iterations=4) & (study.seg == 0) & (study.images["t1ce"] > 0)
    assert study.images["t1ce"][study.seg > 0].mean() > 1.2 * study.images["t1ce"][around].mean()
    halved = study.seg.copy()
    halved[lesions > count // 2] = 0
    found = count_lesions(halved > 0, study.seg > 0)
    assert (found.true, found.found, found.false) == (count, count // 2, 0)


@pytest.mark.slow
def test_windows_aim_at_each_of_them_alike(tmp_path: Path) -> None:
    study = read_cohort(make_cohort(tmp_path / "data", SMALL, progress=False, workers=1))[0]
    view = View(("t1", "t1ce", "t2", "flair"), (16, 16, 16), (8, 8, 8))
    cache = StudyCache(tmp_path / "cache", PreprocessConfig(spacing=(VOXEL,) * 3), view.modalities)
    coding = own_coding({4: "metastasis", 1: "core", 2: "oedema"})
    packed = cache.load(study)
    numbers, counts = np.unique(packed.lesion_numbers, return_counts=True)
    assert counts.max() >= 3 * counts.min()
    augment = AugmentConfig(flip=0.0, scale=0.0, shift=0.0, lesion_share=1.0, each_lesion=1.0)
    data = StudyDataset([study], view, cache, coding=coding, augment=augment)
    assert packed.label is not None
    lesions, _ = ndimage.label(packed.label > 0, structure=TOUCHING)
    smallest = numbers[counts.argmin()]
    rng = np.random.default_rng(0)
    aims = [data._aim(packed, rng) for _ in range(60 * len(numbers))]
    hits = sum(lesions[tuple(aim)] == smallest for aim in aims if aim is not None)
    assert hits == pytest.approx(60, abs=30)
    assert data[0, 0]["label"].any()


@pytest.mark.parametrize("radii", [(0.0, 3.0), (3.0, 1.0), (1.0, 20.0)])
def test_impossible_radii_are_refused(radii: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="smallest and a largest radius"):
        SyntheticConfig(lesion_radius_mm=radii)


def test_lesions_that_a_coarse_grid_loses_are_told(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    study = write_study(tmp_path / "p", ("t1",))
    labels = np.zeros(SHAPE, np.int16)
    for corner in ((6, 8, 6), (6, 14, 6), (12, 8, 6), (12, 14, 9)):
        labels[tuple(slice(start, start + 2) for start in corner)] = 1
    labels[9, 11, 11] = 1  # a speck is no lesion
    study = replace(study, seg=save(tmp_path / "small.nii.gz", labels))
    plain = replace(study, subject="q", seg=None)
    warn_of_lost_lesions([study, plain], StudyCache(None, PreprocessConfig(spacing=(1.0,) * 3), ("t1",)))
    assert not recwarn
    with pytest.warns(UserWarning, match="of 4 lesions in 1 segmentations, 0 are left on the model.s grid of 4 x 4"):
        warn_of_lost_lesions([study, plain], StudyCache(None, PreprocessConfig(spacing=(4.0,) * 3), ("t1",)))


def test_regions_without_an_example_are_told_and_nothing_is_prepared_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = [write_study(tmp_path / name, ("t1",)) for name in "ab"]
    for study in without:
        save(tmp_path / study.subject / "seg.nii.gz", lesion() // 4 * 2)
    whole = write_study(tmp_path / "c", ("t1",))
    stored, none = (StudyCache(folder, PreprocessConfig(), ("t1",)) for folder in (tmp_path / "cache", None))
    for study in (*without, whole):
        stored.store(study)
    monkeypatch.setattr("bmmae.data.cache.prepare_study", lambda *_, **__: pytest.fail("a study is prepared"))
    for cache in (stored, none):
        with pytest.warns(UserWarning, match=r"no training study has a voxel of ET \(4\); TC \(1 or 4\): the model"):
            warn_of_empty_regions(without, BRATS2017, cache)
        warn_of_empty_regions([*without, whole], BRATS2017, cache)

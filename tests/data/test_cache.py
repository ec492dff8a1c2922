"""The cache holds what preparing would give, under a name that changes whenever that would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_studies import brain, picture, save, write_study

from bmmae.data.cache import META, StudyCache
from bmmae.data.caching import build_cache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.packing import PackedStudy
from bmmae.data.preprocess import PreprocessConfig, prepare_study, sample_voxels
from bmmae.errors import CohortError, ImageError, ModalityError, OutputError
from bmmae.modalities import STANDARD

PLAIN = PreprocessConfig()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """T1 and FLAIR, the latter scanned in part only."""
    study = write_study(tmp_path / "a", ("t1", "flair"))
    partial = picture(3)
    partial[:, :, 9:] = 0
    save(study.images["flair"], partial)
    return study


@pytest.fixture
def cache(tmp_path: Path) -> StudyCache:
    return StudyCache(tmp_path / "cache", PLAIN, STANDARD)


AS_IN_A_NOTEBOOK = """
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import ConfigError

images = {"flair": "a/flair.nii.gz", "t1": "~/a/t1.nii.gz"}
study = Study("a", images, seg="a/seg.nii.gz")
table = Cohort([study]).write("~/cohort.csv")
(written,) = read_cohort("~/cohort.csv")
cache = StudyCache("~/kept", PreprocessConfig(clip=8), ["FLAIR", "T1Gd", "t1n", "T2"])
entry = cache.store(study)
assert entry.folder.parent == table.parent / "kept", entry
assert entry.names == ("t1", "flair")
assert StudyCache("kept", PreprocessConfig(clip=8.0), cache.modalities).find(written) is not None
assert StudyCache(None, PreprocessConfig(), "t1").load(study).names == ("t1",)
try:
    PreprocessConfig(spacing=2.0)
except ConfigError as error:
    assert str(error) == "preprocess.spacing must be three positive millimetres, got 2.0"
else:
    raise AssertionError
"""


def test_paths_may_be_texts_and_names_aliases(study: Study, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    # Apart, because here arguments are held to their declared types.
    subprocess.run([sys.executable, "-c", AS_IN_A_NOTEBOOK], cwd=tmp_path, env=environment, check=True)
    with pytest.raises(ModalityError, match="'t1' is declared twice"):
        StudyCache(None, PLAIN, ("t1", "t1n"))


@pytest.mark.parametrize("start", [(0, 0, 0), (5, 5, 5), (-4, -9, 2), (12, 14, 11), (99, 0, 0)])
def test_a_cached_window_is_that_of_the_prepared_study(
    study: Study, cache: StudyCache, start: tuple[int, int, int]
) -> None:
    direct, cached = (
        source.window(start, (8, 8, 8)) for source in (prepare_study(study, PLAIN, STANDARD), cache.store(study))
    )
    assert cached.names == direct.names == ("t1", "flair")
    assert np.allclose(cached.images, direct.images, atol=2e-3)
    for name in ("valid", "brain", "label"):
        assert np.array_equal(getattr(cached, name), getattr(direct, name))
        assert getattr(cached, name).dtype == getattr(direct, name).dtype


def test_more_modalities_than_a_byte_has_bits_fit(tmp_path: Path) -> None:
    names = tuple(f"m{number}" for number in range(20))
    images = {name: save(tmp_path / f"{name}.nii", picture(rank)) for rank, name in enumerate(names)}
    partial = picture(19)
    partial[:10] = 0
    save(images["m19"], partial)
    study = Study("many", images)
    window = StudyCache(tmp_path / "cache", PLAIN, names).store(study).window((0, 0, 0), (8, 8, 8))
    assert np.array_equal(window.valid, prepare_study(study, PLAIN, names).window((0, 0, 0), (8, 8, 8)).valid)
    assert not window.valid[19].all()


def test_a_study_without_a_segmentation_has_no_label(study: Study, cache: StudyCache) -> None:
    stored = cache.store(replace(study, seg=None))
    assert stored.window((0, 0, 0), (8, 8, 8)).label is None
    assert len(stored.lesion_voxels()) == 0


def test_lesion_voxels_are_those_of_the_prepared_study(study: Study, cache: StudyCache) -> None:
    prepared, stored = prepare_study(study, PLAIN, STANDARD), cache.store(study)
    assert np.array_equal(stored.lesion_voxels(), prepared.lesion_voxels())
    assert prepared.label is not None
    assert (prepared.label[tuple(stored.lesion_voxels().T)] > 0).all()


def test_lesion_voxels_are_spread_over_all_of_them() -> None:
    chosen = sample_voxels(np.ones((20, 20, 20), np.int16), 50)
    assert chosen.shape == (50, 3)
    assert chosen.min() == 0
    assert chosen.max() == 19


def test_every_lesion_is_among_the_voxels_kept() -> None:
    label = np.zeros((20, 20, 20), np.int16)
    label[:, :, 5:], label[3, 4, 1], label[9, 2, 2] = 1, 2, 2
    chosen = sample_voxels(label, 50).tolist()
    assert [3, 4, 1] in chosen
    assert [9, 2, 2] in chosen
    assert len(chosen) == 52


def test_lesion_numbers_are_those_of_the_prepared_study(study: Study, cache: StudyCache) -> None:
    prepared, stored = prepare_study(study, PLAIN, STANDARD), cache.store(study).open()
    assert np.array_equal(stored.lesion_numbers, prepared.lesion_numbers())
    assert set(stored.lesion_numbers.tolist()) == {1}


def test_what_was_stored_is_found_and_nothing_else(study: Study, cache: StudyCache) -> None:
    assert cache.find(study) is None
    assert cache.find(study) == cache.find(study) is None
    assert cache.store(study) == cache.find(study) == cache.store(study)
    assert StudyCache(None, PLAIN, STANDARD).find(study) is None


def touched(study: Study) -> Study:
    os.utime(study.images["t1"], ns=(0, 0))
    return study


def rewritten(study: Study) -> Study:
    save(study.images["t1"], picture(5))
    return study


def swapped(study: Study) -> Study:
    return replace(study, images={"t1": study.images["flair"], "flair": study.images["t1"]})


def masked(study: Study) -> Study:
    return replace(study, brain_mask=study.seg)


@pytest.mark.parametrize("change", [touched, rewritten, swapped, masked, lambda s: replace(s, seg=None)])
def test_other_sources_have_another_name(study: Study, cache: StudyCache, change: Callable[[Study], Study]) -> None:
    assert cache.key(study) != cache.key(change(study))


def test_a_mask_of_another_modality_is_another_source(study: Study, cache: StudyCache) -> None:
    mask = save(study.images["t1"].parent / "mask.nii", brain().astype(np.uint8))
    keys = {cache.key(replace(study, brain_masks={name: mask})) for name in ("t1", "flair")}
    assert len(keys) == 2


def test_other_preprocessing_or_modalities_have_another_name(study: Study, tmp_path: Path) -> None:
    settings = [
        (PLAIN, STANDARD),
        (replace(PLAIN, clip=5.0), STANDARD),
        (replace(PLAIN, spacing=(2.0, 2.0, 2.0)), STANDARD),
    ]
    caches = [StudyCache(tmp_path, config, names) for config, names in [*settings, (PLAIN, ("t1",))]]
    assert len({cache.key(study) for cache in caches}) == 4


def test_who_the_patient_is_does_not_matter(study: Study, cache: StudyCache) -> None:
    assert cache.key(study) == cache.key(replace(study, subject="b", split="train"))


def test_an_entry_without_its_last_file_is_not_there(study: Study, cache: StudyCache) -> None:
    (cache.store(study).folder / META).unlink()
    assert cache.find(study) is None


def test_a_study_that_breaks_off_leaves_nothing(study: Study, cache: StudyCache) -> None:
    study.images["flair"].write_bytes(study.images["flair"].read_bytes()[:200])
    with pytest.raises(ImageError, match=r"flair\.nii\.gz is truncated"):
        cache.store(study)
    assert cache.folder is not None
    assert not cache.folder.exists()


def test_two_that_store_the_same_do_not_clash(study: Study, cache: StudyCache, monkeypatch: pytest.MonkeyPatch) -> None:
    import bmmae.data.cache as module

    def slow_prepare(*arguments: object) -> object:
        monkeypatch.undo()
        cache.store(study)  # another process is faster
        return prepare_study(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "prepare_study", slow_prepare)
    assert cache.store(study) == cache.find(study)
    assert cache.folder is not None
    assert len(list(cache.folder.iterdir())) == 1


def test_a_source_that_changes_while_it_is_read_is_not_stored_as_the_new_one(
    study: Study, cache: StudyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bmmae.data.cache as module

    def prepare_then_change(*arguments: object) -> object:
        prepared = prepare_study(*arguments)  # type: ignore[arg-type]
        rewritten(study)
        return prepared

    monkeypatch.setattr(module, "prepare_study", prepare_then_change)
    cache.store(study)
    assert cache.find(study) is None


def test_a_folder_that_cannot_be_written_is_one_clear_error(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"the cache .*file/cache cannot be written: Not a directory"):
        StudyCache(tmp_path / "file" / "cache", PLAIN, STANDARD).store(study)
    with pytest.raises(OutputError, match="there is no cache folder"):
        StudyCache(None, PLAIN, STANDARD).store(study)


def test_a_source_that_is_gone_is_named(study: Study, cache: StudyCache) -> None:
    study.images["t1"].unlink()
    with pytest.raises(ImageError, match=r"t1\.nii\.gz cannot be read: No such file"):
        cache.find(study)


@pytest.mark.slow
def test_who_reads_images_alone_is_spared_a_broken_segmentation(study: Study, cache: StudyCache) -> None:
    bare = replace(study, seg=None)
    assert cache.without_label(study) == bare
    cache.store(study)
    assert cache.without_label(study) == study  # the entry is named by both
    assert study.seg is not None
    Path(str(study.seg)).write_bytes(b"torn")
    assert cache.without_label(study) == bare
    assert cache.load(bare).label is None  # and stores it
    assert cache.without_label(study) == bare
    Path(str(study.seg)).unlink()
    assert cache.without_label(study) == bare


def test_a_segmentation_that_is_gone_is_no_reason_to_stop(study: Study, tmp_path: Path) -> None:
    missing, cache = replace(study, seg=tmp_path / "gone.nii"), StudyCache(None, PLAIN, STANDARD)
    assert cache.without_label(missing) == replace(study, seg=None)
    assert cache.without_label(replace(study, seg=None)) == replace(study, seg=None)


def test_a_cohort_is_stored_but_for_its_broken_studies(tmp_path: Path, cache: StudyCache) -> None:
    studies = tuple(write_study(tmp_path / name, ("t1",), seed=seed) for seed, name in enumerate("abc"))
    studies[1].images["t1"].write_bytes(b"nonsense")
    cohort = Cohort(studies)
    with pytest.raises(CohortError, match=r"1 of 3 studies cannot be cached .*bmmae check"):
        build_cache(cache, cohort, workers=1)
    problems = build_cache(cache, cohort, workers=1, skip_broken=True)
    assert [name for name, _ in problems] == ["b"]
    assert [cache.find(study) is not None for study in studies] == [True, False, True]


def test_threads_may_share_what_is_kept_in_memory() -> None:
    """Each entry hands the processor on while it is counted, as a large cohort does now and then."""

    class Slow(PackedStudy):
        def __init__(self) -> None:
            pass

        @property
        def nbytes(self) -> int:
            time.sleep(0)
            return 1

    memory: Any = StudyCache(None, PreprocessConfig(), ("t1",)).memory
    memory.limit = 50
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: memory.keep(str(number), Slow()), range(500)))
    finally:
        sys.setswitchinterval(before)
    assert len(memory.kept) == 50

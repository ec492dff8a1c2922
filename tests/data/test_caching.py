"""A cache survives whatever happens while it is filled, and training goes on without one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_studies import picture, save, write_study

import bmmae.data.cache as cache_module
from bmmae.cli import main
from bmmae.data.cache import META, PARTIAL, StudyCache
from bmmae.data.caching import (
    build_cache,
    plan_cache,
    remove_abandoned,
    shard_of,
    sound_studies,
    warn_of_other_entries,
)
from bmmae.data.cohort import Cohort, Study
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.origin import content_hashes
from bmmae.data.preprocess import PreprocessConfig, prepare_study
from bmmae.errors import BmmaeError, CohortError, ConfigError, ImageError, OutputError
from bmmae.modalities import STANDARD

PLAIN = PreprocessConfig()
SPACED = PreprocessConfig(spacing=(2.0, 2.0, 2.0))


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    return [write_study(tmp_path / name, ("t1",), seed=seed) for seed, name in enumerate("abcd")]


@pytest.fixture
def cohort(tmp_path: Path, studies: list[Study]) -> Path:
    return Cohort(tuple(studies)).write(tmp_path / "cohort.csv")


@pytest.fixture
def cache(tmp_path: Path) -> StudyCache:
    return StudyCache(tmp_path / "cache", PLAIN, STANDARD)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def entries(cache: StudyCache) -> list[str]:
    assert cache.folder is not None
    return sorted(path.name for path in cache.folder.iterdir())


def corrupt(study: Study) -> Study:
    path = study.images["t1"]
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[:300])
    return study


def first_sample(studies: list[Study], cache: StudyCache) -> torch.Tensor:
    image: torch.Tensor = StudyDataset(studies, View(STANDARD, (16, 16, 16), (8, 8, 8)), cache)[0, 0]["images"]
    return image


KILLED_WHILE_WRITING = """
import os, signal, sys
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.data.preprocess import PreprocessConfig
flush, calls = os.fsync, []
def fsync(file):
    calls.append(file)
    if len(calls) == 13:  # five files an entry: in the middle of the third
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)
os.fsync = fsync
cohort = read_cohort(sys.argv[1])
cache = StudyCache(sys.argv[2], PreprocessConfig(spacing=(2.0, 2.0, 2.0)), cohort.modalities)
for study in cohort:
    cache.store(study)
"""


@pytest.mark.slow
def test_a_killed_run_is_continued_by_the_next(
    cohort: Path, studies: list[Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = StudyCache(tmp_path / "cache", SPACED, STANDARD)
    arguments = [sys.executable, "-c", KILLED_WHILE_WRITING, str(cohort), str(cache.folder)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert [cache.find(study) is not None for study in studies] == [True, True, False, False]
    assert sum(name.startswith(PARTIAL) for name in entries(cache)) == 1
    assert main(["cache", str(cohort), "--out", str(cache.folder), "--workers", "1"]) == 0
    assert "2 studies to prepare (2 of 4 are stored already): about" in capsys.readouterr().out
    assert all(cache.find(study) for study in studies)
    assert len(entries(cache)) == 4


@pytest.mark.slow
def test_two_runs_may_cache_the_same_cohort(cohort: Path, studies: list[Study], tmp_path: Path) -> None:
    cache = StudyCache(tmp_path / "cache", SPACED, STANDARD)
    command = [sys.executable, "-m", "bmmae", "cache", str(cohort), "--out", str(cache.folder), "--workers", "1"]
    runs = [subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(entries(cache)) == 4
    assert all(cache.find(study) for study in studies)


@pytest.mark.slow
def test_shards_make_one_cache(cohort: Path, studies: list[Study], tmp_path: Path) -> None:
    cache = StudyCache(tmp_path / "cache", SPACED, STANDARD)
    for shard in range(2):
        common = ["cache", str(cohort), "--out", str(cache.folder), "--workers", str(1 + shard)]
        assert main([*common, "--shards", "2", "--shard", str(shard)]) == 0
        assert len(entries(cache)) == 2 * (shard + 1)
    assert all(cache.find(study) for study in studies)


def test_shards_share_out_every_study_once(studies: list[Study]) -> None:
    parts = [shard_of(studies, 3, shard) for shard in range(3)]
    assert sorted(study.subject for part in parts for study in part) == list("abcd")
    with pytest.raises(ConfigError, match="there is no shard 3 of 3: they are numbered 0 to 2"):
        shard_of(studies, 3, 3)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(small_disk: Path, studies: list[Study]) -> None:
    cache = StudyCache(small_disk / "cache", PLAIN, STANDARD)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        list(map(cache.store, studies))
    stored = [study for study in studies if cache.find(study)]
    assert 0 < len(stored) == len(entries(cache))
    assert first_sample(studies, StudyCache(None, PLAIN, STANDARD)).any()


def test_training_goes_on_when_the_disk_is_full(small_disk: Path, studies: list[Study]) -> None:
    cache = StudyCache(small_disk / "cache", PLAIN, STANDARD)
    with pytest.warns(UserWarning, match="No space left on device; studies that are not in it are prepared") as told:
        loaded = [cache.load(study) for study in studies]
    assert len(told) == 1
    assert len(loaded) == 4


def test_a_run_stops_at_a_full_disk_and_says_how_to_go_on(small_disk: Path, studies: list[Study]) -> None:
    cache = StudyCache(small_disk / "cache", PLAIN, STANDARD)
    with pytest.raises(OutputError, match="what is stored is kept: make room and run the same command again"):
        build_cache(cache, studies, workers=1, skip_broken=True)
    assert any(cache.find(study) for study in studies)


def test_room_is_asked_for_before_anything_is_written(
    studies: list[Study], cache: StudyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(
        OutputError, match=r"cache has too little room: 4 studies to prepare: about .* GB, 1e-09 GB free"
    ):
        plan_cache(cache, studies)
    assert cache.folder is not None
    assert not cache.folder.exists()


def test_the_size_is_about_what_is_written(studies: list[Study], cache: StudyCache) -> None:
    plan = plan_cache(cache, studies)
    assert [study.subject for study in plan.todo] == list("abcd")
    folders = [cache.store(study).folder for study in studies]
    names = ("images.npy", "flags.npy", "label.npy")
    written = sum((folder / name).stat().st_size for folder in folders for name in names)
    assert written < plan.size < 3 * written
    assert plan_cache(cache, studies).todo == ()
    assert plan_cache(cache, studies).size == 0


@pytest.mark.slow
@pytest.mark.real
def test_the_size_of_real_studies_is_estimated_to_a_third(real: Path, tmp_path: Path) -> None:
    from bmmae.data.index import index_folder

    cohort = index_folder(real / "brats18").cohort
    cache = StudyCache(tmp_path, SPACED, cohort.modalities)
    chosen = list(cohort)[:1]
    folders = [cache.store(study).folder for study in chosen]
    written = sum(file.stat().st_size for folder in folders for file in folder.iterdir())
    empty = StudyCache(tmp_path / "empty", SPACED, cohort.modalities)
    assert plan_cache(empty, chosen).size == pytest.approx(written, rel=0.34)


def test_a_source_replaced_after_caching_is_prepared_anew(studies: list[Study], cache: StudyCache) -> None:
    study = studies[0]
    before = first_sample([study], cache)
    save(study.images["t1"], 200 - picture(2))  # type: ignore[arg-type]
    after = first_sample([study], cache)
    assert not torch.equal(before, after)
    assert torch.equal(after, first_sample([study], StudyCache(None, PLAIN, STANDARD)))
    assert len(entries(cache)) == 2


def test_what_training_prepares_is_stored_and_the_same_with_and_without_a_cache(
    studies: list[Study], cache: StudyCache
) -> None:
    without = first_sample(studies, StudyCache(None, PLAIN, STANDARD))
    prepared, stored = first_sample(studies, cache), first_sample(studies, cache)
    assert len(entries(cache)) == 1
    assert torch.equal(without, prepared)
    assert torch.equal(without, stored)


def test_a_read_only_cache_is_used_for_what_it_has(
    small_disk: Path, studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StudyCache(small_disk / "cache", PLAIN, STANDARD)
    stored = cache.store(studies[0])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert cache.find(studies[0]) == cache.store(studies[0]) == stored
    with pytest.warns(UserWarning, match=r"Read-only file system; studies that are not in it are prepared whenever"):
        loaded = [cache.load(study) for study in studies]
    assert [study.images.any() for study in loaded] == [True] * 4
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        cache.store(studies[1])


@pytest.mark.parametrize("name", ["images.npy", "flags.npy", META])
def test_a_damaged_entry_is_prepared_anew(name: str, studies: list[Study], cache: StudyCache) -> None:
    before = first_sample(studies, cache)
    for folder in list((cache.folder or Path()).iterdir()):
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
        assert not any(cache.find(study) for study in studies)
    assert torch.equal(first_sample(studies, cache), before)
    assert len(entries(cache)) == 1
    assert any(cache.find(study) for study in studies)


@pytest.mark.parametrize("name", ["images.npy", "lesion_numbers.npy"])
def test_an_entry_of_the_right_size_that_holds_no_arrays_is_prepared_anew(
    name: str, studies: list[Study], cache: StudyCache
) -> None:
    before, entry = first_sample(studies, cache), (cache.folder or Path()) / entries(cache)[0]
    (entry / name).write_bytes(bytes((entry / name).stat().st_size))  # as of a copy that was broken off
    assert torch.equal(first_sample(studies, cache), before)
    assert torch.equal(first_sample(studies, StudyCache(cache.folder, PLAIN, STANDARD)), before)
    assert (entry / name).read_bytes()[:6] == b"\x93NUMPY"
    assert entries(cache) == [entry.name]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_who_may_read_an_entry_is_for_the_umask_to_say(umask: int, studies: list[Study], cache: StudyCache) -> None:
    before = os.umask(umask)
    try:
        entry = cache.store(studies[0]).folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o666 & ~umask}


def test_an_entry_that_another_user_lets_nobody_read_is_told(
    studies: list[Study], cache: StudyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(studies[0])
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == META:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(OutputError, match=r"is another user's, who lets nobody read it \(share it with `chmod -R a"):
        cache.store(studies[0])
    with pytest.warns(UserWarning, match="another user's"):
        assert cache.load(studies[0]).images.any()
    monkeypatch.undo()
    assert cache.find(studies[0]) is not None
    assert len(entries(cache)) == 1


def test_a_cache_that_was_clipped_otherwise_is_told(studies: list[Study], cache: StudyCache) -> None:
    cache.store(studies[0])
    with pytest.warns(
        UserWarning, match=r"none of the 4 studies clipped at 5 deviations \(preprocess.clip\), and others"
    ):
        warn_of_other_entries(StudyCache(cache.folder, PreprocessConfig(clip=5.0), STANDARD), studies)


def test_memory_keeps_the_studies_used_last(studies: list[Study], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []

    def counting(study: Study, *rest: object) -> object:
        prepared.append(study.subject)
        return prepare_study(study, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "prepare_study", counting)
    cache = StudyCache(None, PLAIN, STANDARD)
    size = cache.load(studies[0]).nbytes
    cache.memory.limit = int(2.5 * size)
    for index in (0, 1, 0, 2, 0, 1):
        cache.load(studies[index])
    assert "".join(prepared) == "abcb"
    cache.memory.limit = 0
    cache.load(studies[3])
    assert not cache.memory.kept


def test_no_process_hands_its_memory_to_another(studies: list[Study]) -> None:
    import pickle

    cache = StudyCache(None, PLAIN, STANDARD)
    cache.load(studies[0])
    assert not pickle.loads(pickle.dumps(cache)).memory.kept


def test_a_study_whose_only_modality_is_corrupt_stops_the_run_before_its_first_step(
    studies: list[Study], cache: StudyCache
) -> None:
    corrupt(studies[1])
    with pytest.raises(
        CohortError, match=r"1 of 4 studies cannot be read \(b: .*t1\.nii\.gz is truncated.*skip_broken"
    ):
        sound_studies(studies, cache)


def test_broken_studies_are_left_out_and_counted_if_asked(studies: list[Study], cache: StudyCache) -> None:
    corrupt(studies[1])
    assert isinstance(studies[2].images["t1"], Path)
    studies[2].images["t1"].unlink()
    with pytest.warns(UserWarning, match=r"2 of 4 studies cannot be read \(b: .*; they are left out"):
        sound = sound_studies(studies, cache, skip_broken=True)
    assert [study.subject for study in sound] == ["a", "d"]
    assert len(entries(cache)) == 2
    with pytest.raises(CohortError, match="2 of 2 studies cannot be read"):
        sound_studies(studies[1:3], cache, skip_broken=True)


def test_many_broken_studies_are_told_by_what_is_wrong(tmp_path: Path, studies: list[Study], cache: StudyCache) -> None:
    studies = [write_study(tmp_path / f"p{number}", ("t1",), seed=number) for number in range(14)]
    for study in studies[:4]:
        corrupt(study)
    for study in studies[4:12]:
        assert isinstance(study.images["t1"], Path)
        study.images["t1"].unlink()
    told = r"12 of 14 studies cannot be read \(p0: .* is truncated .* \(and 3 more like it: p1, p2, p3\); "
    absent = r"p4: .*No such file.* \(and 7 more like it: p5, p6, p7, p8, p9 and 2 more\)\); they are left out"
    with pytest.warns(UserWarning, match=told + absent):
        assert len(sound_studies(studies, cache, skip_broken=True)) == 2


def test_every_study_that_the_command_leaves_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = [write_study(tmp_path / f"p{number}", ("t1",), seed=number) for number in range(9)]
    table = Cohort(tuple(studies)).write(tmp_path / "cohort.csv")
    for study in studies[1:]:
        corrupt(study)
    assert main(["cache", str(table), "--out", str(tmp_path / "out"), "--workers", "1", "--skip-broken"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1
    assert lines[0].endswith("(and 7 more like it: p2, p3, p4, p5, p6, p7, p8)")


def test_a_study_too_large_for_the_memory_is_one_broken_study(
    studies: list[Study], cache: StudyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(study: Study) -> object:
        if study is studies[1]:
            raise MemoryError
        return None

    monkeypatch.setattr(cache, "load", load)
    monkeypatch.setattr(cache, "store", load)
    with pytest.warns(UserWarning, match=r"1 of 4 studies cannot be read \(b: there was not enough memory"):
        assert len(sound_studies(studies, cache, skip_broken=True)) == 3
    ((name, told),) = build_cache(cache, studies, workers=1, skip_broken=True)
    assert (name, told[:27]) == ("b", "there was not enough memory")


def test_voxels_of_an_impossible_size_are_one_broken_study(studies: list[Study], cache: StudyCache) -> None:
    save(studies[1].images["t1"], picture(), spacing=(2000, 2000, 2000))  # type: ignore[arg-type]
    plan = plan_cache(cache, studies)
    assert plan.size < 1e6
    ((_, told),) = build_cache(cache, plan.todo, workers=1, skip_broken=True)
    assert "voxels of 2000 x 2000 x 2000 mm" in told


def test_a_file_truncated_after_indexing_is_named(studies: list[Study], cohort: Path) -> None:
    from bmmae.data.cohort import read_cohort

    corrupt(studies[0])
    with pytest.raises(CohortError, match=r"a: .*t1\.nii\.gz is truncated or corrupt: expected a whole gzip file"):
        sound_studies(list(read_cohort(cohort)), StudyCache(None, PLAIN, STANDARD))


def test_studies_without_what_the_model_sees_are_no_trouble(cache: StudyCache) -> None:
    foreign = Study("ct", {"ct": Path("ct.nii")})
    assert sound_studies([foreign], cache) == [foreign]


def test_a_cache_knows_what_its_images_hold(studies: list[Study], cache: StudyCache) -> None:
    read = content_hashes(studies)
    for study in studies:
        cache.store(study)
    assert content_hashes(studies, cache) == read
    assert len(set(read)) == 4


def test_what_killed_runs_left_is_removed_but_not_what_others_are_at(tmp_path: Path) -> None:
    host, gone = cache_module.machine(), subprocess.Popen(["true"])
    gone.wait()
    names = {
        # A container of the same host's name has processes of its own.
        f"{PARTIAL}{socket.gethostname()}.1-{gone.pid}-abc": True,
        f"{PARTIAL}{host}-{gone.pid}-abc": False,
        f"{PARTIAL}{host}-{os.getpid()}-abc": True,
        f"{PARTIAL}other-host-1-abc": True,
        f"{PARTIAL}other-host-2-abc": False,
        "0123": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / f"{PARTIAL}other-host-2-abc", (0, 0))
    remove_abandoned(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_cache_of_another_spacing_is_told(studies: list[Study], cache: StudyCache) -> None:
    assert cache.folder is not None
    cache.folder.mkdir()
    (cache.folder / f"{PARTIAL}host-1-abc").mkdir()
    warn_of_other_entries(cache, studies)  # nothing is in it yet
    cache.store(studies[0])
    warn_of_other_entries(cache, studies)
    other = StudyCache(cache.folder, SPACED, STANDARD)
    warn_of_other_entries(StudyCache(cache.folder, PLAIN, ("t1", "dwi")), [replace(studies[1], seg=None)])
    with pytest.warns(UserWarning, match=r"holds none of the 4 studies with a spacing of \[2\.0, 2\.0, 2\.0\] mm"):
        warn_of_other_entries(other, studies)
    warn_of_other_entries(StudyCache(None, SPACED, STANDARD), studies)


def test_a_cache_of_another_version_is_told(
    studies: list[Study], cache: StudyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(studies[0])
    monkeypatch.setattr(cache_module, "MADE_BY", [0, 0])
    monkeypatch.setattr("bmmae.data.caching.MADE_BY", [0, 0])
    with pytest.warns(UserWarning, match="holds none of the 4 studies as this version of bmmae prepares them"):
        warn_of_other_entries(cache, studies)
    first = next(cache.folder.glob(f"*/{META}"))  # type: ignore[union-attr]
    first.write_text(first.read_text().replace('"version"', '"of"').replace('"spacing"', '"between"'))
    with pytest.warns(UserWarning, match="and others by another version: they are prepared .* delete the folder first"):
        warn_of_other_entries(cache, studies)
    cache.store(studies[1])
    warn_of_other_entries(cache, studies)


def test_training_removes_what_a_killed_one_left_in_the_cache(studies: list[Study], cache: StudyCache) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert cache.folder is not None
    (cache.folder / f"{PARTIAL}{cache_module.machine()}-{gone.pid}-abc").mkdir(parents=True)
    sound_studies(studies, cache)
    assert len(entries(cache)) == 4
    assert not any(name.startswith(PARTIAL) for name in entries(cache))


def test_there_is_nothing_to_fill_without_a_folder(studies: list[Study]) -> None:
    with pytest.raises(OutputError, match="there is no cache folder"):
        plan_cache(StudyCache(None, PLAIN, STANDARD), studies)


def test_absent_files_are_a_matter_for_the_run_not_for_the_plan(studies: list[Study], cache: StudyCache) -> None:
    lost = replace(studies[0], images={"t1": Path("gone.nii.gz")})
    assert plan_cache(cache, [lost]).todo == (lost,)
    with pytest.raises(ImageError, match=r"gone\.nii\.gz cannot be read"):
        cache.store(lost)
    assert issubclass(ImageError, BmmaeError)
    assert np.isfinite(plan_cache(cache, [lost]).size)


def test_a_worker_killed_for_want_of_memory_is_explained() -> None:
    from concurrent.futures.process import BrokenProcessPool

    from bmmae.data.caching import _problem_of

    def finish() -> None:
        raise BrokenProcessPool

    with pytest.raises(OutputError, match="run the same command again with fewer --workers"):
        _problem_of(finish)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, studies: list[Study], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Cohort(tuple(studies)).write(tmp_path / "cohort.csv")
    monkeypatch.setattr("bmmae.data.caching.build_cache", lambda *_, **__: pytest.fail("the work has begun"))
    assert main(["cache", str(table), "--out", str(table)]) == 2
    assert "is not a folder that you may write to; name another --out" in capsys.readouterr().err

"""Filling a cache: how large it will be, whose part of the work it is, and many processes at it.

A run that was killed is continued by the next; several runs may work on one cohort at once, on one machine or many.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import SystemRandom

import numpy as np
from tqdm import tqdm

from bmmae.data.cache import MADE_BY, META, PARTIAL, CachedStudy, StudyCache, machine
from bmmae.data.cohort import Cohort, Study
from bmmae.data.geometry import Geometry
from bmmae.data.loaders import end_with_parent
from bmmae.data.packing import flag_type
from bmmae.data.problems import NO_MEMORY, NamedProblem, counted, in_short
from bmmae.data.reading import read_header
from bmmae.errors import BmmaeError, CohortError, ConfigError, OutputError
from bmmae.patches import as_triple

BRAIN_MM = (150.0, 185.0, 150.0)
"""A large brain, right to left, front to back, top to bottom: what is left of most images after the crop."""

MOST_HEADERS = 64
"""Studies whose headers are read for an estimate."""

ABANDONED = 24 * 3600
"""Seconds after which another machine's unfinished entry is taken for abandoned."""


@dataclass(frozen=True)
class CachePlan:
    """What is to be done for a cache.

    Attributes:
        todo: The studies that are not stored yet, those with absent files among them.
        stored: How many are.
        size: About how many bytes those to do will take.
        free: Bytes free where the cache is.
    """

    todo: tuple[Study, ...]
    stored: int
    size: int
    free: int

    def __str__(self) -> str:
        total = len(self.todo) + self.stored
        already = f" ({self.stored} of {total} are stored already)" if self.stored else ""
        size, free = self.size / 1e9, self.free / 1e9
        todo = counted(len(self.todo), "study", "studies")
        return f"{todo} to prepare{already}: about {size:.2g} GB, {free:.3g} GB free"


def shard_of(studies: Sequence[Study], shards: int, shard: int) -> tuple[Study, ...]:
    """Return one machine's share of the studies: those whose row number leaves `shard` when divided by `shards`.

    Raises:
        ConfigError: If there is no such shard.
    """
    if not 0 <= shard < shards:
        raise ConfigError(f"there is no shard {shard} of {shards}: they are numbered 0 to {shards - 1}")
    return tuple(studies[shard::shards])


def plan_cache(cache: StudyCache, studies: Sequence[Study]) -> CachePlan:
    """Find out what is stored, and how much room the rest will take.

    Raises:
        OutputError: If the cache has no folder, or the disk has not that much room.
    """
    if cache.folder is None:
        raise OutputError("there is no cache folder to store studies in")
    todo = tuple(study for study in studies if _found(cache, study) is None)
    plan = CachePlan(todo, len(studies) - len(todo), estimated_size(cache, todo), _free(cache.folder))
    if plan.size > plan.free:
        raise OutputError(
            f"{cache.folder} has too little room: {plan}. Choose another disk with --out, or a coarser --spacing"
        )
    return plan


def estimated_size(cache: StudyCache, studies: Sequence[Study]) -> int:
    """Return about how many bytes these studies will take, judged by the headers of some of them."""
    chosen = (
        [studies[index] for index in np.unique(np.linspace(0, len(studies) - 1, MOST_HEADERS).astype(int))]
        if (studies)
        else []
    )
    sizes = []
    for study in chosen:
        with suppress(BmmaeError):  # a broken study takes no room, and is reported when its turn comes
            sizes.append(_study_size(cache, study))
    return int(np.mean(sizes) * len(studies)) if sizes else 0


def _study_size(cache: StudyCache, study: Study) -> int:
    names = [name for name in cache.modalities if name in study.images]
    if not names:
        return 0
    header = read_header(study.images[names[0]])
    spacing = cache.config.spacing
    whole = Geometry.of(as_triple(header.shape), header.affine, spacing).resampled_shape
    voxels = np.prod([min(n, mm / step) for n, mm, step in zip(whole, BRAIN_MM, spacing, strict=True)])
    each = 2 * len(names) + np.dtype(flag_type(len(names))).itemsize + (2 if study.seg is not None else 0)
    each += study.lesion is not None
    return int(voxels * each)


def build_cache(
    cache: StudyCache, cohort: Cohort | Sequence[Study], *, workers: int = 2, skip_broken: bool = False
) -> list[NamedProblem]:
    """Store every study of a cohort; what is there already is skipped.

    Args:
        cache: Where to.
        cohort: The studies.
        workers: Processes.
        skip_broken: Leave broken studies out instead of stopping.

    Returns:
        Each study left out, and what is wrong with it.

    Raises:
        CohortError: If a study is broken and not skipped; the others are stored all the same.
        OutputError: If the folder cannot be written (any more); what is stored is kept.
    """
    todo = list(cohort)
    if cache.folder is not None:
        remove_abandoned(cache.folder)
    # Each in an order of its own, so that runs at work on the same cohort seldom take the same study.
    SystemRandom().shuffle(todo)
    problems = _store_all(cache, todo, workers)
    if problems and not skip_broken:
        shown = in_short(sorted(problems))
        raise CohortError(
            f"{len(problems)} of {len(todo)} studies cannot be cached ({shown}). Run `bmmae check` on the cohort, mend "
            "or remove them, or leave them out with --skip-broken"
        )
    return sorted(problems)


def _store_all(cache: StudyCache, todo: Sequence[Study], workers: int) -> list[NamedProblem]:
    """Store studies, and return what is wrong with those that are broken."""
    outcomes = tqdm(_outcomes(cache, todo, workers), total=len(todo), desc="caching", unit="study")
    return [(study.name, problem) for study, problem in outcomes if problem]


def _outcomes(cache: StudyCache, todo: Sequence[Study], workers: int) -> Iterator[tuple[Study, str | None]]:
    """Store studies, and tell what is wrong with each as soon as it is done."""
    if workers <= 1:
        for study in todo:
            yield study, _problem_of(partial(cache.store, study))
        return
    # Spawned, not forked: the caller may have threads (torch, tqdm) that do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = {pool.submit(_store, cache, study): study for study in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], _problem_of(future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _store(cache: StudyCache, study: Study) -> None:
    cache.store(study)


def _problem_of(finish: Callable[[], object]) -> str | None:
    """Return what is wrong with a study.

    Raises:
        OutputError: If it is not the study's fault.
    """
    try:
        finish()
    except OutputError as error:
        full = os.strerror(errno.ENOSPC) in str(error)
        advice = "make room" if full else "choose another folder with --out"
        raise OutputError(f"{error}; what is stored is kept: {advice} and run the same command again") from error
    except BrokenProcessPool as error:
        raise OutputError(
            "a process that prepared studies was killed, most likely for want of memory; what is stored is kept: run "
            "the same command again with fewer --workers"
        ) from error
    except MemoryError:
        return NO_MEMORY
    except BmmaeError as error:
        return str(error)
    return None


def warn_of_other_entries(cache: StudyCache, studies: Sequence[Study]) -> None:
    """Warn of a cache that holds none of these studies, and others made otherwise: all are going to be prepared.

    Warns:
        UserWarning: Saying what is other: the spacing, the clip, or the version of this library.
    """
    first = None if cache.folder is None else next(cache.folder.glob(f"[!.]*/{META}"), None)
    if first is None:
        return
    try:
        meta = json.loads(first.read_text())
    except (OSError, ValueError):  # it may be damaged, or go meanwhile
        return
    spacing, clip = list(cache.config.spacing), cache.config.clip
    made = meta.get("spacing", spacing), meta.get("clip", clip)  # earlier versions did not write them, nor their own
    advice = "is it the cache that you mean?"
    if made[0] != spacing:
        ours, theirs = f"with a spacing of {spacing} mm", f"with {made[0]} mm"
    elif made[1] != clip:
        ours, theirs = f"clipped at {clip:g} deviations (preprocess.clip)", f"at {made[1]:g}"
    elif meta.get("version") != MADE_BY:
        ours, theirs = "as this version of bmmae prepares them", "by another version"
        advice = "if nobody uses that any more, delete the folder first, which makes room"
    else:
        return
    if any(_found(cache, study) for study in studies):
        return
    warnings.warn(
        f"{cache.folder} holds none of the {len(studies)} studies {ours}, and others {theirs}: they are prepared from "
        f"their files, which takes long; {advice}",
        stacklevel=2,
    )


def sound_studies(
    studies: Sequence[Study],
    cache: StudyCache,
    *,
    skip_broken: bool = False,
    workers: int = 2,
    option: str = "--data.skip_broken true",
) -> list[Study]:
    """Return the studies that can be trained on, after opening each: before the first step, not in the middle of it.

    Where the cache has a folder that can be written they are stored in passing.

    Args:
        studies: Those to open.
        cache: Whose entries need no opening.
        skip_broken: Leave broken studies out, and say how many, instead of stopping.
        workers: Threads.
        option: How the user asks for `skip_broken`.

    Raises:
        CohortError: If some are broken and not to be skipped, or all are.
    """
    if cache.folder is not None:
        remove_abandoned(cache.folder)
    order = list(range(len(studies)))
    SystemRandom().shuffle(order)  # the ranks share the work through the cache
    with ThreadPoolExecutor(max(1, workers)) as pool:
        opened = pool.map(lambda index: _problem(cache, studies[index]), order)
        bar = tqdm(opened, total=len(order), desc="opening", unit="study", disable=None, leave=False)  # on a terminal
        found = dict(zip(order, bar, strict=True))
    problems = [found[index] for index in range(len(studies))]
    broken = [(study.name, problem) for study, problem in zip(studies, problems, strict=True) if problem]
    if not broken:
        return list(studies)
    said = f"{len(broken)} of {len(studies)} studies cannot be read ({in_short(broken)})"
    if len(broken) == len(studies):
        raise CohortError(f"{said}: none is left. Run `bmmae check` on the cohort, and mend them")
    if not skip_broken:
        raise CohortError(
            f"{said}. Run `bmmae check` on the cohort, mend or remove them, or leave them out with {option}"
        )
    warnings.warn(f"{said}; they are left out", stacklevel=2)
    return [study for study, problem in zip(studies, problems, strict=True) if not problem]


def _problem(cache: StudyCache, study: Study) -> str | None:
    try:
        if not set(cache.modalities).isdisjoint(study.images) and cache.find(study) is None:
            cache.load(study)
    except MemoryError:
        return NO_MEMORY
    except BmmaeError as error:
        return str(error)
    return None


def remove_abandoned(folder: Path) -> None:
    """Remove what killed runs have left unfinished: theirs whose process is gone, and other machines' old ones."""
    for left in folder.glob(f"{PARTIAL}*"):
        host, _, rest = left.name.removeprefix(PARTIAL).rpartition("-")[0].rpartition("-")
        own = host == machine() and rest.isdigit()
        with suppress(OSError):
            if not _is_running(int(rest)) if own else time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _found(cache: StudyCache, study: Study) -> CachedStudy | None:
    try:
        return cache.find(study)
    except BmmaeError:
        return None


def _free(folder: Path) -> int:
    parents: Iterable[Path] = (folder, *folder.absolute().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.is_dir())).free

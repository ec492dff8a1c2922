"""Preprocessed studies on disk: written once, read by memory map, only the window that a sample needs.

One folder a study, named by what went into it: its source files (role, path, size, modification time) and the
preprocessing. A changed source or setting is another name, so a stale entry is never read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bmmae.arrays import Array
from bmmae.data.cohort import Cohort, Study
from bmmae.data.preprocess import (
    VERSION,
    Part,
    PreparedStudy,
    PreprocessConfig,
    Window,
    overlap,
    place_window,
    prepare_study,
)
from bmmae.errors import BmmaeError, CohortError, ImageError, OutputError
from bmmae.patches import Triple, as_triple

META = "study.json"


@dataclass(frozen=True)
class CachedStudy:
    """A prepared study whose arrays stay on disk.

    Attributes:
        folder: Where they are.
        names: The available modalities, in table order.
        shape: Voxels of the arrays.
        labelled: Whether there is a segmentation.
    """

    folder: Path
    names: tuple[str, ...]
    shape: Triple
    labelled: bool

    def window(self, start: Triple, size: Triple) -> Window:
        """Read a window; it may reach beyond the arrays."""
        there, here = overlap(start, size, self.shape)
        flags = np.asarray(self._open("flags")[there])
        part = Part(
            images=self._open("images")[(..., *there)],
            valid=np.stack([flags >> (1 + index) & 1 for index in range(len(self.names))]),
            brain=flags & 1,
            label=self._open("label")[there] if self.labelled else None,
        )
        return place_window(self.names, part, here, size)

    def lesion_voxels(self) -> Array:
        """Return a sample of the labelled voxels, Int[n, 3]; empty when there is none."""
        return np.asarray(np.load(self.folder / "lesion_voxels.npy"))

    def _open(self, name: str) -> Array:
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))


class StudyCache:
    """A folder of prepared studies.

    Args:
        folder: Where they are, created when something is stored; None for no cache.
        config: The preprocessing; part of every key.
        modalities: The modalities asked for; part of every key.
    """

    def __init__(self, folder: Path | None, config: PreprocessConfig, modalities: tuple[str, ...]) -> None:
        self.folder = folder
        self.config = config
        self.modalities = modalities

    def key(self, study: Study) -> str:
        """Return the name of a study's entry: a hash of its sources and of everything done to them.

        Raises:
            ImageError: If a source file is gone.
        """
        content = {
            "version": VERSION,
            "preprocess": asdict(self.config),
            "files": {role: _fingerprint(path) for role, path in self._sources(study).items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def find(self, study: Study) -> CachedStudy | None:
        """Return a study's entry, or None if it has not been stored."""
        return None if self.folder is None else _open_entry(self.folder / self.key(study))

    def store(self, study: Study) -> CachedStudy:
        """Prepare a study and store it, all or nothing; an entry that is there already is kept.

        Raises:
            ImageError: If a file is broken.
            OutputError: If the folder cannot be written.
        """
        if self.folder is None:
            raise OutputError("there is no cache folder to store a study in")
        # Named before it is read: a source that changes meanwhile must not pass for the new one.
        folder = self.folder / self.key(study)
        found = _open_entry(folder)
        if found is not None:
            return found
        prepared = prepare_study(study, self.config, self.modalities)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
            try:
                _write(prepared, partial)
                partial.chmod(0o755)
                _publish(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"the cache {self.folder} cannot be written: {error.strerror or error}") from error
        stored = _open_entry(folder)
        if stored is None:
            raise OutputError(
                f"the cache entry of study '{study.subject}' vanished from {self.folder} while it was used"
            )
        return stored

    def _sources(self, study: Study) -> dict[str, Path]:
        """The files that an entry is made of, by what they are used as."""
        names = [name for name in self.modalities if name in study.images]
        masks = {f"brain_mask_{name}": study.brain_mask_of(name) for name in names}
        optional = {"seg": study.seg, **masks}
        return {name: study.images[name] for name in names} | {k: v for k, v in optional.items() if v is not None}


def _open_entry(folder: Path) -> CachedStudy | None:
    if not (folder / META).is_file():
        return None
    meta = json.loads((folder / META).read_text())
    return CachedStudy(folder, tuple(meta["names"]), as_triple(meta["shape"]), meta["labelled"])


def build_cache(cache: StudyCache, cohort: Cohort, *, workers: int = 2, skip_broken: bool = False) -> list[str]:
    """Store every study of a cohort; what is there already is skipped.

    Args:
        cache: Where to.
        cohort: The studies.
        workers: Processes.
        skip_broken: Leave broken studies out instead of stopping.

    Returns:
        One line for each study left out.

    Raises:
        CohortError: If a study is broken and not skipped; the others are stored all the same.
    """
    problems: list[str] = []
    todo = list(cohort.studies)
    # Spawned, not forked: the caller may have threads (torch, tqdm) that do not survive a fork.
    with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(cache.store, study): study for study in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc="caching", unit="study"):
            try:
                future.result()
            except BmmaeError as error:
                problems.append(f"{futures[future].name}: {error}")
    if problems and not skip_broken:
        shown = "; ".join(sorted(problems)[:3])
        raise CohortError(
            f"{len(problems)} of {len(todo)} studies cannot be cached ({shown}). Run `bmmae check` on the cohort, mend "
            "or remove them, or leave them out with --skip-broken"
        )
    return sorted(problems)


def _fingerprint(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}. Run `bmmae check` on the cohort") from error
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _write(prepared: PreparedStudy, folder: Path) -> None:
    kind = np.min_scalar_type(2 ** (1 + len(prepared.names)) - 1)  # one bit for the brain, one a modality
    flags = prepared.brain.astype(kind)
    for index, valid in enumerate(prepared.valid):
        flags |= valid.astype(kind) << kind.type(1 + index)
    np.save(folder / "images.npy", prepared.images.astype(np.float16))
    np.save(folder / "flags.npy", flags)
    if prepared.label is not None:
        np.save(folder / "label.npy", prepared.label)
    np.save(folder / "lesion_voxels.npy", prepared.lesion_voxels())
    meta = {
        "names": prepared.names,
        "shape": prepared.shape,
        "labelled": prepared.label is not None,
        "scales": prepared.scales,
        "brain_source": prepared.brain_source,
    }
    # Last, so that a folder with a study.json is complete.
    (folder / META).write_text(json.dumps(meta, indent=1))


def _publish(partial: Path, final: Path) -> None:
    """Rename into place; if another process was faster, its entry is as good."""
    try:
        partial.rename(final)
    except OSError:
        if not (final / META).is_file():
            raise

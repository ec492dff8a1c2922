"""Preprocessed studies on disk: written once, read by memory map, only the window that a sample needs.

One folder a study, named by what went into it: its source files (role, place, size, modification time) and the
preprocessing. A changed source or setting is another name, so a stale entry is never read. Plain .npy files, because
a window is read from them in less than half the time that any compressed container takes (see benchmarks/LOG.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from bmmae.arrays import Array
from bmmae.data.cohort import LESION, Study
from bmmae.data.location import File, fingerprint
from bmmae.data.naming import named_modalities
from bmmae.data.packing import PackedStudy, pack_study
from bmmae.data.preprocess import VERSION, PreprocessConfig, Window, prepare_study
from bmmae.errors import ImageError, OutputError
from bmmae.patches import Triple, as_triple

META = "study.json"
FORMAT = 3
"""Raised whenever entries are laid out otherwise; part of every key."""
MADE_BY = [VERSION, FORMAT]
"""What entries say of how they were made."""

PARTIAL = ".partial-"


@dataclass(frozen=True)
class CachedStudy:
    """A prepared study whose arrays stay on disk.

    Attributes:
        folder: Where they are.
        names: The available modalities, in table order.
        shape: Voxels of the arrays.
        labelled: Whether there is a segmentation.
        soft: Whether there is a map of the chance of lesion.
        content: Modality to the hash of its image's voxels.
    """

    folder: Path
    names: tuple[str, ...]
    shape: Triple
    labelled: bool
    content: dict[str, str] = field(default_factory=dict, hash=False)
    soft: bool = False

    def open(self) -> PackedStudy:
        """Map the arrays into memory; nothing is read yet."""
        label = self._map("label") if self.labelled else None
        numbers = np.asarray(np.load(self.folder / "lesion_numbers.npy"))
        chance = self._map("chance") if self.soft else None
        arrays = (self._map("images"), self._map("flags"), label, self.lesion_voxels(), numbers, chance)
        return PackedStudy(self.names, *arrays)

    def window(self, start: Triple, size: Triple) -> Window:
        """Read a window; it may reach beyond the arrays."""
        return self.open().window(start, size)

    def lesion_voxels(self) -> Array:
        """Return a sample of the labelled voxels, Int[n, 3]; empty when there is none."""
        return np.asarray(np.load(self.folder / "lesion_voxels.npy"))

    def _map(self, name: str) -> Array:
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))


class StudyCache:
    """A folder of prepared studies, and a little memory for those that are in no folder.

    Args:
        folder: Where they are, created when something is stored; None for no folder.
        config: The preprocessing; part of every key.
        modalities: The modalities asked for, in any order, aliases included; part of every key.
        memory_mb: Most that each process keeps of prepared studies that are not on disk.

    Raises:
        ModalityError: If `modalities` repeats a name or holds an unusable one.
    """

    def __init__(
        self, folder: str | Path | None, config: PreprocessConfig, modalities: Sequence[str], memory_mb: int = 512
    ) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.config = config
        self.modalities = named_modalities(modalities)
        self.memory = _Memory(memory_mb * 2**20)
        self._told = False

    def key(self, study: Study) -> str:
        """Return the name of a study's entry: a hash of its sources and of everything done to them.

        Raises:
            ImageError: If a source file is gone.
        """
        content = {
            "version": MADE_BY,
            "preprocess": asdict(self.config),
            "files": {role: fingerprint(file) for role, file in self._sources(study).items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def find(self, study: Study) -> CachedStudy | None:
        """Return a study's entry, or None if it has not been stored, or is damaged."""
        return None if self.folder is None else _open_entry(self.folder / self.key(study))

    def without_label(self, study: Study) -> Study:
        """Return a study for those who read its images alone: a broken segmentation is then in nobody's way.

        It keeps its segmentation and its map of chances where it is stored with them, for its entry is named by them.
        """
        bare = replace(study, seg=None, lesion=None)
        if bare == study or self.find(bare) is not None:
            return bare
        try:
            return bare if self.find(study) is None else study
        except ImageError:  # the segmentation's file is gone
            return bare

    def load(self, study: Study) -> PackedStudy:
        """Return a study for training: from its entry, else prepared now, and stored if that is possible.

        Raises:
            ImageError: If a file is broken.
        """
        key = self.key(study)
        stored = None if self.folder is None else _read_entry(self.folder / key)
        if stored is not None:
            return stored
        kept = self.memory.get(key)
        if kept is None:
            kept, notes = self._prepare(study)
            if self.folder is None or not self._try_to_write(kept, notes, self.folder / key):
                self.memory.keep(key, kept)
        return kept

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
        write_entry(*self._prepare(study), folder)
        stored = _open_entry(folder)
        if stored is None:
            raise OutputError(
                f"the cache entry of study '{study.subject}' vanished from {self.folder} while it was used"
            )
        return stored

    def _prepare(self, study: Study) -> tuple[PackedStudy, dict[str, Any]]:
        prepared = prepare_study(study, self.config, self.modalities)
        notes = {
            "version": MADE_BY,
            "spacing": self.config.spacing,
            "clip": self.config.clip,
            "scales": prepared.scales,
            "brain_source": prepared.brain_source,
            "content": dict(prepared.content),
        }
        return pack_study(prepared), notes

    def _try_to_write(self, packed: PackedStudy, notes: dict[str, Any], folder: Path) -> bool:
        """Store what training has prepared anyway; a folder that cannot be written is no reason to stop."""
        try:
            write_entry(packed, notes, folder)
            return True
        except OutputError as error:
            if not self._told:
                warnings.warn(f"{error}; studies that are not in it are prepared whenever needed", stacklevel=2)
            self._told = True
            return False

    def _sources(self, study: Study) -> dict[str, File]:
        """The files that an entry is made of, by what they are used as."""
        names = [name for name in self.modalities if name in study.images]
        masks = {f"brain_mask_{name}": study.brain_mask_of(name) for name in names}
        optional = {"seg": study.seg, LESION: study.lesion, **masks}
        return {name: study.images[name] for name in names} | {k: v for k, v in optional.items() if v is not None}


class _Memory:
    """The studies used last, up to a number of bytes; starts empty in every process. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: OrderedDict[str, PackedStudy] = OrderedDict()
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[_Memory], tuple[int]]:
        return _Memory, (self.limit,)

    def get(self, key: str) -> PackedStudy | None:
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def keep(self, key: str, study: PackedStudy) -> None:
        with self.lock:
            self.kept[key] = study
            while self.kept and sum(each.nbytes for each in self.kept.values()) > self.limit:
                self.kept.popitem(last=False)


def _open_entry(folder: Path) -> CachedStudy | None:
    """Return an entry; None if it is absent, or its files are not what was written (a disk that lost power)."""
    try:
        meta = json.loads((folder / META).read_bytes())
        whole = all((folder / name).stat().st_size == size for name, size in meta["bytes"].items())
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        return None
    return CachedStudy(
        folder,
        tuple(meta["names"]),
        as_triple(meta["shape"]),
        meta["labelled"],
        meta["content"],
        meta.get("soft", False),
    )


def _read_entry(folder: Path) -> PackedStudy | None:
    """Map an entry's arrays; None if it is absent or damaged, or has gone meanwhile."""
    entry = _open_entry(folder)
    try:
        return None if entry is None else entry.open()
    except ValueError:  # of the right size, and no arrays: a copy that broke off, say
        with contextlib.suppress(OSError):
            (folder / META).unlink()  # else it would pass for whole again
        return None
    except OSError:
        return None


def machine() -> str:
    """Return what tells where a process's number means something: containers share a host's name, not its processes."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{space}"


def write_entry(packed: PackedStudy, notes: dict[str, Any], folder: Path) -> None:
    """Write an entry, all or nothing; one that is there already is as good.

    Raises:
        OutputError: If the folder cannot be written; nothing is left behind.
    """
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose folders nobody else may read: who shares a cache is for the user's umask to say.
        partial = cache / f"{PARTIAL}{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        partial.mkdir()
        try:
            _write(packed, notes, partial)
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"the cache {cache} cannot be written: {error.strerror or error}") from error


def _write(packed: PackedStudy, notes: dict[str, Any], folder: Path) -> None:
    arrays = {"images": packed.images, "flags": packed.flags}
    arrays |= {"lesion_voxels": packed.lesions, "lesion_numbers": packed.lesion_numbers}
    if packed.label is not None:
        arrays["label"] = packed.label
    if packed.chance is not None:
        arrays["chance"] = packed.chance
    meta = {
        "names": packed.names,
        "shape": packed.shape,
        "labelled": packed.label is not None,
        "soft": packed.chance is not None,
        "bytes": {f"{name}.npy": _save(folder / f"{name}.npy", array) for name, array in arrays.items()},
        **notes,
    }
    # Last, so that a folder with a study.json is complete.
    with (folder / META).open("w") as stream:
        json.dump(meta, stream, indent=1)
        _flush(stream)


def _save(path: Path, array: Array) -> int:
    """Write a .npy file, and return its size. `np.save` itself would hide why it failed (a full disk, say)."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        stream.write(array.data)
        _flush(stream)
        return stream.tell()


def _flush(stream: Any) -> None:
    """Bring a file to the disk, so that it is whole once its folder has been renamed, whatever happens then."""
    stream.flush()
    os.fsync(stream.fileno())


def _publish(partial: Path, final: Path) -> None:
    """Rename into place; if another process was faster, its entry is as good."""
    try:
        partial.rename(final)
    except OSError:
        if _open_entry(final) is not None:
            return
        if not final.is_dir():
            raise
        _refuse_unreadable(final)
        # What is there is damaged: it goes the way of other partial folders.
        broken = partial.with_name(f"{partial.name}x")
        broken.mkdir()
        with contextlib.suppress(OSError):
            final.rename(broken / "damaged")
        partial.rename(final)
        shutil.rmtree(broken, ignore_errors=True)


def _refuse_unreadable(entry: Path) -> None:
    """Refuse to take for damaged what only may not be read."""
    try:
        (entry / META).read_bytes()
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            f"its entry {entry.name} is another user's, who lets nobody read it (share it with `chmod -R a+rX "
            f"{entry.parent}`)",
        ) from error
    except OSError:
        return

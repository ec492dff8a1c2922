"""Results as images that open over their input, written all or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bmmae.arrays import Array
from bmmae.data.millimetres import qform_of
from bmmae.data.reading import Header, Image, read_header
from bmmae.data.tables import header_of
from bmmae.data.writing import write_image
from bmmae.errors import OccupiedError, OutputError


def image_like(values: Array, like: Image, description: str) -> nib.Nifti1Image:
    """Return voxels under the affine, codes and units of the image that they belong to."""
    source = read_header(like.path).raw
    image = nib.Nifti1Image(values, like.affine)
    if isinstance(source, nib.Nifti1Header):
        image.set_qform(*qform_of(source))
        image.set_sform(*source.get_sform(coded=True))
        image.header.set_xyzt_units(*source.get_xyzt_units())
    image.header["descrip"] = description.encode()[:79]
    return image


def save_image(image: nib.Nifti1Image, path: str | Path) -> Path:
    """Write an image in one step, its header's codes, units and description kept.

    Raises:
        OutputError: If it cannot be written.
    """
    array = np.asanyarray(image.dataobj)
    like = Header(Path(path), array.shape, image.affine, array.dtype, image.header)
    return write_image(path, array, image.affine, like, bytes(image.header["descrip"]).decode().rstrip("\0"))


def refuse_replacing(written: Iterable[Path], folder: Path, note_name: str) -> None:
    """Refuse to replace files that no earlier run here has made: acquired images, segmentations drawn by hand.

    A file that an earlier run has made, and that has another size since, was corrected by hand: it is not replaced, nor
    removed as what is not written again.

    Args:
        written: Where something is going to be written.
        folder: Whose note lists what an earlier run made.
        note_name: The note's file name.

    Raises:
        OccupiedError: Naming the file.
    """
    made = _listed(folder, note_name)
    for path in dict.fromkeys([*written, *(folder / Path(name).name for name in made)]):
        if not path.exists():
            continue
        size = path.stat().st_size
        if path.name not in made:
            raise OccupiedError(f"{path} exists, and no earlier run has made it: move it away, or choose another --out")
        if made[path.name] not in (None, size):
            raise OccupiedError(
                f"{path} was changed since an earlier run made it: move it away, or choose another --out"
            )


def refuse_foreign_table(path: Path, column: str) -> None:
    """Refuse to replace a table that no earlier run has made.

    Args:
        path: Where a table is going to be written.
        column: A column that runs add, and other tables lack.

    Raises:
        OccupiedError: If there is a file that is no such table.
    """
    if path.exists() and column not in header_of(path):
        raise OccupiedError(f"{path} is not of an earlier run and would be replaced: name another --out")


def write_together(
    images: Mapping[str, nib.Nifti1Image],
    note: Mapping[str, object],
    folder: Path,
    note_name: str,
    pages: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Write images, pages and a note beside each other first, then move all into place.

    So a full disk leaves nothing behind. The note goes first, once what an earlier one lists is gone: whenever a run
    is killed, a note lists each of its files, and `read_note` finds a folder complete only if all of them are there.

    Args:
        images: By the stem of their file names.
        note: What is told of them, for JSON; its `files` will list the names of all, and `bytes` how large each is.
        folder: Created if need be. What an earlier note there listed and is not written again, is removed.
        note_name: The note's file name.
        pages: Text files by name.

    Returns:
        The image files.

    Raises:
        OutputError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            names = [save_image(image, Path(partial) / f"{name}.nii.gz").name for name, image in images.items()]
            for name, text in (pages or {}).items():
                (Path(partial) / name).write_text(text, encoding="utf-8")
            names += pages or {}
            sizes = {name: (Path(partial) / name).stat().st_size for name in names}
            told = {**note, "files": names, "bytes": sizes}
            (Path(partial) / note_name).write_text(json.dumps(told, indent=2, default=str))
            for name in _listed(folder, note_name):
                (folder / Path(name).name).unlink(missing_ok=True)
            for name in (note_name, *names):
                (Path(partial) / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return {name: folder / f"{name}.nii.gz" for name in images}


def read_note(folder: Path, note_name: str) -> dict[str, object] | None:
    """Return the note of a folder whose files are all there, else None."""
    try:
        note = json.loads((folder / note_name).read_text())
        complete = all((folder / str(name)).is_file() for name in note["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if complete else None


def _listed(folder: Path, note_name: str) -> dict[str, int | None]:
    """Return the files that a folder's note lists, whether they are all there or not, and how many bytes they had.

    None where the note is of an earlier version, which did not say.
    """
    try:
        note = json.loads((folder / note_name).read_text())
        sizes = dict(note.get("bytes", {}))
        return {str(name): sizes.get(name) for name in note["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

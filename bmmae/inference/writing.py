"""Results as images that open over their input, written all or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bmmae.arrays import Array
from bmmae.data.reading import Header, Image, read_header, write_image
from bmmae.errors import OutputError


def image_like(values: Array, like: Image, description: str) -> nib.Nifti1Image:
    """Return voxels under the affine, codes and units of the image that they belong to."""
    source = read_header(like.path).raw
    image = nib.Nifti1Image(values, like.affine)
    if isinstance(source, nib.Nifti1Header):
        for kind in ("qform", "sform"):
            matrix, code = getattr(source, f"get_{kind}")(coded=True)
            getattr(image, f"set_{kind}")(matrix, code)
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


def write_together(
    images: Mapping[str, nib.Nifti1Image], note: Mapping[str, object], folder: Path, note_name: str
) -> dict[str, Path]:
    """Write images and note beside each other first, then move all into place: a full disk leaves nothing behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            names = [save_image(image, Path(partial) / f"{name}.nii.gz").name for name, image in images.items()]
            (Path(partial) / note_name).write_text(json.dumps(note, indent=2, default=str))
            for name in (*names, note_name):
                (Path(partial) / name).replace(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return {name: folder / f"{name}.nii.gz" for name in images}

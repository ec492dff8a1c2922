"""One array into one NIfTI file, in one step, on the grid and in the unit of an image that it belongs to."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, cast

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.location import write_whole
from bmmae.data.millimetres import qform_of, scaled, spacing_of, unit_of
from bmmae.data.reading import Header, is_nifti, read_header, silenced
from bmmae.errors import OutputError


def write_image(
    path: str | Path,
    array: Array,
    affine: Float[Array, "4 4"],
    like: str | Path | Header | None = None,
    description: str = "bmmae",
) -> Path:
    """Write a NIfTI volume in one step: readers see the old file or the whole new one, never a part.

    Args:
        path: Ends in `.nii` or `.nii.gz`; its folder is created if needed.
        array: [H W D]. Booleans are stored as uint8, int64 as int32, other floats as float32.
        affine: Voxel indices to world coordinates (mm).
        like: An input whose sform and qform codes and units are kept, so that viewers overlay both, whether they heed
            the unit or not.
        description: The header's free text (79 bytes are kept).

    Returns:
        The path written.

    Raises:
        OutputError: If the name is not that of a NIfTI file or the file cannot be written.
        ImageError: If `like` cannot be read.
    """
    path = Path(path).expanduser()
    if not is_nifti(path):
        raise OutputError(f"cannot write {path}: expected a name ending in .nii or .nii.gz")
    content = _encode(array, affine, _nifti_header(like), description)
    if path.name.lower().endswith(".gz"):
        # Without a time stamp the same volume gives the same bytes.
        content = gzip.compress(content, compresslevel=1, mtime=0)
    write_whole(path, content)
    return path


def _nifti_header(like: str | Path | Header | None) -> Any:
    import nibabel as nib

    if like is None:
        return nib.Nifti1Header()
    raw = (like if isinstance(like, Header) else read_header(like)).raw
    with silenced():
        return nib.Nifti1Header.from_header(raw)


def _encode(array: Array, affine: Float[Array, "4 4"], header: Any, description: str) -> bytes:
    import nibabel as nib

    kept = {"b": np.uint8, "f": np.float32}.get(array.dtype.kind)
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu":
        kept = np.int32
    voxels = array if kept is None else array.astype(kept)
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    own = header.get_best_affine()
    unit = unit_of(header, own)
    if not np.allclose(own, affine, rtol=0, atol=1e-5):  # else it is in the header's unit already
        affine = scaled(affine, 1 / unit)
    # Without codes a grid is where the shape and the voxel size put it; each viewer has its own rule, so none is added.
    placed = qform or sform or header.get_data_shape()[:3] == array.shape
    same = placed and np.allclose(own, affine, rtol=0, atol=1e-5)
    with silenced():
        image = nib.Nifti1Image(voxels, affine, header, dtype=voxels.dtype)
        if same:  # both matrices, which may differ: viewers choose among them
            image.set_qform(*qform_of(header))
            image.set_sform(*header.get_sform(coded=True))
            if not qform:  # else that has set the voxel sizes, in its unit
                image.header.set_zooms(spacing_of(own))
        else:
            # nibabel resets both codes as soon as the affine differs from the header's.
            image.set_qform(affine, code=qform)
            # A qform alone cannot hold shears, and without either there is no such place.
            lossy = not np.allclose(scaled(image.get_qform(), unit), scaled(affine, unit), atol=1e-4)
            image.set_sform(affine, code=sform or int(lossy or not qform))
        image.header["descrip"] = description.encode()[:79]
        image.header["cal_min"] = image.header["cal_max"] = 0
        return cast(bytes, image.to_bytes())

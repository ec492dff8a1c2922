"""One image file in, one array out: every problem a file can have ends in one clear sentence.

NIfTI files are read whole and decompressed in one go, which is more than twice as fast as nibabel's stream
and, unlike it, verifies the checksum at the end of a gzip file.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bmmae.arrays import Array, Float, Int
from bmmae.data.geometry import unsure_axes
from bmmae.data.location import File, RemoteFile, locate
from bmmae.data.millimetres import spacing_of, usable_affine
from bmmae.errors import ImageError, LabelError

GZIP_MAGIC = b"\x1f\x8b"
NIFTI2_MAGIC = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
CHANCE_TOLERANCE = 1e-3
INTEGRAL_TOLERANCE = 1e-3
"""Labels stored with a scale factor come back a rounding error away from whole numbers."""

SYNTHETIC = re.compile(r"bmmae (.* )?SYNTHETIC")
"""How the description of a synthesised image begins, and of its deviation."""

_SILENCE = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a file says about its grid, without its voxels.

    Attributes:
        path: The file.
        shape: Voxels along the three axes, in the file's own order.
        affine: Voxel indices to world coordinates (mm).
        dtype: How voxels are stored, before any scaling.
        raw: The format's own header (nibabel), which `write_image` takes codes and units from.
    """

    path: File
    shape: tuple[int, ...]
    affine: Float[Array, "4 4"]
    dtype: np.dtype[Any]
    raw: Any = field(repr=False, compare=False)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each array axis, mm."""
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Image:
    """One volume.

    Attributes:
        array: float32 voxels in the file's own axis order (and usually in Fortran's memory order).
        affine: float64, voxel indices to world coordinates (mm).
        path: The file it came from.
        description: The header's free text.
        axes_doubt: Why the header leaves right and left open (`unsure_axes`); empty if it does not.
    """

    array: Float[Array, "H W D"]
    affine: Float[Array, "4 4"]
    path: File
    description: str = ""
    axes_doubt: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along the three axes."""
        return self.array.shape

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each array axis, mm."""
        return spacing_of(self.affine)

    @property
    def open_axes(self) -> str:
        """A sentence without its end on which way the axes point; empty if the header tells."""
        return f"which way the axes of {self.path.name} point is open: {self.axes_doubt}" if self.axes_doubt else ""

    @property
    def synthetic(self) -> bool:
        """Whether no scanner has taken it, by its own header: `bmmae reconstruct` writes so."""
        return SYNTHETIC.match(self.description) is not None


def read_image(path: str | File) -> Image:
    """Read a volume of any format nibabel knows, with its scale factor applied; content tells `.nii` from `.nii.gz`.

    Raises:
        ImageError: If the file is absent, a folder, no image, truncated, not of three axes, of one value alone, has
            voxels that are not finite or of an impossible size, or an affine that cannot be inverted.
    """
    path = locate(path)
    image = _read(path)
    low, high = image.array.min(), image.array.max()
    if low == high:
        what = f"the value {low:g} alone" if low else "only zeros"
        raise ImageError(f"{path} holds {what}: expected an image; export it again or leave its cell blank")
    return image


def read_chances(path: str | File) -> Image:
    """Return a map of chances, 0 to 1; it may be empty.

    Raises:
        ImageError: As `read_image`, except that one value alone is accepted; if a value lies outside 0 to 1.
    """
    path = locate(path)
    image = _read(path)
    array = image.array
    if array.min() < -CHANCE_TOLERANCE or array.max() > 1 + CHANCE_TOLERANCE:
        raise ImageError(
            f"{path} is no map of probabilities: expected values from 0 to 1, got {array.min():g} to {array.max():g}; "
            "is it an image or a segmentation?"
        )
    return replace(image, array=np.clip(array, 0, 1))


def read_labels(path: str | File) -> tuple[Int[Array, "H W D"], Float[Array, "4 4"]]:
    """Return the int16 values of a segmentation or mask, and its affine; it may be empty, and stored as floats.

    Raises:
        ImageError: As `read_image`, except that one value alone is accepted.
        LabelError: If values are not whole numbers of the int16 range.
    """
    path = locate(path)
    image = _read(path)
    array = image.array
    whole = np.rint(array)
    off = int(np.count_nonzero(np.abs(array - whole) > INTEGRAL_TOLERANCE))
    limits = np.iinfo(np.int16)
    if off or whole.min() < limits.min or whole.max() > limits.max:
        raise LabelError(
            f"{path} is not a segmentation: expected whole numbers from {limits.min} to {limits.max}, got {off} "
            f"other voxels and a range of {array.min():g} to {array.max():g}; is it an image or a probability map?"
        )
    return whole.astype(np.int16), image.affine


def read_header(path: str | File) -> Header:
    """Read a file's grid without loading its voxels.

    Raises:
        ImageError: If the file is absent, a folder, no image, not of three axes, its voxels are of an impossible size,
            or its affine is singular.
    """
    path = locate(path)
    with _explained(path):
        _require_file(path)
        if is_nifti(path):
            raw = _parse_header(_first_bytes(path))
            affine = raw.get_best_affine()
        else:  # other formats may keep it in a file of its own
            image = _load(path)
            raw, affine = image.header, image.affine
        shape = _three_axes(path, tuple(map(int, raw.get_data_shape())))
        return Header(path, shape, usable_affine(path, raw, affine), raw.get_data_dtype(), raw)


def is_synthetic(path: str | File) -> bool:
    """Tell whether a header says that `bmmae reconstruct` made this; False if that cannot be read.

    Only the file's beginning is read: that of ten thousand studies takes seconds.
    """
    try:
        return SYNTHETIC.search(_first_bytes(locate(path)).decode("latin-1")) is not None
    except (OSError, EOFError, zlib.error):
        return False


def content_hash(path: str | File) -> str:
    """Return the sha256 of an image's voxels, whatever its name, header or compression; raises as `read_image`."""
    return array_hash(read_image(path).array)


def array_hash(array: Float[Array, "H W D"]) -> str:
    """Return the sha256 of a volume's shape and float32 voxels, in the files' order (first axis fastest)."""
    digest = hashlib.sha256(repr(tuple(array.shape)).encode())
    digest.update(np.ascontiguousarray(array.T, dtype="<f4").data)
    return digest.hexdigest()


def _read(path: File) -> Image:
    with _explained(path):
        _require_file(path)
        image = _parse(_decompressed(path)) if is_nifti(path) else _load(path)
        affine = usable_affine(path, image.header, image.affine)
        shape = _three_axes(path, tuple(map(int, image.shape)))
        dtype = image.get_data_dtype()
        if dtype.kind not in "iufb":
            raise ImageError(f"{path} stores voxels as {dtype}: expected real numbers; convert it to grey values")
        # Overflow to infinity is reported below, as voxels that are not finite.
        with np.errstate(all="ignore"):
            array = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape, order="F")
    finite = np.isfinite(array)
    if not finite.all():
        count = array.size - int(np.count_nonzero(finite))
        raise ImageError(
            f"{count} voxels of {path} are not finite (NaN or infinite, {count / array.size:.1%} of them): expected "
            "numbers; find the step that divided by zero, or set them to 0 if they are background"
        )
    return Image(array, affine, path, _description(image.header), unsure_axes(image.header, affine))


def _decompressed(path: File) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content


def _first_bytes(path: File) -> bytes:
    if isinstance(path, RemoteFile):
        return _decompressed(path)[:540]
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
    with gzip.open(path) if zipped else path.open("rb") as content:
        return content.read(540)


def _parse(content: bytes) -> Any:
    import nibabel as nib

    _parse_header(content[:540])
    kind = nib.Nifti2Image if content[:4] in NIFTI2_MAGIC else nib.Nifti1Image
    with silenced():
        return kind.from_stream(io.BytesIO(content))


def _parse_header(block: bytes) -> Any:
    import nibabel as nib

    kind, size = (nib.Nifti2Header, 540) if block[:4] in NIFTI2_MAGIC else (nib.Nifti1Header, 348)
    with silenced():
        _require_voxel_size(kind(block[:size], check=False))
        return kind(block[:size])


def _require_voxel_size(raw: Any) -> None:
    """Refuse a header that gives none: nibabel would take 1 mm."""
    sizes = raw["pixdim"][1:4]
    if not raw["sform_code"] and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise ValueError(f"voxels of {' x '.join(f'{size:g}' for size in sizes)} mm (pixdim), and no sform")


def _load(path: File) -> Any:
    import nibabel as nib

    if isinstance(path, RemoteFile):
        raise ImageError(f"{path} is no NIfTI file: of remote files, only .nii and .nii.gz can be read; convert it")
    with silenced():
        return nib.load(path)


def is_nifti(path: File) -> bool:
    """Tell by its name whether a file is NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _require_file(path: File) -> None:
    if isinstance(path, RemoteFile):
        return
    if path.is_dir():
        raise ImageError(f"{path} is a folder: expected an image file such as .nii.gz; name one file inside it")
    if not path.is_file():
        foreign = "\\" in str(path) and os.sep == "/"
        hint = (
            "it is written as on Windows, write / and no drive"
            if foreign
            else "check the spelling and the table's paths"
        )
        raise ImageError(f"{path} does not exist: expected an image file; {hint}")
    if not path.stat().st_size:
        raise ImageError(f"{path} cannot be read as an image: it is empty (0 bytes); copy or download it again")


def _three_axes(path: File, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing axes of length one beyond the third."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or 0 in shape:
        raise ImageError(
            f"{path}: expected 3 axes, got shape {shape}; write each volume to a file of its own, for example "
            "with nibabel.four_to_three(image) or `fslsplit`"
        )
    return shape[:3]


def _description(raw: Any) -> str:
    import nibabel as nib

    if not isinstance(raw, nib.analyze.AnalyzeHeader):  # which NIfTI's is a kind of
        return ""
    return bytes(raw["descrip"]).decode(errors="replace").rstrip("\0")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep nibabel's header remarks off the terminal; a lock, because both switches are global."""
    logger = logging.getLogger("nibabel.global")
    with _SILENCE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


@contextlib.contextmanager
def _explained(path: File) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError` that names the file."""
    try:
        yield
    except ImageError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(
            f"{path} is truncated or corrupt: expected a whole gzip file, got '{error}'; copy or download it again"
        ) from error
    except Exception as error:
        raise ImageError(_unreadable(path, error)) from error


def _unreadable(path: File, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # the system's own: nibabel's have none
        return f"{path} cannot be opened ({error.strerror}): check its permissions, and the disk or network it is on"
    reason = " ".join(str(error).split()) or type(error).__name__
    if "Expected" in reason and "bytes" in reason:
        return f"{path} is truncated: {reason[0].lower()}{reason[1:]}; copy or download it again"
    return (
        f"{path} cannot be read as an image: expected NIfTI or another format nibabel reads, got '{reason}'; convert "
        "it to .nii.gz again, from DICOM if you have it (`bmmae import-dicom`)"
    )

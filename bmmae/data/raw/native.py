"""What was done to a study, kept beside it, so that results go back to the scans they came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmmae.arrays import Array, Float, Shaped
from bmmae.data.location import write_whole
from bmmae.data.raw.resampling import Grid, Interpolation, Volume, resample
from bmmae.data.writing import write_image
from bmmae.errors import ImageError, ModalityError

FILE = "registration.json"
VERSION = 1


@dataclass(frozen=True)
class Native:
    """One modality as it was scanned.

    Attributes:
        grid: Its own grid.
        matrix: Millimetres of the study's common grid to millimetres of the scan (RAS).
        before: Mutual information with the reference by the headers alone, nats.
        after: The same with the transform found.
    """

    grid: Grid
    matrix: Float[Array, "4 4"]
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Registration:
    """How a study's scans relate to its common grid.

    Attributes:
        reference: The modality that the others were aligned to.
        atlas: The template's name, None if the study stayed in its own space.
        grid: The common grid.
        natives: Modality to scan.
        state: Hash of sources and settings: another one means that the study must be prepared again.
        remarks: What the study's user should know.
        files: Names of the files that were written beside it; none in those of earlier versions.
    """

    reference: str
    atlas: str | None
    grid: Grid
    natives: dict[str, Native]
    state: str = ""
    remarks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write `registration.json`, which names no scan and no person.

        Raises:
            OutputError: If it cannot be written.
        """
        content = {"version": VERSION, "millimetres": "RAS", **asdict(self)}
        write_whole(folder / FILE, json.dumps(content, indent=1, default=np.ndarray.tolist).encode())
        return folder / FILE


def read_registration(folder: str | Path) -> Registration:
    """Read a prepared study's `registration.json`.

    Raises:
        ImageError: If it is absent or malformed.
    """
    path = Path(folder).expanduser() / FILE
    try:
        content = json.loads(path.read_text())
        natives = {
            name: Native(_grid(item["grid"]), np.array(item["matrix"]), item["before"], item["after"])
            for name, item in content["natives"].items()
        }
        return Registration(
            content["reference"],
            content["atlas"],
            _grid(content["grid"]),
            natives,
            content["state"],
            tuple(content["remarks"]),
            tuple(content.get("files", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"{path} cannot be read: expected the file that `bmmae preprocess` leaves in a study's folder"
        ) from error


def to_native(
    array: Shaped[np.ndarray, "H W D"],
    registration: Registration | str | Path,
    modality: str,
    how: Interpolation = "linear",
) -> Volume:
    """Take a result on a study's common grid back to the grid of one of its scans.

    Args:
        array: On the common grid; a segmentation or an image.
        registration: The study's, or its folder.
        modality: Whose scan.
        how: `label` for segmentations.

    Raises:
        ModalityError: If the study lacks the modality.
        ImageError: If the array is not on the common grid.
    """
    known = registration if isinstance(registration, Registration) else read_registration(registration)
    if modality not in known.natives:
        raise ModalityError(f"the study has no {modality}: expected one of {', '.join(known.natives)}")
    if array.shape != known.grid.shape:
        raise ImageError(f"expected a volume of {known.grid.shape} voxels on the study's grid, got {array.shape}")
    native = known.natives[modality]
    moved = resample(Volume(array, known.grid.affine), np.linalg.inv(native.matrix), native.grid, how)
    return Volume(moved, native.grid.affine)


def write_native(
    path: str | Path, array: Shaped[np.ndarray, "H W D"], folder: str | Path, modality: str, how: Interpolation
) -> Path:
    """Write a result in the space of one of the study's scans; as `to_native`.

    Raises:
        OutputError: If it cannot be written.
    """
    volume = to_native(array, folder, modality, how)
    return write_image(path, volume.array, volume.affine, description="bmmae preprocess")


def _grid(content: dict[str, Any]) -> Grid:
    x, y, z = content["shape"]
    return Grid((int(x), int(y), int(z)), np.array(content["affine"], dtype=np.float64))

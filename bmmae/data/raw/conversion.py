"""One DICOM series in, one volume out, by dcm2niix; only voxels and affine are kept of what it writes."""

from __future__ import annotations

import shutil
import subprocess  # dcm2niix is a program, not a library
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.raw.dicom_files import Series
from bmmae.data.raw.extras import dcm2niix_program
from bmmae.errors import ImageError

Volume = tuple[Array, Float[Array, "4 4"]]

MOST_REMARKS = 4
"""Of the program, in one message: the first is seldom the reason."""
TIME_LIMIT = 900
"""Seconds; a series takes a few."""


def convert_series(series: Series) -> Volume:
    """Convert a series.

    Returns:
        Voxels [H, W, D] as stored where they need no scaling, else float32; and the affine to millimetres (RAS).

    Raises:
        ConfigError: If dcm2niix is not installed.
        ImageError: If it fails, or makes no or several volumes of the series; or if none may be made of it.
    """
    program = dcm2niix_program()
    if series.refused:
        raise ImageError(
            f"no volume is made of {len(series.files)} files, it would be wrong: {'; '.join(series.refused)}; leave "
            "the series out of the table"
        )
    with tempfile.TemporaryDirectory(prefix="bmmae-") as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        target.mkdir()
        for number, path in enumerate(series.files):
            _link(path, source / f"{number:05d}.dcm")
        # -ba y: anonymised; -b n: no sidecar; -m y: merge what differs in trifles; -i n: nothing left out unasked.
        options = ["-b", "n", "-ba", "y", "-z", "n", "-m", "y", "-i", "n", "-f", "volume", "-o", str(target)]
        try:
            done = subprocess.run(  # noqa: S603  # the arguments are ours, no shell is involved
                [program, *options, str(source)],
                capture_output=True,
                text=True,
                errors="replace",  # it repeats names of sequences in whatever letters the scanner wrote them
                timeout=TIME_LIMIT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageError(f"dcm2niix did not run ({type(error).__name__}): expected {program} to work") from error
        written = sorted(target.glob("*.nii"))
        if done.returncode or not written:
            # What is known to be wrong with the series says more than the program's first remark.
            reason = "; ".join(series.problems) or _complaint(f"{done.stderr}\n{done.stdout}")
            raise ImageError(f"dcm2niix made no volume of {len(series.files)} files: {reason}")
        return _load(_the_one(written))


def _the_one(written: list[Path]) -> Path:
    # Slices at unequal distances come out twice: as they are, under a wrong affine, and interpolated to equal ones.
    equal = [path for path in written if "_Eq" in path.stem]
    chosen = equal if len(equal) == 1 and len(written) == 2 else written
    if len(chosen) > 1:
        raise ImageError(
            f"dcm2niix made {len(written)} volumes of one series: expected one; it mixes echoes, phases or grids, "
            "export them as series of their own"
        )
    return chosen[0]


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path.resolve())
    except OSError:  # Windows without the right to make links
        shutil.copyfile(path, link)


def _complaint(log: str) -> str:
    """Return dcm2niix's own words, errors first, without the paths in them, which may name a patient."""
    lines = [line for kind in ("error", "warning") for line in log.splitlines() if line.lower().startswith(kind)]
    words = [word for line in lines[:MOST_REMARKS] for word in line.split() if "/" not in word and "\\" not in word]
    return " ".join(words) or "no reason given"


def _load(path: Path) -> Volume:
    import nibabel as nib

    image: Any = nib.load(path)
    if len(image.shape) != 3:
        raise ImageError(f"the series holds {image.shape[-1]} volumes: expected one; leave it out of the table")
    stored = image.header.get_data_dtype()
    if stored.kind not in "iuf":
        raise ImageError("the series holds colour pictures: expected grey values; leave it out of the table")
    plain = stored.kind in "iu" and (image.dataobj.slope, image.dataobj.inter) == (1.0, 0.0)
    array = np.asarray(image.dataobj) if plain else image.get_fdata(dtype=np.float32)
    return np.array(array), np.asarray(image.affine, dtype=np.float64)

"""Where the brain is in a raw scan, by whichever skull-stripping program is installed."""

from __future__ import annotations

import shutil
import subprocess  # both are programs of their own, with libraries that clash with ours
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from bmmae.arrays import Bool
from bmmae.data.raw.resampling import Volume
from bmmae.data.reading import read_image
from bmmae.data.writing import write_image
from bmmae.errors import ImageError

TIME_LIMIT = 3600
ADVICE = "install HD-BET (`pip install hd-bet`) or SynthStrip (FreeSurfer), or add a brain_mask column"

Arguments = Callable[[Path, Path], list[str]]


def _hd_bet(source: Path, target: Path) -> list[str]:
    import torch

    return ["-i", str(source), "-o", str(target), "-device", "cuda" if torch.cuda.is_available() else "cpu"]


def _synthstrip(source: Path, target: Path) -> list[str]:
    return ["-i", str(source), "-o", str(target)]


PROGRAMS: dict[str, Arguments] = {"hd-bet": _hd_bet, "mri_synthstrip": _synthstrip}
"""In the order in which they are looked for on PATH."""


def installed() -> str | None:
    """Return the name of the first skull-stripping program on PATH."""
    return next((name for name in PROGRAMS if shutil.which(name)), None)


def find_brain_mask(volume: Volume, program: str) -> Bool[np.ndarray, "H W D"]:
    """Return the brain that a program finds in a scan.

    Args:
        volume: A raw scan.
        program: One of `PROGRAMS`.

    Raises:
        ImageError: If the program fails or leaves nothing.
    """
    with tempfile.TemporaryDirectory(prefix="bmmae-") as folder:
        source, target = Path(folder, "scan.nii.gz"), Path(folder, "brain.nii.gz")
        write_image(source, volume.array.astype(np.float32), volume.affine)
        command = [shutil.which(program) or program, *PROGRAMS[program](source, target)]
        try:
            done = subprocess.run(  # noqa: S603  # the arguments are ours, no shell is involved
                command, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ImageError(f"{program} did not run ({type(error).__name__}); {ADVICE}") from error
        if done.returncode or not target.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ImageError(f"{program} found no brain ({' '.join(last) or 'no reason given'}); {ADVICE}")
        brain = read_image(target).array != 0
    if brain.shape != volume.array.shape:
        raise ImageError(f"{program} changed the grid: expected {volume.array.shape} voxels, got {brain.shape}")
    # Dark voxels inside the brain may be zero in what the program leaves.
    return np.asarray(ndimage.binary_fill_holes(brain))

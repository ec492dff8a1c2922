"""The brain that studies are aligned to: a file that the user names, or the template that comes with nilearn."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bmmae.arrays import Bool
from bmmae.data.brain import is_stripped
from bmmae.data.raw.extras import require
from bmmae.data.raw.resampling import Volume
from bmmae.data.reading import read_image

MNI152 = "mni152"
"""ICBM 152, 2009a, symmetric, skull-stripped, 1 mm: inside nilearn's package, nothing is downloaded."""

MARGIN = 8
"""Voxels around the atlas's brain in which it is compared too: its edge is what aligns best."""


@dataclass(frozen=True)
class Atlas:
    """A template.

    Attributes:
        name: `mni152`, or the file's name.
        volume: Its voxels.
        mask: Where to compare a study with it; None for everywhere (a template with its skull).
        state: Changes with the file's content.
    """

    name: str
    volume: Volume
    mask: Bool[np.ndarray, "H W D"] | None
    state: str


def load_atlas(name: str) -> Atlas:
    """Load a template.

    Args:
        name: `mni152` or a file.

    Raises:
        ConfigError: If nilearn is needed and not installed.
        ImageError: If the file cannot be read.
    """
    if name == MNI152:
        return _mni152()
    image = read_image(name)
    stat = os.stat(name)
    return _atlas(Path(name).name, Volume(image.array, image.affine), f"{stat.st_size}/{stat.st_mtime_ns}")


def _mni152() -> Atlas:
    purpose = "The default template (name another with --atlas FILE, or use --no-atlas)"
    with warnings.catch_warnings():
        # nilearn announces its own coming changes; none concerns a template's voxels.
        warnings.simplefilter("ignore")
        datasets = require("nilearn.datasets", purpose)
        image = datasets.load_mni152_template(resolution=1)
        array = np.asarray(image.get_fdata(dtype=np.float32))
    version = getattr(require("nilearn", purpose), "__version__", "")
    return _atlas(MNI152, Volume(array, np.asarray(image.affine, dtype=np.float64)), f"nilearn {version}")


def _atlas(name: str, volume: Volume, state: str) -> Atlas:
    stripped = is_stripped(volume.array)
    mask = ndimage.binary_dilation(volume.array != 0, iterations=MARGIN) if stripped else None
    return Atlas(name, volume, mask, state)

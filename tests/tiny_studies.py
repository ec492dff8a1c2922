"""Skull-stripped phantoms in small NIfTI files: asymmetric, so that a flip or a shift shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from bmmae.arrays import Array
from bmmae.data.cohort import Study
from bmmae.modalities import STANDARD
from bmmae.patches import Triple

SHAPE: Triple = (20, 24, 16)


def positions(shape: Triple = SHAPE) -> Array:
    """Coordinates from -1 to 1 along each axis, Float[3, H, W, D]."""
    return np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))


def brain(shape: Triple = SHAPE, radius: float = 0.8) -> Array:
    """An ellipsoid that leaves well over a fifth of the volume empty."""
    return np.asarray((positions(shape) ** 2).sum(0) < radius**2)


def picture(modality: int = 0, shape: Triple = SHAPE, seed: int = 0) -> Array:
    """Smooth asymmetric tissue with a little noise, about 100, exactly 0 outside the brain."""
    x, y, z = positions(shape)
    rng = np.random.default_rng([seed, modality])
    tissue = 100 + 15 * np.sin((3 + modality) * x + 1) + 10 * np.cos(4 * y - modality) + 8 * z + rng.normal(size=shape)
    return np.where(brain(shape), tissue, 0).astype(np.float32)


def lesion(shape: Triple = SHAPE) -> Array:
    """A segmentation with the values 1, 2 and 4, nested around an off-centre point."""
    x, y, z = positions(shape)
    distance = np.sqrt((x - 0.3) ** 2 + (y + 0.1) ** 2 + (z - 0.1) ** 2)
    return np.select([distance < 0.15, distance < 0.25, distance < 0.4], [1, 4, 2], 0).astype(np.int16)


def turn_to(orientation: str) -> Array:
    """What turns an image from RAS to another orientation, for nibabel's `as_reoriented`."""
    codes = nib.orientations.axcodes2ornt
    return np.asarray(nib.orientations.ornt_transform(codes("RAS"), codes(orientation)))


def save(
    path: Path,
    array: Array,
    orientation: str = "RAS",
    spacing: Sequence[float] = (1, 1, 1),
    codes: Sequence[int] = (1, 1),
) -> Path:
    """Write a volume given in RAS order so that it is stored in another; codes are those of qform and sform."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-12, 7, 30)
    image = nib.Nifti1Image(array, affine)
    image = image.as_reoriented(turn_to(orientation))
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    image.set_qform(image.affine, codes[0])
    image.set_sform(image.affine, codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_study(
    folder: Path,
    names: Sequence[str] = STANDARD,
    *,
    orientation: str = "RAS",
    spacing: Sequence[float] = (1, 1, 1),
    shape: Triple = SHAPE,
    seed: int = 0,
    labelled: bool = True,
) -> Study:
    """Write one patient's files and return the row of the table that names them."""
    ranks = {name: rank for rank, name in enumerate(STANDARD)}
    images = {
        name: save(folder / f"{name}.nii.gz", picture(ranks.get(name, 9), shape, seed), orientation, spacing)
        for name in names
    }
    seg = save(folder / "seg.nii.gz", lesion(shape), orientation, spacing) if labelled else None
    return Study(folder.name, images, seg=seg)

"""Rigid and affine registration by mutual information (Mattes 2003), from coarse to fine.

The same input gives the same transform on every run: seeds and the number of threads are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from bmmae.arrays import Array, Bool, Float, Shaped
from bmmae.data.raw.extras import require
from bmmae.data.raw.resampling import Volume, matrix_of, resample, to_sitk
from bmmae.errors import ImageError

THREADS = 2
"""Sums of floating-point numbers depend on how they are split: a fixed number gives the same result everywhere."""

MOST_SAMPLES = 40_000
TO_LPS = np.array([-1.0, -1.0, 1.0])
FEWEST_VOXELS = 8
"""No axis is shrunk below this many."""


@dataclass(frozen=True)
class RegistrationConfig:
    """How to register.

    Attributes:
        kind: `rigid` (6 parameters) or `affine` (12).
        levels: Voxel sizes to which both images are averaged, mm, coarse to fine.
        bins: Of the joint histogram.
        iterations: At most this many steps a level.
        seed: Of the voxels that are drawn.
        pitches: Nods of the head to start from, degrees: heads lie in scanners as they like, templates do not.
    """

    kind: Literal["rigid", "affine"] = "rigid"
    levels: tuple[float, ...] = (6.0, 3.0, 1.5)
    bins: int = 50
    iterations: int = 150
    seed: int = 1
    pitches: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Registered:
    """What came out.

    Attributes:
        matrix: Millimetres of the fixed image to millimetres of the moving one (RAS).
        before: Mutual information by the headers alone, nats.
        after: The same with `matrix`; never less than `before`.
    """

    matrix: Float[Array, "4 4"]
    before: float
    after: float


def register(
    fixed: Volume,
    moving: Volume,
    config: RegistrationConfig | None = None,
    fixed_mask: Bool[np.ndarray, "H W D"] | None = None,
) -> Registered:
    """Find where each point of the fixed image lies in the moving one.

    The search starts as the headers say and with the centres of mass on each other, and goes on from where it is better
    off after the coarsest level; an affine one starts from the rigid one's end. The headers' place is kept where the
    search finds nothing better.

    Args:
        fixed: The image that stays.
        moving: The image to align.
        config: How; rigid by default.
        fixed_mask: Where to compare, on the fixed image's grid.

    Raises:
        ImageError: If the images do not overlap or the search fails.
    """
    config = config or RegistrationConfig()
    mask = None if fixed_mask is None else Volume(fixed_mask.astype(np.uint8), fixed.affine)
    try:
        pair = _Pair(fixed, moving, mask, config)
        transform = pair.start()
        for level in config.levels[1:]:
            transform, _ = pair.descend(transform, level)
        if config.kind == "affine":
            transform = _loosened(transform)
            for level in config.levels:
                transform, _ = pair.descend(transform, level)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ImageError(
            f"registration failed ({reason}): expected two images of the same head that overlap"
        ) from error
    found = matrix_of(transform)
    before, after = (similarity(fixed, moving, matrix, fixed_mask) for matrix in (np.eye(4), found))
    return Registered(found, before, after) if after >= before else Registered(np.eye(4), before, before)


def similarity(
    fixed: Volume, moving: Volume, matrix: Float[Array, "4 4"], mask: Bool[np.ndarray, "H W D"] | None = None
) -> float:
    """Return the mutual information (nats) of two images under a transform, on the fixed image's grid.

    Args:
        fixed: The image that stays.
        moving: The image that is resampled.
        matrix: Millimetres of the fixed image to those of the moving one (RAS).
        mask: Where to compare; by default where the fixed image is not zero.
    """
    moved = resample(moving, matrix, fixed.grid)
    return mutual_information(fixed.array, moved, fixed.array != 0 if mask is None else mask)


def mutual_information(
    first: Shaped[np.ndarray, "H W D"],
    second: Shaped[np.ndarray, "H W D"],
    mask: Bool[np.ndarray, "H W D"],
    bins: int = 64,
) -> float:
    """Return the mutual information (nats) of two images inside a mask; 0 if it is empty.

    Intensities are cut at the 0.5 and 99.5 percentiles, so that a few bright voxels do not take all bins.
    """
    if not mask.any():
        return 0.0
    clipped = [np.clip(values, *np.percentile(values, (0.5, 99.5))) for values in (first[mask], second[mask])]
    joint, _, _ = np.histogram2d(clipped[0], clipped[1], bins=bins)
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / independent[seen])))


@dataclass(frozen=True)
class _Pair:
    """Two images, the mask in which they are compared, and how."""

    fixed: Volume
    moving: Volume
    mask: Volume | None
    config: RegistrationConfig

    def start(self) -> Any:
        """Return the best of several rigid starts after the coarsest level, turning about the fixed centre."""
        sitk = require("SimpleITK", "Registration")
        centre = _centre_of_mass(self.mask or self.fixed)
        shifts = (np.zeros(3), _centre_of_mass(self.moving) - _centre_of_mass(self.fixed))
        ends: list[tuple[Any, float]] = []
        apart: RuntimeError | None = None
        for shift, pitch in product(shifts, self.config.pitches):
            transform = sitk.Euler3DTransform()
            transform.SetCenter((centre * TO_LPS).tolist())
            transform.SetTranslation((shift * TO_LPS).tolist())
            transform.SetRotation(float(np.deg2rad(pitch)), 0.0, 0.0)
            try:
                ends.append(self.descend(transform, self.config.levels[0]))
            except RuntimeError as error:  # no overlap from this start
                apart = error
        if not ends and apart is not None:
            raise apart
        return min(ends, key=itemgetter(1))[0]

    def descend(self, transform: Any, level: float) -> tuple[Any, float]:
        """Improve a transform on images averaged to voxels of `level` mm; return it and its cost."""
        method = self._method(level)
        # In millimetres: a step may be as long as half a voxel of this level, and ends at a few micrometres.
        method.SetOptimizerAsRegularStepGradientDescent(level / 2, 2e-3, self.config.iterations, 0.6, 1e-6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, True)
        method.Execute(_averaged(self.fixed, level), _averaged(self.moving, level))
        return transform, float(method.GetMetricValue())

    def _method(self, level: float) -> Any:
        sitk = require("SimpleITK", "Registration")
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(THREADS)
        method.SetMetricAsMattesMutualInformation(self.config.bins)
        method.SetInterpolator(sitk.sitkLinear)
        voxels = self.fixed.array.size / np.prod(_factors(self.fixed, level))
        if voxels > MOST_SAMPLES:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(float(MOST_SAMPLES / voxels), self.config.seed)
        if self.mask is not None:
            method.SetMetricFixedMask(to_sitk(self.mask))
        return method


def _loosened(rigid: Any) -> Any:
    """Return a rigid transform as an affine one that turns about the same centre."""
    sitk = require("SimpleITK", "Registration")
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _averaged(volume: Volume, level: float) -> Any:
    sitk = require("SimpleITK", "Registration")
    image = to_sitk(Volume(volume.array.astype(np.float32), volume.affine))
    return sitk.BinShrink(image, _factors(volume, level))


def _factors(volume: Volume, level: float) -> list[int]:
    """Return by how much to shrink each axis: thick slices are left as they are."""
    sizes = zip(volume.grid.spacing, volume.array.shape, strict=True)
    return [max(1, min(round(level / spacing), count // FEWEST_VOXELS)) for spacing, count in sizes]


def _centre_of_mass(volume: Volume) -> Array:
    """Return the centre of what is bright, mm (RAS)."""
    weights = np.clip(volume.array.astype(np.float64) - volume.array.min(), 0, None)
    total = weights.sum()
    if total == 0:
        raise ImageError("registration needs an image with contrast: all voxels have the same value")
    place = [
        float(weights.sum(axis=tuple({0, 1, 2} - {axis})) @ np.arange(weights.shape[axis]) / total) for axis in range(3)
    ]
    return np.asarray(volume.affine[:3, :3] @ place + volume.affine[:3, 3])

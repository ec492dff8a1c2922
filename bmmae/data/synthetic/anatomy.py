"""A brain's tissues on a grid: outline, folded cortex, white matter, ventricles, deep nuclei, cerebellum.

Positions are in half-widths of the field of view, -1 to 1, along right, anterior and superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float

FIELD_OF_VIEW = 192.0
"""Millimetres across the grid, whatever its size."""

TISSUES = ("csf", "grey", "white", "deep")


@dataclass(frozen=True)
class Anatomy:
    """The tissues of one brain.

    Attributes:
        brain: Bool[n, n, n], everything inside the skull-stripped outline.
        tissues: Float[4, n, n, n], share of each of `TISSUES` in a voxel; they add up to one inside the brain.
        depth: Float[n, n, n], millimetres below the brain's surface; 0 outside.
        positions: Float[3, n, n, n], where each voxel is in the undeformed brain.
    """

    brain: Bool[np.ndarray, "n n n"]
    tissues: Float[np.ndarray, "4 n n n"]
    depth: Float[np.ndarray, "n n n"]
    positions: Float[np.ndarray, "3 n n n"]


def smooth_noise(rng: np.random.Generator, size: int, millimetres: float) -> Float[np.ndarray, "n n n"]:
    """Return Gaussian noise smoothed to a length scale, with zero mean and unit deviation.

    It is drawn on a grid that depends on the length scale alone, so that anatomy is the same at every size.
    """
    nodes = int(np.clip(np.ceil(3 * FIELD_OF_VIEW / millimetres), 4, 64))
    coarse = ndimage.gaussian_filter(
        rng.standard_normal((nodes,) * 3), nodes * millimetres / FIELD_OF_VIEW / 2, mode="wrap"
    )
    coarse = (coarse - coarse.mean()) / coarse.std()
    weights = _interpolation(nodes, size)
    fine = np.einsum("ai,bj,ck,ijk->abc", weights, weights, weights, coarse, optimize=True)
    return np.asarray(fine, dtype=np.float32)


def _interpolation(nodes: int, size: int) -> Float[np.ndarray, "size nodes"]:
    """Weights that take a periodic line of nodes to a line of voxels by linear interpolation."""
    steps = (np.arange(size) + 0.5) / size * nodes - 0.5
    lower = np.floor(steps).astype(int)
    weights = np.zeros((size, nodes))
    np.add.at(weights, (np.arange(size), lower % nodes), 1 - (steps - lower))
    np.add.at(weights, (np.arange(size), (lower + 1) % nodes), steps - lower)
    return weights


def make_anatomy(rng: np.random.Generator, size: int) -> Anatomy:
    """Draw one brain on a grid of `size` voxels a side."""
    positions = _deformed_positions(rng, size)
    brain = _outline(positions, rng)
    voxel = FIELD_OF_VIEW / size
    depth = np.maximum(ndimage.distance_transform_edt(brain) - 0.5, 0) * voxel
    shares = _tissue_shares(positions, depth, voxel, rng)
    return Anatomy(brain, np.where(brain, shares, 0).astype(np.float32), depth.astype(np.float32), positions)


def _tissue_shares(
    positions: Array, depth: Array, voxel: float, rng: np.random.Generator
) -> Float[np.ndarray, "4 n n n"]:
    """Share of each tissue, softened over a voxel: thin cortex and sulci survive as partial volume."""

    def within(millimetres: Array, limit: float | Array) -> Array:
        return np.clip((limit - millimetres) / voxel + 0.5, 0, 1)

    fluid_distance = _distance_to_fluid(positions, depth, rng)
    ventricles = ndimage.gaussian_filter(_ventricles(positions, float(rng.uniform(0.75, 1.35))).astype(np.float32), 0.5)
    csf = np.maximum(within(fluid_distance, 0.9), ventricles)
    cortex = within(fluid_distance, 0.9 + 3.6) * (1 - csf)
    nuclei = ndimage.gaussian_filter(_deep_nuclei(positions).astype(np.float32), 0.5)
    deep = nuclei * np.clip(1 - csf - cortex, 0, 1)
    return np.stack([csf, cortex, np.clip(1 - csf - cortex - deep, 0, 1), deep])


def _distance_to_fluid(positions: Array, depth: Array, rng: np.random.Generator) -> Float[np.ndarray, "n n n"]:
    """Millimetres to the fluid over the brain, in its sulci or between the hemispheres.

    Sulci are the zero crossings of smooth noise, down to a depth that varies; near a crossing, the noise over its
    slope is the distance.
    """
    size = depth.shape[0]
    cerebellum = _ellipsoid(positions, (0.0, -0.5, -0.56), (0.52, 0.38, 0.3)) < 1
    folds = np.abs(smooth_noise(rng, size, 13.0)) * 6.5
    leaves = np.abs(smooth_noise(rng, size, 8.0)) * 4.0
    reach = 14.0 + 3.0 * smooth_noise(rng, size, 40.0)
    below = np.maximum(depth - np.where(cerebellum, 12.0, reach), 0)
    sulci = np.hypot(np.where(cerebellum, leaves, folds), below)
    middle = np.abs(positions[0] + 0.01 * smooth_noise(rng, size, 40.0)) * FIELD_OF_VIEW / 2
    fissure = np.hypot(middle, np.maximum(depth - 24, 0) + 200 * np.maximum(-0.05 - positions[2], 0))
    return np.asarray(np.minimum(np.minimum(depth, sulci), fissure))


def _deformed_positions(rng: np.random.Generator, size: int) -> Float[np.ndarray, "3 n n n"]:
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"))
    scale = rng.normal(1, 0.035, (3, 1, 1, 1))
    shift = np.stack([smooth_noise(rng, size, 60.0) for _ in range(3)]) * 0.022
    return np.asarray(grid / scale + shift, dtype=np.float32)


def _ellipsoid(positions: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Squared distance from the centre, 1 on the surface of the ellipsoid."""
    offsets = (positions - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
    return np.asarray((offsets**2).sum(axis=0))


def _outline(positions: Array, rng: np.random.Generator) -> Bool[np.ndarray, "n n n"]:
    """Cerebrum, temporal lobes, cerebellum and brainstem."""
    surface = 0.05 * smooth_noise(rng, positions.shape[-1], 45.0)
    cerebrum = (_ellipsoid(positions, (0.0, 0.02, 0.08), (0.68, 0.86, 0.68)) < 1 + surface) & (positions[2] > -0.42)
    temporal = np.zeros_like(cerebrum)
    for side in (-1, 1):
        temporal |= _ellipsoid(positions, (side * 0.42, 0.12, -0.34), (0.24, 0.42, 0.24)) < 1 + surface
    cerebellum = _ellipsoid(positions, (0.0, -0.5, -0.56), (0.5, 0.36, 0.28)) < 1 + surface
    stem = (positions[0] ** 2 + (positions[1] + 0.14 + 0.15 * positions[2]) ** 2 < 0.018) & (positions[2] < -0.2)
    whole = cerebrum | temporal | cerebellum | (stem & (positions[2] > -0.9))
    return np.asarray(ndimage.binary_closing(whole, iterations=1))


def _ventricles(positions: Array, width: float) -> Array:
    """Two curved lateral ventricles with their horns, and the third ventricle."""
    x, y, z = positions
    inside = (np.abs(x) < 0.016 * width) & (np.abs(y + 0.02) < 0.16) & (np.abs(z + 0.06) < 0.12)
    for side in (-1, 1):
        # The body bends outwards to the front and to the back, and downwards at its ends.
        middle = side * (0.07 + 0.16 * (y - 0.02) ** 2 + 0.05 * np.maximum(-y, 0))
        height = 0.15 - 0.42 * (y - 0.03) ** 2
        across = ((x - middle) / (0.052 * width)) ** 2 + ((z - height) / (0.085 * width)) ** 2
        inside |= (across < 1) & (y > -0.5) & (y < 0.42)
    return np.asarray(inside)


def _deep_nuclei(positions: Array) -> Array:
    """Thalamus, putamen with pallidum, and head of the caudate nucleus, on both sides."""
    inside = np.zeros(positions.shape[1:], dtype=bool)
    for side in (-1, 1):
        inside |= _ellipsoid(positions, (side * 0.11, -0.1, 0.02), (0.085, 0.15, 0.1)) < 1
        inside |= _ellipsoid(positions, (side * 0.28, 0.12, 0.0), (0.075, 0.22, 0.13)) < 1
        inside |= _ellipsoid(positions, (side * 0.16, 0.3, 0.08), (0.06, 0.12, 0.1)) < 1
    return inside

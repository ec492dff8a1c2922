"""Lesions whose look follows a patient's findings: core, enhancing rim, oedema, satellites."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.data.synthetic.anatomy import FIELD_OF_VIEW, Anatomy, smooth_noise
from bmmae.data.synthetic.findings import Patient

CORE, OEDEMA, ENHANCING = 1, 2, 4
"""Label values: the coding `brats2017`."""

RADIUS_MM = (13.0, 23.0)
SATELLITE_RADIUS_MM = 4.5


@dataclass(frozen=True)
class Lesions:
    """All lesions of one brain.

    Attributes:
        label: Int16[n, n, n], in the coding `brats2017`.
        blood: Bool[n, n, n], the part of core and rim that is bright on T1.
        satellites: Bool[n, n, n], FLAIR-bright foci; part of no label, as they would be in practice.
        cyst: How fluid-like the cores are, 0 to 1.
    """

    label: Array
    blood: Bool[np.ndarray, "n n n"]
    satellites: Bool[np.ndarray, "n n n"]
    cyst: float


def make_lesions(rng: np.random.Generator, anatomy: Anatomy, patient: Patient) -> Lesions:
    """Place a patient's lesions in a brain.

    Sizes are drawn apart from the findings, which act on proportions alone; so the total load says nothing.
    """
    size = anatomy.brain.shape[0]
    voxel = FIELD_OF_VIEW / size
    label = np.zeros(anatomy.brain.shape, dtype=np.int16)
    blood = np.zeros(anatomy.brain.shape, dtype=bool)
    clots = smooth_noise(rng, size, 9.0)
    # The first is the largest: more lesions are smaller ones, of about the same volume together.
    radii = rng.uniform(*RADIUS_MM) * np.array([1.0, 0.75, 0.65, 0.6])[: patient.lesions] / patient.lesions**0.2
    for number, radius in enumerate(radii):
        rim = radius * float(np.interp(patient.findings["rim"], (-2, 2), (0.14, 0.56)))
        halo = radius * float(np.interp(patient.findings["oedema"], (-2, 2), (0.25, 1.35)))
        clotted = float(np.interp(patient.findings["blood"], (-2, 2), (0, 0.9)))
        below = patient.infratentorial and number == len(radii) - 1
        centre = _place(rng, anatomy, label, float(radius), float(halo), infratentorial=below)
        distance = _wavy_distance(rng, centre, size, voxel, float(radius))
        inside = anatomy.brain & (anatomy.depth > 0.5 * voxel)
        free = inside & (anatomy.tissues[0] < 0.6)
        label[free & (distance < radius + halo) & (label == 0)] = OEDEMA
        mass = inside & (distance < radius)
        label[mass] = ENHANCING
        label[mass & (distance < radius - max(rim, 0.6 * voxel))] = CORE
        blood |= mass & (clots > _quantile(clots, mass, 1 - clotted))
    satellites = _satellites(rng, anatomy, label, patient)
    return Lesions(
        label, blood & (label == CORE), satellites, float(np.interp(patient.findings["cyst"], (-2, 2), (0, 1)))
    )


def _quantile(values: Array, where: Array, share: float) -> float:
    return float(np.quantile(values[where], share)) if where.any() else np.inf


def _place(
    rng: np.random.Generator, anatomy: Anatomy, label: Array, radius: float, halo: float, *, infratentorial: bool
) -> Float[np.ndarray, " 3"]:
    """Choose a voxel deep enough for the lesion, clear of the others, above or below the tentorium.

    Where no voxel is deep and clear enough, the demands are lowered step by step.
    """
    x, y, z = anatomy.positions
    below = (z < -0.42) & (y < -0.25)
    above = (z > -0.15) & (np.abs(x) > 0.1)
    wanted = anatomy.brain & (below if infratentorial else above) & (label == 0)
    voxel = FIELD_OF_VIEW / label.shape[0]
    free = ndimage.distance_transform_edt(label == 0) * voxel if label.any() else np.full(label.shape, np.inf)
    for demand in (1.0, 0.75, 0.5, 0.25, 0.0):
        good = wanted & (anatomy.depth >= 0.8 * demand * radius) & (free >= demand * (radius + halo))
        candidates = np.argwhere(good)
        if len(candidates):
            return np.asarray(candidates[rng.integers(len(candidates))], dtype=np.float32)
    raise AssertionError("a brain has voxels above and below the tentorium")


def _wavy_distance(
    rng: np.random.Generator, centre: Array, size: int, voxel: float, radius: float
) -> Float[np.ndarray, "n n n"]:
    """Millimetres from a centre, stretched and made uneven so that lesions are no balls."""
    offsets = (np.indices((size,) * 3, dtype=np.float32) - centre.reshape(3, 1, 1, 1)) * voxel
    stretch = rng.uniform(0.85, 1.2, (3, 1, 1, 1))
    distance = np.sqrt(((offsets * stretch) ** 2).sum(axis=0))
    return np.asarray(distance + 0.16 * radius * smooth_noise(rng, size, 14.0))


def _satellites(
    rng: np.random.Generator, anatomy: Anatomy, label: Array, patient: Patient
) -> Bool[np.ndarray, "n n n"]:
    """Small foci in the white matter, none to seven by the finding."""
    size = label.shape[0]
    out = np.zeros(label.shape, dtype=bool)
    count = round(float(np.interp(patient.findings["satellites"], (-2, 2), (0, 7))))
    candidates = np.argwhere(
        (anatomy.tissues[2] > 0.9) & (label == 0) & (anatomy.depth > 8) & (anatomy.positions[2] > -0.3)
    )
    for _ in range(count if len(candidates) else 0):
        centre = candidates[rng.integers(len(candidates))]
        offsets = (np.indices((size,) * 3, dtype=np.float32) - centre.reshape(3, 1, 1, 1)) * (FIELD_OF_VIEW / size)
        out |= (offsets**2).sum(axis=0) < SATELLITE_RADIUS_MM**2
    return np.asarray(out & (label == 0) & anatomy.brain)

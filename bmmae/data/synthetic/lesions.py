"""Lesions whose look follows a patient's findings: core, enhancing rim, oedema, satellites.

A finding moves nothing but itself: places and outlines come from the generator's chance alone, so that a modality
that does not show a finding is the same, voxel for voxel, whatever its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.data.synthetic.anatomy import FIELD_OF_VIEW, Anatomy, smooth_noise
from bmmae.data.synthetic.findings import Patient

CORE, OEDEMA, ENHANCING = 1, 2, 4
"""Label values: the coding `brats2017`."""

RADIUS_MM = (13.0, 20.0)
RADIUS_SHARES = (1.0, 0.8, 0.72, 0.66)
"""Radius of each lesion over the first one's."""
SMALLEST_RADIUS_MM = 9.0
LARGEST_INFRATENTORIAL_MM = 15.0
GAP_MM = 6.0
"""Between the bodies of two lesions, so that they can be counted."""
SATELLITE_RADIUS_MM = 4.5
SATELLITE_SPACING_MM = 15.0

SMALL_COUNT = (3, 8)
"""Fewest and most of the small lesions that are scattered instead of these, if asked for."""

RIM_OVER_RADIUS = (0.16, 0.6)
OEDEMA_MM = (3.0, 15.0)
BLOOD_SHARE = (0.0, 0.9)
SATELLITE_COUNT = (0.0, 7.0)


@dataclass(frozen=True)
class Lesions:
    """All lesions of one brain. The body of a lesion is its core and its rim.

    Attributes:
        label: Int16[n, n, n], in the coding `brats2017`.
        body: Float[n, n, n], share of each voxel inside a body.
        rim: Float[n, n, n], share inside an enhancing rim; at most `body`.
        oedema: Float[n, n, n], share inside oedema or a body.
        blood: Bool[n, n, n], the part of the bodies that is bright on T1.
        satellites: Float[n, n, n], share inside FLAIR-bright foci; part of no label, as they would be in practice.
        cyst: How fluid-like the bodies are, 0 to 1.
    """

    label: Array
    body: Float[np.ndarray, "n n n"]
    rim: Float[np.ndarray, "n n n"]
    oedema: Float[np.ndarray, "n n n"]
    blood: Bool[np.ndarray, "n n n"]
    satellites: Float[np.ndarray, "n n n"]
    cyst: float


def make_lesions(rng: np.random.Generator, anatomy: Anatomy, patient: Patient) -> Lesions:
    """Place a patient's lesions in a brain.

    Sizes are drawn apart from the findings, which act on proportions and widths alone.
    """
    size = anatomy.brain.shape[0]
    voxel = FIELD_OF_VIEW / size
    clots = smooth_noise(rng, size, 9.0)
    bodies = _bodies(rng, anatomy, patient)
    thickness = _between(patient, "rim", RIM_OVER_RADIUS)
    blood = np.zeros(anatomy.brain.shape, dtype=bool)
    for inner, _ in bodies:
        mass = inner > 0
        blood |= mass & (clots > np.quantile(clots[mass], 1 - _between(patient, "blood", BLOOD_SHARE)))
    depth = np.max([inner for inner, _ in bodies], axis=0)
    body = _share(depth, voxel)
    core = _share(np.max([inner - max(thickness * radius, 0.6 * voxel) for inner, radius in bodies], axis=0), voxel)
    reach = depth + _between(patient, "oedema", OEDEMA_MM)
    oedema = np.maximum(_share(reach, voxel) * anatomy.brain * (1 - anatomy.tissues[0]), body)
    label = np.select([core > 0.5, body > 0.5, oedema > 0.5], [CORE, ENHANCING, OEDEMA], 0).astype(np.int16)
    satellites = _satellites(rng, anatomy, reach, round(_between(patient, "satellites", SATELLITE_COUNT)))
    return Lesions(label, body, body - core, oedema, blood, satellites, _between(patient, "cyst", (0.0, 1.0)))


def make_small_lesions(rng: np.random.Generator, anatomy: Anatomy, radius_mm: tuple[float, float]) -> Lesions:
    """Scatter small enhancing balls in a brain, as metastases are: no oedema, no finding of the patient's.

    Args:
        rng: Decides how many there are, where, and how large each is.
        anatomy: The brain.
        radius_mm: The smallest and the largest radius. Every ball marks one voxel at least.
    """
    size = anatomy.brain.shape[0]
    voxel = FIELD_OF_VIEW / size
    wanted = anatomy.brain & (anatomy.tissues[0] < 0.5)
    depth = np.full(anatomy.brain.shape, -np.inf)
    for _ in range(int(rng.integers(*SMALL_COUNT, endpoint=True))):
        radius = float(rng.uniform(*radius_mm))
        slack = np.minimum(anatomy.depth - radius - 2, 0) + np.minimum(-depth - radius - GAP_MM - voxel, 0)
        depth = np.maximum(depth, radius - _distance(_choose(rng, wanted, slack), voxel, size))
    body = _share(depth, voxel)
    nothing = np.zeros_like(body)
    label = np.where(body > 0.5, ENHANCING, 0).astype(np.int16)
    return Lesions(label, body, body, body, np.zeros(body.shape, dtype=bool), nothing, 0.0)


def _between(patient: Patient, finding: str, ends: tuple[float, float]) -> float:
    """Map a finding from two deviations below its mean to two above."""
    return float(np.interp(patient.findings[finding], (-2, 2), ends))


def _share(inner: Array, voxel: float) -> Float[np.ndarray, "n n n"]:
    """Share of each voxel inside a surface, from the millimetres below it."""
    return np.asarray(np.clip(inner / voxel + 0.5, 0, 1), dtype=np.float32)


def _bodies(rng: np.random.Generator, anatomy: Anatomy, patient: Patient) -> list[tuple[Array, float]]:
    """Draw each lesion's body: Float[n, n, n] millimetres below its surface (negative outside), and its radius."""
    voxel = FIELD_OF_VIEW / anatomy.brain.shape[0]
    largest = rng.uniform(*RADIUS_MM) / patient.lesions**0.15
    bodies: list[tuple[Array, float]] = []
    for number, share in enumerate(RADIUS_SHARES[: patient.lesions]):
        below = patient.infratentorial and number == patient.lesions - 1
        radius = min(max(largest * share, SMALLEST_RADIUS_MM), LARGEST_INFRATENTORIAL_MM if below else np.inf)
        outside = np.min([-inner for inner, _ in bodies], axis=0) if bodies else np.full(anatomy.brain.shape, np.inf)
        slack = np.minimum(anatomy.depth - 0.9 * radius, 0) + np.minimum(outside - 1.25 * radius - GAP_MM, 0)
        centre = _choose(rng, _region(anatomy, infratentorial=below), slack)
        inner = np.minimum(radius - _wavy_distance(rng, centre, voxel, radius, len(slack)), outside - 2 * voxel)
        bodies.append((_one_piece(inner, anatomy, voxel), float(radius)))
    return bodies


def _one_piece(inner: Array, anatomy: Anatomy, voxel: float) -> Array:
    """Keep the largest piece of a body inside the brain."""
    inner = np.where(anatomy.depth > 0.5 * voxel, inner, np.minimum(inner, -voxel))
    pieces, count = ndimage.label(inner > 0)
    if count > 1:
        largest = np.bincount(pieces.ravel())[1:].argmax() + 1
        inner = np.where((pieces > 0) & (pieces != largest), -voxel, inner)
    return np.asarray(inner)


def _region(anatomy: Anatomy, *, infratentorial: bool) -> Bool[np.ndarray, "n n n"]:
    """Where lesions may have their centre, above or below the tentorium."""
    x, y, z = anatomy.positions
    return np.asarray(anatomy.brain & ((z < -0.42) & (y < -0.25) if infratentorial else (z > -0.1) & (np.abs(x) > 0.1)))


def _choose(rng: np.random.Generator, wanted: Array, slack: Array) -> Float[np.ndarray, " 3"]:
    """Choose a wanted voxel among those that break the fewest millimetres of the demands (slack 0 breaks none)."""
    candidates = np.argwhere(wanted & (slack >= slack[wanted].max()))
    return np.asarray(candidates[int(rng.random() * len(candidates))], dtype=np.float32)


def _distance(centre: Array, voxel: float, size: int, stretch: Array | float = 1.0) -> Float[np.ndarray, "n n n"]:
    """Millimetres from a voxel."""
    offsets = (np.indices((size,) * 3, dtype=np.float32) - centre.reshape(3, 1, 1, 1)) * (voxel * stretch)
    return np.asarray(np.sqrt((offsets**2).sum(axis=0)))


def _wavy_distance(
    rng: np.random.Generator, centre: Array, voxel: float, radius: float, size: int
) -> Float[np.ndarray, "n n n"]:
    """Millimetres from a centre, stretched and made uneven so that lesions are no balls."""
    stretch = rng.uniform(0.88, 1.14, (3, 1, 1, 1))
    return _distance(centre, voxel, size, stretch) + 0.13 * radius * smooth_noise(rng, size, 14.0)


def _satellites(rng: np.random.Generator, anatomy: Anatomy, reach: Array, count: int) -> Float[np.ndarray, "n n n"]:
    """Draw small foci in the cerebrum, apart from each other and from oedema (`reach`: millimetres inside it)."""
    size = reach.shape[0]
    voxel = FIELD_OF_VIEW / size
    wanted = anatomy.brain & (anatomy.positions[2] > -0.25) & (anatomy.tissues[2] > 0.5)
    slack = np.minimum(anatomy.depth - 9, 0) + np.minimum(-reach - SATELLITE_RADIUS_MM - 2 * voxel, 0)
    nearest = np.full(reach.shape, np.inf)
    for _ in range(count):
        centre = _choose(rng, wanted, slack + np.minimum(nearest - SATELLITE_SPACING_MM, 0))
        nearest = np.minimum(nearest, _distance(centre, voxel, size))
    outside = np.clip(-reach / voxel - 0.5, 0, 1)
    return np.asarray(_share(SATELLITE_RADIUS_MM - nearest, voxel) * anatomy.brain * outside, dtype=np.float32)

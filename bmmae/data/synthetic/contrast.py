"""What each sequence makes of the tissues: means as in the literature, then scanner, bias field and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Float
from bmmae.data.synthetic.anatomy import TISSUES, Anatomy, smooth_noise
from bmmae.data.synthetic.findings import FLAIR, T1, T1CE, T2
from bmmae.data.synthetic.lesions import CORE, ENHANCING, OEDEMA, Lesions

MEANS: dict[str, dict[str, float]] = {
    T1: {"csf": 0.25, "grey": 0.60, "white": 0.86, "deep": 0.70, "oedema": 0.58, "core": 0.38, "rim": 0.60},
    T1CE: {"csf": 0.26, "grey": 0.64, "white": 0.86, "deep": 0.72, "oedema": 0.58, "core": 0.40, "rim": 1.40},
    T2: {"csf": 1.25, "grey": 0.72, "white": 0.50, "deep": 0.60, "oedema": 0.98, "core": 0.80, "rim": 0.74},
    FLAIR: {"csf": 0.18, "grey": 0.68, "white": 0.52, "deep": 0.62, "oedema": 1.12, "core": 0.50, "rim": 0.80},
}
"""Mean signal of each tissue, in units of the sequence; only ratios matter."""

BLOOD_ON_T1 = 1.15
CYST_ON_T2 = 1.3
SATELLITE_ON_FLAIR = 0.98
NOISE = 0.025
BIAS = 0.09


def make_contrast(
    rng: np.random.Generator, modality: str, anatomy: Anatomy, lesions: Lesions
) -> Float[np.ndarray, "n n n"]:
    """Return one sequence's image as a scanner would store it: positive inside the brain, exactly 0 outside."""
    size = anatomy.brain.shape[0]
    means = MEANS[modality]
    healthy = np.array([means[tissue] * rng.normal(1, 0.03) for tissue in TISSUES])
    signal = np.tensordot(healthy, anatomy.tissues, axes=1)
    signal = _with_lesions(signal, modality, lesions, rng)
    signal = ndimage.gaussian_filter(signal, 0.35)
    signal *= 1 + 0.025 * smooth_noise(rng, size, 25.0)
    signal *= np.exp(BIAS * np.clip(smooth_noise(rng, size, 110.0), -2, 2))
    noise = rng.normal(0, NOISE, (2, *signal.shape))
    magnitude = np.hypot(signal + noise[0], noise[1])
    gain = np.exp(rng.normal(np.log(500), 0.4))
    stored = np.maximum(np.rint(gain * magnitude ** rng.uniform(0.92, 1.08)), 1)
    return np.asarray(np.where(anatomy.brain, stored, 0), dtype=np.float32)


def _with_lesions(signal: Array, modality: str, lesions: Lesions, rng: np.random.Generator) -> Array:
    means = MEANS[modality]
    out = signal.copy()
    core = means["core"]
    if modality == T2:
        core += lesions.cyst * (CYST_ON_T2 - core)
    layers = ((OEDEMA, 0.85, means["oedema"]), (ENHANCING, 1.0, means["rim"]), (CORE, 1.0, core))
    for value, weight, mean in layers:
        where = lesions.label == value
        out[where] = (1 - weight) * out[where] + weight * mean * rng.normal(1, 0.04)
    if modality == T1:
        out[lesions.blood] = BLOOD_ON_T1
    if modality == FLAIR:
        out[lesions.satellites] = SATELLITE_ON_FLAIR
    return out

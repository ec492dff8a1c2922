"""What each sequence makes of the tissues: means as in the literature, then scanner, bias field and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Float
from bmmae.data.synthetic.anatomy import TISSUES, Anatomy, smooth_noise
from bmmae.data.synthetic.findings import FLAIR, T1, T1CE, T2
from bmmae.data.synthetic.lesions import Lesions

MEANS: dict[str, dict[str, float]] = {
    T1: {"csf": 0.25, "grey": 0.60, "white": 0.86, "deep": 0.70, "core": 0.42},
    T1CE: {"csf": 0.26, "grey": 0.64, "white": 0.86, "deep": 0.72, "core": 0.40},
    T2: {"csf": 1.60, "grey": 0.72, "white": 0.50, "deep": 0.60, "core": 0.92},
    FLAIR: {"csf": 0.18, "grey": 0.68, "white": 0.52, "deep": 0.62, "core": 0.36},
}
"""Mean signal of each tissue, in units of the sequence; only ratios matter."""

RIM_ON_T1CE = 1.40
OEDEMA = {T2: 0.80, FLAIR: 1.12}
"""Where oedema shows. On the others it would tell its width too, and absent modalities would cost less than stated."""

BLOOD_ON_T1 = 1.15
CYST_ON_T2 = 1.70
SATELLITE_ON_FLAIR = 0.98
NOISE = 0.025
BIAS = 0.06


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
    """Paint the lesions. Each finding shows on the modalities that `VISIBLE_ON` names, and on no other.

    So the enhancing rim looks like the core but on T1ce, and blood and cyst fill core and rim alike.
    """
    shade, bright = rng.normal(1, 0.04, 2)
    core = MEANS[modality]["core"]
    if modality == T2:
        core += lesions.cyst * (CYST_ON_T2 - core)
    out = signal
    if modality in OEDEMA:
        out = _mixed(out, 0.9 * lesions.oedema, OEDEMA[modality] * bright)
    out = _mixed(out, lesions.body, core * shade)
    if modality == T1CE:
        out = out + lesions.rim * (RIM_ON_T1CE * bright - core * shade)
    if modality == T1:
        out = _mixed(out, lesions.blood, BLOOD_ON_T1)
    if modality == FLAIR:
        out = _mixed(out, lesions.satellites, SATELLITE_ON_FLAIR)
    return np.asarray(out)


def _mixed(signal: Array, share: Array, mean: float) -> Array:
    """Replace a share of each voxel's signal."""
    return np.asarray(signal + share * (mean - signal))

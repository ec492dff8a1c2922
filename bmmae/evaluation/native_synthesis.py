"""Synthesised modalities judged where they will be used: on the grid of the real image, voxel by voxel.

MR intensities have no scale, so every prediction is first mapped onto the truth by the least-squares affine map
inside the brain; the figure without the map stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Bool, Float
from bmmae.metrics import affine_fit, intensity_range, psnr, ssim_map
from bmmae.metrics.surface import ROUNDING

BORDER_MM = 2.0
"""How far from the surface of the whole lesion its border reaches, to both sides."""
MARGIN = 8
"""Voxels around the brain that are kept: no Gaussian window of SSIM reaches further."""


@dataclass(frozen=True)
class Truth:
    """A real image, prepared for judging predictions of it.

    Attributes:
        image: Float[h, w, d], real intensities around the brain.
        inside: Bool[h, w, d], intensities above zero: the voxels that count.
        lesion: Bool[h, w, d], the part of them that is labelled; nothing if there is no label.
        border: Bool[h, w, d], the part of them within `BORDER_MM` of the lesion's surface.
        mean: Of the intensities inside, between their 0.5 and 99.5 percentiles.
        deviation: The same.
        span: Distance between those percentiles.
        box: Where h, w, d lie in the native image.
    """

    image: Float[np.ndarray, "h w d"]
    inside: Bool[np.ndarray, "h w d"]
    lesion: Bool[np.ndarray, "h w d"]
    border: Bool[np.ndarray, "h w d"]
    mean: float
    deviation: float
    span: float
    box: tuple[slice, slice, slice]

    @classmethod
    def of(
        cls,
        image: Float[np.ndarray, "X Y Z"],
        lesion: Bool[np.ndarray, "X Y Z"] | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Truth:
        """Prepare a real image.

        Args:
            image: As acquired and skull-stripped, background zero or less.
            lesion: Its labelled voxels, all classes together.
            spacing: Millimetres between voxels, in array order.
        """
        box = _box(image > 0)
        part, inside = image[box].astype(np.float32), image[box] > 0
        labelled = np.zeros_like(inside) if lesion is None else np.asarray(lesion[box], dtype=bool)
        values = part[inside].astype(np.float64)
        inner = np.clip(values, *np.percentile(values, (0.5, 99.5))) if len(values) else np.zeros(1)
        return cls(
            image=part,
            inside=inside,
            lesion=labelled & inside,
            border=_border(labelled, spacing) & inside,
            mean=float(inner.mean()),
            deviation=float(inner.std()),
            span=intensity_range(values),
            box=box,
        )


@dataclass(frozen=True)
class NativeScore:
    """How close one prediction is to the truth; NaN where there is nothing to judge (no lesion, constant truth).

    Attributes:
        psnr: dB inside the brain after the affine map; higher is better.
        psnr_unmapped: The same without the map: the prediction's z-scores in the truth's own mean and deviation.
        ssim: Mean structural similarity over the brain, after the map; higher is better.
        tumour_psnr: dB inside the lesion, against the range of the whole brain, after the brain's map.
        tumour_ssim: Mean structural similarity over the lesion.
        border_error: Mean absolute error along the lesion's surface, in z-units of the truth; lower is better.
    """

    psnr: float
    psnr_unmapped: float
    ssim: float
    tumour_psnr: float
    tumour_ssim: float
    border_error: float


def score_native(predicted: Float[np.ndarray, "X Y Z"], truth: Truth) -> NativeScore:
    """Judge a prediction on the native grid.

    Args:
        predicted: Z-scores (any affine map of them gives the same, but for `psnr_unmapped`).
        truth: The real image.
    """
    inside, real = truth.inside, truth.image
    if not inside.any() or not truth.deviation > 0:
        return NativeScore(*(math.nan,) * 6)
    own_scale = predicted[truth.box].astype(np.float64) * truth.deviation + truth.mean
    slope, offset = affine_fit(own_scale[inside], real[inside])
    # Background is known and the same for every method: no window at the brain's rim is judged by it.
    mapped = np.where(inside, slope * own_scale + offset, real).astype(np.float32)
    similarity = ssim_map(mapped, real, truth.span)
    return NativeScore(
        psnr=psnr(mapped, real, inside),
        psnr_unmapped=psnr(own_scale, real, inside),
        ssim=_mean(similarity, inside),
        tumour_psnr=psnr(mapped, real, truth.lesion, data_range=truth.span),
        tumour_ssim=_mean(similarity, truth.lesion),
        border_error=_mean(np.abs(mapped - real) / truth.deviation, truth.border),
    )


def subset_pairs(modalities: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every proper subset with every modality absent from it: 28 pairs of four modalities."""
    for size in range(1, len(modalities)):
        for given in combinations(modalities, size):
            for wanted in modalities:
                if wanted not in given:
                    yield given, wanted


def _mean(values: Array, inside: Array) -> float:
    return float(values[inside].mean(dtype=np.float64)) if inside.any() else math.nan


def _box(inside: Array) -> tuple[slice, slice, slice]:
    """The smallest box around the flagged voxels, with a margin; the whole if none is."""
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        x, y, z = (slice(0, length) for length in inside.shape)
        return x, y, z
    x, y, z = (slice(max(0, part.start - MARGIN), part.stop + MARGIN) for part in found[0])
    return x, y, z


def _border(lesion: Bool[np.ndarray, "h w d"], spacing: Sequence[float]) -> Array:
    """Voxels whose centre is at most `BORDER_MM` from one on the other side of the lesion's surface."""
    if not lesion.any() or lesion.all():
        return np.zeros_like(lesion)
    distance = np.where(
        lesion,
        ndimage.distance_transform_edt(lesion, sampling=tuple(spacing)),
        ndimage.distance_transform_edt(~lesion, sampling=tuple(spacing)),
    )
    return np.asarray(distance <= BORDER_MM + ROUNDING)

"""What the studies of a cohort look like to a model: how they differ among themselves, to know by what is unlike them.

Only the shape of histograms is kept: MR has no scale, and inside the brain all images have mean 0 and deviation 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.packing import BRAIN, PackedStudy, scanned
from bmmae.modalities import subset_label
from bmmae.provenance import Population

LEVELS = (0.005, *(round(0.05 * step, 2) for step in range(1, 20)), 0.995)
MOST_STUDIES = 64
"""Studies that are opened; more would not change the means."""
FEWEST_VOXELS = 100
"""Quantiles of fewer voxels are noise."""


def describe_population(studies: Sequence[Study], cache: StudyCache) -> Population:
    """Record what training studies look like, on the model's grid.

    Args:
        studies: The training studies.
        cache: Where they are prepared.

    Raises:
        ImageError: If a file is broken.
    """
    chosen = np.unique(np.linspace(0, len(studies) - 1, MOST_STUDIES).round().astype(int)) if studies else ()
    each: dict[str, list[Array]] = {name: [] for name in cache.modalities}
    volumes = []
    for index in chosen:
        packed = cache.load(studies[index])
        volumes.append(brain_ml(int(np.count_nonzero(packed.flags & BRAIN)), cache.config.spacing))
        for name, values in _quantiles(packed).items():
            each[name].append(values)
    means = {name: np.mean(found, axis=0) for name, found in each.items() if found}
    return Population(
        studies=len(chosen),
        levels=LEVELS,
        quantiles={name: tuple(float(round(value, 4)) for value in mean) for name, mean in means.items()},
        distances={name: max(histogram_distance(q, mean) for q in each[name]) for name, mean in means.items()},
        brain_ml=(min(volumes), max(volumes)) if volumes else (0.0, 0.0),
        subsets=_subsets(studies, cache.modalities),
    )


def brain_ml(voxels: int, spacing: Sequence[float]) -> float:
    """Return the volume of so many voxels in millilitres."""
    return float(voxels * np.prod(spacing) / 1000)


def quantiles_of(values: Float[np.ndarray, " N"], levels: Sequence[float] = LEVELS) -> Float[np.ndarray, " Q"] | None:
    """Return an image's quantiles inside the brain, or None if there are too few voxels for any."""
    if len(values) < FEWEST_VOXELS:
        return None
    return np.quantile(values.astype(np.float32), levels)


def histogram_distance(one: Float[np.ndarray, " Q"], other: Float[np.ndarray, " Q"]) -> float:
    """Return the mean absolute difference of two images' quantiles, in deviations; 0 is alike."""
    return float(np.abs(one - other).mean())


def _quantiles(packed: PackedStudy) -> Mapping[str, Array]:
    brain = np.asarray(packed.flags) & BRAIN != 0
    inside = scanned(np.asarray(packed.flags), len(packed.names)) & brain
    found = {
        name: quantiles_of(np.asarray(image)[here])
        for name, image, here in zip(packed.names, packed.images, inside, strict=True)
    }
    return {name: values for name, values in found.items() if values is not None}


def _subsets(studies: Sequence[Study], modalities: Sequence[str]) -> dict[str, int]:
    had = Counter(tuple(name for name in modalities if name in study.images) for study in studies)
    return {subset_label(names): count for names, count in sorted(had.items()) if names}

"""What is left of labels on the grid that a model works on: what is not there can be neither learned nor found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bmmae.arrays import Array
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.labels import Coding, values_of
from bmmae.data.measures import TOUCHING
from bmmae.data.reading import read_labels

LOOKED_AT = 32
"""Studies, spread over the cohort: reading all takes minutes."""
SMALLEST_MM3 = 4.0
"""A sphere of 1 mm radius; what is smaller in a segmentation is mostly a speck."""
BEARABLE = 0.25


def warn_of_lost_lesions(studies: Sequence[Study], cache: StudyCache) -> None:
    """Warn if over a quarter of the lesions that are drawn in the files are gone on the model's grid.

    Lesions are connected components of all labels together, of 4 mm3 or more; up to 32 studies are looked at. Lesions
    that merge on a coarse grid count as gone too.

    Args:
        studies: Those with a segmentation are looked at.
        cache: Where prepared studies are; the grid is that of its preprocessing.

    Raises:
        ImageError: If a file is broken.

    Warns:
        UserWarning: With both counts, and what to do.
    """
    labelled = [study for study in studies if study.seg is not None]
    chosen = [labelled[place] for place in np.unique(np.linspace(0, len(labelled) - 1, LOOKED_AT).astype(int))]
    drawn = left = 0
    for study in chosen:
        if study.seg is None:
            continue
        labels, affine = read_labels(study.seg)
        voxel = float(abs(np.linalg.det(affine[:3, :3])))
        drawn += _lesions(labels, SMALLEST_MM3 / voxel)
        left += _lesions(np.asarray(cache.load(study).label), 1.0)
    if drawn and left < (1 - BEARABLE) * drawn:
        warnings.warn(
            f"of {drawn} lesions in {len(chosen)} segmentations, {left} are left on the model's grid of "
            f"{cache.config.grid}: smaller ones vanish or merge, and will be neither learned nor found. Set a smaller "
            "preprocess.spacing, or take weights of a finer grid",
            stacklevel=2,
        )


def warn_of_empty_regions(studies: Sequence[Study], coding: Coding, cache: StudyCache) -> None:
    """Warn of regions that no study has a voxel of: a model learns of them that they are never there.

    Args:
        studies: The training studies; those with a segmentation are looked at.
        coding: Which values make a region.
        cache: Where prepared studies are. Of those that are stored it is the labels on the model's grid that are looked
            at; of others those in the files, for to prepare a whole cohort once more takes hours.

    Raises:
        ImageError: If a file is broken.

    Warns:
        UserWarning: Naming the regions.
    """
    empty = dict(coding.regions)
    for study in studies:
        if study.seg is None:
            continue
        stored = cache.find(study)
        labels = read_labels(study.seg)[0] if stored is None else np.asarray(stored.open().label)
        values = values_of(labels)
        empty = {name: united for name, united in empty.items() if set(united).isdisjoint(values)}
        if not empty:
            return
    told = "; ".join(f"{name} ({' or '.join(map(str, united))})" for name, united in empty.items())
    warnings.warn(
        f"no training study has a voxel of {told}: the model learns that it is never there. Is '{coding.name}' what "
        "the label values mean? Else leave the region out, with `classes` and `regions` of your own",
        stacklevel=2,
    )


def _lesions(labels: Array, smallest: float) -> int:
    """Count components of at least so many voxels."""
    components, count = ndimage.label(labels > 0, TOUCHING)
    return int((np.bincount(components.ravel(), minlength=count + 1)[1:] >= smallest).sum())

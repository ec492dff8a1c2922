"""Is a study like those a model was trained on? Each doubt is one sentence with the figures that it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bmmae.arrays import Array
from bmmae.data.geometry import resample
from bmmae.data.population import brain_ml, histogram_distance, quantiles_of
from bmmae.data.preprocess import PreparedStudy
from bmmae.modalities import title
from bmmae.provenance import Population

BRAIN_MARGIN = 0.25
"""Share by which a brain may be smaller or larger than all of the training studies' before it is remarked on."""
USUAL_DISTANCE = 0.25
"""Mean distance of quantiles, in deviations, that is common between scans of one kind: 0.26 at most among 15 glioma
studies of several sites, each against the mean of the others."""
ROUNDING = 0.005
"""By so much the distance of one image may differ with the grid it is looked at on, and with what is stored of it."""


class UnlikeTrainingWarning(UserWarning):
    """The images differ from those the model was trained on; the result deserves more doubt than usual."""


def unlike_training(
    prepared: PreparedStudy, population: Population | None, spacing: Sequence[float]
) -> tuple[str, ...]:
    """Return what is unusual about a study, one sentence each.

    Args:
        prepared: The study.
        population: What the training images look like; without it, only what any model would stumble over is found.
        spacing: Millimetres between the voxels that the model was trained on.
    """
    remarks = [*_stripping(prepared), *_outside(prepared), *_thick_slices(prepared, max(spacing))]
    if population is not None:
        remarks += [*_brain_size(prepared, population), *_histograms(prepared, population, spacing)]
        remarks += _subset(prepared.names, population)
    return tuple(remarks)


def untrained(names: Sequence[str], population: Population | None) -> tuple[str, ...]:
    """Return a sentence if modalities that are asked for were in no training study."""
    if population is None or not population.subsets:
        return ()
    seen = {name for subset in population.subsets for name in subset.split("+")}
    unknown = [title(name) for name in names if name not in seen]
    return (f"no training study had {', '.join(unknown)}: what is synthesised for it means nothing",) if unknown else ()


def _stripping(prepared: PreparedStudy) -> Iterator[str]:
    if prepared.brain_source == "foreground":
        yield (
            "the images are not skull-stripped: the whole head was used as the brain. Results are less reliable; "
            "strip the skull first, give a brain mask, or set the background of stripped images to 0"
        )


def _outside(prepared: PreparedStudy) -> Iterator[str]:
    for name, shown in zip(prepared.names, prepared.shown, strict=True):
        if not shown:
            yield f"{title(name)} has no voxel inside the brain: it is not used"


def _thick_slices(prepared: PreparedStudy, finest: float) -> Iterator[str]:
    thickest = max(prepared.geometry.canonical_spacing)
    if thickest > 2 * finest:
        yield (
            f"the images' coarsest spacing is {thickest:.1f} mm, more than twice the model's {finest:.1f} mm: detail "
            "is invented between slices"
        )


def _brain_size(prepared: PreparedStudy, population: Population) -> Iterator[str]:
    smallest, largest = population.brain_ml
    volume = brain_ml(int(np.count_nonzero(prepared.brain)), prepared.geometry.spacing)
    if largest and not smallest * (1 - BRAIN_MARGIN) <= volume <= largest * (1 + BRAIN_MARGIN):
        yield (
            f"the brain measures {volume:.0f} ml, the training studies' {smallest:.0f} to {largest:.0f} ml: check the "
            "voxel size in the header, the brain mask, and whether the whole brain was scanned"
        )


def _histograms(prepared: PreparedStudy, population: Population, spacing: Sequence[float]) -> Iterator[str]:
    for name, image, valid in zip(prepared.names, prepared.images, prepared.valid, strict=True):
        own = quantiles_of(_at_spacing(image, valid & prepared.brain, prepared, spacing), population.levels)
        if own is None or name not in population.quantiles:
            continue
        distance = histogram_distance(own, np.asarray(population.quantiles[name]))
        usual = max(population.distances[name], USUAL_DISTANCE)
        if distance > usual + ROUNDING:
            yield (
                f"the {title(name)} histogram is unlike the training studies' (mean distance of quantiles "
                f"{distance:.3f} deviations, usually at most {usual:.3f}){_likelier(name, own, population)}"
            )


def _at_spacing(image: Array, inside: Array, prepared: PreparedStudy, spacing: Sequence[float]) -> Array:
    """Return the voxels inside the brain at the spacing that the training studies were looked at.

    Voxel-wise synthesis sees a finer grid, on which noise is not averaged and tissues do not mix: another histogram.
    """
    geometry = prepared.geometry
    if geometry.spacing == tuple(spacing):
        return np.asarray(image[inside])
    h, w, d = (new / old for new, old in zip(spacing, geometry.spacing, strict=True))
    whole = np.zeros((2, *geometry.resampled_shape), np.float32)
    whole[(slice(None), *geometry.window)] = image * inside, inside
    x, y, z = (max(1, round(size / ratio)) for size, ratio in zip(geometry.resampled_shape, (h, w, d), strict=True))
    total, share = (resample(volume, (x, y, z), (h, w, d)) for volume in whole)
    return np.asarray(total[share >= 0.5] / share[share >= 0.5])


def _likelier(name: str, own: np.ndarray, population: Population) -> str:
    """What the image might be instead."""
    near = {
        other: histogram_distance(own, np.asarray(quantiles))
        for other, quantiles in population.quantiles.items()
        if other != name
    }
    best = min(near, key=lambda other: near[other], default=None)
    if best is None or near[best] > population.distances[best]:
        return ": check that it is what its name says, and how it was processed"
    return f": it is like their {title(best)}; were files mixed up?"


def _subset(names: Sequence[str], population: Population) -> Iterator[str]:
    """Modalities are hidden in training, so a study shows all the subsets of what it has."""
    if population.subsets and not any(set(names) <= set(had.split("+")) for had in population.subsets):
        yield f"no training study had {', '.join(map(title, names))}{' together' if len(names) > 1 else ''}"

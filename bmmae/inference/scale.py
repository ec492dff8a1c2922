"""From a model's z-scores to intensities on a study's own scale, in the same order: brighter stays brighter.

MR intensities have no unit, so an absent sequence's own scale cannot be known: mean and deviation are the median of the
given images'. What can be known is the shape of its histogram. A prediction is a mean over what is possible, so its
extremes are too tame; `cohort` gives it the mean histogram of the training cohort's real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.inference.study import LoadedStudy
from bmmae.provenance import Population

Intensity = Literal["cohort", "given", "zscore"]

DESCRIPTIONS: dict[Intensity, str] = {
    "cohort": (
        "z-scores inside the brain, their quantiles matched to the mean quantiles of the training cohort's real "
        "images, times the median deviation plus the median mean of the given images"
    ),
    "given": "z-scores inside the brain, times the median deviation plus the median mean of the given images",
    "zscore": "z-scores inside the brain, as the model predicts them",
}


@dataclass(frozen=True)
class IntensityMap:
    """A rising map from z-scores to intensities: straight lines between knots, and beyond them.

    Attributes:
        kind: How it was made.
        knots: Float[K], z-scores, ascending; two at least.
        values: Float[K], intensities there, ascending.
    """

    kind: Intensity
    knots: Float[Array, " K"]
    values: Float[Array, " K"]

    @property
    def _beyond(self) -> float:
        """Slope beyond the knots: that from end to end, as the outermost segment's is noise."""
        return float((self.values[-1] - self.values[0]) / (self.knots[-1] - self.knots[0]))

    def __call__(self, scores: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        """Return the intensities of z-scores."""
        outside = np.minimum(scores - self.knots[0], 0) + np.maximum(scores - self.knots[-1], 0)
        return np.asarray(np.interp(scores, self.knots, self.values) + self._beyond * outside, dtype=np.float32)

    def deviations(self, scores: Float[Array, "*axes"], deviations: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        """Return the deviations of intensities from those of z-scores: times the map's slope there."""
        slopes = np.concatenate([[self._beyond], np.diff(self.values) / np.diff(self.knots), [self._beyond]])
        segment = np.searchsorted(self.knots, scores)
        return np.asarray(deviations * slopes[segment], dtype=np.float32)


def find_map(
    name: str,
    scores: Float[Array, " N"],
    study: LoadedStudy,
    wanted: Intensity | None,
    population: Population | None,
) -> IntensityMap:
    """Return how one synthesised modality is brought to intensities.

    Args:
        name: The modality.
        scores: Its z-scores inside the brain.
        study: Whose scale is wanted.
        wanted: The kind of map; None means `given`.
        population: What the training images look like. Where it lacks the modality, `cohort` becomes `given`.
    """
    if wanted == "zscore":
        return IntensityMap("zscore", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    scales = [scale for scale, shown in zip(study.prepared.scales, study.prepared.shown, strict=True) if shown]
    mean, deviation = (float(value) for value in np.median(np.asarray(scales), axis=0))
    if wanted == "cohort" and population is not None and name in population.quantiles:
        knots, values = _matched(scores, population.levels, np.asarray(population.quantiles[name]))
        if len(knots) > 1:
            return IntensityMap("cohort", knots, values * deviation + mean)
    return IntensityMap("given", np.array([0.0, 1.0]), np.array([mean, mean + deviation]))


def lowest(study: LoadedStudy, brain: Bool[np.ndarray, "X Y Z"]) -> float:
    """Return the intensity below which nothing synthesised may fall.

    That is the darkest the given images are inside the brain. Where none is negative, a negative or zero voxel would
    be taken for background, or break whatever takes logarithms. Images with negative voxels set no limit.
    """
    inside = [image.array[brain] for image in study.images.values()]
    if any(bool((values < 0).any()) for values in inside):
        return -np.inf
    return float(min((values[values > 0].min() for values in inside if (values > 0).any()), default=-np.inf))


def _matched(scores: Array, levels: tuple[float, ...], target: Array) -> tuple[Array, Array]:
    """Knots at a volume's own quantiles, where they differ; equal ones share the mean of their targets."""
    own = np.quantile(scores, levels).round(6)
    knots, places = np.unique(own, return_inverse=True)
    return knots, np.bincount(places, weights=target) / np.bincount(places)

"""Intervals by resampling patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from bmmae.provenance import Metric


def mean_with_interval(values: Sequence[float], unit: str = "", *, level: float = 0.95, seed: int = 0) -> Metric:
    """Return the mean over patients with its bootstrap interval (BCa, 2000 resamples).

    Args:
        values: One a patient; NaN (not defined for that patient) is left out and not counted.
        unit: Unit and sign, as people read it.
        level: Coverage of the interval.
        seed: Of the resampling.

    Returns:
        The mean; without an interval if fewer than three patients are left or all agree; NaN if none is left.
    """
    defined = np.asarray([value for value in values if not np.isnan(value)])
    if not len(defined):
        return Metric(float("nan"), unit=unit, n=0)
    if len(defined) < 3 or np.ptp(defined) == 0:
        return Metric(float(defined.mean()), unit=unit, n=len(defined))
    found = stats.bootstrap(
        (defined,), np.mean, n_resamples=2000, confidence_level=level, rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Metric(float(defined.mean()), float(low), float(high), unit, len(defined))

"""Proportional hazards on a table of numbers: the plain baseline of survival, fitted in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.errors import CohortError
from bmmae.metrics.flags import require_flags, require_one_shape
from bmmae.metrics.survival import Steps

MOST_STEPS = 50
SMALL_STEP = 1e-9


@dataclass(frozen=True)
class CoxModel:
    """A fitted model.

    Attributes:
        slopes: Change of the log hazard for one unit of each column.
        baseline: Cumulative hazard of a row of zeros, as `exp(-hazard)`: its survival curve.
        risk_cut: Median risk of the training patients.
    """

    slopes: Float[Array, " X"]
    baseline: Steps
    risk_cut: float

    def risk(self, table: Float[Array, "N X"]) -> Float[Array, " N"]:
        """Return the log hazard against a row of zeros; higher = dies sooner."""
        return np.asarray(table @ self.slopes)

    def survival(self, table: Float[Array, "N X"], at: Float[Array, " T"]) -> Float[Array, "N T"]:
        """Return the probability to live past each time (Breslow)."""
        return np.asarray(self.baseline.at(at) ** np.exp(self.risk(table))[:, None])


def fit_cox(
    table: Float[Array, "N X"], time: Float[Array, " N"], event: Bool[Array, " N"], penalty: float = 1.0
) -> CoxModel:
    """Maximise the partial likelihood (Breslow's for ties) less half the penalty times the squared slopes, by Newton.

    Args:
        table: One row a patient; standardise it, as the penalty treats all columns alike.
        time: Follow-up.
        event: True = died.
        penalty: Strength of the ridge; 0 for none.

    Raises:
        CohortError: If nobody died.
        ValueError: If `event` is no array of bools of the times' length.
    """
    require_flags(event)
    require_one_shape(time, event)
    if not event.any():
        raise CohortError(f"none of {len(time)} training patients died: a survival model has nothing to learn from")
    slopes, value = np.zeros(table.shape[1]), -np.inf
    for _ in range(MOST_STEPS):
        value, gradient, curvature = _likelihood(table, time, event, slopes, penalty)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while _likelihood(table, time, event, slopes + step, penalty)[0] < value and np.abs(step).max() > SMALL_STEP:
            step = step / 2
        slopes = slopes + step
        if np.abs(step).max(initial=0) < SMALL_STEP:
            break
    risk = table @ slopes
    times = np.unique(time[event])
    at_risk = (time >= times[:, None]) @ np.exp(risk)
    hazard = np.cumsum(((time == times[:, None]) & event).sum(axis=1) / at_risk)
    return CoxModel(slopes, Steps(times, np.exp(-hazard)), float(np.median(risk)))


def _likelihood(
    table: Array, time: Array, event: Array, slopes: Array, penalty: float
) -> tuple[float, Float[Array, " X"], Float[Array, "X X"]]:
    """Return the penalised log partial likelihood, its gradient, and its negative second derivative."""
    risk = table @ slopes
    peak = float(risk.max())
    weight = np.exp(risk - peak)
    at_risk = time >= time[event, None]
    total = at_risk @ weight
    mean = (at_risk * weight) @ table / total[:, None]
    value = float((risk[event] - peak - np.log(total)).sum()) - penalty / 2 * float(slopes @ slopes)
    gradient = (table[event] - mean).sum(axis=0) - penalty * slopes
    shared = ((at_risk * weight) / total[:, None]).sum(axis=0)
    curvature = (table * shared[:, None]).T @ table - mean.T @ mean + penalty * np.eye(len(slopes))
    return value, gradient, curvature

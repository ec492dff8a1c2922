"""How well predicted risks and survival curves agree with what happened.

A risk is any number that is HIGHER for patients who die SOONER; a model that predicts survival times must hand over
their negative. `time` is the follow-up in any unit, `event` is True where death was seen at `time` and False where the
patient was censored. They equal scikit-survival's functions, whose conventions at tied times they keep. What is not
defined (no event, no comparable pair, nobody left) is NaN. All raise a `ValueError` where `event` is no array of bools,
a time is NaN, a risk is not finite, or lengths differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.metrics.classification import require_numbers
from bmmae.metrics.flags import require_flags, require_one_shape

TIED_RISK = 1e-8
"""Risks closer than this count as equal, as in scikit-survival."""


def _require_followed(time: Array, event: object, *risk: Array) -> None:
    """Refuse what would be compared and give a number all the same.

    Raises:
        ValueError: As this module says.
    """
    for each in risk:
        require_numbers(each)
        if np.isinf(each).any():  # differences of infinite risks are none, and would lose every comparison
            raise ValueError(f"{int(np.isinf(each).sum())} of {len(each)} risks are infinite: expected finite ones")
    require_flags(event)
    require_one_shape(time, event, *risk)
    if np.isnan(time).any():
        raise ValueError(f"{int(np.isnan(time).sum())} of {len(time)} times are NaN: leave out who was not followed")


@dataclass(frozen=True)
class Steps:
    """A curve that starts at 1 and changes at some times; right-continuous.

    Attributes:
        times: When it changes, ascending.
        values: What it is from then on.
    """

    times: Float[Array, " K"]
    values: Float[Array, " K"]

    def at(self, times: Float[Array, " T"]) -> Float[Array, " T"]:
        """Return the curve at any times; after the last change it stays."""
        return np.append(1.0, self.values)[np.searchsorted(self.times, times, side="right")]


def kaplan_meier(time: Float[Array, " N"], event: Bool[Array, " N"]) -> Steps:
    """Return the product-limit estimate of the probability to live past each time. Without patients it stays at 1."""
    _require_followed(time, event)
    times, died, left, at_risk = _counts(time, event)
    del left
    return Steps(times, np.cumprod(1 - died / at_risk))


def censoring_curve(time: Float[Array, " N"], event: Bool[Array, " N"]) -> Steps:
    """Return the product-limit estimate G of the probability not to be censored by each time.

    Of a death and a censoring at one time, the death comes first: the dead are no longer at risk of censoring.
    """
    _require_followed(time, event)
    times, died, left, at_risk = _counts(time, event)
    staying = at_risk - died
    share = np.divide(left, staying, out=np.zeros(len(times)), where=staying > 0)
    return Steps(times, np.cumprod(1 - share))


def _counts(
    time: Float[Array, " N"], event: Bool[Array, " N"]
) -> tuple[Float[Array, " K"], Int[Array, " K"], Int[Array, " K"], Int[Array, " K"]]:
    """Return the distinct times, and how many died, were censored, and were still followed at each."""
    times, index = np.unique(time, return_inverse=True)
    died = np.bincount(index, weights=event, minlength=len(times)).astype(int)
    everyone = np.bincount(index, minlength=len(times))
    return times, died, everyone - died, len(time) - np.cumsum(everyone) + everyone


def harrell_c(risk: Float[Array, " N"], time: Float[Array, " N"], event: Bool[Array, " N"]) -> float:
    """Return Harrell's concordance: how often the one who died first had the higher risk; higher is better.

    0.5 is chance, 1 is perfect. A pair is comparable if the earlier time is a death, or if at one time one died and
    the other was censored; ties in risk count half. NaN without a comparable pair. It depends on how patients were
    censored (Uno's does not). Source: Harrell et al., JAMA 247 (1982).

    Raises:
        ValueError: As this module says.
    """
    _require_followed(time, event, risk)
    return _concordance(risk, time, event, np.ones(len(time)))


def uno_c(
    risk: Float[Array, " N"],
    time: Float[Array, " N"],
    event: Bool[Array, " N"],
    censoring: Steps,
    until: float = math.inf,
) -> float:
    """Return Uno's concordance: Harrell's with each death weighted by the inverse squared chance to be seen.

    Source: Uno et al., Statistics in Medicine 30 (2011). NaN without a comparable pair.

    Args:
        risk: Higher = dies sooner.
        time: Follow-up.
        event: True = died.
        censoring: `censoring_curve` of the training patients.
        until: Deaths from this time on are not counted. Neither are those at times by which all training patients
            had been censored: their weight would be infinite (scikit-survival raises an error there).

    Raises:
        ValueError: As this module says.
    """
    _require_followed(time, event, risk)
    chance = censoring.at(time)
    counted = event & (time < until) & (chance > 0)
    weight = np.divide(1.0, chance**2, out=np.zeros(len(time)), where=counted)
    return _concordance(risk, time, event, weight)


def _concordance(
    risk: Float[Array, " N"], time: Float[Array, " N"], event: Bool[Array, " N"], weight: Float[Array, " N"]
) -> float:
    """Concordance over the pairs (row died before column, or as the column was censored), weighted by the row."""
    deaths = np.flatnonzero(event & (weight > 0))
    when = time[deaths, None]
    comparable = (time > when) | ((time == when) & ~event)
    gap = risk[deaths, None] - risk
    score = np.where(np.abs(gap) <= TIED_RISK, 0.5, gap > 0)
    total = float((comparable.sum(axis=1) * weight[deaths]).sum())
    return float(((score * comparable).sum(axis=1) * weight[deaths]).sum()) / total if total else math.nan


def dynamic_auc(
    risk: Float[Array, " N"],
    time: Float[Array, " N"],
    event: Bool[Array, " N"],
    censoring: Steps,
    at: Float[Array, " T"],
) -> Float[Array, " T"]:
    """Return the AUC for having died by each time against living past it; higher is better, 0.5 is chance.

    Cases are weighted by the inverse chance to be seen (Uno et al., JASA 102, 2007). NaN at times by which nobody
    died, or past which nobody was followed.

    Args:
        risk: Higher = dies sooner; one for all times.
        time: Follow-up.
        event: True = died.
        censoring: `censoring_curve` of the training patients; deaths where it is 0 are not counted.
        at: The times.

    Raises:
        ValueError: As this module says.
    """
    _require_followed(time, event, risk)
    chance = censoring.at(time)
    weight = np.divide(1.0, chance, out=np.zeros(len(time)), where=event & (chance > 0))
    return np.array([_auc_at(risk, time, weight, moment) for moment in at.tolist()])


def _auc_at(risk: Float[Array, " N"], time: Float[Array, " N"], weight: Float[Array, " N"], moment: float) -> float:
    cases, controls = (time <= moment) & (weight > 0), time > moment
    total = float(weight[cases].sum()) * int(controls.sum())
    if not total:
        return math.nan
    gap = risk[cases, None] - risk[controls]
    score = np.where(np.abs(gap) <= TIED_RISK, 0.5, gap > 0)
    return float((score.sum(axis=1) * weight[cases]).sum()) / total


def survival_brier(
    survival: Float[Array, "N T"],
    time: Float[Array, " N"],
    event: Bool[Array, " N"],
    censoring: Steps,
    at: Float[Array, " T"],
) -> Float[Array, " T"]:
    """Return the squared error of predicted survival at each time, weighted for censoring; lower is better.

    0.25 is what a constant 0.5 gets. Source: Graf et al., Statistics in Medicine 18 (1999). NaN without patients.

    Args:
        survival: Predicted probability to live past each time.
        time: Follow-up.
        event: True = died.
        censoring: `censoring_curve` of the training patients; who cannot be weighted by it weighs nothing.
        at: The times, ascending.

    Raises:
        ValueError: As this module says, and if `survival` has not one row a patient and one column a time.
    """
    _require_followed(time, event)
    if survival.shape != (len(time), len(at)):
        raise ValueError(f"expected survival at {len(at)} times of {len(time)} patients, got shape {survival.shape}")
    if not len(time):
        return np.full(len(at), np.nan)
    died = (time[:, None] <= at) & event[:, None]
    alive = time[:, None] > at
    at_death, at_time = (np.where(chance > 0, chance, np.inf) for chance in (censoring.at(time), censoring.at(at)))
    return np.asarray((survival**2 * died / at_death[:, None] + (1 - survival) ** 2 * alive / at_time).mean(axis=0))


def integrated_brier(
    survival: Float[Array, "N T"],
    time: Float[Array, " N"],
    event: Bool[Array, " N"],
    censoring: Steps,
    at: Float[Array, " T"],
) -> float:
    """Return `survival_brier`'s mean over time, by the trapezoidal rule; lower is better. NaN under two times."""
    if len(at) < 2:
        return math.nan
    scores = survival_brier(survival, time, event, censoring, at)
    return float(np.trapezoid(scores, at) / (at[-1] - at[0]))


def log_rank(time: Float[Array, " N"], event: Bool[Array, " N"], group: Int[Array, " N"]) -> float:
    """Return the log-rank test's p-value for equal survival of all groups; NaN without an event or a second group."""
    _require_followed(time, event)
    require_one_shape(time, group)
    groups = np.unique(group)
    times = np.unique(time[event])
    if len(groups) < 2 or not len(times):
        return math.nan
    member = group == groups[:, None]
    at_risk = (member[:, :, None] & (time[:, None] >= times)).sum(axis=1)
    died = (member[:, :, None] & event[:, None] & (time[:, None] == times)).sum(axis=1)
    all_risk, all_died = at_risk.sum(axis=0), died.sum(axis=0)
    share = at_risk / all_risk
    excess = (died - share * all_died).sum(axis=1)
    factor = all_died * (all_risk - all_died) / np.maximum(all_risk - 1, 1)
    variance = np.diag((share * factor).sum(axis=1)) - (share * factor) @ share.T
    statistic = float(excess[:-1] @ np.linalg.pinv(variance[:-1, :-1]) @ excess[:-1])
    return float(stats.chi2.sf(statistic, len(groups) - 1))

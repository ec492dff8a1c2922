"""How good are predicted risks and survival curves? For every model and subset, within each fold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.errors import CohortError
from bmmae.evaluation.comparison import Comparison, corrected_t, paired_bootstrap
from bmmae.evaluation.intervals import DRAWS
from bmmae.evaluation.pairing import pairings
from bmmae.evaluation.predictions import SurvivalPredictions
from bmmae.evaluation.scores import Score, Statistic, score_folds
from bmmae.metrics import (
    Steps,
    censoring_curve,
    dynamic_auc,
    harrell_c,
    integrated_brier,
    kaplan_meier,
    log_rank,
    uno_c,
)
from bmmae.metrics.classification import defined_mean

QUARTERS = (0.25, 0.5, 0.75)
CONCORDANCES = ("harrell_c", "uno_c")
FOLLOWED = 0.9
"""Uno's C and the integrated Brier score run to this quantile of follow-up: past it few patients are left to judge, and
a death there would weigh as much as many."""


@dataclass(frozen=True)
class RiskGroups:
    """Patients of one model, subset and fold, parted into low and high risk.

    Attributes:
        model: The model.
        subset: The modalities that it was given.
        fold: The fold.
        cut: The risk from which on it is high: the training patients' median, else that of these patients.
        from_training: Whether the cut was fitted to training patients.
        time: Follow-up.
        event: True = died.
        high: Whether the risk is high.
        p: Of the log-rank test, which takes rows for independent patients; NaN without two groups or without a death,
            and where a patient has several visits.
        patients: Whose row it is.
    """

    model: str
    subset: str
    fold: int
    cut: float
    from_training: bool
    time: Float[Array, " N"]
    event: Bool[Array, " N"]
    high: Bool[Array, " N"]
    p: float
    patients: tuple[str, ...]

    def counts(self, *, high: bool) -> tuple[int, int]:
        """Return how many patients one group has, and how many of them died; not visits."""
        rows = np.flatnonzero(self.high == high)
        return len({self.patients[row] for row in rows}), len({self.patients[row] for row in rows if self.event[row]})

    def curve(self, *, high: bool) -> Steps:
        """Return the Kaplan-Meier curve of one group."""
        chosen = self.high == high
        return kaplan_meier(self.time[chosen], self.event[chosen])


def evaluate_survival(
    predictions: SurvivalPredictions, *, at: Float[Array, " K"] | None = None, draws: int = DRAWS, seed: int = 0
) -> list[Score]:
    """Return Harrell's and Uno's C, dynamic AUCs and the integrated Brier score of every model, subset and fold.

    The chance to be censored is estimated on the patients whom the fold did not test; where there are none (an
    outside cohort) on the test patients themselves. Rows without follow-up are left out. Uno's C counts deaths before
    `horizon`, and the integrated Brier score runs to it.

    Args:
        predictions: Of patients whom their fold's model has not seen.
        at: Times of the AUCs; by default the quartiles of all times of death, each study once, however many models and
            subsets judge it. The same for all models.
        draws: Bootstrap draws of patients for the intervals.
        seed: Of the draws.

    Raises:
        CohortError: If no follow-up is known or nobody died.
    """
    known = _known(predictions)
    once, until = _each_study_once(known), horizon(known)
    moments = np.unique(np.quantile(once.time[once.event], QUARTERS)) if at is None else at
    used = known.at[known.at <= until]

    def statistic(fold: int) -> Statistic:
        censoring = censoring_of(known, fold)

        def figures(rows: Int[Array, " R"]) -> Mapping[str, float]:
            risk, time, event = known.risk[rows], known.time[rows], known.event[rows]
            areas = dynamic_auc(risk, time, event, censoring, moments)
            found = {"harrell_c": harrell_c(risk, time, event), "uno_c": uno_c(risk, time, event, censoring, until)}
            found |= {f"auc_at_{moment:.3g}": float(area) for moment, area in zip(moments, areas, strict=True)}
            found["auc_over_time"] = defined_mean(areas)
            if len(used) > 1:
                curve = known.curve[rows][:, : len(used)]
                found["integrated_brier"] = integrated_brier(curve, time, event, censoring, used)
            return found

        return figures

    return score_folds(known.keys, statistic, draws=draws, seed=seed)


def horizon(predictions: SurvivalPredictions) -> float:
    """Return the time by which `FOLLOWED` of the studies with known follow-up had left it, whatever judges them."""
    return float(np.quantile(_each_study_once(predictions.known).time, FOLLOWED))


def _each_study_once(known: SurvivalPredictions) -> SurvivalPredictions:
    rows = {(key.subject, key.session): row for row, key in enumerate(known.keys)}
    return known.take(np.array(list(rows.values())))


def censoring_of(predictions: SurvivalPredictions, fold: int) -> Steps:
    """Return the censoring curve of the patients whom a fold does not test; if there are none, of those it tests."""
    tested = {key.group for key in predictions.keys if key.fold == fold}
    rows = {(key.subject, key.session): row for row, key in enumerate(predictions.keys) if key.group not in tested}
    if not rows:
        rows = {(key.subject, key.session): row for row, key in enumerate(predictions.keys)}
    chosen = np.array(sorted(rows.values()))
    return censoring_curve(predictions.time[chosen], predictions.event[chosen])


def risk_groups(predictions: SurvivalPredictions) -> list[RiskGroups]:
    """Part each fold's test patients into low and high risk, and test whether they live equally long.

    Within each model, subset and fold: risks of two models have no common scale, and are never pooled.

    Raises:
        CohortError: If no follow-up is known or nobody died.
    """
    known = _known(predictions)
    return [
        _groups(known, model, subset, fold)
        for model, subset, fold in dict.fromkeys((key.model, key.subset, key.fold) for key in known.keys)
    ]


def _groups(known: SurvivalPredictions, model: str, subset: str, fold: int) -> RiskGroups:
    wanted = (model, subset, fold)
    rows = np.array([i for i, key in enumerate(known.keys) if (key.model, key.subset, key.fold) == wanted])
    cuts = known.risk_cut[rows]
    fitted = not np.isnan(cuts).any()
    cut = float(cuts[0]) if fitted else float(np.median(known.risk[rows]))
    time, event, high = known.time[rows], known.event[rows], known.risk[rows] >= cut
    patients = tuple(known.keys[row].group for row in rows)
    p = log_rank(time, event, high.astype(int)) if len(set(patients)) == len(patients) else math.nan
    return RiskGroups(model, subset, fold, cut, fitted, time, event, high, p, patients)


def compare_survival(
    predictions: SurvivalPredictions, reference: str, *, metric: str = "harrell_c", draws: int = DRAWS, seed: int = 0
) -> list[tuple[str, str, Comparison]]:
    """Compare the concordance of each model, from each subset, with a reference model's on the same patients.

    Args:
        predictions: Of all models; their rows are paired by fold and study.
        reference: Name of the model to compare with: say, the clinical-only one.
        metric: `harrell_c` or `uno_c`.
        draws: Bootstrap draws.
        seed: Of the draws.

    Returns:
        Model, subset and comparison (model minus reference): the paired bootstrap of patients, and over two folds or
        more the corrected t-test.

    Raises:
        CohortError: If nobody died, there is no such figure or model, or a model shares no study with it.
    """
    if metric not in CONCORDANCES:
        raise CohortError(f"no figure '{metric}' to compare: expected one of {', '.join(CONCORDANCES)}")
    known = _known(predictions)
    censoring = {fold: censoring_of(known, fold) for fold in {key.fold for key in known.keys}}
    until = horizon(known)

    def value(fold: int, rows: Int[Array, " R"]) -> float:
        risk, time, event = known.risk[rows], known.time[rows], known.event[rows]
        return uno_c(risk, time, event, censoring[fold], until) if metric == "uno_c" else harrell_c(risk, time, event)

    found = []
    for pair in pairings(known.keys, reference):
        gain = pair.mean_difference(value)
        tests = [paired_bootstrap(gain, pair.groups, pair.folds.tolist(), draws=draws, seed=seed)]
        if len(pair.each_fold) > 1:
            folds = [value(fold, one) - value(fold, two) for fold, (one, two) in pair.each_fold.items()]
            tests.append(corrected_t(folds, pair.test_share))
        found += [(pair.model, pair.subset, test) for test in tests]
    return found


def _known(predictions: SurvivalPredictions) -> SurvivalPredictions:
    known = predictions.known
    if not known.event.any():
        raise CohortError(
            f"none of {len(known.keys)} patients with known follow-up died: expected columns 'time' and 'event' (1 = "
            "died) with deaths; without them no risk can be judged"
        )
    return known

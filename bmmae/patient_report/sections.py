"""The parts of a report on patients, as HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from bmmae.data.problems import counted
from bmmae.evaluation.classification import confusion
from bmmae.evaluation.comparison import Comparison
from bmmae.evaluation.predictions import AVAILABLE, ClassPredictions, PredictionKey, SurvivalPredictions
from bmmae.evaluation.scores import Score, value_and_interval
from bmmae.evaluation.survival import RiskGroups, risk_groups
from bmmae.page import figure, table
from bmmae.patient_report.plots import (
    draw_confusion,
    draw_decision_curve,
    draw_reliability,
    draw_roc,
    draw_survival,
)

FEW = 100
"""Patients with and without an event that judging a prognostic model takes (Collins et al., Stat. Med. 35, 2016)."""
DECISIONS = "Decision curve: all folds together; of use where it is above both treating all and treating nobody"
BARS = "bars are 95 % intervals that count patients, not rows"
FIRST = ("auc", "average_precision", "balanced_accuracy", "macro_f1", "sensitivity", "specificity", "ece", "brier")
FIRST_SURVIVAL = ("harrell_c", "uno_c", "auc_over_time", "integrated_brier")


def class_warnings(predictions: ClassPredictions) -> list[str]:
    """Return what weakens conclusions about classes: few patients of a class, labels not known."""
    known = predictions.known
    patients = {(key.group, int(label)) for key, label in zip(known.keys, known.label, strict=True)}
    counts = Counter(label for _, label in patients)
    found = [
        f"Only {counted(counts[index], 'patient', 'patients')} of class '{name}': fewer than {FEW}; figures about it "
        "are uncertain."
        for index, name in enumerate(known.classes)
        if counts[index] < FEW
    ]
    blank = len({key.group for key in predictions.keys} - {key.group for key in known.keys})
    told = f"{counted(blank, 'patient', 'patients')} left out: no class is known, or the fold's model does not know it."
    return found + ([told] if blank else [])


def survival_warnings(predictions: SurvivalPredictions) -> list[str]:
    """Return what weakens conclusions about survival: few deaths, follow-up not known."""
    known = predictions.known
    deaths = len({key.group for key, event in zip(known.keys, known.event, strict=True) if event})
    blank = len({key.group for key in predictions.keys} - {key.group for key in known.keys})
    few = f"Only {counted(deaths, 'death', 'deaths')}: fewer than {FEW}; concordance and curves are uncertain."
    told = f"{counted(blank, 'patient', 'patients')} left out: no follow-up is known."
    return ([few] if deaths < FEW else []) + ([told] if blank else [])


def score_tables(scores: Sequence[Score], first: Sequence[str]) -> str:
    """Return the mean over folds of the first figures, a row a model and subset; all figures and folds to unfold."""
    overall = {(s.model, s.subset, s.metric): s for s in scores if s.fold is None}
    rows = list(dict.fromkeys((s.model, s.subset) for s in scores))
    names = list(dict.fromkeys(s.metric for s in scores))
    shown = [name for name in first if name in names]
    lines = [[*map(escape, row), *(_cell(overall[(*row, name)]) for name in shown)] for row in rows]
    head = ["model", "given", *(_title(overall[(*rows[0], name)]) for name in shown)]
    all_rows = [
        [escape(s.model), escape(s.subset), escape(s.metric), "all" if s.fold is None else str(s.fold), _cell(s)]
        for s in scores
    ]
    details = table(("model", "given", "figure", "fold", "value (95 % interval)"), all_rows)
    return (
        "<p>Under each figure: its 95 % interval, and how many patients (n) it is of.</p>"
        + table(head, lines)
        + f"<details><summary>Every figure in every fold ({len(all_rows)} rows)</summary>{details}</details>"
    )


def comparison_table(found: Iterable[tuple[str, str, Comparison]], reference: str, metric: str) -> str:
    """Return the differences of a figure to a reference model."""
    rows = []
    for model, subset, test in found:
        interval = "" if test.low is None or test.high is None else f" ({test.low:+.3f} to {test.high:+.3f})"
        difference = "not defined" if math.isnan(test.difference) else f"{test.difference:+.3f}{interval}"
        unit = "folds" if test.method == "corrected t" else "patients"
        p = "not defined" if math.isnan(test.p) else f"{test.p:.2g}"
        rows.append([escape(model), escape(subset), difference, p, f"{test.method}, {test.n} {unit}"])
    head = ("model", "given", f"{escape(metric)} minus that of {escape(reference)}", "p", "test")
    return table(head, rows)


def class_pictures(predictions: ClassPredictions) -> str:
    """Return ROC, reliability, decision curve (of two classes) and confusion of each model from its fullest subset."""
    known, parts = predictions.known, []
    for model, subset in fullest(known.keys):
        chosen = known.take(_rows(known.keys, model, subset))
        matrix = confusion(known, model, subset)
        name = f"{model} from {subset}"
        parts += [
            f"<h3>{escape(name)}</h3><div class=row>",
            figure(draw_roc(chosen), f"ROC of {name}", "ROC: a thin line a fold, and their mean"),
            figure(draw_reliability(chosen), f"Reliability of {name}", f"Reliability: all folds together; {BARS}"),
        ]
        if len(known.classes) == 2:
            parts.append(figure(draw_decision_curve(chosen), f"Decision curve of {name}", DECISIONS))
        parts += [
            figure(draw_confusion(matrix, known.classes), f"Confusion of {name}", "Confusion: sum over folds"),
            "</div>",
        ]
    return "\n".join(parts)


def survival_pictures(predictions: SurvivalPredictions) -> str:
    """Return Kaplan-Meier curves of each model from its fullest subset, and the log-rank test of every subset."""
    groups, parts = risk_groups(predictions), []
    for model, subset in fullest(predictions.known.keys):
        own = [group for group in groups if (group.model, group.subset) == (model, subset)]
        cut = "training patients'" if own[0].from_training else "fold's own"
        name, text = f"{model} from {subset}", f"A panel a fold, parted at the {cut} median risk"
        parts += [f"<h3>{escape(name)}</h3>", figure(draw_survival(own), f"Survival by {name}", text)]
    rows = [
        [escape(g.model), escape(g.subset), str(g.fold), _split(g, high=False), _split(g, high=True), _p(g)]
        for g in groups
    ]
    head = ("model", "given", "fold", "low risk", "high risk", "log-rank p")
    return "\n".join([*parts, f"<details><summary>Risk groups of every fold</summary>{table(head, rows)}</details>"])


def fullest(keys: Sequence[PredictionKey]) -> list[tuple[str, str]]:
    """Return each model and its fullest subset: all that each patient has, else most modalities, else most rows."""
    counts = Counter((key.model, key.subset) for key in keys)

    def fullness(subset: str, rows: int) -> tuple[bool, int, int]:
        return subset == AVAILABLE, subset.count("+"), rows

    found = []
    for wanted in dict.fromkeys(key.model for key in keys):
        own = [(fullness(subset, rows), subset) for (model, subset), rows in counts.items() if model == wanted]
        found.append((wanted, max(own)[1]))
    return found


def _rows(keys: Sequence[PredictionKey], model: str, subset: str) -> np.ndarray:
    return np.array([row for row, key in enumerate(keys) if (key.model, key.subset) == (model, subset)])


def _title(score: Score) -> str:
    return f"{escape(score.metric)}<br><small>{escape(score.value.unit)}</small>"


def _cell(score: Score) -> str:
    value, interval = value_and_interval(score.value)
    notes = [*filter(None, [interval]), f"n {score.value.n}"]
    if score.deviation is not None:
        notes.append(f"SD of folds {score.deviation:.3f}")
    one_test_set = score.undefined == 1 and math.isnan(score.value.value)
    if score.undefined and score.fold is None and not one_test_set:
        notes.append(f"not defined in {score.undefined} {'fold' if score.undefined == 1 else 'folds'}")
    return f"{value}<br><small>{', '.join(notes)}</small>"


def _split(group: RiskGroups, *, high: bool) -> str:
    patients, died = group.counts(high=high)
    return f"{patients} patients, {died} died"


def _p(group: RiskGroups) -> str:
    return "not defined" if math.isnan(group.p) else f"{group.p:.2g}"

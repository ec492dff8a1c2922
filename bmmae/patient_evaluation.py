"""A saved model of patients on a cohort, and others beside it: predictions, figures of merit with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bmmae.data.cache import StudyCache
from bmmae.data.tables import Cell
from bmmae.errors import CohortError, ConfigError
from bmmae.evaluation.clinical import NAME
from bmmae.evaluation.intervals import DRAWS
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.predictions import ClassPredictions, SurvivalPredictions
from bmmae.evaluation.scores import Score, format_scores
from bmmae.model.patient import PatientModel
from bmmae.patient_prediction import Outputs, warn_of_unseen_classes
from bmmae.patient_report import score_all, write_patient_report
from bmmae.patient_tables import Answers, tables, write_table, write_tables

SHOWN = ("auc", "balanced_accuracy", "brier", "harrell_c", "uno_c", "integrated_brier")
"""Figures of the terminal's table; the file holds all."""


def evaluate_cohort(
    models: Mapping[str, tuple[PatientModel, Outputs]], cache: StudyCache, out: Path, *, draws: int = DRAWS
) -> str:
    """Judge models of the same targets on the same cohort, beside each other.

    Args:
        models: By name, a model and its outputs for the cohort; the first is the one in question.
        cache: Where hashes of image content may be known.
        out: Receives `predictions/<target>.csv` (all models), `scores.csv`, and a report `<target>.html` each, in which
            the models are compared with the second.
        draws: Bootstrap draws of patients for the intervals.

    Returns:
        What to print: whether the model has seen these patients, then a table a target.

    Raises:
        ConfigError: If a model predicts other targets or classes than the first.
        CohortError: If the cohort knows the truth of no target.
        OutputError: If the folder cannot be written.
    """
    model, outputs = next(iter(models.values()))
    studies = list({study.key: study for study in outputs.studies}.values())
    seen = str(overlap(model, studies, cache))
    reference = list(models)[1] if len(models) > 1 else NAME
    lines = [seen]
    warn_of_unseen_classes(model.config.targets, studies)
    found: dict[str, Answers] = {}
    late = _past_follow_up([each for each, _ in models.values()])
    for name, (each, own) in models.items():
        found = _joined(found, _without(tables(each.config.targets, own, name, pooled=True), late), name)
    write_tables(out / "predictions", found)
    rows: list[dict[str, Cell]] = []
    for target, answers in found.items():
        classes, survival = _judged(answers)
        both = score_all(classes, survival, draws=draws)
        scores = _merged(both)
        if scores:
            write_patient_report(
                out / f"{target}.html",
                classes,
                survival,
                title=f"{target}: {', '.join(models)}",
                remarks=[seen, *_said(late.get(target, ()))],
                reference=reference,
                draws=draws,
                scores=both,
            )
            names = [name for name in SHOWN if any(score.metric == name for score in scores)]
            lines.append(f"\n{target}\n{format_scores(scores, names)}")
            lines += _said(late.get(target, ()))
        else:
            lines.append(f"\n{target}: the cohort knows no truth of it")
        rows += [_row(target, score) for score in scores if score.fold is None]
    if not rows:
        raise CohortError(
            f"the cohort knows the truth of none of the targets {', '.join(found)}: fill in their columns, or use "
            "`bmmae predict`"
        )
    write_table(out / "scores.csv", rows)
    return "\n".join([*lines, "", f"tables: {out}"])


def _past_follow_up(models: Sequence[PatientModel]) -> dict[str, list[float]]:
    """Return by target the months past the longest follow-up of the training fold of any of the models."""
    months: dict[str, set[float]] = {}
    for model in models:
        for target in model.config.targets:
            months.setdefault(target.name, set()).update(target.past_follow_up)
    return {name: sorted(late) for name, late in months.items()}


def _without(found: dict[str, Answers], late: Mapping[str, list[float]]) -> dict[str, Answers]:
    """Leave out the months that some of the models cannot tell: all are judged at the same."""
    known: dict[str, Answers] = {}
    for name, (classes, survival) in found.items():
        if survival is not None:
            kept = ~np.isin(survival.at, late[name])
            survival = replace(survival, curve=survival.curve[:, kept], at=survival.at[kept])  # noqa: PLW2901
        known[name] = (classes, survival)
    return known


def _said(late: Sequence[float]) -> list[str]:
    """A sentence about months that are not judged, if there are any."""
    months = ", ".join(f"{month:g}" for month in late)
    told = "are not judged: they lie past the longest follow-up of the training studies."
    return [f"Chances of survival at months {months} {told}"] if late else []


def _judged(answers: Answers) -> Answers:
    """What the cohort knows the truth of."""
    classes, survival = answers
    return (
        classes if classes is not None and classes.known.keys else None,
        survival if survival is not None and survival.known.event.any() else None,
    )


def _merged(both: tuple[list[Score], list[Score]]) -> list[Score]:
    """All figures of one target; one that both kinds have belongs to the classes."""
    scores = [score for part in both for score in part]
    return list({(s.model, s.subset, s.fold, s.metric): s for s in reversed(scores)}.values())[::-1]


def _joined(found: dict[str, Answers], new: dict[str, Answers], model: str) -> dict[str, Answers]:
    if not found:
        return new
    if found.keys() != new.keys():
        raise ConfigError(f"'{model}' predicts {', '.join(new)}, expected the same as the first: {', '.join(found)}")
    return {name: _both(name, found[name], new[name], model) for name in found}


def _both(name: str, one: Answers, two: Answers, model: str) -> Answers:
    classes, survival = one[0], one[1]
    if classes is not None and two[0] is not None:
        if classes.classes != two[0].classes:
            raise ConfigError(f"'{model}' knows other classes of '{name}' than the first: {two[0].classes}")
        classes = ClassPredictions(
            classes.keys + two[0].keys,
            classes.classes,
            np.concatenate([classes.label, two[0].label]),
            np.concatenate([classes.probabilities, two[0].probabilities]),
        )
    if survival is not None and two[1] is not None:
        survival = _both_curves(name, survival, two[1], model)
    return classes, survival


def _both_curves(name: str, one: SurvivalPredictions, two: SurvivalPredictions, model: str) -> SurvivalPredictions:
    if not np.array_equal(one.at, two.at):
        raise ConfigError(f"'{model}' reads the curve of '{name}' at other months than the first: {two.at.tolist()}")
    return SurvivalPredictions(
        keys=one.keys + two.keys,
        time=np.concatenate([one.time, two.time]),
        event=np.concatenate([one.event, two.event]),
        risk=np.concatenate([one.risk, two.risk]),
        curve=np.concatenate([one.curve, two.curve]),
        at=one.at,
        risk_cut=np.concatenate([one.risk_cut, two.risk_cut]),
    )


def _row(target: str, score: Score) -> dict[str, Cell]:
    value = score.value
    return {
        "target": target,
        "model": score.model,
        "subset": score.subset,
        "metric": score.metric,
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "patients": value.n,
        "unit": value.unit,
    }


def model_names(sources: Sequence[str]) -> list[str]:
    """Return a short name for each source: its last part, or the whole where that is there twice."""
    short = [Path(source).name or source for source in sources]
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]

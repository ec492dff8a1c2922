"""A saved model of patients on a cohort, and others beside it: predictions, figures of merit with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from bmmae.checkpoint import synthetic_training
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.location import file_name
from bmmae.data.tables import Cell
from bmmae.errors import CohortError, ConfigError, few
from bmmae.evaluation.clinical import NAME
from bmmae.evaluation.intervals import DRAWS
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.predictions import ClassPredictions, SurvivalPredictions
from bmmae.evaluation.scores import Score, format_scores
from bmmae.model.patient import PatientModel
from bmmae.patient_prediction import Outputs, warn_of_unseen_classes
from bmmae.patient_report import score_all, write_patient_report
from bmmae.patient_tables import Answers, follow_up, reported_months, tables, write_table, write_tables
from bmmae.targets import UNKNOWN, Target, as_label, survival_classes, warn_of_days

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

    Warns:
        UserWarning: If some have a class that the model does not know, or times are too long for months.
    """
    model, outputs = next(iter(models.values()))
    studies = list({study.key: study for study in outputs.studies}.values())
    refuse_what_cannot_be_judged({name: each for name, (each, _) in models.items()}, studies)
    seen = overlap(model, studies, cache)
    assurances, doubts = ([str(seen)], []) if seen.nothing_found else ([], [str(seen)])
    doubts += [f"{name} {told}." for name, (each, _) in models.items() if (told := synthetic_training(each))]
    reference = list(models)[1] if len(models) > 1 else NAME
    lines = [str(seen)]
    warn_of_unseen_classes(model.config.targets, studies)
    if any(target.survival for target in model.config.targets):
        warn_of_days([study.time for study in studies], [study.event for study in studies])
    untold = _untold(model.config.targets, studies)
    found: dict[str, Answers] = {}
    late = _past_follow_up([each for each, _ in models.values()])
    for name, (each, own) in models.items():
        found = _joined(found, _without(tables(each.config.targets, own, name, pooled=True), late))
    write_tables(out / "predictions", found)
    rows: list[dict[str, Cell]] = []
    for target, answers in found.items():
        classes, survival = _judged(answers)
        both = score_all(classes, survival, draws=draws)
        scores = _merged(both)
        if scores:
            write_patient_report(
                out / f"{file_name(target)}.html",
                classes,
                survival,
                title=f"{target}: {', '.join(models)}",
                remarks=[*doubts, *_said(late.get(target, ()))],
                assurances=assurances,
                reference=reference,
                draws=draws,
                scores=both,
            )
            names = [name for name in SHOWN if any(score.metric == name for score in scores)]
            lines.append(f"\n{target}\n{format_scores(scores, names)}")
            lines += _said(late.get(target, ()))
        else:
            lines.append(f"\n{target}: the cohort knows no truth of it: {untold[target]}")
        rows += [_row(target, score) for score in scores if score.fold is None]
    write_table(out / "scores.csv", rows)
    return "\n".join([*lines, "", f"tables and reports: {out}"])


def refuse_what_cannot_be_judged(models: Mapping[str, PatientModel], studies: Sequence[Study]) -> None:
    """Refuse what no prediction could mend: models of different targets, and a cohort that knows the truth of none.

    Args:
        models: By name; the first is the one in question.
        studies: Of the cohort.

    Raises:
        ConfigError: If a model predicts other targets or classes than the first, or survival at other months.
        CohortError: If the cohort knows the truth of no target; says of each why. If a multi-label cell is neither
            yes nor no.
    """
    first, *others = models
    expected, late = _classes_of(models[first]), _past_follow_up(list(models.values()))
    told = _months(models[first], late)
    for name in others:
        found = _classes_of(models[name])
        if found.keys() != expected.keys():
            listed = ", ".join(expected)
            raise ConfigError(f"'{name}' predicts {', '.join(found)}, expected the same as the first: {listed}")
        odd = next((target for target, classes in expected.items() if found[target] != classes), None)
        if odd is not None:
            raise ConfigError(f"'{name}' knows other classes of '{odd}' than the first: {found[odd]}")
        for target, months in _months(models[name], late).items():
            if months != told.get(target):
                raise ConfigError(f"'{name}' tells survival of '{target}' at other months than the first: {months}")
    for target, study in product(models[first].config.targets, studies):
        target.encode(study.values)
    untold = _untold(models[first].config.targets, studies)
    if len(untold) == len(expected):
        reasons = "; ".join(f"{target}: {reason}" for target, reason in untold.items())
        raise CohortError(
            f"the cohort knows the truth of none of the targets {', '.join(untold)} ({reasons}): correct these "
            "columns, or use `bmmae predict`"
        )


def _columns_of(target: Target) -> dict[str, str]:
    """The column of labels behind each of a target's tables; none behind survival."""
    several = target.kind == "multilabel"
    return {f"{target.name}-{column}" if several else target.name: column for column in target.columns}


def _classes_of(model: PatientModel) -> dict[str, tuple[str, ...]]:
    """The classes of each of a model's tables, by name."""
    found: dict[str, tuple[str, ...]] = {}
    for target in model.config.targets:
        several = target.kind == "multilabel"
        found |= dict.fromkeys(_columns_of(target), ("no", "yes")) if several else {target.name: target.classes}
    return found


def _months(model: PatientModel, late: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The months at which a model's curves are judged, by survival target."""
    survival = (target for target in model.config.targets if target.survival)
    return {each.name: [month for month in reported_months(each) if month not in late[each.name]] for each in survival}


def _untold(targets: Sequence[Target], studies: Sequence[Study]) -> dict[str, str]:
    """Why a cohort knows no truth, by name of the table; those of which it knows some are left out."""
    found: dict[str, str | None] = {}
    for target in targets:
        found |= {name: _no_label(target, column, studies) for name, column in _columns_of(target).items()}
        if target.survival:
            found[target.name] = _no_follow_up(target, studies)
    return {name: reason for name, reason in found.items() if reason is not None}


def _no_label(target: Target, column: str, studies: Sequence[Study]) -> str | None:
    labels = {label for study in studies if (label := as_label(study.values.get(column))) is not None}
    if not labels:
        return f"column '{column}' is blank or not there"
    if target.kind == "multilabel" or not labels.isdisjoint(target.classes):
        return None
    return f"column '{column}' holds {few(sorted(labels))}, and the model knows {few(target.classes)}"


def _no_follow_up(target: Target, studies: Sequence[Study]) -> str | None:
    time, event = follow_up(studies)
    classes = survival_classes(time, event, target.edges) if target.kind == "survival_classes" else np.array([UNKNOWN])
    if event.any() or (classes != UNKNOWN).any():
        return None
    followed = int((~np.isnan(time)).sum())
    if not followed:
        return "no study has both `time` and `event`"
    return f"nobody died (`event` is 0 for all {followed} who were followed), and survival is judged by deaths"


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


def _joined(found: dict[str, Answers], new: dict[str, Answers]) -> dict[str, Answers]:
    if not found:
        return new
    return {name: _both(found[name], new[name]) for name in found}


def _both(one: Answers, two: Answers) -> Answers:
    classes, survival = one[0], one[1]
    if classes is not None and two[0] is not None:
        classes = ClassPredictions(
            classes.keys + two[0].keys,
            classes.classes,
            np.concatenate([classes.label, two[0].label]),
            np.concatenate([classes.probabilities, two[0].probabilities]),
        )
    if survival is not None and two[1] is not None:
        survival = _both_curves(survival, two[1])
    return classes, survival


def _both_curves(one: SurvivalPredictions, two: SurvivalPredictions) -> SurvivalPredictions:
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

"""Cross-validation in which nothing that is fitted can have seen a test patient.

`cross_validate` hands each model's `fit` the training and validation studies of a fold and nothing else, and hands the
predictor that comes back test studies without their truth. What is fitted (label bins, imputation, scaling, selection
of features, thresholds, weights) is fitted inside `fit`, and has nothing else to be fitted on.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from bmmae.arrays import Array, Float, Int
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.folds import (
    PARTS,
    Fold,
    FoldPlan,
    make_folds,
    refuse_parted_patients,
)
from bmmae.data.measures import PREFIX as MEASURE
from bmmae.data.measures import modality_of
from bmmae.data.twins import content_of, refuse_parted_twins
from bmmae.errors import CohortError, few
from bmmae.evaluation.predictions import UNKNOWN, ClassPredictions, PredictionKey, SurvivalPredictions
from bmmae.modalities import find, subset_label
from bmmae.targets import as_label, survival_classes


@dataclass(frozen=True)
class Answer:
    """What a fitted model says of some studies.

    Attributes:
        classes: Names of the classes that it knows.
        probabilities: Of each; None if it predicts none.
        risk: Higher = dies sooner; None if it predicts none.
        curve: Probability to live past each of `at`.
        at: Times; the same in all folds.
        risk_cut: Median risk of its training patients.
    """

    classes: tuple[str, ...] = ()
    probabilities: Float[Array, "N C"] | None = None
    risk: Float[Array, " N"] | None = None
    curve: Float[Array, "N T"] | None = None
    at: tuple[float, ...] = ()
    risk_cut: float = float("nan")


Subset: TypeAlias = tuple[str, ...]
Predictor: TypeAlias = Callable[[Sequence[Study], Subset], Answer]
"""Answers for studies that have all of a subset's modalities and show no others."""
Fit: TypeAlias = Callable[[Sequence[Study], Sequence[Study]], Predictor]
"""From training and validation studies to a predictor."""


@dataclass(frozen=True)
class Truth:
    """What is predicted, and so hidden from whoever predicts.

    Attributes:
        label: Column of the class, or of a number that `quantiles` make classes of; `time` for follow-up, whose bins
            are those of the deaths, and not known for patients censored before theirs was.
        quantiles: Where the training fold's numbers are cut; empty for a column of classes.
        classes: Those that count, in the order wanted (the second of two is the positive one); studies of others are
            not labelled. By default all, sorted.
        hidden: More columns that give the truth away.

    Raises:
        CohortError: If a class is named twice.
    """

    label: str = ""
    quantiles: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.classes)) < len(self.classes):
            raise CohortError(f"the classes of '{self.label}' are {few(self.classes)}: expected each once")

    @property
    def column(self) -> str:
        """The column of `Study.values` where `fit` finds the class of its studies."""
        return f"{self.label}_bin" if self.quantiles else self.label

    def edges(self, train: Iterable[Study]) -> tuple[float, ...]:
        """Return the cuts between bins, fitted to training studies; none for a column of classes.

        Raises:
            CohortError: If the column holds no number.
        """
        if not self.quantiles:
            return ()
        studies = [study for study in train if self.label != "time" or study.event]
        cells = [study.time if self.label == "time" else study.values.get(self.label) for study in studies]
        numbers = [float(cell) for cell in cells if isinstance(cell, float)]
        if not numbers:
            text = few(dict.fromkeys(cell for cell in cells if isinstance(cell, str)), 3)
            beside = f": it holds {text}, and one cell of text makes a column one of text" if text else ""
            raise CohortError(f"no training study has a number in column '{self.label}' to fit bins on{beside}")
        return tuple(np.quantile(numbers, self.quantiles).tolist())

    def classify(self, study: Study, edges: tuple[float, ...]) -> str | None:
        """Return a study's class under the training fold's bins; None where it is not known."""
        if not self.quantiles:
            name = as_label(study.values.get(self.label))
            return name if not self.classes or name in self.classes else None
        if self.label == "time":
            if study.time is None or study.event is None:
                return None
            (found,) = survival_classes(np.array([study.time]), np.array([study.event]), edges)
            return None if found == UNKNOWN else f"bin {found + 1}"
        cell = study.values.get(self.label)
        return f"bin {1 + int(np.searchsorted(edges, cell, side='right'))}" if isinstance(cell, float) else None

    def told(self, study: Study, edges: tuple[float, ...]) -> Study:
        """Return a training study, its class in `column`."""
        return (
            replace(study, values={**study.values, self.column: self.classify(study, edges)}) if self.label else study
        )

    def blind(self, study: Study, subset: Subset) -> Study:
        """Return a test study without its truth, and without modalities (and their measures) not in the subset."""
        absent = [name for name in study.images if name not in subset]
        measures = [name for name in study.values if name.startswith(MEASURE)]
        measures = [name for name in measures if modality_of(name, tuple(study.images)) in absent]
        secret = {self.label, self.column, *self.hidden, *measures}
        values = {name: cell for name, cell in study.values.items() if name not in secret}
        images = {name: study.images[name] for name in subset}
        return replace(study, images=images, time=None, event=None, split=None, values=values)


def cross_validate(
    fits: Mapping[str, Fit],
    cohort: Cohort,
    folds: Sequence[Fold],
    truth: Truth,
    subsets: Sequence[Subset],
    *,
    cache: StudyCache | None = None,
    compare_content: bool = True,
) -> tuple[ClassPredictions | None, SurvivalPredictions | None]:
    """Fit every model in every fold, and predict the test studies from every subset of modalities that they have.

    Args:
        fits: By name, how a model is fitted: say, `image`, and the `clinical` one that stands beside it.
        cohort: All studies.
        folds: As `make_folds` makes them, repeats after one another.
        truth: What is predicted.
        subsets: Modalities to predict from.
        cache: Where hashes of image content may be known already.
        compare_content: Refuse folds with the same image in two parts; reads every image that the cache does not know.

    Returns:
        Out-of-fold predictions of classes and of survival, as far as the models make any. Whose class the model does
        not know, as its training studies had none of it, counts as not labelled: as in a run of
        `finetune/classification.py`.

    Raises:
        CohortError: If a patient or an image is in two parts of a fold, a fold names a study that the cohort lacks, no
            test study has any of the subsets, no study has a cell of the label, or a model does not answer with one
            row a study.

    Warns:
        UserWarning: If some count as not labelled for that.
    """
    if truth.label and all(_is_blank(study, truth.label) for study in cohort):
        raise CohortError(f"no study has anything in column '{truth.label}': name the cohort's column of labels")
    subsets = [tuple(_name_in(cohort, name) for name in subset) for subset in subsets]
    refuse_leaks(cohort, folds, cache, compare_content=compare_content)
    by_key = {study.key: study for study in cohort}
    found: list[_Part] = []
    for number, fold in enumerate(folds):
        train, validation, test = ([by_key[key] for key in getattr(fold, part)] for part in PARTS)
        edges = truth.edges(train)
        told = [[truth.told(study, edges) for study in studies] for studies in (train, validation)]
        for model, fit in fits.items():
            predict = fit(*told)
            for subset in subsets:
                studies = [study for study in test if set(subset) <= set(study.images)]
                if studies:
                    answer = predict([truth.blind(study, subset) for study in studies], subset)
                    _refuse_other_rows(answer, model, len(studies))
                    keys = [_key(study, model, subset, number) for study in studies]
                    labels = [truth.classify(study, edges) if truth.label else None for study in studies]
                    found.append(_Part(keys, studies, labels, answer))
    if not found:
        raise CohortError(
            f"no test study has all modalities of one of the subsets {['+'.join(subset) for subset in subsets]}"
        )
    classes = _classes([part for part in found if part.answer.probabilities is not None], truth.classes)
    return classes, _survival([part for part in found if part.answer.risk is not None])


def refuse_leaks(
    cohort: Cohort, folds: Sequence[Fold], cache: StudyCache | None = None, *, compare_content: bool = True
) -> None:
    """Refuse folds in which a patient, or an image under whatever name, is in two parts.

    Raises:
        CohortError: If there is one; or a fold names a study that the cohort lacks.
        ImageError: If an image cannot be read.
    """
    known = {study.key for study in cohort}
    missing = [key for fold in folds for part in PARTS for key in getattr(fold, part) if key not in known]
    if missing:
        raise CohortError(f"the folds name study '{' '.join(missing[0]).strip()}', which the cohort lacks")
    patient = {study.key: study.group for study in cohort}
    content = content_of(cohort.studies, cache) if compare_content else {}
    for number, fold in enumerate(folds):
        refuse_parted_patients(fold, patient, f"fold {number}")
        refuse_parted_twins(fold, content, f"fold {number}")


def select_inside(
    candidates: Mapping[str, Fit], score: Callable[[Predictor, Sequence[Study]], float], plan: FoldPlan
) -> Fit:
    """Return a `fit` that chooses among candidates by an inner cross-validation: nested, if used in `cross_validate`.

    The inner folds are made of the outer fold's training and validation studies. The winner is fitted on the outer
    fold's parts.

    Args:
        candidates: By name: other settings, other selections of features.
        score: How good a predictor is on inner test studies, whose truth is there; higher is better. Candidates are
            compared on the inner folds where it is defined (not NaN) for all of them but those for which it never is;
            these lose.
        plan: The inner folds.

    Returns:
        The `fit`; it raises `CohortError` if no inner fold can judge all candidates.
    """

    def judged(candidate: Fit, fold: Fold, by_key: Mapping[tuple[str, str], Study]) -> float:
        parts = [[by_key[key] for key in getattr(fold, part)] for part in PARTS]
        return score(candidate(parts[0], parts[1]), parts[2])

    def fit(train: Sequence[Study], validation: Sequence[Study]) -> Predictor:
        own = [replace(study, split=None) for study in (*train, *validation)]
        by_key = {study.key: study for study in own}
        names = tuple(dict.fromkeys(name for study in own for name in study.images))
        inner = make_folds(Cohort(tuple(own), names), plan)
        scores = np.array([[judged(candidate, fold, by_key) for fold in inner] for candidate in candidates.values()])
        able = np.flatnonzero(~np.isnan(scores).all(axis=1))
        comparable = ~np.isnan(scores[able]).any(axis=0)
        if not len(able) or not comparable.any():
            raise CohortError(
                f"no inner fold can judge all of {', '.join(candidates)}: its test part may lack a class or a death; "
                "make fewer inner folds"
            )
        best = int(able[scores[able][:, comparable].mean(axis=1).argmax()])
        return list(candidates.values())[best](train, validation)

    return fit


def _is_blank(study: Study, label: str) -> bool:
    return (study.time if label == "time" else study.values.get(label)) is None


def _name_in(cohort: Cohort, name: str) -> str:
    """A modality as the cohort calls it, from an alias."""
    return name if name in cohort.modalities else find(name) or name


def _refuse_other_rows(answer: Answer, model: str, count: int) -> None:
    """One row for all would be taken for everybody's."""
    found = [np.shape(values) for values in (answer.probabilities, answer.risk) if values is not None]
    wanted: list[tuple[int, ...]] = [(count, len(answer.classes))] if answer.probabilities is not None else []
    wanted += [(count,)] if answer.risk is not None else []
    if found != wanted:
        raise CohortError(f"'{model}' answered for {count} studies with arrays of shape {found}: expected {wanted}")


@dataclass(frozen=True)
class _Part:
    """One model's answer for one fold and subset, beside the truth."""

    keys: list[PredictionKey]
    studies: list[Study]
    labels: list[str | None]
    answer: Answer


def _key(study: Study, model: str, subset: Subset, fold: int) -> PredictionKey:
    return PredictionKey(study.subject, study.session, study.group, model, subset_label(subset), fold)


def _classes(parts: Sequence[_Part], wanted: tuple[str, ...]) -> ClassPredictions | None:
    """Put answers together; a class that a fold's model does not know has probability 0 there, and is no label."""
    if not parts:
        return None
    _warn_of_unknown_classes(parts)
    given = {name for part in parts for name in part.answer.classes}
    names = (*wanted, *sorted(given - set(wanted)))
    number = {name: index for index, name in enumerate(names)}
    rows: list[Array] = []
    for part in parts:
        table = np.zeros((len(part.keys), len(names)))
        table[:, [number[name] for name in part.answer.classes]] = part.answer.probabilities
        rows.append(table)
    label: Int[Array, " N"] = np.array(
        [number[name] if name in p.answer.classes else UNKNOWN for p in parts for name in p.labels]
    )
    return ClassPredictions(tuple(key for part in parts for key in part.keys), names, label, np.concatenate(rows))


def _warn_of_unknown_classes(parts: Sequence[_Part]) -> None:
    """Warn of test studies whose class a model of their fold does not know; each is counted once."""
    unknown = {
        (key.study, name)
        for part in parts
        for key, name in zip(part.keys, part.labels, strict=True)
        if name is not None and name not in part.answer.classes
    }
    if unknown:
        counts = Counter((name, fold) for (fold, *_), name in unknown)
        listed = few((f"'{name}' ({count} in fold {fold})" for (name, fold), count in sorted(counts.items())), quote="")
        warnings.warn(
            f"{len(unknown)} test studies count as not labelled, as a model of their fold does not know their class: "
            f"{listed}. Name the classes that count (`Truth.classes`), or stratify the folds by the column",
            stacklevel=4,
        )


def _survival(parts: Sequence[_Part]) -> SurvivalPredictions | None:
    if not parts:
        return None
    times = {part.answer.at for part in parts}
    if len(times) > 1:
        models = ", ".join(dict.fromkeys(part.keys[0].model for part in parts if part.keys))
        raise CohortError(
            f"survival curves are given at other times by other folds or models ({models}): fix the times before the "
            "folds, the same for all models"
        )
    at = np.array(times.pop())
    studies = [study for part in parts for study in part.studies]
    followed = [study.time is not None and study.event is not None for study in studies]
    return SurvivalPredictions(
        tuple(key for part in parts for key in part.keys),
        np.array([float("nan") if s.time is None or not f else s.time for s, f in zip(studies, followed, strict=True)]),
        np.array([bool(s.event) and f for s, f in zip(studies, followed, strict=True)]),
        np.concatenate([np.asarray(part.answer.risk, float) for part in parts]),
        np.concatenate(
            [np.empty((len(p.keys), 0)) if p.answer.curve is None else np.asarray(p.answer.curve) for p in parts]
        ),
        at,
        np.concatenate([np.full(len(part.keys), part.answer.risk_cut) for part in parts]),
    )

"""Which columns of a cohort table are predicted and which are given, fitted on the training fold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

import numpy as np

from bmmae.clinical import ClinicalVariable, fit_clinical, fit_vector
from bmmae.data.cohort import LESION, Study
from bmmae.data.measures import measure_columns
from bmmae.data.patients import Columns, LesionMap, cells_of
from bmmae.errors import CohortError, ConfigError, few
from bmmae.targets import (
    MONTHS,
    UNKNOWN,
    Cell,
    Target,
    as_label,
    fit_label,
    fit_multilabel,
    fit_survival,
    survival_classes,
    warn_of_days,
)

SurvivalForm: TypeAlias = Literal["hazard", "cox", "survival_classes"]

FOLLOW_UP = ("time", "event")
"""Columns of a cohort table that only time has told."""


@dataclass(frozen=True)
class TargetsConfig:
    """What is predicted; several targets share one model.

    Attributes:
        labels: Columns of classes that exclude each other, one target each.
        classes: By column, the classes that count, in the order wanted (the second of two is the positive one); studies
            of other classes are not labelled. Two of many give a one-vs-one model. Default: all, sorted.
        multilabel: By name of the target, columns of yes (1) and no (0).
        survival: Forms of survival, from the columns `time` (months) and `event`.
        bins: Intervals of the hazard; where a Cox model's curve is read.
        months: Boundaries of the survival classes.
        curve: Months at which the curves of `hazard` and `cox` are reported, up to the training fold's longest
            follow-up.
        ipcw: Weight survival classes by the inverse of the chance of not having been censored before they were known.
        balanced: Weight the classes of `labels` and `multilabel` by the inverse of their frequency.
    """

    labels: tuple[str, ...] = ()
    classes: dict[str, tuple[str | int | float | bool, ...]] = field(default_factory=dict)
    multilabel: dict[str, tuple[str, ...]] = field(default_factory=dict)
    survival: tuple[SurvivalForm, ...] = ()
    bins: int = 10
    months: tuple[float, ...] = MONTHS
    curve: tuple[float, ...] = (3.0, 6.0, 9.0, 12.0, 18.0, 24.0, 36.0)
    ipcw: bool = False
    balanced: bool = False

    def __post_init__(self) -> None:
        stray = [name for name in self.classes if name not in self.labels]
        if stray:
            raise ConfigError(f"targets.classes names '{stray[0]}', which is not among targets.labels {self.labels}")
        for name, classes in self.classes.items():
            if any(isinstance(label, bool) for label in classes):
                raise ConfigError(
                    f"targets.classes.{name} holds true or false, which is how YAML reads yes and no: write such names "
                    'in quotes of their own, such as \'["no", "yes"]\''
                )
        if not (self.labels or self.multilabel or self.survival):
            raise ConfigError("nothing is to be predicted: name columns in targets.labels, or targets.survival")
        columns = {*self.labels, *(column for several in self.multilabel.values() for column in several)}
        follow_up = sorted(columns & set(FOLLOW_UP))
        if follow_up:
            raise ConfigError(
                f"column '{follow_up[0]}' is follow-up, and no label: it is learned with targets.survival '[hazard]'"
            )
        if list(self.months) != sorted(set(self.months)) or len(self.months) < 2 or self.months[0] <= 0:
            raise ConfigError(f"targets.months must be two or more months that rise, got {self.months}")
        for item in fields(self):
            about = ABOUT.get(item.name, ())
            if about and self.kinds.isdisjoint(about) and getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"targets.{item.name} is about {' and '.join(about)}, which nothing here predicts: leave it out"
                )

    @property
    def kinds(self) -> set[str]:
        """What is predicted: `labels`, `multilabel`, forms of survival."""
        return {*self.survival, *(name for name in ("labels", "multilabel") if getattr(self, name))}


ABOUT = {
    "bins": ("hazard", "cox"),
    "curve": ("hazard", "cox"),
    "months": ("survival_classes",),
    "ipcw": ("survival_classes",),
    "balanced": ("labels", "multilabel"),
}
"""What an option is about; without any of it, it would have no effect."""


@dataclass(frozen=True)
class BesideConfig:
    """What is given beside the images.

    Attributes:
        clinical: Columns of clinical variables: numbers are standardised, others are categories.
        measures: Give the columns `measure_...` that `bmmae measure` writes, each hidden where its modality is.
        impute: Put the training fold's median or most frequent category where a value is missing; the flag stays.
        vector: Columns of another model's embedding or of radiomics, used whole.
        lesion: Lets lesions weigh more: `attention` where a study has a segmentation (`seg`), `probability` where it
            has a map of chances (`lesion_probability`, as `bmmae segment --probabilities` writes it); or `none`.
        fusion: What is beside the images meets them in a transformer block, instead of adding to the outputs alone.
    """

    clinical: tuple[str, ...] = ()
    measures: bool = False
    impute: bool = False
    vector: tuple[str, ...] = ()
    lesion: LesionMap = "none"
    fusion: bool = True


def fit_columns(train: Sequence[Study], targets: TargetsConfig, beside: BesideConfig) -> Columns:
    """Fit targets and clinical variables on the training fold: nothing else may be passed.

    Raises:
        CohortError: If a column is unknown, blank or has one class only, a target is also given, nobody died, or no
            study has the lesion map that is wanted.

    Warns:
        UserWarning: If a class has one study, one death is observed, names of classes differ in case only, times are
            too long for months, or survival is to be reported past the longest follow-up.
    """
    _refuse_givens_that_are_targets(targets, beside)
    _require_maps(train, beside.lesion)
    given = {name: cells_of(train, name) for name in (*beside.clinical, *beside.vector)}
    rows: list[Mapping[str, str | float | None]] = [study.values for study in train]
    return Columns(
        targets=tuple(_fit_targets(train, targets)),
        clinical=tuple(_fit_variables(train, given, beside)),
        vector=fit_vector(beside.vector, rows) if beside.vector else None,
        lesions=beside.lesion,
    )


def _fit_targets(train: Sequence[Study], config: TargetsConfig) -> list[Target]:
    targets = [
        fit_label(name, cells_of(train, name), _named_classes(config, name), balanced=config.balanced)
        for name in config.labels
    ]
    for name, columns in config.multilabel.items():
        cells = {column: cells_of(train, column) for column in columns}
        targets.append(fit_multilabel(name, cells, balanced=config.balanced))
    times, events = [study.time for study in train], [study.event for study in train]
    if config.survival:
        warn_of_days(times, events)
    several = len(config.survival) > 1
    for form in config.survival:
        name = form if several and form != "survival_classes" else ""
        targets.append(
            fit_survival(
                form,
                times,
                events,
                bins=config.bins,
                boundaries=config.months,
                curve=config.curve,
                ipcw=config.ipcw,
                name=name,
            )
        )
    _warn_of_single_studies(targets)
    _warn_past_follow_up(targets)
    return targets


def _named_classes(config: TargetsConfig, label: str) -> tuple[str, ...]:
    """The classes that count, as cells of the column name them: `2.0` is `2`."""
    return tuple(str(as_label(str(name))) for name in config.classes.get(label, ()))


def _warn_of_single_studies(targets: Sequence[Target]) -> None:
    for target in targets:
        if target.kind in ("binary", "multiclass"):
            shares = zip(target.classes, target.shares, strict=True)
            single = [name for name, share in shares if round(share * target.counts["labelled"]) == 1]
            if single:
                several = len(single) > 1
                said = f"{'classes' if several else 'class'} {few(single)} of '{target.name}'"
                has = "have one training study each" if several else "has one training study"
                warnings.warn(
                    f"{said} {has}: nothing can be learned of {'them' if several else 'it'}",
                    stacklevel=2,
                )
    if any(target.counts.get("deaths") == 1 for target in targets):
        warnings.warn(
            "one death is observed among the training studies: nothing can be learned of survival", stacklevel=2
        )


def _warn_past_follow_up(targets: Sequence[Target]) -> None:
    """Warn once: all forms of survival have the same months and the same follow-up."""
    target = next((target for target in targets if target.past_follow_up), None)
    if target is not None and target.followed is not None:
        late = [f"{month:g}" for month in target.past_follow_up]
        said = f"months {', '.join(late)} lie" if len(late) > 1 else f"month {late[0]} lies"
        longest = math.floor(target.followed * 10) / 10  # rounded up, it might reach the month that is past it
        warnings.warn(
            f"{said} past the longest follow-up of the training studies ({longest:g} months): chances there are not "
            "predicted",
            stacklevel=2,
        )


def _fit_variables(
    train: Sequence[Study], given: Mapping[str, Sequence[Cell]], beside: BesideConfig
) -> Iterator[ClinicalVariable]:
    for name in beside.clinical:
        yield fit_clinical(name, given[name], impute=beside.impute)
    for name, modality in measure_columns(train).items() if beside.measures else ():
        yield fit_clinical(name, cells_of(train, name), impute=beside.impute, modality=modality)


def _require_maps(train: Sequence[Study], lesion: LesionMap) -> None:
    column = {"attention": "seg", "probability": LESION}.get(lesion)
    files = [study.seg if lesion == "attention" else study.lesion for study in train]
    if column and not any(files):
        raise CohortError(
            f"beside.lesion is '{lesion}', but no training study has a file in column '{column}': write maps with "
            "`bmmae segment --cohort ... --probabilities`, or set beside.lesion to none"
        )


def _refuse_givens_that_are_targets(targets: TargetsConfig, beside: BesideConfig) -> None:
    predicted = {*targets.labels, *(column for columns in targets.multilabel.values() for column in columns)}
    predicted |= set(FOLLOW_UP) if targets.survival else set()
    for part, names in (("clinical", beside.clinical), ("vector", beside.vector)):
        for name in names:
            if name in predicted or name in FOLLOW_UP:
                why = "predicted" if name in predicted else "follow-up, which nobody knows at the time of the scan"
                raise CohortError(f"column '{name}' is {why}, so it cannot be given: take it out of beside.{part}")


def is_labelled(study: Study, targets: Sequence[Target]) -> bool:
    """Tell whether any target of a study is known."""
    return any(_knows(target, study) for target in targets)


def _knows(target: Target, study: Study) -> bool:
    if not target.survival:
        return any(code != UNKNOWN for code in target.encode(study.values))
    if study.time is None or study.event is None:
        return False
    if target.kind != "survival_classes":
        return True
    (found,) = survival_classes(np.array([study.time]), np.array([study.event]), target.edges)
    return bool(found != UNKNOWN)


def format_targets(targets: Sequence[Target]) -> str:
    """Return one line a target: what it is and how many studies of the training fold are labelled."""
    lines = []
    for target in targets:
        counts = ", ".join(f"{count} {name}" for name, count in target.counts.items() if count or name == "labelled")
        shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(target.classes, target.shares, strict=True))
        lines.append(f"{target.name} ({target.kind}): {counts}" + (f"; {shares}" if shares else ""))
    return "\n".join(lines)

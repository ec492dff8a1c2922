"""Folds of a cohort by patient, stratified."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, islice
from typing import TypeAlias

import numpy as np

from bmmae.arrays import Array
from bmmae.clinical import COMMA
from bmmae.data.cohort import Cohort, Study
from bmmae.data.loaders import sample_generator
from bmmae.data.visits import ungrouped_visits
from bmmae.errors import CohortError, few

PARTS = ("train", "validation", "test")
QUARTERS = (0.25, 0.5, 0.75)
MANY_VALUES = 10
"""A numeric column with more values than this is stratified by its quarters."""

Key: TypeAlias = tuple[str, str]
"""Subject and session."""


@dataclass(frozen=True)
class Fold:
    """Who is in which part.

    Attributes:
        train: Trained on.
        validation: Selects the checkpoint.
        test: Held out; scored once, and selects nothing.
    """

    train: tuple[Key, ...]
    validation: tuple[Key, ...]
    test: tuple[Key, ...]


@dataclass(frozen=True)
class FoldPlan:
    """How folds are made.

    Attributes:
        folds: How many parts the patients are divided into; each is the test part of one fold.
        repeats: How many times they are divided anew.
        stratify: Columns whose values are spread evenly over the folds: `event`, `time` or any other. Blank cells
            are a value of their own.
        validation_share: Share of the patients outside the test part that validate; also stratified.
        seed: 0 to 2**32 - 1.
    """

    folds: int = 5
    repeats: int = 1
    stratify: tuple[str, ...] = ()
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.repeats < 1:
            raise CohortError(f"expected 2 folds or more and 1 repeat or more, got {self.folds} and {self.repeats}")
        if not 0 < self.validation_share <= 0.5:
            raise CohortError(f"the validation share must lie in (0, 0.5], got {self.validation_share}")


def make_folds(cohort: Cohort, plan: FoldPlan) -> tuple[Fold, ...]:
    """Divide a cohort's patients; those with a study that the table marks `test` are in no fold.

    Returns:
        `repeats * folds` folds, those of the first repeat first. They depend on the table's content, not on its order.

    Raises:
        CohortError: If there are too few patients, or a column is unknown or holds decimal commas.

    Warns:
        UserWarning: If subjects are named as visits of one patient, and no `group` says so.
    """
    apart = set_apart(cohort.studies)
    studies = sorted((study for study in cohort if study.group not in apart), key=lambda study: study.key)
    if doubt := ungrouped_visits(cohort):
        warnings.warn(doubt, stacklevel=2)
    strata = _strata(studies, plan.stratify)
    needed = max(plan.folds + 1, 3)
    patients = len({study.group for study in studies})
    if patients < needed:
        raise CohortError(f"{plan.folds} folds need {needed} patients or more, got {patients} that are not in test")
    return tuple(fold for repeat in range(plan.repeats) for fold in _repeat(studies, strata, plan, repeat))


def set_apart(studies: Iterable[Study]) -> set[str]:
    """Return the patients of whom the table sets a study apart as `test`: their other visits would tell of them."""
    return {study.group for study in studies if study.split == "test"}


def _repeat(studies: Sequence[Study], strata: Array, plan: FoldPlan, repeat: int) -> Iterator[Fold]:
    for number, test in enumerate(_divide(studies, strata, plan.folds, (plan.seed, repeat, 0))):
        rest = [index for index in range(len(studies)) if index not in test]
        patients = len({studies[index].group for index in rest})
        if patients < 2:
            raise CohortError(
                f"fold {number} of {plan.folds} would leave {patients} patient to train and to validate on: some have "
                "many visits; add patients, or choose another number of folds"
            )
        finest = min(max(20, round(1 / plan.validation_share)), patients)
        share = max(Fraction(1, finest), Fraction(plan.validation_share).limit_denominator(finest))
        inner = [studies[index] for index in rest]
        parts = _divide(inner, strata[rest], share.denominator, (plan.seed, repeat, 1 + number))
        held = {rest[index] for part in islice(parts, share.numerator) for index in part}
        train = [index for index in rest if index not in held]
        yield Fold(*(tuple(studies[index].key for index in sorted(part)) for part in (train, held, test)))


def _divide(
    studies: Sequence[Study], strata: Array, parts: int, address: tuple[int, int, int]
) -> Iterator[frozenset[int]]:
    """Yield the parts, as indices of studies; every patient is in one."""
    from sklearn.model_selection import StratifiedGroupKFold

    seed = int(sample_generator(*address, purpose="folds").integers(2**31))
    groups = [study.group for study in studies]
    if max(Counter(strata.tolist()).values()) < parts:
        strata = np.zeros(len(studies))  # too few of every class to spread any
    with warnings.catch_warnings():
        # A class of fewer studies than parts cannot be in each of them; there is nothing to do about it.
        warnings.filterwarnings("ignore", message="The least populated class")
        divided = StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(groups, strata, groups)
        yield from [frozenset(int(index) for index in held) for _, held in divided]


def _strata(studies: Sequence[Study], columns: Sequence[str]) -> Array:
    """One class a study: the combination of its values. Combinations too rare to stratify by are one class."""
    values = zip(*(_classes(studies, column) for column in columns), strict=True) if columns else [()] * len(studies)
    combined = [" / ".join(row) for row in values]
    counts = Counter(combined)
    return np.array([name if counts[name] > 1 else "rare" for name in combined])


def _classes(studies: Sequence[Study], column: str) -> list[str]:
    known = {"time", "event"}.union(*(study.values for study in studies))
    if column not in known:
        raise CohortError(f"no column '{column}' to stratify by: the table has {', '.join(sorted(known))}")
    cells = [getattr(study, column) if column in {"time", "event"} else study.values[column] for study in studies]
    commas = dict.fromkeys(cell for cell in cells if isinstance(cell, str) and COMMA.fullmatch(cell))
    if commas:
        raise CohortError(f"column '{column}' to stratify by holds {few(commas)}: write numbers with a decimal point")
    numbers = [float(cell) for cell in cells if isinstance(cell, float)]
    if len(set(numbers)) > MANY_VALUES:
        edges = np.quantile(numbers, QUARTERS)
        cells = [None if cell is None else f"quarter {1 + np.searchsorted(edges, cell)}" for cell in cells]
    return [f"{column} {'blank' if cell is None else cell}" for cell in cells]


def format_folds(cohort: Cohort, folds: Sequence[Fold], plan: FoldPlan) -> str:
    """Return a table for the terminal: each fold's patients and, for the test part, what it was stratified by."""
    patient = {study.key: study.group for study in cohort}
    stratum = dict(zip(patient, _strata(cohort.studies, plan.stratify), strict=True))
    lines = [f"{'fold':6}{'train':>8}{'validation':>12}{'test':>8}   patients; strata of the test part"]
    for number, fold in enumerate(folds):
        counts = [len({patient[key] for key in getattr(fold, part)}) for part in PARTS]
        members = {(patient[key], str(stratum[key])) for key in fold.test}  # visits of a patient may differ
        strata = Counter(name for _, name in members) if plan.stratify else {}
        named = ", ".join(f"{name}: {count}" for name, count in sorted(strata.items()))
        lines.append(f"{number:<6}{counts[0]:>8}{counts[1]:>12}{counts[2]:>8}   {named}".rstrip())
    return "\n".join(lines)


def refuse_parted_patients(fold: Fold, patient: Mapping[Key, str], where: str) -> None:
    """Refuse a fold with studies of one patient in two parts.

    Args:
        fold: As any code may have made it.
        patient: Whose each study is; those that it lacks are passed over.
        where: What to call the fold.

    Raises:
        CohortError: If there is such a patient.
    """
    members = {part: {patient[key] for key in getattr(fold, part) if key in patient} for part in PARTS}
    for one, two in combinations(PARTS, 2):
        shared = sorted(members[one] & members[two])
        if shared:
            raise CohortError(
                f"{where} puts {few(shared)} into {one} and into {two}: expected all studies of a patient in one part; "
                "make the folds again with `bmmae split` or `make_folds`"
            )


def name_of(key: Key) -> str:
    """Return what to call a study in a message."""
    return " ".join(key).strip()

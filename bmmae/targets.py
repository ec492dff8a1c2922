"""What is predicted of a patient, as fitted on the training fold; and how a table's cells become numbers.

Times are in months. The event is death. Nothing here looks at any patient but those it is given, so whoever passes the
training fold alone fits on it alone; the result travels with the weights, and inference uses it as it is.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.errors import CohortError, ConfigError, few
from bmmae.metrics.survival import Steps, censoring_curve, kaplan_meier

Cell: TypeAlias = str | float | None
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
"""No leading zeros: a column that has them holds codes, and codes stay text."""
EXACT = 2**53
"""From here on float64 does not hold every whole number."""
Kind: TypeAlias = Literal["binary", "multiclass", "multilabel", "hazard", "cox", "survival_classes"]

UNKNOWN = -1
"""A label that is not known."""

MONTHS = (6.0, 21.0)
"""Boundaries of the three survival classes: below, from one to the other, above."""

LONGEST, MEDIAN = 360, 120
"""Follow-up beyond these is hardly in months: thirty years, and ten years for half of the patients."""

DAYS = 30.44
"""Of a month."""

NOT_KNOWN = frozenset({"?", "-", "unknown", "unk", "unclear", "missing", "not known", "not available", "n.a."})
"""What tables say of what is not known, but for what is read as a blank cell."""

YES_OR_NO = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}


@dataclass(frozen=True)
class Target:
    """One thing that is predicted, and all that was fitted for it.

    Attributes:
        name: Of the head, and of its columns among the predictions.
        kind: `binary`, `multiclass`, `multilabel` (one yes or no a column), `hazard` (discrete-time logistic hazard),
            `cox` (proportional hazards), `survival_classes` (below, between and above `edges`).
        columns: Of the cohort table that hold labels; none for survival, which has `time` and `event`.
        classes: Names, in the order of the outputs; the second of a binary target is the positive one.
        weights: Factor on the loss of each class (a multi-label target: of no and yes, column after column).
        shares: Share of each class among the labelled patients it was fitted on (multi-label: of yes).
        edges: Months: ends of the hazard's intervals (Cox: where the curve is read), boundaries of survival classes.
        censoring: Steps (month, share still under observation after it); only for weighted survival classes.
        baseline: Cumulative baseline hazard at each of `edges`, for the survival curves of a Cox target.
        curve: Months at which survival is reported, chosen and not fitted, so that the tables of folds can be joined;
            none reports it at `edges`.
        followed: Months of the training fold's longest follow-up; a hazard or Cox target tells no chance of survival
            past it. None where not known, as in models saved before it was kept.
        risk_cut: The training fold's median risk, which parts high from low.
        counts: How many studies of the training fold were labelled, blank, censored too early ...
    """

    name: str
    kind: Kind
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    censoring: tuple[tuple[float, float], ...] = ()
    baseline: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    followed: float | None = None
    risk_cut: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for months in (self.edges, self.curve):
            if list(months) != sorted(set(months)) or any(month <= 0 for month in months):
                raise ConfigError(f"the months of target '{self.name}' must be positive and rise, got {months}")
        if self.outputs < 1:
            raise ConfigError(f"target '{self.name}' of kind {self.kind} has no classes, columns or months")

    @property
    def survival(self) -> bool:
        """Whether it is learned from `time` and `event`."""
        return self.kind in ("hazard", "cox", "survival_classes")

    @property
    def outputs(self) -> int:
        """How many numbers its head puts out."""
        sizes = {"binary": 1, "cox": 1, "hazard": len(self.edges), "multilabel": len(self.columns)}
        return sizes.get(self.kind, len(self.classes))

    @property
    def reported(self) -> tuple[float, ...]:
        """Months at which survival is reported, those past the longest follow-up too."""
        return self.curve or self.edges

    @property
    def past_follow_up(self) -> tuple[float, ...]:
        """Those of the reported months past the longest follow-up: nothing is known there."""
        return tuple(month for month in self.reported if not self.followed_to(month))

    def followed_to(self, month: float) -> bool:
        """Whether a training study was followed so long; also where the longest follow-up is not known."""
        return self.followed is None or month <= self.followed

    def encode(self, cells: Mapping[str, Cell]) -> list[int]:
        """Return one class index a column, `UNKNOWN` where it is blank or no class of this target.

        Raises:
            CohortError: If a multi-label cell is neither yes nor no.
        """
        if self.kind == "multilabel":
            return [_yes_or_no(cells.get(column), column) for column in self.columns]
        found = [as_label(cells.get(column)) for column in self.columns]
        return [self.classes.index(name) if name in self.classes else UNKNOWN for name in found]


def as_label(cell: Cell) -> str | None:
    """Return a cell as the name of a class: `1.0` and `1` are one, as numbers or as text; None where blank.

    Codes of 16 digits and more stay text: as numbers, neighbours would become one.
    """
    if isinstance(cell, str):
        return _number(float(cell)) if NUMBER.fullmatch(cell) and abs(float(cell)) < EXACT else cell
    if isinstance(cell, float):
        return None if np.isnan(cell) else _number(cell)
    return cell


def _number(value: float) -> str:
    """All digits: codes of nine or ten are classes of their own."""
    return str(int(value)) if value.is_integer() else repr(value)


def _yes_or_no(cell: Cell, column: str) -> int:
    label = as_label(cell)
    if label is None:
        return UNKNOWN
    if label.lower() not in YES_OR_NO:
        raise CohortError(f"column '{column}' holds '{label}': expected 1, 0, yes, no or a blank cell in a multi-label")
    return YES_OR_NO[label.lower()]


def fit_label(name: str, cells: Sequence[Cell], classes: Sequence[str] = (), *, balanced: bool = False) -> Target:
    """Fit a target of two or more classes that exclude each other.

    Args:
        name: Of its column.
        cells: Of the training fold.
        classes: Their names in the order wanted; other values count as unknown. By default all values, sorted.
        balanced: Weight classes by the inverse of their frequency (mean weight 1 over the labelled studies).

    Raises:
        CohortError: If nothing is labelled, there is one class only, or a class that was named is absent.
        ConfigError: If a class is named twice.

    Warns:
        UserWarning: If names differ in case or in blanks only, or one that nobody has named as a class says
            that nothing is known.
    """
    labels = [as_label(cell) for cell in cells]
    present = Counter(label for label in labels if label is not None and (not classes or label in classes))
    names = tuple(classes) or tuple(sorted(present))
    _refuse_unlearnable(name, names, labels, present)
    warn_of_spellings(name, names, labels)
    unsaid = [] if classes else [label for label in names if label.strip().casefold() in NOT_KNOWN]
    if unsaid:
        warnings.warn(
            f"{few(unsaid)} of column '{name}' counts as a class: leave cells blank where it is not known, or name the "
            "classes that count in targets.classes",
            stacklevel=2,
        )
    counts = np.array([present[label] for label in names], float)
    weights = tuple((counts.sum() / len(names) / counts).tolist()) if balanced else ()
    blank = sum(label is None for label in labels)
    told = {"labelled": int(counts.sum()), "blank": blank, "of no class": len(cells) - blank - int(counts.sum())}
    kind: Kind = "binary" if len(names) == 2 else "multiclass"
    shares = tuple((counts / counts.sum()).tolist())
    return Target(name, kind, (name,), names, weights, shares, counts=told)


def _refuse_unlearnable(
    name: str, classes: Sequence[str], labels: Sequence[str | None], present: Mapping[str, int]
) -> None:
    """Refuse classes of a column that cannot be told from each other by its labels; see `fit_label`."""
    repeated = next((label for label in classes if classes.count(label) > 1), None)
    if repeated is not None:
        raise ConfigError(f"class '{repeated}' of column '{name}' is named twice: expected each class once")
    others = sorted(set(filter(None, labels)) - present.keys())
    if not present and others:
        raise CohortError(
            f"no training study is of a class that counts ({few(classes)}): column '{name}' holds {few(others)}"
        )
    if not present:
        raise CohortError(f"column '{name}' is blank for all {len(labels)} training studies: expected labels in it")
    if len(classes) < 2 or len(present) < 2:
        only = next(iter(present))
        beside = f", and {few(others)}, which do not count" if others else ""
        raise CohortError(
            f"column '{name}' holds one class only among the training studies ('{only}', {present[only]} times)"
            f"{beside}: expected two or more"
        )
    absent = [label for label in classes if label not in present]
    if absent:
        raise CohortError(
            f"class '{absent[0]}' of column '{name}' has no training study: it holds {few([*present, *others])}"
        )


def warn_of_spellings(name: str, classes: Sequence[str], labels: Sequence[str | None] = ()) -> None:
    """Warn of a class that is written in several ways, among the classes or beside them.

    Args:
        name: Of the column.
        classes: That count.
        labels: The column's cells, which may hold others.
    """
    spellings: dict[str, list[str]] = {}
    for label in dict.fromkeys([*classes, *filter(None, labels)]):
        plain = unicodedata.normalize("NFKC", label)  # an umlaut may be stored as one character or as two
        spellings.setdefault(" ".join(plain.split()).casefold(), []).append(label)
    for alike in spellings.values():
        if len(alike) > 1 and not set(classes).isdisjoint(alike):
            warnings.warn(
                f"{few(alike)} of column '{name}' differ in case or blanks only{_hidden(alike)}, but count as "
                "different classes: write them alike if they are one",
                stacklevel=3,
            )


def _hidden(alike: Sequence[str]) -> str:
    """What a reader cannot see, if that is the difference."""
    apart = len({unicodedata.normalize("NFKC", label) for label in alike}) < len(alike)
    return ", or in how letters such as ü are stored" if apart else ""


def fit_multilabel(name: str, columns: Mapping[str, Sequence[Cell]], *, balanced: bool = False) -> Target:
    """Fit a target of several yes-or-no columns, each of which may be blank.

    Args:
        name: Of the target.
        columns: The training fold's cells by column.
        balanced: Weight yes and no of each column by the inverse of their frequency.

    Raises:
        CohortError: If a column has no yes or no no, or holds something else.
    """
    weights: list[float] = []
    shares: list[float] = []
    counts = {"labelled": 0, "blank": 0}
    for column, cells in columns.items():
        values = np.array([_yes_or_no(cell, column) for cell in cells])
        yes, no = int((values == 1).sum()), int((values == 0).sum())
        if not yes or not no:
            raise CohortError(f"column '{column}' has {yes} yes and {no} no among the training studies: expected both")
        shares.append(yes / (yes + no))
        weights += [(yes + no) / 2 / no, (yes + no) / 2 / yes] if balanced else []
        counts = {"labelled": counts["labelled"] + yes + no, "blank": counts["blank"] + len(cells) - yes - no}
    names = tuple(columns)
    return Target(name, "multilabel", names, names, tuple(weights), tuple(shares), counts=counts)


def fit_survival(
    kind: Kind,
    times: Sequence[float | None],
    events: Sequence[bool | None],
    *,
    bins: int = 10,
    boundaries: Sequence[float] = MONTHS,
    curve: Sequence[float] = (),
    ipcw: bool = False,
    name: str = "",
) -> Target:
    """Fit a survival target.

    Args:
        kind: `hazard`, `cox` or `survival_classes`.
        times: Months of follow-up in the training fold; None where not known.
        events: Whether death was observed then.
        bins: Intervals of the hazard, between quantiles of the Kaplan-Meier curve (Kvamme and Borgan 2021).
        boundaries: Of the survival classes, in months.
        curve: Months at which the curve of a hazard or Cox target is reported; none reports it at its edges.
        ipcw: Weight patients whose class is known by the inverse of their chance of not having been censored before.
        name: Of the target; by default `survival`, with the kind for the classes.

    Raises:
        CohortError: If follow-up is not known, nobody died, or a survival class is empty.
    """
    pairs = _known(times, events)
    if not pairs:
        raise CohortError(
            f"no training study has both `time` and `event` ({len(times)} studies): fill in the two columns"
        )
    months, died = np.array([t for t, _ in pairs], float), np.array([e for _, e in pairs], bool)
    if not died.any():
        raise CohortError(f"no death is observed among {len(pairs)} training studies (`event` is never 1)")
    if not months[died].any():
        raise CohortError("every death among the training studies is at `time` 0: expected months of follow-up")
    counts = {"labelled": len(pairs), "blank": len(times) - len(pairs), "deaths": int(died.sum())}
    if kind == "survival_classes":
        return _fit_classes(name or "survival_class", (months, died), tuple(boundaries), counts, ipcw=ipcw)
    edges = interval_edges(months, died, bins)
    return Target(
        name or "survival", kind, edges=edges, curve=tuple(curve), followed=float(months.max()), counts=counts
    )


def warn_of_days(times: Sequence[float | None], events: Sequence[bool | None]) -> None:
    """Warn of follow-up that is too long for months, if any is known.

    Args:
        times: As for `fit_survival`.
        events: Likewise.
    """
    months = [time for time, _ in _known(times, events)]
    if months and (max(months) > LONGEST or np.median(months) > MEDIAN):
        warnings.warn(
            f"the column time goes up to {max(months):g}: are these days? months are expected (divide by {DAYS})",
            stacklevel=2,
        )


def _known(times: Sequence[float | None], events: Sequence[bool | None]) -> list[tuple[float, bool]]:
    return [(t, e) for t, e in zip(times, events, strict=True) if t is not None and e is not None and not np.isnan(t)]


def _fit_classes(
    name: str, outcome: tuple[Array, Array], boundaries: tuple[float, ...], counts: dict[str, int], *, ipcw: bool
) -> Target:
    months, died = outcome
    known = survival_classes(months, died, boundaries)
    low, *_, high = boundaries
    between = [f"{a:g} to {b:g} months" for a, b in pairwise(boundaries)]
    classes = (f"below {low:g} months", *between, f"above {high:g} months")
    found = np.bincount(known[known != UNKNOWN], minlength=len(classes))
    if not found.all():
        empty = classes[int(np.flatnonzero(found == 0)[0])]
        raise CohortError(f"survival class '{empty}' has no training study whose class is known: choose other months")
    steps: tuple[tuple[float, float], ...] = ()
    if ipcw:
        curve = censoring_curve(months, died)
        steps = tuple((float(t), float(s)) for t, s in zip(curve.times, curve.values, strict=True))
    early = int((known == UNKNOWN).sum())
    told = {**counts, "labelled": len(months) - early, "censored before their class was known": early}
    shares = tuple((found / found.sum()).tolist())
    return Target(
        name, "survival_classes", classes=classes, shares=shares, edges=boundaries, censoring=steps, counts=told
    )


def survival_classes(times: Float[np.ndarray, " N"], events: Array, boundaries: Sequence[float] = MONTHS) -> Array:
    """Return each patient's survival class, `UNKNOWN` for those censored before it was known.

    Death before the first boundary is class 0, from it to the second (both included) class 1, later the next. Who was
    alive at the end of follow-up belongs to the last class if that was after the last boundary, else to none that is
    known; so do times that are NaN.
    """
    times, ends = np.asarray(times, np.float32), np.asarray(boundaries, np.float32)  # batches hold months as float32
    inner = np.searchsorted(ends[:1], times, side="right")  # the first boundary belongs above it
    outer = np.searchsorted(ends[1:], times, side="left")  # the others to the class below them
    known = (np.asarray(events, bool) | (times > ends[-1])) & ~np.isnan(times)
    return np.asarray(np.where(known, inner + outer, UNKNOWN), np.int64)


def censoring_weights(target: Target, times: Float[np.ndarray, " N"], events: Array) -> Float[np.ndarray, " N"]:
    """Return each patient's weight: 1 / P(not censored before the class was known); 0 where it is not known.

    Who died at t must not have been censored before t, which has the chance G(t-); who is known to have lived beyond
    the last boundary b must not have been censored up to b: G(b). Without `target.censoring`, all known ones weigh 1.
    """
    known = survival_classes(times, events, target.edges) != UNKNOWN
    if not target.censoring:
        return np.asarray(known, float)
    at, left = (np.array(column) for column in zip(*target.censoring, strict=True))
    months, last = np.asarray(times, np.float32), np.float32(target.edges[-1])  # as batches hold them
    curve = Steps(at.astype(np.float32).astype(float), left)
    just_before = np.nextafter(np.nan_to_num(months), np.float32(-np.inf))
    chance = curve.at(np.where(months > last, last, just_before).astype(float))
    return np.asarray(np.where(known, 1 / np.maximum(chance, 1e-6), 0.0))


def interval_edges(times: Float[np.ndarray, " N"], events: Array, bins: int) -> tuple[float, ...]:
    """Return the ends of `bins` intervals over which equal shares of the patients die; fewer where deaths tie."""
    if bins < 1:
        raise ConfigError(f"survival needs at least one interval, got {bins}")
    curve = kaplan_meier(times, np.asarray(events, bool))
    at, survival = curve.times, curve.values
    levels = 1 - (1 - survival[-1]) * np.arange(1, bins + 1) / bins
    # The first month by which as many have died; rounding must not push the last one out of the table.
    index = np.minimum(np.searchsorted(-survival, -levels - 1e-12), len(at) - 1)
    return tuple(float(month) for month in np.unique(at[index]) if month > 0)

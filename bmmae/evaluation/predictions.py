"""Predictions of patients that a model has not seen, as a table: whose, by which model, from what, in which fold.

Columns: `subject`, `session`, `group` (the patient), `model`, `subset` (`t1+flair`), `fold`; for classes `label` and a
`p_<class>` each; for survival `time`, `event`, `risk` (higher = dies sooner), `risk_cut` (the training patients'
median risk), and `s_<time>`, the probability to live past that time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int
from bmmae.data.tables import Cell, is_blank, read_rows, write_rows
from bmmae.errors import CohortError, few
from bmmae.targets import as_label

UNKNOWN = -1
"""The number of a class that is not known."""
AVAILABLE = "available"
"""Stands for a subset where each patient is judged from all that it has, whatever that is."""
KEYS = ("subject", "session", "group", "model", "subset", "fold")


@dataclass(frozen=True)
class PredictionKey:
    """Whose prediction it is.

    Attributes:
        subject: The patient's identifier in the cohort.
        session: The visit.
        group: The patient, in whose units intervals are drawn.
        model: The model's name.
        subset: The modalities that it was given, as `subset_label` names them.
        fold: In whose test part the patient was, from 0; 0 where there is one test set.
    """

    subject: str
    session: str
    group: str
    model: str
    subset: str
    fold: int = 0

    @property
    def study(self) -> tuple[int, str, str]:
        """Fold, subject and session: what pairs the rows of two models."""
        return self.fold, self.subject, self.session


@dataclass(frozen=True)
class ClassPredictions:
    """Probabilities of classes.

    Attributes:
        keys: One a row.
        classes: Their names.
        label: Number of the true class, `UNKNOWN` where not known.
        probabilities: Rows sum to 1.

    Raises:
        CohortError: If lengths differ, a row is there twice, or probabilities are none.
    """

    keys: tuple[PredictionKey, ...]
    classes: tuple[str, ...]
    label: Int[Array, " N"]
    probabilities: Float[Array, "N C"]

    def __post_init__(self) -> None:
        _refuse_repeated(self.keys)
        shape = (len(self.keys), len(self.classes))
        if self.probabilities.shape != shape or self.label.shape != shape[:1] or shape[1] < 2:
            raise CohortError(
                f"expected a label and probabilities of two classes or more for each of {shape[0]} rows, got "
                f"{len(self.label)} labels and probabilities of shape {self.probabilities.shape}"
            )
        wrong = (self.probabilities < 0).any(axis=1) | (np.abs(self.probabilities.sum(axis=1) - 1) > 1e-3)
        if not np.isfinite(self.probabilities).all() or wrong.any():
            raise CohortError(
                "expected probabilities that are not negative and sum to 1 in each row; did you pass logits?"
            )

    @property
    def known(self) -> ClassPredictions:
        """Those whose true class is known."""
        return self.take(np.flatnonzero(self.label != UNKNOWN))

    def take(self, rows: Int[Array, " R"]) -> ClassPredictions:
        """Return some rows."""
        keys = tuple(self.keys[row] for row in rows)
        return ClassPredictions(keys, self.classes, self.label[rows], self.probabilities[rows])


@dataclass(frozen=True)
class SurvivalPredictions:
    """Risks and survival curves.

    Attributes:
        keys: One a row.
        time: Follow-up; NaN where not known.
        event: True = died at `time`.
        risk: Higher = dies sooner; of one scale within a model and fold only.
        curve: Probability to live past each of `at`; no columns where the model gives none.
        at: Times, ascending, in the unit of `time`.
        risk_cut: Risk that parts low from high, fitted to the training patients; NaN where not known.

    Raises:
        CohortError: If lengths differ, a row is there twice, a risk is no number, or a curve rises or leaves 0 to 1.
    """

    keys: tuple[PredictionKey, ...]
    time: Float[Array, " N"]
    event: Bool[Array, " N"]
    risk: Float[Array, " N"]
    curve: Float[Array, "N T"]
    at: Float[Array, " T"]
    risk_cut: Float[Array, " N"]

    def __post_init__(self) -> None:
        _refuse_repeated(self.keys)
        count = len(self.keys)
        lengths = {len(column) for column in (self.time, self.event, self.risk, self.curve, self.risk_cut)}
        if lengths != {count} or self.curve.shape[1] != len(self.at) or (np.diff(self.at) <= 0).any():
            raise CohortError(
                f"expected a time, event, risk and curve for each of {count} rows, and a value of the curve for each "
                f"of {len(self.at)} ascending times; got lengths {sorted(lengths)} and curves of {self.curve.shape[1]}"
            )
        if not np.isfinite(self.risk).all():
            raise CohortError("expected a finite risk in each row: a model that gave none has no prediction there")
        inside = (self.curve >= 0) & (self.curve <= 1 + 1e-6)
        if not inside.all() or (np.diff(self.curve, axis=1) > 1e-6).any():
            raise CohortError("expected survival curves that fall from 1 towards 0; did you pass hazards?")

    @property
    def known(self) -> SurvivalPredictions:
        """Those whose follow-up is known."""
        return self.take(np.flatnonzero(~np.isnan(self.time)))

    def take(self, rows: Int[Array, " R"]) -> SurvivalPredictions:
        """Return some rows."""
        keys = tuple(self.keys[row] for row in rows)
        return SurvivalPredictions(
            keys,
            self.time[rows],
            self.event[rows],
            self.risk[rows],
            self.curve[rows],
            self.at,
            self.risk_cut[rows],
        )


def write_predictions(path: Path, classes: ClassPredictions | None, survival: SurvivalPredictions | None) -> Path:
    """Write one table; a row holds both kinds where both were predicted.

    Raises:
        OutputError: If it cannot be written.
    """
    rows: dict[PredictionKey, dict[str, Cell]] = {}
    for part in (classes, survival):
        for index, key in enumerate(part.keys if part is not None else ()):
            cells = rows.setdefault(key, {name: getattr(key, name) for name in KEYS})
            cells |= _class_cells(part, index) if isinstance(part, ClassPredictions) else {}
            cells |= _survival_cells(part, index) if isinstance(part, SurvivalPredictions) else {}
    write_rows(path, rows.values(), [*dict.fromkeys(name for row in rows.values() for name in row)])
    return path


def read_predictions(path: Path) -> tuple[ClassPredictions | None, SurvivalPredictions | None]:
    """Read what `write_predictions` wrote, or a table of that form by any program.

    `session`, `model`, `subset` and `fold` may be lacking or blank (one visit, `model`, `all`, 0), and `group` is the
    subject by default. A fold or label `1.0` is `1`: programs write that of a column with blank cells. Where a row
    leaves some of the classes blank, as in tables of several folds put together, a fold's training has not had them:
    their probability is 0, and patients of these classes count as not labelled in that fold.

    Raises:
        CohortError: If it cannot be read, lacks a column, or a value is not what its column holds.
    """
    rows = read_rows(path)
    if not rows or "subject" not in rows[0]:
        raise CohortError(f"{path}: expected a column 'subject' and one row a prediction")
    try:
        found = _read_classes(rows), _read_survival(rows)
    except CohortError as error:
        raise CohortError(f"{path}: {error}") from error
    if found == (None, None):
        raise CohortError(f"{path} has neither columns 'p_<class>' nor a column 'risk': what was predicted?")
    return found


def _class_cells(part: ClassPredictions, row: int) -> dict[str, Cell]:
    label = int(part.label[row])
    given = zip(part.classes, part.probabilities[row].tolist(), strict=True)
    return {
        "label": None if label == UNKNOWN else part.classes[label],
        **{f"p_{name}": value for name, value in given},
    }


def _survival_cells(part: SurvivalPredictions, row: int) -> dict[str, Cell]:
    time, cut = float(part.time[row]), float(part.risk_cut[row])
    curve = zip(part.at.tolist(), part.curve[row].tolist(), strict=True)
    return {
        "time": None if np.isnan(time) else time,
        "event": None if np.isnan(time) else int(part.event[row]),
        "risk": float(part.risk[row]),
        "risk_cut": None if np.isnan(cut) else cut,
        **{f"s_{at:g}": value for at, value in curve},
    }


def _read_classes(rows: Sequence[Mapping[str, str]]) -> ClassPredictions | None:
    classes = tuple(name.removeprefix("p_") for name in rows[0] if name.startswith("p_"))
    columns = [f"p_{name}" for name in classes]
    kept = [row for row in rows if not all(is_blank(row[column]) for column in columns)]
    if not kept:
        return None
    number = {name: index for index, name in enumerate(classes)}
    labels = [_label(row, number) for row in kept]
    strange = sorted({label for label in labels if not is_blank(label)} - number.keys())
    if strange:
        raise CohortError(f"label '{strange[0]}' is none of the classes {', '.join(classes)}")
    return ClassPredictions(
        tuple(map(_key, kept)),
        classes,
        np.array([_code(row, label, number) for row, label in zip(kept, labels, strict=True)]),
        np.array([[0.0 if is_blank(row[column]) else _number(row, column) for column in columns] for row in kept]),
    )


def _label(row: Mapping[str, str], classes: Mapping[str, int]) -> str:
    """A row's class as the columns name it."""
    label = row.get("label", "")
    return label if label in classes else as_label(label) or ""


def _code(row: Mapping[str, str], label: str, classes: Mapping[str, int]) -> int:
    """A label's number; `UNKNOWN` where the row's fold has not had that class."""
    return classes[label] if label in classes and not is_blank(row[f"p_{label}"]) else UNKNOWN


def _read_survival(rows: Sequence[Mapping[str, str]]) -> SurvivalPredictions | None:
    kept = [row for row in rows if not is_blank(row.get("risk", ""))]
    if not kept:
        return None
    columns = sorted((_time_of(name), name) for name in kept[0] if name.startswith("s_"))
    curve = [[_number(row, name) for _, name in columns] for row in kept]
    _refuse_gaps(kept, [name for _, name in columns])
    event = np.array([_event(row) for row in kept])
    if not np.isin(event[~np.isnan(event)], (0, 1)).all():
        raise CohortError("column 'event' holds more than 1 (died), 0 (censored) and blank cells")
    time = np.array([_number(row, "time") for row in kept])
    if (time < 0).any() or np.isinf(time).any():
        raise CohortError("column 'time' holds a negative or infinite number: expected follow-up of zero or more")
    return SurvivalPredictions(
        tuple(map(_key, kept)),
        np.where(np.isnan(event), np.nan, time),  # who may have died was not followed, and is not taken for alive
        event == 1,
        np.array([_number(row, "risk") for row in kept]),
        np.array(curve).reshape(len(kept), len(columns)),
        np.array([at for at, _ in columns]),
        np.array([_number(row, "risk_cut") for row in kept]),
    )


def _refuse_gaps(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """A curve that some rows lack is no missing value: it would be compared on other patients than the rest."""
    gaps = [name for name in columns if any(is_blank(row[name]) for row in rows)]
    if gaps:
        some = sum(is_blank(row[gaps[0]]) for row in rows)
        raise CohortError(
            f"{few(gaps)} are blank in some rows ({gaps[0]} in {some} of {len(rows)}): parts whose follow-up differs "
            "were joined; keep the columns that all of them have (`pandas.concat(..., join='inner')`)"
        )


def _key(row: Mapping[str, str]) -> PredictionKey:
    subject = row["subject"]
    defaults = {"session": "", "group": subject, "model": "model", "subset": "all"}
    said = {name: row[name] for name in defaults if not is_blank(row.get(name, ""))}
    return PredictionKey(subject, **{**defaults, **said}, fold=_fold(row))


def _fold(row: Mapping[str, str]) -> int:
    if is_blank(row.get("fold", "")):
        return 0
    fold = _number(row, "fold")
    if not fold.is_integer():
        raise CohortError(f"column 'fold' holds '{row['fold']}': expected a whole number")
    return int(fold)


def _event(row: Mapping[str, str]) -> float:
    cell = row.get("event", "").lower()
    return float(cell == "true") if cell in {"true", "false"} else _number(row, "event")


def _time_of(column: str) -> float:
    """The time in the name of a column of a survival curve."""
    try:
        return float(column.removeprefix("s_"))
    except ValueError as error:
        raise CohortError(f"column '{column}' begins as those of a survival curve: expected s_<time>") from error


def _number(row: Mapping[str, str], column: str) -> float:
    """A cell's number, NaN where it is blank or not there."""
    cell = row.get(column, "")
    if is_blank(cell):
        return float("nan")
    try:
        return float(cell)
    except ValueError as error:
        point = " with a decimal point" if "," in cell else ""
        raise CohortError(f"column '{column}' holds '{cell}': expected a number{point}") from error


def _refuse_repeated(keys: Sequence[PredictionKey]) -> None:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        first = repeated[0]
        raise CohortError(
            f"{len(repeated)} predictions are there twice (subject '{first.subject}', model '{first.model}', subset "
            f"'{first.subset}', fold {first.fold}): expected one row each; number the folds of repeats on"
        )

"""Tables of a patient model's outputs: beside the truth, for `bmmae.evaluation`; and for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from bmmae.arrays import Array, Bool, Float
from bmmae.data.cohort import Study
from bmmae.data.location import file_name
from bmmae.data.tables import Cell, write_rows
from bmmae.evaluation.predictions import (
    AVAILABLE,
    ClassPredictions,
    PredictionKey,
    SurvivalPredictions,
    write_predictions,
)
from bmmae.modalities import subset_label
from bmmae.model.outcomes import probabilities, risk, survival_at
from bmmae.model.patient import PatientModel
from bmmae.patient_prediction import Outputs, is_rare
from bmmae.targets import Target, survival_classes

Answers: TypeAlias = tuple[ClassPredictions | None, SurvivalPredictions | None]


def tables(
    targets: Sequence[Target], outputs: Outputs, model: str = "model", fold: int = 0, *, pooled: bool = False
) -> dict[str, Answers]:
    """Return each target's predictions beside the truth, as far as the studies tell it; by name.

    A multi-label target gives one table a column, `<target>-<column>`. Curves have no months past the longest follow-up
    of the training fold: nothing is known there, so nothing is judged.

    Args:
        targets: As fitted.
        outputs: Of the model.
        model: Its name in the tables.
        fold: In whose test part the studies are.
        pooled: Put each study's prediction from all that it has there once more, under the subset `AVAILABLE`, so that
            patients with different subsets can be judged together.
    """
    whole = _whole_rows(outputs) if pooled else []
    outputs = _repeated(outputs, whole)
    first = len(outputs.studies) - len(whole)
    names = [*map(subset_label, outputs.subsets[:first]), *[AVAILABLE] * len(whole)]
    keys = tuple(
        PredictionKey(study.subject, study.session, study.group, model, name, fold)
        for study, name in zip(outputs.studies, names, strict=True)
    )
    found: dict[str, Answers] = {}
    for target in targets:
        if target.kind == "multilabel":
            for index, column in enumerate(target.columns):
                found[f"{target.name}-{column}"] = (_column(target, index, keys, outputs), None)
        else:
            classes = _classes(target, keys, outputs) if target.classes else None
            found[target.name] = (classes, _survival(target, keys, outputs) if target.survival else None)
    return found


def _whole_rows(outputs: Outputs) -> list[int]:
    """One row a study: that with the most modalities."""
    best: dict[tuple[str, str], int] = {}
    for row, study in enumerate(outputs.studies):
        if study.key not in best or len(outputs.subsets[row]) > len(outputs.subsets[best[study.key]]):
            best[study.key] = row
    return list(best.values())


def _repeated(outputs: Outputs, rows: list[int]) -> Outputs:
    """Append some rows once more."""
    order = [*range(len(outputs.studies)), *rows]
    return Outputs(
        tuple(outputs.studies[row] for row in order),
        tuple(outputs.subsets[row] for row in order),
        {name: values[order] for name, values in outputs.logits.items()},
    )


def _exact(values: torch.Tensor) -> Array:
    return np.asarray(values.double().numpy())


def _column(target: Target, index: int, keys: tuple[PredictionKey, ...], outputs: Outputs) -> ClassPredictions:
    yes = _exact(probabilities(target, outputs.logits[target.name]))[:, index]
    truth = np.array([target.encode(study.values)[index] for study in outputs.studies])
    return ClassPredictions(keys, ("no", "yes"), truth, np.stack([1 - yes, yes], axis=1))


def _classes(target: Target, keys: tuple[PredictionKey, ...], outputs: Outputs) -> ClassPredictions:
    if target.survival:
        truth = survival_classes(*follow_up(outputs.studies), target.edges)
    else:
        truth = np.array([target.encode(study.values)[0] for study in outputs.studies])
    return ClassPredictions(keys, target.classes, truth, _exact(probabilities(target, outputs.logits[target.name])))


def _survival(target: Target, keys: tuple[PredictionKey, ...], outputs: Outputs) -> SurvivalPredictions:
    logits = outputs.logits[target.name]
    time, event = follow_up(outputs.studies)
    months = tuple(month for month in reported_months(target) if month not in target.past_follow_up)
    curve = _exact(survival_at(target, logits, months)) if months else np.zeros((len(keys), 0))
    return SurvivalPredictions(
        keys=keys,
        time=time,
        event=event,
        risk=_exact(risk(target, logits)),
        curve=np.minimum.accumulate(np.clip(curve, 0, 1), axis=1),  # rounding may lift a flat curve by a hair
        at=np.array(months, dtype=float),
        risk_cut=np.full(len(keys), math.nan if target.risk_cut is None else target.risk_cut),
    )


def reported_months(target: Target) -> tuple[float, ...]:
    """Months of a survival curve: none without the baseline hazard of a Cox target."""
    return target.reported if target.kind != "cox" or target.baseline else ()


def follow_up(studies: Iterable[Study]) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Return months of follow-up (NaN where time or event is not known) and whether death was observed."""
    known = [(study.time, study.event) for study in studies]
    time = np.array([math.nan if t is None or e is None else t for t, e in known], float)
    return time, np.array([bool(e) and t is not None for t, e in known], bool)


def write_tables(folder: Path, found: dict[str, Answers]) -> list[Path]:
    """Write one table a target, `<target>.csv`, in the form that `bmmae.evaluation` reads.

    Raises:
        OutputError: If the folder cannot be written.
    """
    return [write_predictions(folder / f"{file_name(name)}.csv", *pair) for name, pair in found.items()]


def prediction_rows(model: PatientModel, outputs: Outputs) -> list[dict[str, Cell]]:
    """Return one row a prediction for people: who, from what, and each target's answer.

    Columns: `subject`, `session`, `subset`, `subset_share` (of the training samples), `rare`; then for each target
    `<target>` (the most probable class), `<target>_p_<class>`, `<target>_risk` (higher = dies sooner),
    `<target>_alive_<months>` (chance to live past them; NaN past the longest follow-up of the training fold).
    """
    people = tuple(replace(study, values={}) for study in outputs.studies)  # whatever stands in columns of labels
    answers = tables(model.config.targets, replace(outputs, studies=people))
    reported = {target.name: reported_months(target) for target in model.config.targets if target.survival}
    rows: list[dict[str, Cell]] = []
    for index, (study, subset) in enumerate(zip(outputs.studies, outputs.subsets, strict=True)):
        label = subset_label(subset)
        row: dict[str, Cell] = {
            "subject": study.subject,
            "session": study.session,
            "subset": label,
            "subset_share": model.config.subsets.get(label, 0.0) if model.config.subsets else None,
            "rare": int(is_rare(model, label)),
        }
        for name, (classes, months) in answers.items():
            row |= _class_cells(name, classes, index) if classes else {}
            row |= _survival_cells(name, months, index, reported[name]) if months else {}
        rows.append(row)
    return rows


def _class_cells(name: str, found: ClassPredictions, row: int) -> dict[str, Cell]:
    chances = found.probabilities[row]
    shares = {f"{name}_p_{label}": float(chance) for label, chance in zip(found.classes, chances, strict=True)}
    return {name: found.classes[int(chances.argmax())], **shares}


def _survival_cells(name: str, found: SurvivalPredictions, row: int, reported: tuple[float, ...]) -> dict[str, Cell]:
    chances = dict(zip(found.at.tolist(), found.curve[row].tolist(), strict=True))
    alive = {f"{name}_alive_{month:g}": chances.get(month, math.nan) for month in reported}
    return {f"{name}_risk": float(found.risk[row]), **alive}


def write_table(path: Path, rows: Sequence[dict[str, Cell]]) -> Path:
    """Write rows as .csv, .tsv or .parquet.

    Raises:
        OutputError: If it cannot be written.
    """
    write_rows(path, rows, list(dict.fromkeys(name for row in rows for name in row)))
    return path

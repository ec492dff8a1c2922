"""A cohort of phantom patients with labels, follow-up and clinical columns, and a small model of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny_config
from tiny_studies import write_study

from bmmae.checkpoint import describe
from bmmae.data.cohort import Cohort, Study
from bmmae.data.patient_columns import BesideConfig, TargetsConfig, fit_columns
from bmmae.data.preprocess import PreprocessConfig
from bmmae.modalities import STANDARD
from bmmae.model.patient import PatientModel, PatientModelConfig

PREPROCESS = PreprocessConfig(spacing=(1.5, 1.5, 1.5))
SITES = ("lung", "breast", "kidney")
MONTHS = (2.0, 25.0, 5.0, 36.0, 14.0, None, 4.0, 11.0, 22.0, 3.0, 27.0, 9.0)
TARGETS = TargetsConfig(labels=("subtype", "site"), survival=("hazard", "cox", "survival_classes"), bins=3)
BESIDE = BesideConfig(clinical=("age", "sex"))


def row(number: int) -> dict[str, Any]:
    """What the table says of a patient: a little of everything missing."""
    months = MONTHS[number % len(MONTHS)]
    return {
        "time": months,
        "event": None if months is None else number % 3 != 0,
        "values": {
            "subtype": None if number == 4 else ("NSCLC", "SCLC")[number % 2],
            "site": SITES[number % 3],
            "age": None if number == 2 else 50.0 + number,
            "sex": None if number == 3 else "FM"[number // 2 % 2],
        },
    }


def write_patients(folder: Path, count: int = 12) -> list[Study]:
    """Write patients, every third without FLAIR, and every fourth without a segmentation."""
    studies = []
    for number in range(count):
        names = STANDARD if number % 3 else STANDARD[:-1]
        study = write_study(folder / f"p{number:02}", names, seed=number, labelled=number % 4 != 0)
        studies.append(replace(study, **row(number)))
    return studies


def write_table(folder: Path, count: int = 12) -> Path:
    """Write patients and their table: seven train, two validate, the rest test."""
    splits = ["train"] * 7 + ["validation"] * 2 + ["test"] * count
    studies = [replace(s, split=split) for s, split in zip(write_patients(folder, count), splits, strict=False)]
    return Cohort(tuple(studies)).write(folder / "cohort.csv")


def tiny_patient_model(train: list[Study], **changes: Any) -> PatientModel:
    """A model of these patients, untrained but with outputs that differ."""
    columns = fit_columns(train, TARGETS, BESIDE)
    torch.manual_seed(0)
    config = PatientModelConfig(tiny_config(), columns.targets, columns.clinical, **changes)
    model = PatientModel(config).eval()
    for head in (*model.heads, *model.direct):
        torch.nn.init.normal_(head.weight, std=0.3)
    describe(model, PREPROCESS)
    return model

"""The fifteen real glioma cases that learning benchmarks are measured on, their fixed split, and five folds by patient.

They are read in place beside the checkout and are no part of the project; scripts that need them say so and stop.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from harness import ROOT

from bmmae.data.cohort import Cohort, Study
from bmmae.data.index import index_folder

REAL = ROOT.parent / "shared" / "real"
FOLDERS = ("brats18", "brats20", "brats21", "brats23")
TEST = ("Brats18_2013_11_1", "Brats18_CBICA_AME_1", "Brats18_TCIA01_425_1", "BraTS2021_00006")
VALIDATION = ("Brats18_2013_23_1", "BraTS20_Training_002")
FOLDS = 5


@dataclass(frozen=True)
class Parts:
    """Studies of one split; no patient is in two parts."""

    train: tuple[Study, ...]
    validation: tuple[Study, ...]
    test: tuple[Study, ...]


def real_cohort() -> Cohort:
    """Return the fifteen cases, in alphabetical order.

    Raises:
        SystemExit: If they are not there.
    """
    if not REAL.is_dir():
        sys.exit(f"error: the real studies are not at {REAL.name}/ beside the checkout: this benchmark needs them")
    studies = [study for name in FOLDERS for study in index_folder(REAL / name).cohort]
    return Cohort(tuple(sorted(studies, key=lambda study: study.subject)))


def fixed_split(cohort: Cohort) -> Parts:
    """Return the split that single figures are quoted on: nine train, two validate, four test."""
    chosen = dict.fromkeys(TEST, "test") | dict.fromkeys(VALIDATION, "validation")
    parts: dict[str, list[Study]] = {"train": [], "validation": [], "test": []}
    for study in cohort:
        parts[chosen.get(study.subject, "train")].append(study)
    return Parts(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def folds(cohort: Cohort, seed: int = 0) -> list[Parts]:
    """Return five folds by patient: three test, two of the others validate, ten train."""
    order = np.random.default_rng(seed).permutation(len(cohort))
    blocks = [[cohort[int(i)] for i in block] for block in np.array_split(order, FOLDS)]
    made = []
    for number, test in enumerate(blocks):
        rest = [study for block in (*blocks[number + 1 :], *blocks[:number]) for study in block]
        made.append(Parts(tuple(rest[2:]), tuple(rest[:2]), tuple(test)))
    return made

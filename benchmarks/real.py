"""The fifteen real glioma cases that learning benchmarks are measured on, their fixed split, and five folds by patient.

They are read in place beside the checkout and are no part of the project; scripts that need them say so and stop.

python benchmarks/real.py --out runs/glioma/cohort.csv

writes the fixed split as a cohort table, to train what is released, or with `--everyone` the same cases undivided;
segmentations of the edition that calls enhancing tumour 3 are written anew beside it, with 4, so that one coding
(`brats2017`) fits all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness import ROOT

from bmmae.data.cohort import Cohort, Study
from bmmae.data.index import index_folder
from bmmae.data.reading import read_labels
from bmmae.data.writing import write_image

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


def write_table(path: Path, *, everyone: bool = False) -> Cohort:
    """Write the fixed split as a table, and return it; with `everyone` nobody is put into a part."""
    cohort = real_cohort()
    parts = fixed_split(cohort)
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    studies = [
        replace(study, split=None if everyone else split, seg=_of_2017(study, path.parent))
        for split, members in named.items()
        for study in members
    ]
    table = Cohort(tuple(studies), cohort.modalities)
    table.write(path)
    return table


def _of_2017(study: Study, folder: Path) -> str | Path | None:
    """Return the study's segmentation in the coding of 2017, where enhancing tumour is 4 and 3 never occurs."""
    labels, affine = read_labels(study.seg)
    if not (labels == 3).any():
        return study.seg
    return write_image(folder / f"{study.subject}_seg.nii.gz", np.where(labels == 3, 4, labels), affine)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the fixed split of the real cases as a cohort table.")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV")
    parser.add_argument("--everyone", action="store_true", help="leave the column `split` out: for a training on all")
    given = parser.parse_args()
    print(f"{len(write_table(given.out, everyone=given.everyone))} studies in {given.out}")

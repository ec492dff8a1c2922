"""Splits by patient: who trains, who validates, who tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.fold_file import read_fold
from bmmae.data.loaders import sample_generator
from bmmae.data.visits import ungrouped_visits
from bmmae.errors import CohortError


def train_and_validation(
    cohort: Cohort,
    *,
    validation_share: float = 0.1,
    seed: int = 0,
    splits: str | Path | None = None,
    fold: int = 0,
    cache: StudyCache | None = None,
) -> tuple[list[Study], list[Study]]:
    """Return training and validation studies: those of a fold, else of the `split` column, else random, by patient.

    Studies marked `test` are in neither. At least one patient goes to each part, unless the share is 0, with which
    nobody validates: who would have, trains. Blank cells beside marked ones are warned of: those studies are in neither
    part.

    Args:
        cohort: All studies.
        validation_share: Share of the patients to validate on, for a random split; 0 lets all train.
        seed: Of the random split.
        splits: A file that `bmmae split` wrote for this cohort.
        fold: Which of its folds, from 0.
        cache: Where hashes of image content may be known already, which tell whether the file still fits.

    Raises:
        CohortError: If a part would be empty, or the file does not fit the cohort.
        ImageError: If an image that the file lists cannot be read.

    Warns:
        UserWarning: If a random split may part subjects that are named as visits of one patient.
    """
    if splits is not None:
        parts = read_fold(splits, cohort, fold, cache)
        train, validation = parts["train"], parts["validation"]
    elif not is_at_random(cohort, splits):
        train = [study for study in cohort if study.split == "train"]
        validation = [study for study in cohort if study.split == "validation"]
        _warn_of_blanks(cohort)
    else:
        if doubt := ungrouped_visits(cohort):
            warnings.warn(doubt, stacklevel=2)
        train, validation = _by_patient(cohort.studies, validation_share, seed)
    if not validation_share:
        train, validation = [*train, *validation], []
    if not train or (validation_share and not validation):
        missing = "training" if not train else "validation"
        advice = (
            "mark some rows 'train' and some 'validation' in the column 'split', or leave the column out and have at "
            "least two patients"
            if splits is None
            else f"fold {fold} of {splits} has none; take another fold, or make the file again with `bmmae split`"
        )
        raise CohortError(f"no {missing} studies among {len(cohort)}: {advice}")
    return train, validation


def is_at_random(cohort: Cohort, splits: str | Path | None) -> bool:
    """Tell whether chance divides a cohort: without a file of folds and a column `split`."""
    return splits is None and not any(study.split for study in cohort)


def warn_of_absent(studies: Sequence[Study], modalities: Sequence[str]) -> None:
    """Warn of modalities that no training study has: nothing is learned of them.

    Args:
        studies: The training studies.
        modalities: Those of the model.

    Warns:
        UserWarning: Naming them.
    """
    absent = [name for name in modalities if not any(name in study.images for study in studies)]
    if absent:
        warnings.warn(
            f"no training study has {', '.join(absent)}, and nothing will be learned of it: if there are such images, "
            "look at the table's column names",
            stacklevel=2,
        )


def _warn_of_blanks(cohort: Cohort) -> None:
    blank = sum(study.split is None for study in cohort)
    if blank:
        warnings.warn(
            f"{blank} of {len(cohort)} studies are not used, because their cell in the column 'split' is blank: mark "
            "them train, validation or test, or leave the column out",
            stacklevel=3,
        )


def _by_patient(studies: Sequence[Study], share: float, seed: int) -> tuple[list[Study], list[Study]]:
    if not share:
        return list(studies), []
    groups = sorted({study.group for study in studies})
    order = sample_generator(seed, 0, 0, purpose="split").permutation(len(groups))
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held = {groups[index] for index in np.asarray(order)[:count]}
    return [s for s in studies if s.group not in held], [s for s in studies if s.group in held]

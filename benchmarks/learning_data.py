"""What learning benchmarks learn from: the real cases at 2 mm, or a synthetic cohort whose ceilings are known."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from harness import ROOT
from real import Parts, folds, real_cohort

from bmmae.data.augment import NO_AUGMENTATION, AugmentConfig
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.dataset import StudyDataset, View, token_flags
from bmmae.data.labels import Coding, own_coding
from bmmae.data.loaders import Address, Sample, sample_generator
from bmmae.data.preprocess import PreprocessConfig
from bmmae.data.synthetic.cohort import GENERATOR_VERSION, SyntheticConfig, make_cohort
from bmmae.masking import MaskingConfig, draw_tokens
from bmmae.modalities import STANDARD
from bmmae.model.config import ModelConfig
from bmmae.patches import Triple

WORK = ROOT / "runs" / "benchmarks"
"""Git-ignored; prepared studies and pretrained weights are kept there between runs."""
REAL_SPACING = 2.0
WINDOW: Triple = (64, 64, 64)
FIELD_OF_VIEW = 192
"""Millimetres along each axis of a synthetic subject."""

EDITIONS = own_coding(
    {1: "core", 2: "oedema", 3: "enhancing", 4: "enhancing"}, {"ET": (3, 4), "TC": (1, 3, 4), "WT": (1, 2, 3, 4)}
)
"""One coding for the real cases: enhancing tumour is 4 in the editions up to 2021, where 3 never occurs, and 3 in that
of 2023, where 4 never does."""


@dataclass(frozen=True)
class Source:
    """Studies with segmentations, split by patient.

    Attributes:
        name: `real` or `synthetic`, and what distinguishes one synthetic cohort from another.
        parts: The folds.
        cache: Where prepared studies are.
        coding: Of their segmentations.
        window: Voxels that a model sees at once.
    """

    name: str
    parts: tuple[Parts, ...]
    cache: StudyCache
    coding: Coding
    window: Triple = WINDOW

    def dataset(
        self,
        studies: Sequence[Study],
        shape: ModelConfig,
        *,
        seed: int = 0,
        augment: AugmentConfig = NO_AUGMENTATION,
    ) -> StudyDataset:
        """Return labelled windows of some studies."""
        view = replace(View.of(shape), size=self.window)
        return StudyDataset(studies, view, self.cache, seed=seed, coding=self.coding, augment=augment)


def real_source(work: Path = WORK) -> Source:
    """Return the fifteen real cases at 2 mm, in five folds; stops with a message where they are absent."""
    preprocess = PreprocessConfig(spacing=(REAL_SPACING,) * 3)
    cohort = real_cohort()
    cache = StudyCache(work / "cache", preprocess, STANDARD)
    prepare(cohort, cache)
    return Source("real", tuple(folds(cohort)), cache, EDITIONS)


def synthetic_source(train: int, test: int, *, size: int = 64, seed: int = 100, work: Path = WORK) -> Source:
    """Return a synthetic cohort in one split: the first subjects train, those after them test.

    Args:
        train: Training subjects.
        test: Test subjects.
        size: Voxels along each axis; one window holds the whole brain.
        seed: Of the cohort; not one that shipped weights were trained on.
        work: Where the cohort is made and kept.
    """
    return one_split(synthetic_name(train, test, size), SyntheticConfig(train + test, seed, size), train, work)


def quick_source() -> Source:
    """Return a handful of small synthetic subjects, for `--quick`."""
    return synthetic_source(4, 3, size=32)


def one_split(name: str, config: SyntheticConfig, train: int, work: Path = WORK) -> Source:
    """Return a synthetic cohort on its own grid: the first `train` subjects train, those after them test."""
    cohort = synthetic_cohort(config, work)
    parts = (Parts(cohort.studies[:train], (), cohort.studies[train:]),)
    cache = StudyCache(work / "cache", PreprocessConfig(spacing=(FIELD_OF_VIEW / config.size,) * 3), STANDARD)
    prepare(cohort, cache)
    return Source(name, parts, cache, EDITIONS, (config.size,) * 3)


def synthetic_name(train: int, test: int, size: int = 64) -> str:
    """Return what cells call a synthetic cohort."""
    return f"synthetic-{GENERATOR_VERSION}-{size}-{train}-{test}"


def prepare(cohort: Cohort, cache: StudyCache) -> None:
    """Prepare what is not stored yet, before any clock runs: no contestant pays for another's data."""
    for study in cohort:
        cache.store(study)


def synthetic_cohort(config: SyntheticConfig, work: Path = WORK) -> Cohort:
    """Return a cohort that is made once, all or nothing, and found again."""
    made = work / f"synthetic-{GENERATOR_VERSION}-{config.seed}-{config.size}-{config.subjects}"
    if not made.exists():
        work.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="synthetic-", dir=work))
        make_cohort(partial, config, progress=False)
        try:
            partial.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return read_cohort(made / "cohort.csv")


class OnlyModalities:
    """A dataset that shows some modalities of each sample and no others.

    Args:
        dataset: What to look at.
        names: The modalities that are kept.

    Raises:
        ValueError: If a study has none of them.
    """

    def __init__(self, dataset: StudyDataset, names: Sequence[str]) -> None:
        self.dataset = dataset
        self.keep = torch.tensor([name in names for name in dataset.view.modalities])
        lacking = [study.name for study in dataset.studies if not set(names) & set(study.images)]
        if lacking:
            raise ValueError(f"{', '.join(lacking)}: none of {', '.join(names)}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: Address) -> Sample:
        """Return the sample without the other modalities."""
        sample = self.dataset[address]
        kept = self.keep[:, None, None, None]
        shown = sample | {
            "available": sample["available"] & self.keep,
            "images": sample["images"] * kept,
            "valid": sample["valid"] & kept,
        }
        return shown if self.dataset.masking is None else shown | self._masked(shown, self.dataset.masking, address)

    def _masked(self, shown: Sample, masking: MaskingConfig, address: Address) -> Sample:
        """Draw the mask again: the share that is visible is a share of what is shown."""
        rng = sample_generator(self.dataset.seed, *address, purpose="mask of the shown modalities")
        arrays = {key: shown[key].numpy() for key in ("available", "valid", "brain")}
        exists = token_flags(arrays, self.dataset.view)
        mask = draw_tokens(rng, exists, masking).mask if exists.any() else ~exists
        return {"mask": torch.from_numpy(mask)}

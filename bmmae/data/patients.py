"""Samples of patients: the whole brain, and beside it labels, follow-up and clinical variables from the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from bmmae.arrays import Array
from bmmae.clinical import ClinicalVariable, VectorInput
from bmmae.data.augment import NO_AUGMENTATION, AugmentConfig
from bmmae.data.blocks import Place, anywhere
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import RESERVED, Study
from bmmae.data.dataset import StudyDataset, View, centred
from bmmae.data.labels import BINARY
from bmmae.data.loaders import EVALUATION_EPOCH, Address, Sample, sample_generator
from bmmae.data.location import File
from bmmae.data.packing import CERTAIN, PackedStudy
from bmmae.errors import CohortError, ConfigError
from bmmae.patches import Triple
from bmmae.targets import Cell, Target, as_label

LesionMap: TypeAlias = Literal["none", "attention", "probability"]


@dataclass(frozen=True)
class Columns:
    """How a study's row becomes numbers, as fitted on the training fold.

    Attributes:
        targets: What is predicted.
        clinical: Clinical variables.
        vector: Numbers from elsewhere.
        lesions: What goes into the sample as the lesion map: `attention`, all that the segmentation labels;
            `probability`, the table's map of chances; or `none`.
    """

    targets: tuple[Target, ...] = ()
    clinical: tuple[ClinicalVariable, ...] = ()
    vector: VectorInput | None = None
    lesions: LesionMap = "none"

    def encode(self, study: Study) -> Sample:
        """Return what a study's row says.

        Returns:
            `label` Int[K], `time` (NaN: not known), `event`, and as far as fitted `clinical` Float[V],
            `clinical_available` Bool[V], `vector` Float[K] and `vector_available`.

        Raises:
            CohortError: If a cell is not what its column holds; names the study.
        """
        try:
            return self._encode(study)
        except CohortError as error:
            raise CohortError(f"study '{study.name}': {error}" if study.name else str(error)) from error

    def _encode(self, study: Study) -> Sample:
        followed = study.time is not None and study.event is not None
        sample: Sample = {
            "label": torch.tensor([code for target in self.targets for code in target.encode(study.values)]).long(),
            "time": torch.tensor(study.time if followed else math.nan, dtype=torch.float32),
            "event": torch.tensor(followed and bool(study.event)),
        }
        if self.clinical:
            pairs = [variable.encode(study.values.get(variable.name)) for variable in self.clinical]
            sample["clinical"] = torch.tensor([value for value, _ in pairs], dtype=torch.float32)
            sample["clinical_available"] = torch.tensor([known for _, known in pairs])
        if self.vector:
            numbers, known = self.vector.encode(study.values)
            sample["vector"] = torch.tensor(numbers, dtype=torch.float32)
            sample["vector_available"] = torch.tensor(known)
        return sample


@dataclass(frozen=True)
class Shares:
    """How often each class of a column is drawn in an epoch, whatever its frequency.

    Attributes:
        column: Of the table.
        shares: By class; divided by their sum. Studies of classes that are not named are not drawn.
    """

    column: str
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.shares or any(share < 0 for share in self.shares.values()) or not sum(self.shares.values()):
            raise ConfigError(f"sampling shares of '{self.column}' must be positive, got {dict(self.shares)}")


class PatientDataset(StudyDataset):
    """Samples as `StudyDataset` gives them, with what the table says of the patient.

    Args:
        studies: One sample an epoch each, unless `shares` says otherwise.
        view: What the model needs; its window should hold a whole brain (`whole_brain`).
        cache: Where prepared studies are.
        columns: How rows become numbers.
        seed: The run's seed.
        augment: Training augmentation.
        shares: Balanced sampling for training; the epoch keeps its length.

    Raises:
        CohortError: If a class of `shares` has no study.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        view: View,
        cache: StudyCache,
        columns: Columns,
        *,
        seed: int = 0,
        augment: AugmentConfig = NO_AUGMENTATION,
        shares: Shares | None = None,
    ) -> None:
        super().__init__(studies, view, cache, seed=seed, augment=augment)
        self.columns = columns
        if columns.lesions == "attention":
            self.coding = BINARY  # the label is wanted, whatever its coding: see `_label`
        self.soft = columns.lesions == "probability"
        self.quotas = _quotas(self.studies, shares) if shares else ()

    def packed(self, address: Address, place: Place = anywhere) -> Sample:
        """Return the sample at (epoch, index) in the form it travels in.

        Beside the images: `subject`, `key` (subject and session), what `Columns.encode` returns and, if lesions are
        wanted, `lesion` Bool[1, H, W, D] (Float32 if they are chances) and `lesion_available`.
        """
        address = self.address(address)
        study = self.studies[address[1]]
        sample = super().packed(address, place)
        if self.coding is not None:
            sample["lesion"] = sample.pop("label")
        if self.columns.lesions != "none":
            sample["lesion_available"] = torch.tensor(self._map_of(study) is not None)
        return {**sample, "key": study.key, **self.columns.encode(study)}

    def _evaluation_start(self, source: PackedStudy) -> Triple:
        """Centre the window, whatever is known of lesions: patients are compared with one another."""
        return centred(source.shape, self.view.size)

    def address(self, address: Address) -> Address:
        """Return the study's own address: under balanced sampling, another epoch for each time that it is drawn."""
        epoch, index = address
        if epoch == EVALUATION_EPOCH or not self.quotas:
            return address
        study, turn = self._drawn(epoch)[index]
        most = max(math.ceil(quota / len(members)) for members, quota in self.quotas)
        return epoch * most + turn, study

    def _drawn(self, epoch: int) -> list[tuple[int, int]]:
        """The epoch's studies, and the how-manieth time each is drawn in it; a pure function of seed and epoch."""
        rng = sample_generator(self.seed, epoch, 0, purpose="shares")
        drawn: list[tuple[int, int]] = []
        for members, quota in self.quotas:
            for turn in range(math.ceil(quota / len(members))):
                order = rng.permutation(len(members))[: quota - turn * len(members)]
                drawn += [(members[i], turn) for i in order]
        return drawn

    def _label(self, sample: dict[str, Array], study: Study) -> None:
        """Replace a sample's label values by one map of all that is labelled, or chances in 255ths by chances."""
        values, chances = sample.pop("label", None), sample.pop("lesion", None)
        empty = np.zeros(sample["flags"].shape, np.float32)
        if self.soft:
            known = chances is not None and study.lesion is not None
            sample["lesion"] = (chances.astype(np.float32) / CERTAIN if known and chances is not None else empty)[None]
        elif self.coding is not None:
            sample["label"] = (empty > 0 if values is None or study.seg is None else values > 0)[None]

    def _map_of(self, study: Study) -> File | None:
        return study.lesion if self.soft else study.seg


def _quotas(studies: Sequence[Study], shares: Shares) -> tuple[tuple[list[int], int], ...]:
    """The studies of each class, and how many of them an epoch draws (largest remainders)."""
    labels = [as_label(study.values.get(shares.column)) for study in studies]
    total = sum(shares.shares.values())
    wanted = {str(name): len(studies) * share / total for name, share in shares.shares.items() if share > 0}
    counts = {name: math.floor(share) for name, share in wanted.items()}
    for name in sorted(wanted, key=lambda name: counts[name] - wanted[name])[: len(studies) - sum(counts.values())]:
        counts[name] += 1
    members = {name: [i for i, label in enumerate(labels) if label == name] for name in counts}
    empty = [name for name, found in members.items() if not found]
    if empty:
        raise CohortError(
            f"no training study has '{empty[0]}' in column '{shares.column}', which is to be drawn: it holds "
            f"{', '.join(sorted({label for label in labels if label is not None})) or 'nothing'}"
        )
    return tuple((members[name], counts[name]) for name in counts if counts[name])


def whole_brain(studies: Sequence[Study], cache: StudyCache, view: View) -> Triple:
    """Return the smallest window of whole patches, at least the view's own, that holds the brain of every study."""
    sizes = np.array([_extent(study, cache) for study in studies] + [view.size])
    patch = np.array(view.patch)
    a, b, c = (np.ceil(sizes.max(axis=0) / patch) * patch).astype(int).tolist()
    return (a, b, c)


def cut_by(studies: Sequence[Study], cache: StudyCache, size: Triple) -> list[str]:
    """Return the names of the studies whose brain does not fit into a window: what lies outside is not seen."""
    return [study.name for study in studies if any(np.array(_extent(study, cache)) > np.array(size))]


def _extent(study: Study, cache: StudyCache) -> Triple:
    entry = cache.find(study)
    return entry.shape if entry else cache.load(study).shape


def cells_of(studies: Sequence[Study], column: str) -> list[Cell]:
    """Return a column's cells.

    Raises:
        CohortError: If the table has no such column, or it is one of those with a meaning of their own.
    """
    known = dict.fromkeys(name for study in studies for name in study.values)
    if column in RESERVED:
        raise CohortError(
            f"the column '{column}' has a meaning of its own and is neither a label nor a clinical variable: copy it "
            "under another name"
        )
    if column not in known:
        raise CohortError(f"the cohort has no column '{column}': beside images it has {', '.join(known) or 'none'}")
    return [study.values.get(column) for study in studies]

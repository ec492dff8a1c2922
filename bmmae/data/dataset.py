"""Samples of a cohort at their addresses: a window, its augmentation, the subset of modalities, the mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from bmmae.arrays import Array
from bmmae.data.augment import NO_AUGMENTATION, AugmentConfig, augment_sample, draw_turn
from bmmae.data.blocks import Place, anywhere
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study
from bmmae.data.labels import Coding, region_masks
from bmmae.data.loaders import EVALUATION_EPOCH, Address, Sample, sample_generator
from bmmae.data.packing import PackedStudy, pack_flags, pack_sample, packed_tokens, unpack, unpack_arrays
from bmmae.errors import ConfigError
from bmmae.masking import MaskingConfig, draw_tokens
from bmmae.patches import Triple


@runtime_checkable
class Viewer(Protocol):
    """Whatever says what a model needs to see, above all its config."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Canonical names, in table order."""
        ...

    @property
    def size(self) -> Triple:
        """Voxels of the window."""
        ...

    @property
    def patch(self) -> Triple:
        """Voxels of a patch."""
        ...

    @property
    def tissue_only(self) -> bool:
        """Whether patches without brain are no tokens."""
        ...


@dataclass(frozen=True)
class View:
    """What a model needs of a study: which modalities, how large a window, cut into which patches.

    Attributes:
        modalities: Canonical names, in table order.
        size: Voxels of the window; a multiple of the patch.
        patch: Voxels of a patch.
        tissue_only: Patches without brain are no tokens.
    """

    modalities: tuple[str, ...]
    size: Triple
    patch: Triple
    tissue_only: bool = True

    @classmethod
    def of(cls, config: Viewer) -> View:
        """Return what a model of this config needs."""
        return cls(config.modalities, config.size, config.patch, config.tissue_only)


class StudyDataset:
    """Training or evaluation samples of some studies; a map-style dataset over (epoch, index).

    At the evaluation epoch nothing is augmented and windows are centred, for tasks that need regions on the labelled
    voxel in the middle of them all; masks are drawn all the same, so that they are those of every other evaluation.

    Args:
        studies: One sample an epoch each.
        view: What the model needs.
        cache: Where prepared studies are; without an entry, a study is prepared from its files each time.
        seed: The run's seed.
        masking: How to hide tokens; None for tasks that hide none.
        coding: Label coding, for tasks that need regions; their studies must have a segmentation.
        augment: Training augmentation.

    Raises:
        ConfigError: If the cache prepares other modalities than the view shows.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        view: View,
        cache: StudyCache,
        *,
        seed: int = 0,
        masking: MaskingConfig | None = None,
        coding: Coding | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
    ) -> None:
        usable = set(view.modalities)
        if set(cache.modalities) != usable:
            raise ConfigError(
                f"the model sees {', '.join(view.modalities)}, but the cache prepares {', '.join(cache.modalities)}: "
                "give both the same modalities"
            )
        self.studies = [study for study in studies if usable & set(study.images)]
        if coding is not None:
            self.studies = [study for study in self.studies if study.seg is not None]
        self.view = view
        self.cache = cache
        self.seed = seed
        self.masking = masking
        self.coding = coding
        self.augment = augment
        self.soft = False

    def __len__(self) -> int:
        return len(self.studies)

    @property
    def identity(self) -> str:
        """What tells these studies, in this order, and what their labels mean from others: a resumed run needs them."""
        names = [
            *("/".join((study.group, *study.key)) for study in self.studies),
            self.coding.name if self.coding else "",
        ]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def __getitem__(self, address: Address) -> Sample:
        """Return the sample at (epoch, index).

        Returns:
            `images` Float[M, H, W, D], `available` Bool[M], `valid` Bool[M, H, W, D], `brain` Bool[H, W, D],
            `subject`; with masking `mask` and `decode` Bool[M, L]; with a coding `label` Bool[R, H, W, D].

        Raises:
            TypeError: If no epoch is given: a sample's randomness is a function of it.
            IndexError: If there is no study at the index.
        """
        if not isinstance(address, tuple):  # a plain DataLoader's
            raise TypeError(
                f"samples stand at (epoch, index), got {address!r}: take batches from "
                "bmmae.data.loaders.training_batches, or give a DataLoader a sampler of such pairs"
            )
        if not 0 <= address[1] < len(self):
            raise IndexError(f"no sample {address[1]} of {len(self)}")
        return unpack(self.packed(address))

    def packed(self, address: Address, place: Place = anywhere) -> Sample:
        """Return the same sample in the form it travels in, see `bmmae.data.packing`, its largest arrays in `place`."""
        epoch, index = address
        study = self.studies[index]
        training = epoch != EVALUATION_EPOCH
        rng = sample_generator(self.seed, epoch, index, purpose="sample")
        source = self.cache.load(study)
        start = self._start(source, rng) if training else self._evaluation_start(source)
        turn = draw_turn(self.augment, rng, self.cache.config.spacing) if training else None
        start, size = turn.source(start, self.view.size) if turn else (start, self.view.size)
        changed = training and self.augment.changes_something
        sample = source.sample(
            start,
            size,
            self.view.modalities,
            labelled=self.coding is not None,
            soft=self.soft,
            place=anywhere if changed else place,
        )
        self._label(sample, study)
        if changed:
            sample = pack_sample(augment_sample(unpack_arrays(sample), self.augment, rng, turn, self.view.size))
        if self.masking is not None:
            self._mask(sample, self.masking, rng)
        tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in sample.items()}
        return {**tensors, "subject": study.name}

    def _evaluation_start(self, source: PackedStudy) -> Triple:
        """Place the window where the lesions are, if it is they that are judged; a study without any is centred."""
        extent, size, voxels = source.shape, self.view.size, source.lesions
        if self.coding is None or not len(voxels):
            return centred(extent, size)
        middle = voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
        starts = [
            min(max(0, int(at) - wanted // 2), whole - wanted) if whole > wanted else (whole - wanted) // 2
            for at, whole, wanted in zip(middle, extent, size, strict=True)
        ]
        return (starts[0], starts[1], starts[2])

    def _start(self, source: PackedStudy, rng: np.random.Generator) -> Triple:
        """Place the window at random: anywhere inside, or jittered around a study that is smaller."""
        size = self.view.size
        aim = self._aim(source, rng)
        starts = []
        for axis, (extent, wanted) in enumerate(zip(source.shape, size, strict=True)):
            low, high = min(0, extent - wanted), max(0, extent - wanted)
            if aim is not None:
                low, high = max(low, int(aim[axis]) - wanted + 1), min(high, int(aim[axis]))
            starts.append(int(rng.integers(low, high + 1)))
        return (starts[0], starts[1], starts[2])

    def _aim(self, source: PackedStudy, rng: np.random.Generator) -> Array | None:
        """Choose a labelled voxel that the window must hold, or None: any of them, or one of a lesion chosen first."""
        voxels, augment = source.lesions, self.augment
        if augment.lesion_share == 0 or not len(voxels) or rng.random() >= augment.lesion_share:
            return None
        if augment.each_lesion > 0 and rng.random() < augment.each_lesion:
            numbers = np.unique(source.lesion_numbers)
            voxels = voxels[source.lesion_numbers == numbers[rng.integers(len(numbers))]]
        return np.asarray(voxels[rng.integers(len(voxels))])

    def _label(self, sample: dict[str, Array], study: Study) -> None:
        """Replace a sample's label values by regions, if the task needs them."""
        values = sample.pop("label", None)
        if self.coding is not None:
            if values is None:
                raise ConfigError(f"study '{study.name}' has no segmentation to learn from")
            sample["label"] = region_masks(values, self.coding)

    def _mask(self, sample: dict[str, Array], masking: MaskingConfig, rng: np.random.Generator) -> None:
        view = self.view
        exists = packed_tokens(sample["flags"], len(view.modalities), view.patch, tissue_only=view.tissue_only)
        if exists.any():
            draw = draw_tokens(rng, exists, masking)
            sample["mask"], sample["decode"] = draw.mask, draw.decode
        else:  # none of the modalities that were kept was scanned here: nothing to see, nothing to predict
            sample["mask"], sample["decode"] = ~exists, exists


def token_flags(sample: dict[str, Array], view: View) -> Array:
    """Return which tokens of an unpacked sample exist, Bool[M, L]; see `packed_tokens`."""
    flags = pack_flags(sample["valid"] & sample["available"][:, None, None, None], sample["brain"])
    return packed_tokens(flags, len(view.modalities), view.patch, tissue_only=view.tissue_only)


def centred(extent: Triple, size: Triple) -> Triple:
    """Return the start of a window whose centre is that of an array of the given extent."""
    starts = [(whole - wanted) // 2 for whole, wanted in zip(extent, size, strict=True)]
    return (starts[0], starts[1], starts[2])

"""Measures of a study at full resolution: how large, how many, where and how bright lesions are, sequence by sequence.

An encoder's patch is centimetres wide; a few hundred labels do not teach it to read an enhancing rim of three
millimetres. These first-order measures are what radiologists note and radiomics starts from. Each is a column of the
cohort table: `measure_lesion_<region>_<what>`, or `measure_<modality>_...`, which is hidden with that modality.

Intensities are in robust deviations from the median of that modality's brain outside all lesions, so that neither a
scanner's scale nor the size of the lesions moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from bmmae.arrays import Array, Bool, Float
from bmmae.data.cache import StudyCache
from bmmae.data.coding import stated_coding
from bmmae.data.cohort import Cohort, Study
from bmmae.data.labels import Coding, propose_coding, region_masks, values_of
from bmmae.data.packing import BRAIN, PackedStudy, scanned
from bmmae.errors import CohortError

PREFIX = "measure_"
REGIONS = "lesion_"
FOCUS_DEVIATIONS = 4.0
"""Foci are pieces outside all lesions that are brighter than the median by this many robust deviations."""
FOCUS_VOXELS = 2
"""Fewest voxels of a focus: fewer may be noise."""
INTERQUARTILE = 1.349
"""Interquartile range of a normal distribution, in deviations."""
TOUCHING = np.ones((3, 3, 3), bool)
AXES = ("right", "anterior", "superior")

Measures = dict[str, float]


def measure_cohort(
    cohort: Cohort, cache: StudyCache, coding: Coding | None = None, *, progress: bool = False
) -> Cohort:
    """Return a cohort whose studies have their measures.

    The arguments are those of `measured`; by default the coding is what the table states, else one is proposed.

    Raises:
        ImageError: If a file is broken.
        LabelError: If names and values leave the coding open, or values lie outside it.
    """
    labelled = [study for study in cohort if study.seg is not None]
    if coding is None:
        coding = stated_coding(labelled)
    if coding is None and labelled:
        values = {value for study in labelled for value in values_of(np.asarray(cache.load(study).label))}
        coding = propose_coding([str(study.seg) for study in labelled], values)
    studies = tqdm(cohort.studies, desc="measuring", unit="study", disable=not progress)
    return replace(cohort, studies=tuple(measured(study, cache, coding) for study in studies))


def measured(study: Study, cache: StudyCache, coding: Coding | None) -> Study:
    """Return a study with its measures among its values, in place of any that it had.

    Args:
        study: Without a segmentation only what needs none is measured.
        cache: Where prepared studies are; the grid that is measured on is that of its preprocessing.
        coding: Of the segmentation.

    Raises:
        ImageError: If a file is broken.
        LabelError: If the segmentation holds values outside its coding.
    """
    packed = cache.load(study)
    return with_measures(study, measure(packed, cache.config.spacing, coding if study.seg is not None else None))


def with_measures(study: Study, found: Measures) -> Study:
    """Return a study with these measures among its values, in place of any that it had."""
    kept = {name: cell for name, cell in study.values.items() if not name.startswith(PREFIX)}
    return replace(study, values={**kept, **{PREFIX + name: value for name, value in found.items()}})


def measure(packed: PackedStudy, spacing: Sequence[float], coding: Coding | None) -> Measures:
    """Return what can be measured of a prepared study.

    For each region: `lesion_<region>_volume` (log of 1 + cubic millimetres), `_share` (of all regions together),
    `_pieces`, `_right`, `_anterior`, `_superior` (its centre, as a share of the brain's extent) and `_lowest` (the same
    of its lowest piece). For each modality: `<modality>_foci` (bright pieces outside all regions; not for a
    study without a label beside others that have one, whose lesions would be among them), and for each region
    `<modality>_<region>_mean` and `_deviation`. What an empty region does not have is left out.

    Args:
        packed: The study.
        spacing: Millimetres between its voxels.
        coding: Of its label; None measures no region.
    """
    brain = (np.asarray(packed.flags) & BRAIN) > 0
    known = coding is not None and packed.label is not None
    regions: dict[str, Array] = {}
    if coding is not None and packed.label is not None:
        regions = dict(zip(coding.regions, region_masks(np.asarray(packed.label), coding), strict=True))
    lesion = np.any(list(regions.values()), axis=0) if known else np.zeros_like(brain)
    found: Measures = {}
    for name, mask in regions.items():
        found |= {f"lesion_{name}_{what}": value for what, value in _shape(mask, brain, spacing).items()}
        if lesion.any():
            found[f"lesion_{name}_share"] = float(mask.sum() / lesion.sum())
    rest = brain & ~ndimage.binary_dilation(lesion, TOUCHING)
    coverage = scanned(np.asarray(packed.flags), len(packed.names))
    for modality, image, covered in zip(packed.names, packed.images, coverage, strict=True):
        values = _standard(np.asarray(image, np.float32), rest & covered)
        if values is None:
            continue
        if known or coding is None:
            found[f"{modality}_foci"] = _foci(values, rest & covered)
        for name, mask in regions.items():
            inside = values[mask & covered]
            if len(inside):
                found |= {f"{modality}_{name}_mean": float(inside.mean())}
                found |= {f"{modality}_{name}_deviation": float(inside.std())}
    return found


def _shape(mask: Bool[Array, "H W D"], brain: Bool[Array, "H W D"], spacing: Sequence[float]) -> Measures:
    """Size, number of pieces, and place in the brain's box."""
    numbers, count = ndimage.label(mask, TOUCHING)
    found = {"volume": float(np.log1p(mask.sum() * np.prod(spacing))), "pieces": float(count)}
    if not count:
        return found
    inside = np.argwhere(brain)
    low, extent = inside.min(axis=0), np.maximum(np.ptp(inside, axis=0), 1)
    centre = (np.argwhere(mask).mean(axis=0) - low) / extent
    pieces = np.array(ndimage.center_of_mass(mask, numbers, range(1, count + 1)))
    found |= {axis: float(place) for axis, place in zip(AXES, centre, strict=True)}
    return found | {"lowest": float(((pieces[:, 2] - low[2]) / extent[2]).min())}


def _standard(image: Float[Array, "H W D"], rest: Bool[Array, "H W D"]) -> Float[Array, "H W D"] | None:
    """Robust deviations from the median of the rest of the brain; None where nothing is left to compare with."""
    if not rest.any():
        return None
    low, middle, high = np.percentile(image[rest], (25, 50, 75))
    return np.asarray((image - middle) / (high - low) * INTERQUARTILE) if high > low else None


def _foci(values: Float[Array, "H W D"], rest: Bool[Array, "H W D"]) -> float:
    numbers, _ = ndimage.label((values > FOCUS_DEVIATIONS) & rest)
    return float((np.bincount(numbers.ravel())[1:] >= FOCUS_VOXELS).sum())


def measure_columns(studies: Sequence[Study]) -> dict[str, str]:
    """Return the measures that any of these studies has, and the modality of each; empty for those of regions.

    Measures of modalities that no study has any more (an ablation) are left out.

    Raises:
        CohortError: If there is none.
    """
    modalities = tuple(dict.fromkeys(name for study in studies for name in study.images))
    known = {name for study in studies for name, cell in study.values.items() if cell is not None}
    columns = dict.fromkeys(name for study in studies for name in study.values if name.startswith(PREFIX))
    found = {name: modality_of(name, modalities) for name in columns if name in known}
    if not found:
        raise CohortError("no training study has measures: write them into the table with `bmmae measure`")
    return {name: modality for name, modality in found.items() if modality is not None}


def modality_of(column: str, modalities: Sequence[str]) -> str | None:
    """Return whose image a measure was taken from: empty for those of regions, None for another modality's."""
    name = column.removeprefix(PREFIX)
    fitting = [modality for modality in modalities if name.startswith(f"{modality}_")]
    return "" if name.startswith(REGIONS) else max(fitting, key=len, default=None)

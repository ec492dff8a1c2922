"""Radiomic features from volumes and segmentations, with PyRadiomics, as the tables that `feature_table` reads.

Columns are named `original_glcm_Contrast_ET_t1ce`: image filter, feature class, feature, region, modality. Shape is
measured once for a region and names no modality. Regions come from one segmentation of the study, usually drawn on all
of its sequences: a table of "one sequence" knows of the others through the outline.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bmmae.arrays import Array, Bool, Volume
from bmmae.baselines.preparation import require
from bmmae.data.cohort import Study
from bmmae.data.geometry import same_grid, turned_like
from bmmae.data.labels import Coding, region_masks
from bmmae.data.millimetres import spacing_of
from bmmae.data.reading import read_image, read_labels
from bmmae.data.tables import Cell, write_rows
from bmmae.errors import CohortError, ConfigError, GeometryError, LabelError


@dataclass(frozen=True)
class Extraction:
    """What is measured.

    Attributes:
        classes: Feature classes of PyRadiomics, measured on every modality; `shape` is added once for a region.
        filters: Image filters with their settings, such as `{"Original": {}, "LoG": {"sigma": [2.0]}, "Wavelet": {}}`.
        bin_width: Width of the grey levels of textures, in standard deviations: images are z-scored over the voxels
            that are not zero, because MR intensities have no unit.
        minimum_voxels: Regions with fewer voxels are not measured; their cells stay empty.
    """

    classes: tuple[str, ...] = ("firstorder", "glcm", "glrlm", "glszm", "ngtdm")
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"Original": {}})
    bin_width: float = 0.25
    minimum_voxels: int = 27

    def __post_init__(self) -> None:
        if not self.classes or not self.filters or "shape" in self.classes:
            raise ConfigError("expected one feature class or more (shape is added by itself) and one filter or more")
        if self.bin_width <= 0 or self.minimum_voxels < 2:
            raise ConfigError(
                f"expected a positive bin width and 2 voxels or more, got {self.bin_width} and {self.minimum_voxels}"
            )


DEFAULT = Extraction()


def extract_features(study: Study, coding: Coding, extraction: Extraction = DEFAULT) -> dict[str, float]:
    """Return the features of one study by column name; regions that it lacks have no columns.

    The segmentation's axes may be in another order or direction than the images'.

    Raises:
        ConfigError: If PyRadiomics is not installed.
        GeometryError: If an image is not on the segmentation's grid.
        ImageError: If a file cannot be read.
        LabelError: If the study has no segmentation, or one of another coding.
    """
    if study.seg is None:
        raise LabelError(f"study '{study.name}' has no segmentation: fill the column 'seg' of the table")
    labels, affine = read_labels(study.seg)
    regions = {
        name: mask
        for name, mask in zip(coding.regions, region_masks(labels, coding), strict=True)
        if mask.sum() >= extraction.minimum_voxels
    }
    measured: dict[str, float] = {}
    for modality, file in study.images.items():
        image = read_image(file)
        voxels, own = turned_like(image.array, image.affine, affine)
        if not same_grid(voxels.shape, own, labels.shape, affine):
            raise GeometryError(
                f"{file} is not on the grid of {study.seg}: expected both co-registered; run `bmmae preprocess` first"
            )
        scaled = _standardised(voxels)
        for region, mask in regions.items():
            shaped = f"original_shape_VoxelVolume_{region}" in measured
            for name, value in _measure(scaled, mask, spacing_of(affine), extraction, shape=not shaped):
                owner = region if "_shape_" in name else f"{region}_{modality}"
                measured[f"{name}_{owner}"] = value
    return measured


def write_feature_table(
    studies: Iterable[Study], coding: Coding, path: str | Path, extraction: Extraction = DEFAULT
) -> Path:
    """Write one row a study (`subject`, `session`, features); cells of absent modalities and regions are empty.

    Raises:
        CohortError: If there is no study.
        OutputError: If the table cannot be written.
        BmmaeError: As `extract_features`.
    """
    rows: list[dict[str, Cell]] = [
        {"subject": study.subject, "session": study.session, **extract_features(study, coding, extraction)}
        for study in studies
    ]
    if not rows:
        raise CohortError("expected one study or more to measure, got none")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_rows(Path(path), rows, columns)
    return Path(path)


def _measure(
    image: Volume, mask: Bool[Array, "H W D"], spacing: tuple[float, ...], extraction: Extraction, *, shape: bool
) -> Iterator[tuple[str, float]]:
    """Yield the features that PyRadiomics measures, without its diagnostics."""
    itk = require("SimpleITK", "Measuring radiomic features")
    extractor = require("radiomics.featureextractor", "Measuring radiomic features").RadiomicsFeatureExtractor(
        binWidth=extraction.bin_width, additionalInfo=False
    )
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor.disableAllFeatures()
    for name in (*extraction.classes, *(("shape",) if shape else ())):
        extractor.enableFeatureClassByName(name)
    extractor.disableAllImageTypes()
    for name, settings in extraction.filters.items():
        extractor.enableImageTypeByName(name, customArgs=dict(settings))
    found = extractor.execute(_as_itk(itk, image, spacing), _as_itk(itk, mask.astype(np.uint8), spacing), label=1)
    for name, value in found.items():
        yield name, float(value)


def _as_itk(itk: Any, array: Array, spacing: tuple[float, ...]) -> Any:
    image = itk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([float(length) for length in spacing])
    return image


def _standardised(array: Array) -> Volume:
    tissue = array[array != 0]
    deviation = float(tissue.std()) or 1.0
    return np.asarray((array - tissue.mean()) / deviation, dtype=np.float32)

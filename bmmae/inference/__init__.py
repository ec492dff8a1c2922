"""From image files to results on the same grid: any subset of modalities in, native-space images out."""

from __future__ import annotations

from bmmae.inference.likeness import UnlikeTrainingWarning
from bmmae.inference.reconstruction import reconstruct, reconstruct_prepared, reconstruct_to_folder
from bmmae.inference.segmentation import segment, segment_prepared
from bmmae.inference.study import LoadedStudy, load_study
from bmmae.inference.windows import over_windows, to_native
from bmmae.inference.writing import save_image

__all__ = [
    "LoadedStudy",
    "UnlikeTrainingWarning",
    "load_study",
    "over_windows",
    "reconstruct",
    "reconstruct_prepared",
    "reconstruct_to_folder",
    "save_image",
    "segment",
    "segment_prepared",
    "to_native",
]

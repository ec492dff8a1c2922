"""From image files to results on the same grid: any subset of modalities in, native-space images out."""

from __future__ import annotations

from bmmae.inference.cohort import Outcome, reconstruct_cohort
from bmmae.inference.likeness import UnlikeTrainingWarning
from bmmae.inference.postprocess import PostprocessConfig
from bmmae.inference.prediction import predict_absent, reconstruct_prepared
from bmmae.inference.reconstruction import Reconstruction, ReconstructOptions, reconstruct
from bmmae.inference.reconstruction_folder import reconstruct_to_folder
from bmmae.inference.segmentation import Segmentation, SegmentOptions, segment, segment_prepared, segment_study
from bmmae.inference.study import LoadedStudy, load_study
from bmmae.inference.windows import over_windows, to_native
from bmmae.inference.writing import save_image

__all__ = [
    "LoadedStudy",
    "Outcome",
    "PostprocessConfig",
    "ReconstructOptions",
    "Reconstruction",
    "SegmentOptions",
    "Segmentation",
    "UnlikeTrainingWarning",
    "load_study",
    "over_windows",
    "predict_absent",
    "reconstruct",
    "reconstruct_cohort",
    "reconstruct_prepared",
    "reconstruct_to_folder",
    "save_image",
    "segment",
    "segment_prepared",
    "segment_study",
    "to_native",
]

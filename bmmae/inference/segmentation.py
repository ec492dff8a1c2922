"""Labels for one study, from any subset of its modalities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch

from bmmae.arrays import Float, Tensor
from bmmae.data.labels import find_coding, labels_from_regions
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import ModalityError
from bmmae.inference.study import caveat, load_study
from bmmae.inference.windows import over_windows, to_native
from bmmae.inference.writing import image_like
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.segmentation import SegmentationModel


def segment(
    model: PretrainedModel, images: Mapping[str, str | Path], *, brain_mask: str | Path | None = None
) -> nib.Nifti1Image:
    """Segment one study from any subset of its modalities.

    Returns:
        Label values in the model's coding, on the grid of the input.

    Raises:
        ModalityError: If none is given, or the model has no segmentation head.
        ImageError: If a file is broken.
    """
    if not isinstance(model, SegmentationModel):
        raise ModalityError(f"a {model.kind} model cannot segment: fine-tune it with finetune/segmentation.py first")
    study = load_study(model, images, brain_mask)
    probabilities = segment_prepared(model, study.prepared)
    regions = np.stack([to_native(study.prepared, p, within_brain=False) for p in probabilities]) > 0.5
    labels = labels_from_regions(regions, find_coding(model.config.coding)).astype(np.uint8)
    return image_like(labels, study.reference, f"bmmae segmentation, {model.config.coding}{caveat(study)}")


def segment_prepared(model: SegmentationModel, prepared: PreparedStudy) -> Float[np.ndarray, "R H W D"]:
    """Return region probabilities on the model's grid; 0 outside the brain."""
    config = model.config.model

    def predict(images: Tensor, valid: Tensor, brain: Tensor) -> Tensor:
        regions = len(model.config.regions)
        if not bool(brain.any()):
            return images.new_zeros(1, regions, *images.shape[2:])
        available = torch.tensor([[name in prepared.names for name in config.modalities]], device=images.device)
        tissue = brain if config.tissue_only else None
        return cast(Tensor, model(images, available, tissue, valid)).sigmoid() * brain

    return over_windows(model, prepared, predict)

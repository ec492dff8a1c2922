"""bmmae: masked pretraining for multi-sequence brain MRI. One model, any subset of sequences.

Models: `load_model`, `save_model`; new ones by `recipe`, `MAE`, `SegmentationModel`. From files to images:
`reconstruct`, `segment`. Tables of studies: `read_cohort`, `Cohort`. What goes wrong is a `BmmaeError`. The names are
loaded when they are first used, so that `import bmmae` is fast and silent.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bmmae._version import __version__

if TYPE_CHECKING:
    from bmmae.checkpoint import load_model, save_model
    from bmmae.data.cohort import Cohort, read_cohort
    from bmmae.errors import BmmaeError
    from bmmae.inference import reconstruct, segment
    from bmmae.model.config import recipe
    from bmmae.model.mae import MAE
    from bmmae.model.segmentation import SegmentationModel

__all__ = [
    "MAE",
    "BmmaeError",
    "Cohort",
    "SegmentationModel",
    "__version__",
    "load_model",
    "read_cohort",
    "recipe",
    "reconstruct",
    "save_model",
    "segment",
]

_HOMES = {
    "MAE": "model.mae",
    "BmmaeError": "errors",
    "Cohort": "data.cohort",
    "SegmentationModel": "model.segmentation",
    "load_model": "checkpoint",
    "read_cohort": "data.cohort",
    "recipe": "model.config",
    "reconstruct": "inference",
    "save_model": "checkpoint",
    "segment": "inference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bmmae' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bmmae.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

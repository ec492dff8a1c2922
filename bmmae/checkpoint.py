"""Loading and saving models, wherever they come from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import CheckpointError
from bmmae.model.pretrained import ModelMetadata, PretrainedModel
from bmmae.model_folder import CONFIG
from bmmae.provenance import Provenance
from bmmae.schema import from_dict, to_dict

INDEX = Path("checkpoints") / "index.json"
"""What makes a folder a run folder: `{"last": NAME, "best": NAME}`, names of folders beside it."""


class SyntheticWeightsWarning(UserWarning):
    """The weights in use were trained on synthetic data: their output means nothing for a patient."""


class PartialLoadWarning(UserWarning):
    """Some weights were not loaded, as was asked for."""


def load_model(
    source: str | Path,
    *,
    filename: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    partial: bool = False,
    kind: str | None = None,
) -> PretrainedModel:
    """Load a model in eval mode."""
    model = PretrainedModel.from_pretrained(_local(source), revision=revision, partial=partial)
    if provenance_of(model).synthetic:
        warnings.warn(f"{source} was trained on synthetic data", SyntheticWeightsWarning, stacklevel=2)
    return model.to(device)


def save_model(
    model: PretrainedModel,
    folder: str | Path,
    *,
    preprocessing: PreprocessConfig | None = None,
    provenance: Provenance | None = None,
) -> Path:
    """Save a model as a folder, with how its input is prepared and where its weights come from.

    Args:
        model: What to save.
        folder: Where to; a model that is already there is replaced.
        preprocessing: If given, replaces what the model carries.
        provenance: If given, replaces what the model carries.

    Returns:
        The folder.

    Raises:
        OutputError: If the folder holds other files, or cannot be written.
    """
    describe(model, preprocessing, provenance)
    model.save_pretrained(folder)
    return Path(folder)


def describe(
    model: PretrainedModel, preprocessing: PreprocessConfig | None = None, provenance: Provenance | None = None
) -> None:
    """Set what travels with a model's weights; None leaves it as it is."""
    model.metadata = ModelMetadata(
        model.metadata.preprocessing if preprocessing is None else to_dict(preprocessing),
        model.metadata.provenance if provenance is None else provenance.as_dict(),
    )


def preprocessing_of(model: PretrainedModel) -> PreprocessConfig:
    """Return how images become the model's input."""
    return from_dict(PreprocessConfig, model.metadata.preprocessing, "preprocessing")


def provenance_of(model: PretrainedModel) -> Provenance:
    """Return what the model was trained on and how."""
    return Provenance.of(model.metadata.provenance)


def _local(source: str | Path) -> Path:
    """Return the model folder that a path means: itself, or the checkpoint of a run folder."""
    path, _, tag = str(source).partition("@")
    folder = Path(path)
    if (folder / CONFIG).is_file() and not (folder / INDEX).is_file():
        return folder
    try:
        index = json.loads((folder / INDEX).read_text())
    except OSError:
        raise CheckpointError(f"{source} is no saved model") from None
    return folder / "checkpoints" / str(index.get(tag or "best", tag))

"""Loading and saving models, wherever they come from: folders, runs, hubs, the published files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bmmae.conversion import convert_state, read_pickle
from bmmae.data.preprocess import PreprocessChoice, PreprocessConfig
from bmmae.errors import CheckpointError, ConfigError
from bmmae.growth import add_modality, transplant_encoder, truncate
from bmmae.hub import sha256_of
from bmmae.keys import KeyReport
from bmmae.model.pretrained import ModelMetadata, PretrainedModel
from bmmae.model_folder import PICKLES
from bmmae.model_info import ModelInfo, summarise
from bmmae.provenance import Metric, Provenance
from bmmae.schema import from_dict, to_dict
from bmmae.sources import locate, public_name

__all__ = [
    "KeyReport",
    "Metric",
    "ModelInfo",
    "PartialLoadWarning",
    "Provenance",
    "SyntheticWeightsWarning",
    "add_modality",
    "convert",
    "describe",
    "info",
    "load_encoder",
    "load_model",
    "preprocessing_of",
    "provenance_of",
    "save_model",
    "truncate",
]

_COMMANDS = {
    "mae": "pretrain/train.py",
    "segmentation": "finetune/segmentation.py",
    "patient": "finetune/classification.py or finetune/survival.py",
    "synthesis": "finetune/synthesis.py",
}
_PUBLISHED = Provenance(
    data="the published BM-MAE pretraining (arXiv 2505.00568); the file itself records nothing",
    limits=("Weights made elsewhere: what they were trained on is known only from their authors.",),
)


class SyntheticWeightsWarning(UserWarning):
    """The weights in use, or those that they started from, were trained on data that mean nothing for a patient."""


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
    """Load a model, strictly, in eval mode.

    Args:
        source: A model folder; a run folder, which means its best checkpoint (`RUN@last` its last); a hub repository
            `org/name` or `org/name@revision`; or a file of the published weights (`bmmae.pth`).
        filename: The file to load from a folder or repository of the published layout.
        revision: Branch, tag or commit of a hub repository.
        device: Where to put the model.
        partial: Load the keys that fit and leave the others new. A warning and `model.key_report` list them.
        kind: Refuse models of any other kind.

    Returns:
        The model, of the class that its config names.

    Raises:
        HubError: If it cannot be fetched.
        CheckpointError: If there is no model, or it is damaged, unsafe, too new, misfitting or of another kind.

    Warns:
        SyntheticWeightsWarning: If the weights, or those that they started from, were trained on synthetic data.
        PartialLoadWarning: If `partial` left keys out.
    """
    model = _read(locate(source, filename, revision), partial)
    if kind is not None and model.kind != kind:
        raise CheckpointError(_other_kind(str(source), model.kind, kind))
    if model.key_report is not None and not model.key_report.complete:
        warnings.warn(f"{source} was loaded in part: {model.key_report}", PartialLoadWarning, stacklevel=2)
    told = synthetic_training(model)
    if told:
        warnings.warn(f"{source} {told}", SyntheticWeightsWarning, stacklevel=2)
    return model.to(device)


def synthetic_training(model: PretrainedModel) -> str:
    """Say what it means that a model's weights were trained on synthetic data, to go on from its name; empty if not.

    Raises:
        CheckpointError: If what the model carries is no provenance.
    """
    provenance = provenance_of(model)
    if provenance.synthetic:
        return "was trained on synthetic data: its output means nothing for a patient"
    if provenance.parent_synthetic:
        return "was pretrained on synthetic data: measure it on labelled patients of yours before you rely on it"
    return ""


def _read(path: Path, partial: bool) -> PretrainedModel:
    if path.suffix not in PICKLES:
        return PretrainedModel.from_pretrained(path, partial=partial)
    model = convert_state(read_pickle(path), str(path), partial=partial)
    made_from = {"file": path.name, "sha256": sha256_of(path)}
    describe(model, PreprocessConfig(), Provenance.of({**_PUBLISHED.as_dict(), "extra": {"converted_from": made_from}}))
    return model


def _other_kind(source: str, got: str, wanted: str) -> str:
    script = _COMMANDS.get(wanted)
    advice = f"make one with {script} --model {source}" if script else "name a model that has it"
    return f"{source} holds a model of kind '{got}', which has no {wanted} head; this needs kind '{wanted}': {advice}"


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
        ConfigError: If it is no model of this library, or what describes it is of other classes.
        OutputError: If the folder holds other files, or cannot be written.
    """
    if not isinstance(model, PretrainedModel):
        raise ConfigError(_not_ours(model))
    describe(model, preprocessing, provenance)
    model.save_pretrained(folder)
    return Path(folder).expanduser()


def _not_ours(model: object) -> str:
    told = f"expected a model of this library, got {type(model).__name__}: "
    # As torch.compile and the wrappers of distributed training keep what they wrap.
    for name in ("_orig_mod", "module"):
        if isinstance(getattr(model, name, None), PretrainedModel):
            return f"{told}it holds one, so pass model.{name}"
    return told + "save others with torch.save, or derive their class from bmmae.model.pretrained.PretrainedModel"


def describe(
    model: PretrainedModel, preprocessing: PreprocessConfig | None = None, provenance: Provenance | None = None
) -> None:
    """Set what travels with a model's weights; None leaves it as it is.

    A model whose encoder is frozen, and came from a synthetic model, stays synthetic whatever the provenance says.

    Raises:
        ConfigError: If they are of other classes.
    """
    for given, kind in ((preprocessing, PreprocessConfig), (provenance, Provenance)):
        if given is not None and not isinstance(given, kind):
            raise ConfigError(f"expected a {kind.__name__}, got a {type(given).__name__}: {given!r}")
    if provenance is not None and _frozen(model) and model.metadata.provenance.get("synthetic"):
        generator = provenance.generator or model.metadata.provenance.get("generator")
        provenance = replace(provenance, synthetic=True, generator=generator)
    model.metadata = ModelMetadata(
        model.metadata.preprocessing if preprocessing is None else to_dict(preprocessing),
        model.metadata.provenance if provenance is None else provenance.as_dict(),
    )


def _frozen(model: PretrainedModel) -> bool:
    encoder = getattr(model, "encoder", None)
    return isinstance(encoder, nn.Module) and not any(p.requires_grad for p in encoder.parameters())


def preprocessing_of(model: PretrainedModel) -> PreprocessConfig:
    """Return how images become the model's input.

    Raises:
        CheckpointError: If what the model carries is not that.
    """
    try:
        return from_dict(PreprocessConfig, model.metadata.preprocessing, "preprocessing")
    except ConfigError as error:
        raise CheckpointError(f"the model's config.json does not fit this library: {error}") from error


def preprocessing_for(pretrained: PretrainedModel | None, chosen: PreprocessChoice) -> PreprocessConfig:
    """Return how images become model input in a training.

    Args:
        pretrained: What training starts from; None for random weights.
        chosen: What the configuration says.

    Raises:
        CheckpointError: If what the model carries is not about preprocessing.
        ConfigError: If a chosen value makes no sense.

    Warns:
        UserWarning: If the weights go on with other images than they know.
    """
    if pretrained is None:
        return chosen.over(PreprocessConfig())
    wanted = chosen.over(preprocessing_of(pretrained))
    warn_of_other_images(pretrained, wanted)
    return wanted


def warn_of_other_images(pretrained: PretrainedModel, wanted: PreprocessConfig) -> None:
    """Warn if weights go on with other images than they know.

    Raises:
        CheckpointError: If what the model carries is not about preprocessing.
    """
    known = preprocessing_of(pretrained)
    if wanted != known:
        warnings.warn(f"the weights know images of {known}, and go on with images of {wanted}", stacklevel=3)


def provenance_of(model: PretrainedModel) -> Provenance:
    """Return what the model was trained on and how.

    Raises:
        CheckpointError: If what the model carries is not that.
    """
    try:
        return Provenance.of(model.metadata.provenance)
    except ConfigError as error:
        raise CheckpointError(f"the model's config.json does not fit this library: {error}") from error


def info(source: str | Path, *, filename: str | None = None, revision: str | None = None) -> ModelInfo:
    """Return what a model is and where it comes from; the arguments are those of `load_model`.

    Raises:
        HubError: If it cannot be fetched.
        CheckpointError: If there is no model, or it is damaged, unsafe or too new.
    """
    return summarise(_read(locate(source, filename, revision), partial=False), str(source))


def convert(path: str | Path, out: str | Path, *, partial: bool = False) -> KeyReport:
    """Turn the published weights into a model folder.

    Args:
        path: The published file, or one of its layout.
        out: Folder to write.
        partial: Keep new weights where keys are missing or misshapen.

    Returns:
        What became of the file's keys.

    Raises:
        CheckpointError: If the file is damaged, contains code, or holds another architecture.
        OutputError: If the folder cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in PICKLES:
        raise CheckpointError(
            f"{path} is no file of published weights: expected a name that ends in {', '.join(PICKLES)}"
        )
    model = _read(path, partial)
    save_model(model, out)
    return model.key_report or KeyReport()


def load_encoder(
    model: PretrainedModel, source: str | Path | PretrainedModel, *, filename: str | None = None
) -> KeyReport:
    """Put a pretrained encoder into a model, in place; see `bmmae.growth.transplant_encoder`.

    Args:
        model: What receives the encoder.
        source: A loaded model, or whatever `load_model` takes.
        filename: As `load_model` takes it.

    Returns:
        The encoder's keys.

    Raises:
        CheckpointError: If the source cannot be loaded or its encoder has another shape.
        ModalityError: If the pretrained encoder does not know all of the model's modalities.
        ConfigError: If the pretrained encoder has fewer blocks, or the model is none of this library.
    """
    if isinstance(source, PretrainedModel):
        return transplant_encoder(model, source)
    report = transplant_encoder(model, load_model(source, filename=filename))
    parent = {**model.metadata.provenance, "parent": public_name(source)}
    model.metadata = ModelMetadata(model.metadata.preprocessing, parent)
    return report

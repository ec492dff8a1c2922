"""Models made from models: with one modality more, with fewer layers, with the encoder or all weights of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TypeVar, cast

import torch
from torch import nn

from bmmae.arrays import Tensor
from bmmae.errors import CheckpointError, ConfigError, ModalityError
from bmmae.keys import KeyReport, load_state
from bmmae.modalities import canonical, in_table_order, table_names
from bmmae.model.config import ModelConfig
from bmmae.model.mae import MAE
from bmmae.model.pretrained import ModelMetadata, PretrainedModel, with_model_config
from bmmae.provenance import Provenance
from bmmae.schema import flatten

Model = TypeVar("Model", bound=PretrainedModel)
_ENCODER, _SYNTHESIS = "encoder.", "synthesis."
_BLOCK = re.compile(r"^encoder\.blocks\.(\d+)\.")
_MEANING = ("dim", "heads", "rotary")
"""Settings of an encoder that its weights mean nothing without; heads and rotary positions leave no trace in shapes."""
_OF_TRAINING = ("size", "synthesis", "tissue_only", "targets")
"""What of a masked autoencoder's config another training may choose anew."""


def add_modality(model: Model, name: str, like: str) -> Model:
    """Return a copy of a model that knows one modality more.

    What is learned per modality is copied from `like`. Tokens of the modalities known before stay the same, and so do
    their predictions (a `self` decoder's, as long as it is asked for the same tokens).

    Args:
        model: Any kind of model.
        name: The new modality.
        like: The known modality to start from.

    Raises:
        ModalityError: If the model knows `name` already, does not know `like`, or `name` cannot be one.
        ConfigError: If the voxel-wise regression would have more modalities than it can.
    """
    old = model.model_config
    like = canonical(like, old.modalities)
    name = table_names(in_table_order((name,)))[0]
    if name in old.modalities:
        raise ModalityError(f"the model knows '{name}' already: it has {', '.join(old.modalities)}")
    robust = tuple(known for known in old.synthesis.robust if known in old.modalities)  # recipes may name others
    synthesis = replace(old.synthesis, robust=(*robust, name) if like in robust else robust)
    new = replace(old, modalities=in_table_order((*old.modalities, name)), synthesis=synthesis)
    origin = [old.modalities.index(like if modality == name else modality) for modality in new.modalities]
    grown = _like(model, new, f"{name} added, which starts as {like}")
    shapes = {key: value.shape for key, value in grown.state_dict().items()}
    counts = (len(old.modalities), len(new.modalities))
    regression = getattr(grown, "synthesis", None)
    if regression is not None:
        regression.grow_from(model.synthesis, origin, new.modalities.index(name))
    kept = {key: value for key, value in grown.state_dict().items() if key.startswith(_SYNTHESIS)}
    grew = {
        key: _grow(key, value, shapes[key], counts, origin)
        for key, value in model.state_dict().items()
        if not key.startswith(_SYNTHESIS)
    }
    load_state(grown, grew | kept, f"the model without {name}")
    return grown


def _grow(key: str, value: Tensor, shape: torch.Size, counts: tuple[int, int], origin: Sequence[int]) -> Tensor:
    """Repeat the slices of `like` along each axis that counts modalities, once or several times at its end."""
    before, after = counts
    for axis, (size, wanted) in enumerate(zip(value.shape, shape, strict=True)):
        times, rest = divmod(wanted - size, after - before)
        first = size - times * before  # what comes before the modalities stays
        if times < 0 or rest or first < 0:
            raise CheckpointError(f"{key} cannot grow from {tuple(value.shape)} to {tuple(shape)}")
        if times:
            blocks = [first + time * before + place for time in range(times) for place in origin]
            value = value.index_select(axis, torch.tensor([*range(first), *blocks], device=value.device))
    return value


def truncate(model: Model, depth: int) -> Model:
    """Return a copy whose encoder ends after `depth` blocks: cheaper, and lower layers often transfer as well.

    Raises:
        ConfigError: If the encoder has fewer blocks than that, or `depth` is below one.
        CheckpointError: If too few blocks are left for the skips of a `unetr` decoder.
    """
    old = model.model_config
    _check_depth(depth, old.encoder.depth)
    config = replace(old, encoder=replace(old.encoder, depth=depth))
    shorter = _like(model, config, f"truncated to {depth} of {old.encoder.depth} encoder blocks")
    load_state(shorter, {k: v for k, v in model.state_dict().items() if _within(k, depth)}, "the deeper model")
    return shorter


def _check_depth(depth: int, available: int) -> None:
    if not 1 <= depth <= available:
        raise ConfigError(f"cannot read out {depth} encoder blocks: expected 1 to {available}, the encoder's depth")


def _check_meaning(ours: ModelConfig, theirs: ModelConfig) -> None:
    pairs = {f"encoder.{name}": (getattr(theirs.encoder, name), getattr(ours.encoder, name)) for name in _MEANING}
    pairs["patch"] = (theirs.patch, ours.patch)
    differing = [f"{name} {its} where the model has {own}" for name, (its, own) in pairs.items() if its != own]
    if differing:
        raise CheckpointError(
            f"the pretrained encoder has {', '.join(differing)}: its weights would mean something else there; make the "
            "model with the pretrained one's settings (its `model_config`), or take other weights"
        )


def _within(key: str, depth: int) -> bool:
    match = _BLOCK.match(key)
    return match is None or int(match[1]) < depth


def _like(model: Model, config: ModelConfig, change: str) -> Model:
    """A new model of the same kind, device and precision, with another `ModelConfig`, that remembers the change."""
    with torch.random.fork_rng(devices=[]):
        made = model.from_config(with_model_config(model.config, config))
    provenance = Provenance.of(model.metadata.provenance).changed(model.kind, change)
    made.metadata = ModelMetadata(model.metadata.preprocessing, provenance.as_dict())
    first = next(model.parameters())
    return made.to(first.device, first.dtype).train(model.training)


def transplant_encoder(model: PretrainedModel, donor: PretrainedModel) -> KeyReport:
    """Copy a model's encoder into another kind of model, in place.

    Modalities are matched by name. The receiver may know fewer of them, and may have fewer blocks: those of the
    donor's start are taken. It inherits the preprocessing, which its encoder was trained with, and what its provenance
    has to say of weights that training started from.

    Args:
        model: What receives the encoder.
        donor: Where it comes from.

    Returns:
        The encoder's keys.

    Raises:
        ModalityError: If the donor does not know all of the receiver's modalities.
        ConfigError: If the receiver has more blocks than the donor, or one of them is no model of this library.
        CheckpointError: If patch, heads or positions differ, or any shape.
    """
    for given, role in ((model, "receive"), (donor, "give")):
        if not isinstance(given, PretrainedModel):
            raise ConfigError(
                f"expected a model of this library to {role} an encoder, got a {type(given).__name__}: "
                "load_encoder(model, source) takes what receives it first; a module of your own takes "
                "bmmae.load_model(...).encoder as it is"
            )
    ours, theirs = model.model_config, donor.model_config
    unknown = [name for name in ours.modalities if name not in theirs.modalities]
    if unknown:
        raise ModalityError(
            f"the pretrained encoder does not know {', '.join(unknown)}, only {', '.join(theirs.modalities)}: add it "
            f"first, with add_modality(donor, '{unknown[0]}', like='{theirs.modalities[0]}')"
        )
    if ours.encoder.depth > theirs.encoder.depth:
        raise ConfigError(
            f"the model's encoder has {ours.encoder.depth} blocks, the pretrained one {theirs.encoder.depth}: expected "
            "no more; set encoder.depth to that"
        )
    _check_meaning(ours, theirs)
    index = torch.tensor([theirs.modalities.index(name) for name in ours.modalities])
    state = {key: value for key, value in donor.state_dict().items() if key.startswith(_ENCODER)}
    state = {key: value for key, value in state.items() if _within(key, ours.encoder.depth)}
    for key in [key for key in state if key.startswith("encoder.embedding.")]:
        state[key] = state[key].index_select(0, index.to(state[key].device))
    report = load_state(
        cast(nn.Module, model.encoder), {k.removeprefix(_ENCODER): v for k, v in state.items()}, "the pretrained model"
    )
    own, before = Provenance.of(model.metadata.provenance), Provenance.of(donor.metadata.provenance)
    made = replace(
        own.inherit(before),
        parent=before.origin(donor.kind),
        synthetic=own.synthetic or before.synthetic,
        generator=before.generator or own.generator,
    )
    model.metadata = ModelMetadata(donor.metadata.preprocessing, made.as_dict())
    return report


def continue_from(model: MAE, donor: PretrainedModel) -> KeyReport:
    """Copy a masked autoencoder's weights into another one that goes on with its pretraining, in place.

    The voxel-wise regression stays as it is: it is fitted to the training studies, not learned from step to step.

    Args:
        model: What goes on; its window, regression and targets may be its own.
        donor: Where it goes on from.

    Returns:
        The keys.

    Raises:
        ConfigError: If the donor is no masked autoencoder, or its config differs otherwise.
    """
    if not isinstance(donor, MAE):
        raise ConfigError(f"pretraining goes on from a masked autoencoder, got a {type(donor).__name__}")
    ours, theirs = (flatten(asdict(config), "model.") for config in (model.config, donor.config))
    fixed = (key for key in ours if key.split(".")[1] not in _OF_TRAINING)
    pairs = {key: (theirs[key], ours[key]) for key in fixed if ours[key] != theirs[key]}
    if pairs:
        said = ", ".join(f"{key} {its} where this run has {own}" for key, (its, own) in pairs.items())
        raise ConfigError(
            f"the weights to start from have {said}: set the run's as theirs (modalities are added to weights with "
            "bmmae.checkpoint.add_modality and save_model)"
        )
    state = {key: value for key, value in donor.state_dict().items() if not key.startswith(_SYNTHESIS)}
    own = {key: value for key, value in model.state_dict().items() if key.startswith(_SYNTHESIS)}
    return load_state(model, {**state, **own}, "the weights to start from")

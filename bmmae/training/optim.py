"""The optimiser and its schedule. The schedule counts optimiser steps, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import nn

from bmmae.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule.

    Attributes:
        kind: `adamw`; or `muon`, which turns the updates of the blocks' weight matrices into orthogonal ones as large
            as AdamW's (Jordan 2024, as timm implements it) and leaves the others to AdamW, with Nesterov momentum; or
            `muon_convolutions`, which does so for 3D convolutions, those of heads apart, and nothing else.
        lr: Peak learning rate, reached at the end of the warm-up.
        weight_decay: Decoupled weight decay; not applied to norms, biases, embeddings and tokens.
        betas: Decay rates of AdamW's running means.
        eps: AdamW's denominator offset.
        schedule: After the warm-up, `cosine` falls to `lr * final_lr_fraction`; `constant` stays.
        warmup_steps: Optimiser steps of linear warm-up.
        warmup_epochs: The same in epochs (give one of the two).
        schedule_steps: Steps the cosine is laid over, if not those that are run: a longer one is cut off early.
        schedule_epochs: The same in epochs (give one of the two).
        final_lr_fraction: Share of `lr` that is left at the cosine's last step.
        clip_norm: Largest global gradient norm; null for no clipping.
        layer_decay: Factor on the learning rate per layer, from the last layer down (timm); null for none.
        frozen_steps: Optimiser steps for which the encoder stays as it is, so that a new head learns first.
    """

    kind: Literal["adamw", "muon", "muon_convolutions"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_epochs: int | None = None
    schedule_steps: int | None = None
    schedule_epochs: int | None = None
    final_lr_fraction: float = 0.0
    clip_norm: float | None = 1.0
    layer_decay: float | None = None
    frozen_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"optim.lr must be positive, got {self.lr}.")
        for name in ("weight_decay", "eps", "warmup_steps", "warmup_epochs", "frozen_steps"):
            _require(name, getattr(self, name), 0, math.inf, "zero or more")
        for name in ("schedule_steps", "schedule_epochs"):
            _require(name, getattr(self, name), 1, math.inf, "at least 1")
        _require("final_lr_fraction", self.final_lr_fraction, 0, 1, "from 0 to 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay}; null turns it off.")
        if not all(0 <= rate < 1 for rate in self.betas):
            raise ConfigError(f"optim.betas must lie in [0, 1), got {self.betas}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optim.clip_norm must be positive, got {self.clip_norm}; null turns it off.")
        if self.warmup_steps and self.warmup_epochs is not None:
            raise ConfigError("Give optim.warmup_steps or optim.warmup_epochs, not both; null unsets warmup_epochs.")
        if self.schedule_steps is not None and self.schedule_epochs is not None:
            raise ConfigError("Give optim.schedule_steps or optim.schedule_epochs, not both; null unsets either.")


def _require(name: str, value: int | float | None, least: int, most: int | float, said: str) -> None:
    if value is not None and not least <= value <= most:
        raise ConfigError(f"optim.{name} must be {said}, got {value}.")


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the optimiser step.

    Attributes:
        peak: Learning rate at the end of the warm-up.
        warmup: Steps of warm-up; step `warmup - 1` is the first at the peak.
        horizon: Steps the cosine is laid over; step `horizon - 1` is exactly at `peak * final_fraction`.
        final_fraction: Share of the peak that is left at the end.
        shape: `cosine` or `constant`.
    """

    peak: float
    warmup: int
    horizon: int
    final_fraction: float = 0.0
    shape: Literal["cosine", "constant"] = "cosine"

    def __call__(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        top, last = max(self.warmup - 1, 0), self.horizon - 1
        if self.shape == "constant" or last <= top:
            return self.peak
        progress = min((step - top) / (last - top), 1.0)
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * share)


def make_schedule(config: OptimConfig, steps: int, steps_per_epoch: Fraction | float) -> Schedule:
    """Lay the schedule over a run of `steps` optimiser steps.

    Raises:
        ConfigError: The warm-up does not fit into the schedule.
    """
    warmup, horizon = config.warmup_steps, config.schedule_steps or steps
    if config.warmup_epochs is not None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule_epochs is not None:
        horizon = math.ceil(config.schedule_epochs * steps_per_epoch)
    if warmup >= horizon > 1:
        raise ConfigError(
            f"The warm-up ({warmup} steps) must be shorter than the schedule ({horizon} steps): "
            "lower optim.warmup_steps or optim.warmup_epochs, or train longer."
        )
    return Schedule(config.lr, warmup, horizon, config.final_lr_fraction, config.schedule)


def undecayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay must leave alone: norms, biases, embeddings, tokens.

    That is: everything of at most one axis, the tables of `nn.Embedding`, parameters called `...token` or `...embed`
    or `...embedding`, and what the model's own `no_weight_decay()` lists (timm's convention).
    """
    own = getattr(model, "no_weight_decay", None)
    names = set(own()) if callable(own) else set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            leaf = name.rpartition(".")[2]
            special = isinstance(module, nn.Embedding) or leaf.endswith(("token", "embed", "embedding"))
            if special or parameter.ndim <= 1:
                names.add(name)
    return names


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """The model's trainable parameters, with and without weight decay, each group with its `lr_scale`.

    Raises:
        ConfigError: Layer decay is asked for, and the model does not say what its layers are.
    """
    plain = undecayed_names(model)
    if config.layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        if not hasattr(model, "group_matcher"):
            raise ConfigError(
                f"optim.layer_decay needs a model that says what its layers are; {type(model).__name__} has no "
                "group_matcher(): set optim.layer_decay to null."
            )
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=plain, layer_decay=config.layer_decay
        )
        return groups
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups = [
        {"params": [v for n, v in trainable if n not in plain], "weight_decay": config.weight_decay},
        {"params": [v for n, v in trainable if n in plain], "weight_decay": 0.0},
    ]
    return [group | {"lr_scale": 1.0} for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimiser over `parameter_groups`, AdamW fused where the device has a fused form.

    Raises:
        ConfigError: The model has no trainable parameter, or none that Muon is asked to update.
    """
    groups = parameter_groups(model, config)
    if config.frozen_steps:
        groups = _encoder_apart(groups, model, config.frozen_steps)
    if not groups:
        raise ConfigError("The model has no trainable parameter: unfreeze some before training.")
    if config.kind != "adamw":
        return _muon(groups, model, config)
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device in {"cpu", "cuda", "mps"}
    )


def _muon(groups: list[dict[str, Any]], model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Muon for what the config names, AdamW for the rest (timm's `use_fallback`)."""
    from timm.optim import Muon

    chosen = {id(value) for name, value in model.named_parameters() if _is_orthogonal(name, value, config)}
    if not any(id(value) in chosen for group in groups for value in group["params"]):
        what = "matrix of a transformer block" if config.kind == "muon" else "3D convolution outside the heads"
        raise ConfigError(f"optim.kind is {config.kind}, but no {what} is trained here: set optim.kind to adamw")
    divided = _divided(groups, chosen, lambda inside: {"use_fallback": not inside})
    muon: torch.optim.Optimizer = Muon(divided, lr=config.lr, betas=config.betas, eps=config.eps, nesterov=True)
    return muon


def _is_orthogonal(name: str, value: nn.Parameter, config: OptimConfig) -> bool:
    """Tell whether Muon updates a parameter; a kernel is seen as one row of numbers for each entry of its first axis.

    That is an output channel, of a transposed convolution an input channel. What has fewer than four rows or columns,
    or one side more than 128 times as long as the other, timm leaves to AdamW all the same.
    """
    if config.kind == "muon":
        return "blocks." in name and value.ndim == 2
    return value.ndim == 5 and "heads." not in name


def _encoder_apart(groups: list[dict[str, Any]], model: nn.Module, frozen_steps: int) -> list[dict[str, Any]]:
    """Divide each group into the encoder's parameters, which wait for `frozen_steps`, and the others."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"optim.frozen_steps needs a model with an encoder; {type(model).__name__} has none.")
    ids = {id(parameter) for parameter in encoder.parameters()}
    return _divided(groups, ids, lambda inside: {"frozen_steps": frozen_steps if inside else 0})


def _divided(
    groups: list[dict[str, Any]], chosen: set[int], more: Callable[[bool], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Divide each group into the parameters whose `id` is among the chosen ones and the others.

    Args:
        groups: What to divide.
        chosen: Of parameters.
        more: What the new groups say in addition, for the chosen ones and for the others.
    """
    divided = []
    for group in groups:
        for inside in (True, False):
            part = [parameter for parameter in group["params"] if (id(parameter) in chosen) == inside]
            if part:
                rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
                divided.append({**rest, "params": part, **more(inside)})
    return divided


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float, step: int = 0) -> None:
    """Give each group its share of the learning rate of optimiser step `step`; none while it is frozen."""
    for group in groups:
        group["lr"] = 0.0 if step < group.get("frozen_steps", 0) else lr * group.get("lr_scale", 1.0)

"""One model of several: the mean of the weights of trainings that began at the same ones.

Fine-tunings from one start lie in one basin of the loss, and their mean is often better than each of them, at the cost
of one in use: a "model soup" (Wortsman et al., ICML 2022, arXiv 2203.05482; all of them alike, their "uniform soup").
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from bmmae.checkpoint import describe, preprocessing_of, provenance_of
from bmmae.errors import ConfigError, few
from bmmae.model.pretrained import PretrainedModel
from bmmae.provenance import Provenance
from bmmae.schema import flatten, to_dict


def average_models(models: Mapping[str, PretrainedModel]) -> PretrainedModel:
    """Return a model whose parameters are the means of those of several.

    Args:
        models: Two or more, by the name that messages call them. They have the same configuration and preprocessing,
            and their trainings began at the same weights.

    Returns:
        A new model, in eval mode. It has been trained on what all of them have, and was measured on nothing.

    Raises:
        ConfigError: If there is one model only, or they are no such family.
        CheckpointError: If what a model carries is no provenance.
    """
    if len(models) < 2:
        raise ConfigError(f"expected two models or more to average, got {few(models) or 'none'}")
    (first, model), *others = models.items()
    for name, other in others:
        _require_alike(f"{first} and {name}", model, other)
    merged = _merged([provenance_of(each) for each in models.values()], list(models))
    averaged = copy.deepcopy(model).eval()
    parts = [dict(each.named_parameters()) for each in models.values()]
    with torch.no_grad():
        for name, value in averaged.named_parameters():
            value.copy_(torch.stack([part[name].double().to(value.device) for part in parts]).mean(0))
    describe(averaged, provenance=merged.changed(model.kind, f"the mean of the weights of {len(models)} trainings"))
    return averaged


def _require_alike(names: str, model: PretrainedModel, other: PretrainedModel) -> None:
    """Refuse two models whose weights do not stand for the same."""
    if model.kind != other.kind:
        raise ConfigError(f"{names} are of two kinds, '{model.kind}' and '{other.kind}': they have no mean")
    ours, theirs = (
        flatten({**to_dict(each.config), "preprocessing": to_dict(preprocessing_of(each))}) for each in (model, other)
    )
    unlike = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if unlike:
        raise ConfigError(f"{names} differ in {few(unlike)}: only models of the same configuration have a mean")
    mine = dict(model.named_buffers())
    odd = [name for name, value in other.named_buffers() if not _same(mine[name], value)]
    if odd:
        raise ConfigError(
            f"{names} differ in what was fitted and not learned in steps ({few(odd)}), such as the voxel-wise "
            "regression of other studies: that has no mean"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.cpu().double(), other.cpu().double(), equal_nan=True)


def _merged(origins: Sequence[Provenance], names: Sequence[str]) -> Provenance:
    """Return what holds of all trainings together.

    Raises:
        ConfigError: If they did not begin at the same weights.
    """
    first = origins[0]
    starts = {(origin.parent, origin.parent_hashes) for origin in origins}
    if len(starts) > 1 or first.parent is None:
        told = ", ".join(
            f"{name} {'random ones' if origin.parent is None else origin.parent}"
            for name, origin in zip(names, origins, strict=True)
        )
        raise ConfigError(
            f"the trainings did not begin at the same weights ({told}): the mean of models from different ones, or "
            "from random ones, is worth nothing. Fine-tune all from one --model, with other seeds or studies"
        )
    alike = all(origin.content_hashes == first.content_hashes for origin in origins)
    return replace(
        first,
        data="; ".join(dict.fromkeys(origin.data for origin in origins))
        + ("" if alike else " (not all the same ones)"),
        subjects=first.subjects if alike else None,
        content_hashes=_union(origin.content_hashes for origin in origins),
        selection_hashes=_union(origin.selection_hashes for origin in origins),
        synthetic=any(origin.synthetic for origin in origins),
        limits=tuple(dict.fromkeys(limit for origin in origins for limit in origin.limits)),
        population=first.population if alike else None,
    )


def _union(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(set(chain.from_iterable(parts))))

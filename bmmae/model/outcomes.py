"""What the outputs of a patient model's heads mean: probabilities, survival curves, risks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bmmae.arrays import Float, Tensor
from bmmae.errors import ConfigError
from bmmae.targets import Target


def probabilities(target: Target, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B C"]:
    """Return the probability of each class (they add up to one), or of yes in each column of a multi-label target.

    Raises:
        ConfigError: If the target has no classes.
    """
    scores = logits.float()
    if target.kind == "binary":
        positive = scores.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)
    if target.kind == "multilabel":
        return scores.sigmoid()
    if not target.classes:
        raise ConfigError(f"target '{target.name}' of kind {target.kind} has no classes: ask for risk or survival")
    return scores.softmax(dim=1)


def survival(target: Target, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B T"]:
    """Return the chance to live past each of the target's months (`target.edges`).

    Raises:
        ConfigError: If the target is no survival target, or a Cox one whose baseline has not been fitted.
    """
    if target.kind == "hazard":
        return F.logsigmoid(-logits.float()).cumsum(dim=1).exp()
    if target.kind == "survival_classes":
        return (1 - probabilities(target, logits).cumsum(dim=1))[:, :-1]
    if target.kind == "cox" and target.baseline:
        baseline = torch.tensor(target.baseline, device=logits.device)
        return (-baseline * logits.float().exp()).exp()
    raise ConfigError(f"target '{target.name}' of kind {target.kind} gives no survival curve")


def survival_at(target: Target, logits: Float[Tensor, "B K"], months: tuple[float, ...]) -> Float[Tensor, "B T"]:
    """Return the chance to live past any months: the hazard is constant between edges; after the last one nobody dies.

    Past the longest follow-up of the training fold, where it is known, the chance is not: NaN.

    Raises:
        ConfigError: As `survival`.
    """
    curve = survival(target, logits)
    logarithm = torch.cat([torch.zeros_like(curve[:, :1]), curve.clamp(min=1e-30).log()], dim=1)
    edges = torch.tensor((0.0, *target.edges), device=logits.device)
    wanted = torch.tensor(months, device=logits.device).clamp(max=edges[-1])
    upper = torch.searchsorted(edges, wanted).clamp(min=1)
    share = (wanted - edges[upper - 1]) / (edges[upper] - edges[upper - 1])
    chances = (logarithm[:, upper - 1] * (1 - share) + logarithm[:, upper] * share).exp()
    unknown = [not target.followed_to(month) for month in months]
    return chances.masked_fill(torch.tensor(unknown, dtype=torch.bool, device=logits.device), torch.nan)


def risk(target: Target, logits: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Return a number that is higher for patients who are expected to die sooner.

    Cox: the log hazard ratio. Hazard: minus the mean months lived before the last edge, the curve taken as straight
    between edges. Survival classes: minus the mean number of the class. Numbers of different models do not compare.

    Raises:
        ConfigError: If the target is no survival target.
    """
    if target.kind == "cox":
        return logits[:, 0].float()
    if target.kind == "survival_classes":
        chances = probabilities(target, logits)
        return -(chances * torch.arange(chances.shape[1], device=logits.device)).sum(1)
    curve = survival(target, logits)
    edges = torch.tensor((0.0, *target.edges), device=logits.device)
    curve = torch.cat([torch.ones_like(curve[:, :1]), curve], dim=1)
    return -((curve[:, 1:] + curve[:, :-1]) / 2 * edges.diff()).sum(1)


def baseline_hazard(
    log_risk: Float[Tensor, " N"], time: Float[Tensor, " N"], event: Float[Tensor, " N"], edges: tuple[float, ...]
) -> tuple[float, ...]:
    """Return Breslow's cumulative baseline hazard at some months (the patients are the training fold's).

    Args:
        log_risk: As `risk` gives it.
        time: Months; NaN = not known.
        event: 1 = died then.
        edges: Months at which it is wanted.
    """
    known = ~time.isnan()
    weight, month, died = log_risk[known].double().exp(), time[known].double(), event[known].double()
    at_risk = ((month[None, :] >= month[:, None]) * weight[None, :]).sum(1)
    steps = died / at_risk
    return tuple(float(steps[month <= edge].sum()) for edge in edges)

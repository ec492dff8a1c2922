"""The schedule is a pure function of the step; weight decay leaves norms, biases, embeddings and tokens alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bmmae.errors import ConfigError
from bmmae.training.optim import (
    OptimConfig,
    Schedule,
    make_optimizer,
    make_schedule,
    parameter_groups,
    set_learning_rate,
    undecayed_names,
)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.special = nn.Parameter(torch.zeros(2, 2))
        self.patch_embed = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(3, 4)

    def no_weight_decay(self) -> set[str]:
        return {"special"}


class Stack(nn.Sequential):
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"blocks": r"^(\d+)"}


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    schedule = Schedule(peak=1.0, warmup=4, horizon=10)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("fraction", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_cosine_ends_exactly_where_it_says(fraction: float, warmup: int) -> None:
    schedule = Schedule(peak=3e-4, warmup=warmup, horizon=100, final_fraction=fraction)
    assert schedule(99) == 3e-4 * fraction
    assert schedule(max(warmup - 1, 0)) == 3e-4


def test_the_cosine_falls_all_the_way() -> None:
    rates = [Schedule(peak=1.0, warmup=2, horizon=50)(step) for step in range(1, 50)]
    assert rates == sorted(rates, reverse=True)


def test_a_cosine_can_be_laid_over_more_than_is_run() -> None:
    published = make_schedule(
        OptimConfig(schedule_epochs=1500, warmup_epochs=50), steps=1000 * 10, steps_per_epoch=10.0
    )
    assert published.horizon == 15_000
    assert published.warmup == 500
    assert published(9_999) > 0.2 * published.peak


def test_a_constant_schedule_stays() -> None:
    schedule = Schedule(peak=1.0, warmup=2, horizon=5, shape="constant")
    assert [schedule(step) for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_a_warm_up_longer_than_the_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warm-up \(20 steps\) must be shorter than the schedule \(10 steps\)"):
        make_schedule(OptimConfig(warmup_steps=20), steps=10, steps_per_epoch=5.0)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"clip_norm": 0.0}, "optim.clip_norm"),
        ({"warmup_steps": 1, "warmup_epochs": 1}, "warmup_steps or optim.warmup_epochs"),
        ({"schedule_steps": 1, "schedule_epochs": 1}, "schedule_steps or optim.schedule_epochs"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        OptimConfig(**wrong)  # type: ignore[arg-type]


def test_norms_biases_embeddings_and_tokens_do_not_decay() -> None:
    plain = undecayed_names(Tokens())
    assert {name for name, _ in Tokens().named_parameters()} - plain == {"patch_embed.weight"}


def test_every_parameter_is_in_one_group() -> None:
    model = Tokens()
    model.special.requires_grad = False
    grouped = [id(value) for group in parameter_groups(model, OptimConfig()) for value in group["params"]]
    assert sorted(grouped) == sorted(id(value) for value in model.parameters() if value.requires_grad)


def test_layer_decay_scales_the_rate_of_early_layers_down() -> None:
    model = Stack(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = make_optimizer(model, OptimConfig(layer_decay=0.5))
    set_learning_rate(optimizer.param_groups, 1.0)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert [rates[id(layer.weight)] for layer in model] == [0.25, 0.5, 1.0]


def test_layer_decay_needs_to_know_the_layers() -> None:
    with pytest.raises(ConfigError, match=r"optim.layer_decay needs .* Linear has no group_matcher"):
        parameter_groups(nn.Linear(2, 2), OptimConfig(layer_decay=0.5))


def test_a_frozen_model_cannot_be_optimised() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_muon_turns_the_matrices_of_blocks_and_leaves_the_rest_to_adamw() -> None:
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 6)), "head": nn.Linear(6, 2)})
    optimizer = make_optimizer(model, OptimConfig(kind="muon", lr=0.1, weight_decay=0.0))
    matrix, head = model["blocks"][0].weight, model["head"].weight  # type: ignore[index]
    before = [value.detach().clone() for value in (matrix, head)]
    torch.manual_seed(0)
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    set_learning_rate(optimizer.param_groups, 0.1)
    optimizer.step()
    singular = torch.linalg.svdvals((matrix - before[0]).detach())
    assert singular.max() / singular.min() < 3
    first = torch.full_like(head, 0.19)  # with Nesterov momentum: lr * (1 + beta) for any gradient
    torch.testing.assert_close((head - before[1]).detach().abs(), first, rtol=1e-3, atol=0)


def test_muon_of_convolutions_turns_kernels_and_leaves_blocks_and_heads_to_adamw() -> None:
    model = nn.ModuleDict(
        {"down": nn.Conv3d(3, 6, 3), "blocks": nn.Sequential(nn.Linear(4, 6)), "heads": nn.Conv3d(6, 2, 3)}
    )
    optimizer = make_optimizer(model, OptimConfig(kind="muon_convolutions", lr=0.1, weight_decay=0.0))
    kernel, matrix, head = (model[name].get_parameter(part) for name, part in _WEIGHTS)
    before = [value.detach().clone() for value in (kernel, matrix, head)]
    torch.manual_seed(0)
    for value in model.parameters():
        value.grad = torch.randn_like(value)
    set_learning_rate(optimizer.param_groups, 0.1)
    optimizer.step()
    singular = torch.linalg.svdvals((kernel - before[0]).detach().flatten(1))  # one row an output channel
    assert singular.max() / singular.min() < 3
    for value, old in ((matrix, before[1]), (head, before[2])):
        first = torch.full_like(value, 0.19)
        torch.testing.assert_close((value - old).detach().abs(), first, rtol=1e-3, atol=0)


_WEIGHTS = (("down", "weight"), ("blocks", "0.weight"), ("heads", "weight"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": float("nan")}, r"optim\.lr must be positive, got nan"),
        ({"betas": (0.9, 1.5)}, r"optim\.betas must lie in \[0, 1\), got \(0\.9, 1\.5\)"),
        ({"eps": -1.0}, r"optim\.eps must be zero or more, got -1\.0"),
        ({"weight_decay": -1.0}, r"optim\.weight_decay must be zero or more"),
        ({"warmup_steps": -5}, r"optim\.warmup_steps must be zero or more"),
        ({"schedule_steps": 0}, r"optim\.schedule_steps must be at least 1, got 0"),
        ({"schedule_epochs": -5}, r"optim\.schedule_epochs must be at least 1"),
        ({"final_lr_fraction": 3.0}, r"optim\.final_lr_fraction must be from 0 to 1"),
        ({"layer_decay": 1.5}, r"optim\.layer_decay must lie in \(0, 1\], got 1\.5; null turns it off"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)

"""Weights, gradients and optimiser state divided over the ranks (FSDP), for models whose training takes much memory.

Each transformer block is gathered when it is needed and let go again; the rest of the model stays gathered for a step.
Checkpoints hold whole tensors, the same as without sharding: a run may go on with other ranks, or with one. What is
evaluated, drawn and saved is a whole copy of the weights on each rank, for ranks may have different numbers of
validation batches, and must not wait for each other there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from bmmae.errors import ConfigError
from bmmae.training.plan import TrainConfig

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def asks_for_sharding(accelerator: Any) -> bool:
    """Whether the launch configuration says FSDP, and there is more than one rank to divide over."""
    # On CPUs Accelerate reads the variable and forgets it.
    asked = accelerator.distributed_type.value == "FSDP" or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return asked and accelerator.num_processes > 1


def refuse_what_cannot_be_sharded(train: TrainConfig) -> None:
    """Check a configuration for what does not go together with sharding.

    Raises:
        ConfigError: A running mean of the weights, or compiled blocks.
    """
    for name, asked in (("ema_decay", train.ema_decay is not None), ("compile", train.compile)):
        if asked:
            raise ConfigError(
                f"train.{name} does not go together with FSDP: leave it out, or use one of the other configurations in "
                "configs/accelerate/ (DDP)."
            )


@dataclass(frozen=True)
class Sharded:
    """A model whose parameters are divided over the ranks.

    Attributes:
        model: The model that is trained.
        optimizer: Its optimiser.
        whole: A copy with whole weights, as of the last `refresh`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    whole: nn.Module

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copy up to date; all ranks must call this."""
        for kept, divided in zip(_tensors(self.whole), _tensors(self.model), strict=True):
            kept.copy_(divided.full_tensor() if isinstance(divided, DTensor) else divided)


def shard(
    model: nn.Module, optimizer: torch.optim.Optimizer, make_optimizer: MakeOptimizer, accelerator: Any
) -> Sharded:
    """Divide a model and its optimiser's state over the ranks.

    Gradients are brought together in every micro-step: to keep whole ones until the last would cost what is saved here.

    Args:
        model: On its device; changed in place. All ranks get the weights of the first.
        optimizer: Its optimiser, fresh or restored.
        make_optimizer: Makes the same optimiser for the divided parameters.
        accelerator: Knows device and ranks.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # channels-last weights cannot be divided
    for tensor in _tensors(model):
        torch.distributed.broadcast(tensor.detach(), src=0)
    whole = copy.deepcopy(model)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for name, module in model.named_modules():
        if name.split(".")[-1] == "blocks":
            for block in module.children():
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    divided = make_optimizer(model)
    divided.load_state_dict(_divided(optimizer.state_dict(), divided))
    return Sharded(model, divided, whole)


def _divided(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Cut what belongs to each parameter as that parameter is cut; both number parameters in the same order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moved = {
        number: {key: _like(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": moved}


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this rank's part of each tensor, sharing its memory."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def gathered(tree: Any) -> Any:
    """Return the same tree with whole tensors, on the CPU, for divided ones; all ranks must call this."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [gathered(value) for value in tree]
    return tree


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]

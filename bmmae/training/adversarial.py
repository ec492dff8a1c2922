"""The alternating loop: generators learn to pass their judges, judges learn to tell what was made; step by step.

It stands beside `bmmae.training.fit`, which minimises one loss. Slices are drawn by address (seed, step), and a
checkpoint holds both optimisers, so a resumed run is the uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bmmae.baselines.budget import Budget
from bmmae.baselines.cyclegan import CycleGAN, SlicePairs, slice_pairs
from bmmae.data.loaders import sample_generator
from bmmae.data.preprocess import PreparedStudy
from bmmae.errors import TrainingError
from bmmae.training.checkpointing import list_checkpoints, read_state, remove_old_checkpoints, write_checkpoint


@dataclass(frozen=True)
class AdversarialConfig:
    """How a CycleGAN is trained. Defaults are those of arXiv 2110.03588 where it says them.

    Attributes:
        budget: How long.
        batch: Pairs of slices a step.
        lr: Learning rate of both Adam optimisers, constant.
        betas: Their decay rates (those of CycleGAN, arXiv 1703.10593).
        seed: Of the order of slices.
        checkpoint_every: Steps between checkpoints, where there is a run folder; the end is always saved.
    """

    budget: Budget
    batch: int = 1
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    seed: int = 0
    checkpoint_every: int = 500


@dataclass(frozen=True)
class AdversarialResult:
    """What came of it.

    Attributes:
        steps: Steps done, those before a resume included.
        seconds: Computing seconds, see `Budget`.
        generator_loss: Mean over the last hundred steps of this process; NaN if none was taken.
        discriminator_loss: The same.
    """

    steps: int
    seconds: float
    generator_loss: float
    discriminator_loss: float


class _Alternation:
    """Model, both optimisers, and how far they are."""

    def __init__(self, model: CycleGAN, config: AdversarialConfig) -> None:
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        parts = (model.generators(), model.discriminators())
        self.optimizers = [torch.optim.Adam(part, lr=config.lr, betas=config.betas) for part in parts]
        self.step, self.seconds = 0, 0.0

    def take(self, pairs: Sequence[SlicePairs]) -> tuple[float, float]:
        """Take one step of each; return the losses of generators and discriminators.

        Raises:
            TrainingError: If one is not finite.
        """
        x, y = self._draw(pairs)
        generators, discriminators = self.optimizers
        _require_gradient(self.model.discriminators(), wanted=False)
        loss, made_y, made_x = self.model.generator_loss(x, y)
        _descend(generators, loss)
        _require_gradient(self.model.discriminators(), wanted=True)
        judged = self.model.discriminator_loss(x, y, made_y, made_x)
        _descend(discriminators, judged)
        self.step += 1
        losses = float(loss.detach()), float(judged.detach())
        if not all(map(math.isfinite, losses)):
            raise TrainingError(f"a loss is NaN or infinite at step {self.step}: {losses}; lower lr")
        return losses

    def _draw(self, pairs: Sequence[SlicePairs]) -> tuple[Tensor, Tensor]:
        """Slices of one study, chosen by the step's address."""
        rng = sample_generator(self.config.seed, self.step, 0, purpose="slices")
        study = pairs[int(rng.integers(len(pairs)))]
        chosen = [study.pairs[index] for index in rng.integers(len(study.pairs), size=self.config.batch)]
        first, second = zip(*chosen, strict=True)
        return (
            torch.from_numpy(study.first[list(first)]).to(self.device),
            torch.from_numpy(study.second[list(second)]).to(self.device),
        )

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "config": _identity(self.model, self.config),
        }

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        if state["config"] != _identity(self.model, self.config):
            raise TrainingError(f"{folder} is a checkpoint of another training: choose another run folder")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def train_adversarially(
    model: CycleGAN, studies: Iterable[PreparedStudy], config: AdversarialConfig, run_dir: Path | None = None
) -> AdversarialResult:
    """Train a CycleGAN in place, generators and discriminators in turns.

    Args:
        model: What to train.
        studies: Training studies, prepared as `model.preprocess` says; those that lack a modality are left out.
        config: How.
        run_dir: Where checkpoints go; a run whose checkpoints are there already goes on from the last.

    Raises:
        TrainingError: If no study has both modalities, a loss is not finite, or the checkpoints are of another run.
        CheckpointError: If the last checkpoint is damaged.
        OutputError: If the run folder cannot be written.
    """
    found = (slice_pairs(study, model.config) for study in studies)
    pairs = [each for each in found if each is not None and each.pairs]
    if not pairs:
        raise TrainingError(f"no training study has both {model.config.first} and {model.config.second}")
    run = _Alternation(model, config)
    saved = list_checkpoints(run_dir) if run_dir else []
    if saved:
        run.restore(read_state(saved[0]), saved[0])
    running = config.budget.start(run.device, run.seconds)
    losses: list[tuple[float, float]] = []
    model.train()
    while running.share(run.step) < 1:
        losses = [*losses[-99:], run.take(pairs)]
        run.seconds = running.spent()
        if run_dir and run.step % config.checkpoint_every == 0:
            _save(run, run_dir)
    model.eval()
    if run_dir and losses and run.step % config.checkpoint_every:
        _save(run, run_dir)
    means = [sum(column) / len(losses) for column in zip(*losses, strict=True)] or [math.nan, math.nan]
    return AdversarialResult(run.step, run.seconds, *means)


def _save(run: _Alternation, run_dir: Path) -> None:
    write_checkpoint(run_dir, run.step, run.model, run.state(), _save_weights)
    remove_old_checkpoints(run_dir, run.step, None, keep=1)


def _save_weights(model: nn.Module, folder: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _require_gradient(parameters: Iterable[nn.Parameter], *, wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def _identity(model: CycleGAN, config: AdversarialConfig) -> dict[str, Any]:
    """What a resumed run must share with the interrupted one; the budget may be extended."""
    training = {key: value for key, value in asdict(config).items() if key not in {"budget", "checkpoint_every"}}
    return {"model": asdict(model.config), "training": training}

"""A toy model, task and dataset, and a script that trains them: what the tests of the loop run in other processes.

Usage: python toy_training.py RUN_DIR [--KEY VALUE ...], keys being those of `settings`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bmmae.data.loaders import Address, Batch, sample_generator
from bmmae.tasks.task import StepOutput
from bmmae.training import FitResult, OptimConfig, TrainConfig, fit
from bmmae.training.devices import end_process

WIDTH = 6


@dataclass
class ToyDataset:
    """Noisy linear data; how many targets count varies from sample to sample."""

    length: int = 22
    seed: int = 0
    broken: int | None = None  # this sample raises
    deadly: int | None = None  # this sample kills its process
    infected: int | None = None  # this sample holds a NaN
    slow: float = 0.0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, address: Address) -> dict[str, Tensor | str]:
        epoch, index = address
        if index == self.broken:
            raise ValueError("the file is torn")
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.slow)
        rng = sample_generator(self.seed, epoch, index)
        x = torch.from_numpy(rng.normal(size=WIDTH)).float()
        if index == self.infected:
            x[0] = float("nan")
        y = x.sum() * torch.arange(3) + torch.from_numpy(rng.normal(size=3)).float() * 0.1
        return {"x": x, "y": y, "counted": torch.arange(3) <= index % 3, "subject": f"patient-{index}"}


class ToyModel(nn.Module):
    """A perceptron with dropout, to have something random in it."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class ToyTask:
    """Squared error over the targets that count."""

    selection = ("error", "min")

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        x, y, counted = (batch[key] for key in ("x", "y", "counted"))
        assert isinstance(x, Tensor)
        assert isinstance(y, Tensor)
        assert isinstance(counted, Tensor)
        output = model(x)
        loss = ((output.float() - y) ** 2 * counted).sum()
        error = ((output.detach().float() - y).abs() * counted).sum()
        return StepOutput(loss, counted.sum(), {"error": (error, counted.sum())})

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        return self.step(model, batch)


class StopsAt(ToyTask):
    """Behaves as if a signal came during a step, or during an evaluation."""

    def __init__(self, step: int, during: str = "step", number: signal.Signals = signal.SIGTERM) -> None:
        self.left, self.during, self.number = step, during, number

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def step(self, model: nn.Module, batch: Batch) -> StepOutput:
        if self.during == "step":
            self._count()
        return super().step(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> StepOutput:
        if self.during == "evaluation":
            self._count()
        return super().step(model, batch)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def save_toy(model: nn.Module, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    torch.save(model.state_dict(), folder / "weights.bin")


def settings(**changes: object) -> TrainConfig:
    """A short quiet run."""
    values = {"steps": 12, "batch_size": 4, "precision": "no", "workers": 0, "seed": 3, "log_every": 1}
    values |= {"evaluate_every": 4, "checkpoint_every": 4, "progress": False}
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def train_toy(
    run_dir: Path,
    *,
    dataset: ToyDataset | None = None,
    validate: bool = True,
    dropout: float = 0.2,
    optim: OptimConfig | None = None,
    task: ToyTask | None = None,
    **changes: object,
) -> tuple[ToyModel, FitResult]:
    torch.manual_seed(0)
    model = ToyModel(dropout)
    result = fit(
        model,
        task or ToyTask(),
        dataset or ToyDataset(),
        ToyDataset(length=7, seed=9) if validate else None,
        train=settings(**changes),
        optim=optim or OptimConfig(lr=1e-2, warmup_steps=1),
        run_dir=run_dir,
        save_model=save_toy,
    )
    return model, result


def rows(run_dir: Path, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of each line of metrics.jsonl that has the key."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


def main() -> None:
    run_dir, options = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    parsed = {key.removeprefix("--"): json.loads(value) for key, value in options.items()}
    dropout, slow = parsed.pop("dropout", 0.2), parsed.pop("slow", 0.0)
    torch.set_num_threads(1)
    _, result = train_toy(run_dir, dropout=dropout, dataset=ToyDataset(slow=slow), **parsed)
    end_process(result.exit_code)


if __name__ == "__main__":
    main()

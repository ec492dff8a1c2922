"""How long a comparator may train: the same computing for all, whatever else the machine does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bmmae.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """Seconds or steps; give one of the two.

    Attributes:
        seconds: On a CPU, processor seconds of this process over torch's threads: what a wall clock shows on a machine
            that does nothing else. On other devices, seconds of the wall clock.
        steps: Optimiser steps.
    """

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ConfigError(f"give a budget in seconds or in steps, got {self.seconds} and {self.steps}")
        if not (self.seconds or self.steps or 0) > 0:
            raise ConfigError(f"a budget must be positive, got {self.steps if self.seconds is None else self.seconds}")

    def start(self, device: str | torch.device = "cpu", spent: float = 0.0) -> RunningBudget:
        """Start the clock.

        Args:
            device: Where the computing happens.
            spent: Seconds of it that were spent before, say in a run that is resumed.
        """
        return RunningBudget(self, torch.device(device).type, spent)


class RunningBudget:
    """A budget whose clock runs."""

    def __init__(self, budget: Budget, device: str, spent: float) -> None:
        self.budget, self.device = budget, device
        self._since = computing_seconds(device) - spent

    def spent(self) -> float:
        """Seconds so far."""
        return computing_seconds(self.device) - self._since

    def leave_out(self, work: Callable[[], object]) -> None:
        """Do something while the clock stands still, such as judging what has been learned so far."""
        before = computing_seconds(self.device)
        work()
        self._since += computing_seconds(self.device) - before

    def share(self, steps: int) -> float:
        """Return which share of the budget is used up after so many steps; 1 and more: stop."""
        if self.budget.steps is not None:
            return steps / self.budget.steps
        return self.spent() / (self.budget.seconds or 1.0)


def computing_seconds(device: str = "cpu") -> float:
    """Return a clock of computing; only differences mean anything. See `Budget.seconds`."""
    return time.process_time() / torch.get_num_threads() if device == "cpu" else time.perf_counter()

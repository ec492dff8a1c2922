"""The training loop, shared by pretraining and every fine-tuning."""

from __future__ import annotations

from bmmae.training.ahead import look_ahead
from bmmae.training.checkpointing import find_checkpoint
from bmmae.training.loop import FitResult, fit
from bmmae.training.optim import OptimConfig
from bmmae.training.plan import TrainConfig
from bmmae.training.tracking import Tracker

__all__ = ["FitResult", "OptimConfig", "Tracker", "TrainConfig", "find_checkpoint", "fit", "look_ahead"]

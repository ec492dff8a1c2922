"""What would stop `fit`, found out before data are prepared, which may take hours."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bmmae.errors import OutputError
from bmmae.training.batch_size import require_gpu
from bmmae.training.lock import refuse_running
from bmmae.training.optim import OptimConfig, make_schedule
from bmmae.training.plan import TrainConfig
from bmmae.training.resume import refuse_other_start
from bmmae.training.tracking import require_tracker


def look_ahead(train: TrainConfig, optim: OptimConfig, run_dir: Path) -> None:
    """Refuse what needs no data to be refused; a script calls this first.

    Raises:
        ConfigError: The tracker's library is not installed, the warm-up is longer than the schedule, or a batch size is
            to be found without a GPU.
        TrainingError: The run folder holds a run that is not to be resumed, or none that is to be, or one under way.
        OutputError: The run folder cannot be written.
    """
    if os.environ.get("RANK", "0") == "0":  # the others track and write nothing
        require_tracker(train.tracker)
        _require_writable(run_dir)
        refuse_running(run_dir)
    if train.steps is not None and optim.warmup_epochs is None and optim.schedule_epochs is None:
        make_schedule(optim, train.steps, steps_per_epoch=1.0)  # which only epochs ask for
    if train.find_batch_size:
        require_gpu("cuda" if torch.cuda.is_available() else "cpu")
    refuse_other_start(run_dir, train.resume)


def _require_writable(run_dir: Path) -> None:
    nearest = next(folder for folder in (run_dir, *run_dir.absolute().parents) if os.path.exists(folder))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"The run folder {run_dir} cannot be written: {nearest} is not a folder that you may write to. Choose "
            "another one (`out`)."
        )

"""What a run tells while it runs: metrics.jsonl, tracker, progress bar. Only the main process speaks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from bmmae.training.journal import NAME, Journal
from bmmae.training.plan import Plan
from bmmae.training.resume import Progress
from bmmae.training.run import StepReport
from bmmae.training.tracking import Tracker


class Records:
    """Writes rows to the journal and the tracker, and moves the bar. Use it as a context manager."""

    def __init__(self, run_dir: Path, plan: Plan, step: int, tracker: Tracker, *, main: bool, bar: bool):
        self.plan, self.tracker = plan, tracker
        self.journal = Journal(run_dir / NAME, step) if main else None
        self.bar = tqdm(initial=step, total=plan.steps, unit="step", disable=not (main and bar), desc="training")
        self._start_window()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.journal is not None:
            self.journal.close()
            self.tracker.close()

    def _start_window(self) -> None:
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def note_step(self, report: StepReport) -> None:
        """Count one step and show it on the bar."""
        self._waited += report.waited
        self._steps += 1
        self.bar.update()
        shown = f"loss {report.loss:.4g}, {self._rate():.3g} samples/s, {self._wait_share():.0%} waiting for data"
        self.bar.set_postfix_str(shown, refresh=False)

    def _wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._since, 1e-9)

    def _rate(self) -> float:
        return self._steps * self.plan.stream.global_batch / max(time.perf_counter() - self._since, 1e-9)

    def write_training(self, progress: Progress, report: StepReport, means: Mapping[str, float]) -> None:
        """Write the line of the steps since the last one: mean metrics, and this step's rate and gradient."""
        values: dict[str, float | int] = {f"train/{name}": value for name, value in means.items()}
        values |= {"lr": report.lr, "grad_norm": report.grad_norm, "skipped_steps": progress.skipped}
        values |= {"samples_per_s": self._rate(), "data_wait_share": self._wait_share()}
        self._write(progress.step, values)
        self._start_window()

    def write_validation(self, done: int, values: Mapping[str, float]) -> None:
        """Write the line of an evaluation, if there was one. Its time does not count as training time."""
        if values:
            self._write(done, {f"val/{name}": value for name, value in values.items()})
        self._start_window()

    def _write(self, done: int, values: Mapping[str, float | int]) -> None:
        if self.journal is not None:
            place = {"step": done, "epoch": self.plan.epoch(done), "samples": done * self.plan.stream.global_batch}
            self.journal.write(place | dict(values))
            self.tracker.log(values, done)

"""What a run tells while it runs: metrics.jsonl, tracker, progress bar. Only the main process speaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from bmmae.training.journal import NAME, Journal
from bmmae.training.plan import Plan
from bmmae.training.resume import Progress
from bmmae.training.run import StepReport
from bmmae.training.tracking import Tracker

BACKWARD = 3
"""A step takes about three times the operations of its forward pass."""


class Records:
    """Writes rows to the journal and the tracker, and moves the bar. Use it as a context manager.

    Args:
        run_dir: The run's folder.
        plan: The run in numbers.
        progress: How far the run has come before.
        tracker: Receives what the journal receives.
        peak: Measures the device's rate of operations; called once, if the task counts its operations.
        main: Whether this is the main process.
        bar: Whether to show a bar, and to tell the end.
    """

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        progress: Progress,
        tracker: Tracker,
        *,
        peak: Callable[[], float],
        main: bool,
        bar: bool,
    ) -> None:
        self.plan, self.tracker, self.peak = plan, tracker, peak
        self.journal = Journal(run_dir / NAME, progress.step, progress.evaluated) if main else None
        self.bar = tqdm(
            initial=progress.step, total=plan.steps, unit="step", disable=not (main and bar), desc="training"
        )
        self._speaks = main and bar
        self._shown_mfu = ""
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

    def tell(self, text: str) -> None:
        """Print a line, where there is a bar."""
        if self._speaks:
            print(text, flush=True)  # noqa: T201 - a program's output

    def _start_window(self) -> None:
        self._since, self._waited, self._steps, self._operations = time.perf_counter(), 0.0, 0, 0.0

    def note_step(self, report: StepReport) -> None:
        """Count one step and show it on the bar."""
        self._waited += report.waited
        self._steps += 1
        self._operations += BACKWARD * sum(output.operations for output in report.outputs)
        self.bar.update()
        shown = f"loss {report.loss:.4g}, {self._rate():.3g} samples/s, {self._wait_share():.0%} waiting for data"
        self.bar.set_postfix_str(shown + self._shown_mfu, refresh=False)

    def _wait_share(self) -> float:
        return self._waited / max(time.perf_counter() - self._since, 1e-9)

    def _rate(self) -> float:
        return self._steps * self.plan.stream.global_batch / max(time.perf_counter() - self._since, 1e-9)

    def _utilisation(self) -> dict[str, float]:
        """MFU: this process's operations a second, as a share of what its device does in matrix products."""
        elapsed = time.perf_counter() - self._since  # before the peak is measured, which takes time of its own
        if self.journal is None or not self._operations:
            return {}
        mfu = self._operations / max(elapsed, 1e-9) / self.peak()
        self._shown_mfu = f", {mfu:.0%} MFU"
        return {"mfu": mfu}

    def write_training(self, progress: Progress, report: StepReport, means: Mapping[str, float]) -> None:
        """Write the line of the steps since the last one: mean metrics, and this step's rate and gradient."""
        values: dict[str, float | int] = {f"train/{name}": value for name, value in means.items()}
        values |= {"lr": report.lr, "grad_norm": report.grad_norm, "skipped_steps": progress.skipped}
        values |= {"samples_per_s": self._rate(), "data_wait_share": self._wait_share()}
        values |= self._utilisation()
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

"""Stopping in good order: a signal sets a flag, the ranks agree at the next step, a checkpoint is written.

Exit codes: 0 finished; 75 (EX_TEMPFAIL) stopped before the end, resume me; 130 interrupted from the keyboard,
resumable as well. A launcher (`accelerate launch`, `torchrun`) turns every code but 0 into 1; `status` in the run's
checkpoints/index.json says the same as the code.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ClassVar, Literal, TypeAlias

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
Status: TypeAlias = Literal["finished", "stopped", "interrupted"]
EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": EXIT_STOPPED, "interrupted": EXIT_INTERRUPTED}

_LEVELS: tuple[Status, ...] = ("finished", "stopped", "interrupted")


class StoppedEarly(BaseException):
    """A stop was asked where there is nothing to save: before the training loop, or after it."""


class StopRequest:
    """While entered, SIGTERM, SIGUSR1, SIGHUP and Ctrl-C ask for a stop instead of ending the process.

    SIGHUP comes when a terminal closes; under `nohup` it stays ignored. A second Ctrl-C raises KeyboardInterrupt at
    once. `level` is 0 (go on), 1 (stop) or 2 (stop: Ctrl-C); the largest over the ranks counts. Signals can be caught
    in the main thread only; elsewhere just the time limit works. It counts from the start of the script if that is
    known (see `ScriptStop`).
    """

    names: ClassVar[tuple[str, ...]] = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
    script_start: ClassVar[float | None] = None

    def __init__(self, time_limit_hours: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._signalled = 0
        self._clock = clock
        start = clock() if self.script_start is None else self.script_start
        self._deadline = None if time_limit_hours is None else start + 3600 * time_limit_hours
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in self.names:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1, and no SIGHUP
                if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self._signalled = max(self._signalled, 1)
        elif self._signalled == 2:
            raise KeyboardInterrupt
        else:
            self._signalled = 2

    @property
    def level(self) -> int:
        """What this process has been asked: 0 to go on, 1 to stop, 2 to stop because of Ctrl-C."""
        late = self._deadline is not None and self._clock() >= self._deadline
        return max(self._signalled, int(late))


class ScriptStop(StopRequest):
    """While entered, SIGTERM, SIGUSR1 and SIGHUP raise `StoppedEarly`; a `StopRequest` inside takes them over."""

    names = ("SIGTERM", "SIGUSR1", "SIGHUP")

    def __enter__(self) -> ScriptStop:
        StopRequest.script_start = self._clock()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        StopRequest.script_start = None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        raise StoppedEarly(signal.Signals(number).name)


def status_of(level: int) -> Status:
    """The status of a run that ended at this level (see `StopRequest.level`)."""
    return _LEVELS[level]

"""A signal asks for a stop; the handlers are put back afterwards."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import pytest

from bmmae.config import script
from bmmae.errors import TrainingError
from bmmae.training.signals import ScriptStop, StoppedEarly, StopRequest, status_of


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize(
    ("number", "level"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 1), (signal.SIGHUP, 1), (signal.SIGINT, 2)]
)
def test_a_signal_asks_for_a_stop(number: signal.Signals, level: int) -> None:
    with StopRequest() as stop:
        assert stop.level == 0
        os.kill(os.getpid(), number)
        assert stop.level == level


def test_a_second_interrupt_ends_at_once() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_termination_after_an_interrupt_changes_nothing() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.level == 2


def test_a_closed_terminal_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.level == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_time_limit_asks_for_a_stop() -> None:
    now = 0.0
    with StopRequest(time_limit_hours=2.0, clock=lambda: now) as stop:
        assert stop.level == 0
        now = 7200.0
        assert stop.level == 1


def test_the_time_limit_counts_from_the_start_of_the_script() -> None:
    now = 0.0
    with ScriptStop(clock=lambda: now):
        now = 3600.0  # of preparation
        stop = StopRequest(time_limit_hours=2.0, clock=lambda: now)
        assert stop.level == 0
        now = 7200.0
        assert stop.level == 1
    assert StopRequest(time_limit_hours=2.0, clock=lambda: now).level == 0


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_a_script_that_still_prepares_asks_to_be_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which `script` replaces
    with pytest.raises(SystemExit) as ended:
        script(lambda: os.kill(os.getpid(), number))
    assert ended.value.code == 75
    assert (
        f"stopped by {number.name} outside the training loop: start the same command again" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("place", "told"), [(None, True), ("0", True), ("1", False)])
def test_of_the_processes_on_a_machine_the_first_one_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str | None, told: bool
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if place is not None:
        monkeypatch.setenv("LOCAL_RANK", place)

    def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("3 studies are left out", stacklevel=1)
        raise TrainingError("it ends here")

    with pytest.raises(SystemExit):
        script(main)
    said = capsys.readouterr().err
    assert ("warning: 3 studies are left out" in said) is told
    assert "error: it ends here" in said


def test_a_process_that_lost_another_says_so_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def main(said: str) -> None:
        raise RuntimeError(said)

    with pytest.raises(SystemExit) as ended:
        script(lambda: main("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5559."))
    assert ended.value.code == 2
    assert "error: another process of this run has ended, and its own message says why" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"):
        script(lambda: main("a bug"))


def test_ctrl_c_while_a_script_prepares_is_a_word_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as ended:
        script(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(KeyboardInterrupt):
        script(lambda: os.kill(os.getpid(), signal.SIGINT))


def test_the_loop_takes_signals_over_from_the_script_and_gives_them_back() -> None:
    with ScriptStop():
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.level == 1
        with pytest.raises(StoppedEarly, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


def test_levels_have_a_status() -> None:
    assert [status_of(level) for level in range(3)] == ["finished", "stopped", "interrupted"]

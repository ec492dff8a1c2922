"""Cells of a learning benchmark: each is written when it is finished and skipped when the script is run again.

A cell is a small dictionary that says everything that was varied (method, fold, seed, subset ...). Its outcome holds
the metrics, per-patient scores and seconds. They are kept as lines of `benchmarks/results/cells/NAME.jsonl`, so that
an interruption costs one cell, and two processes may fill one table.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import RESULTS, commit, machine

Cell = Mapping[str, Any]


class CellStore:
    """The finished cells of one benchmark.

    Args:
        name: The script's name, without suffix.
        quick: Whether this is a quick run, which is kept apart.
        folder: Where results are kept.

    Attributes:
        ran: How many cells this process has run: 0 if all were there.
    """

    def __init__(self, name: str, *, quick: bool = False, folder: Path = RESULTS) -> None:
        self.path = (folder / "quick" if quick else folder) / "cells" / f"{name}.jsonl"
        self.ran = 0
        self._read: tuple[tuple[int, int] | None, dict[str, dict[str, Any]]] = (None, {})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All finished cells: `{"cell": {...}, "seconds": ..., "commit": ..., **outcome}`, the latest of each."""
        return iter(self._latest().values())

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return a finished cell, or None."""
        return self._latest().get(key_of(cell))

    def run(self, cell: Cell, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the finished cell, after doing the work if it has not been done yet."""
        found = self.find(cell)
        if found is not None:
            return found
        started = time.perf_counter()
        outcome = work()
        took = round(time.perf_counter() - started, 1)
        row = {"cell": dict(cell), "seconds": took, "commit": commit(), "cpu": machine()["cpu"], **outcome}
        self.ran += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row)
        with self.path.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            written = stream.read()
            stream.truncate(written.rfind(b"\n") + 1)  # the half of an interrupted write
            stream.write(line.encode() + b"\n")
        return json.loads(line)  # type: ignore[no-any-return]

    def _latest(self) -> dict[str, dict[str, Any]]:
        """Return the finished cells by key; the file is read again only when it has changed: a report asks often."""
        state = self.path.stat() if self.path.exists() else None
        stamp = (state.st_mtime_ns, state.st_size) if state else None
        if stamp != self._read[0]:
            self._read = (stamp, {key_of(row["cell"]): row for row in self._rows()})
        return self._read[1] if stamp else {}

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]


def key_of(cell: Cell) -> str:
    """Return what identifies a cell: its content, in any order."""
    return json.dumps(cell, sort_keys=True)

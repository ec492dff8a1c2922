"""metrics.jsonl: one JSON object per line, appended by the main process, without duplicates after a resume."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmmae.data.location import replace_whole
from bmmae.errors import OutputError

NAME = "metrics.jsonl"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; lines torn by a kill or damaged by a failing disk are left out. Empty without a file."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # what is no UTF-8 as well
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class Journal:
    """Appends rows to a metrics.jsonl.

    Opened at step s, it first drops the rows past s: the run died after they were written and before the next
    checkpoint, and will write them again. So it will those of an evaluation at s that was made after the checkpoint.

    Args:
        path: The file.
        step: Steps done.
        evaluated: Step of the last evaluation that counts; None if all up to s do.

    Raises:
        OutputError: It cannot be written, as on a full disk.
    """

    def __init__(self, path: Path, step: int, evaluated: int | None = None) -> None:
        last = step if evaluated is None else evaluated
        rows = [row for row in read_journal(path) if row.get("step", 0) <= (last if _is_of_validation(row) else step)]
        self._path = path
        try:
            replace_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
            self._file = path.open("a")
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append one row; what is not finite is written as null, for JSON has no NaN.

        Raises:
            OutputError: The disk is full.
        """
        clean = {key: _rounded(value) for key, value in row.items()}
        try:
            self._file.write(f"{json.dumps(clean)}\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file. What could not be written has been told."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written: {error.strerror or error}. Free some space and resume the run, or choose "
            "another run folder; the checkpoints are untouched."
        )


def _is_of_validation(row: Mapping[str, Any]) -> bool:
    return any(key.startswith("val/") for key in row)


def _rounded(value: float | int) -> float | int | None:
    if isinstance(value, int):
        return value
    # Nine digits hold a float32 exactly.
    return float(f"{value:.9g}") if math.isfinite(value) else None

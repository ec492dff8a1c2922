"""metrics.jsonl: one JSON object per line, appended by the main process, without duplicates after a resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line torn by a kill is left out. Empty if there is no file."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Journal:
    """Appends rows to a metrics.jsonl.

    Opened at step s, it first drops the rows past s: the run died after they were written and before the next
    checkpoint, and will write them again.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows = [row for row in read_journal(path) if row.get("step", 0) <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append one row; what is not finite is written as null, for JSON has no NaN."""
        clean = {key: _rounded(value) for key, value in row.items()}
        self._file.write(f"{json.dumps(clean)}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rounded(value: float | int) -> float | int | None:
    if isinstance(value, int):
        return value
    # Nine digits hold a float32 exactly.
    return float(f"{value:.9g}") if math.isfinite(value) else None

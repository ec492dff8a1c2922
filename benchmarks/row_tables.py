"""Tables from the rows of a result, beside those of its headline that `tables.py` writes.

`<!-- rows: NAME KEY=VALUE ... -->` lists the rows that match, less the keys that all of them share;
`<!-- pivot: NAME FIGURE DOWN ACROSS KEY=VALUE ... -->` shows one figure of the rows that match, by two of their keys.
Both end at `<!-- end -->`. A figure with a neighbour FIGURE_sd is written with its deviation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PLACE = re.compile(r"(<!-- (rows|pivot): (\w+) ([^>]*?)-->\n).*?(<!-- end -->)", re.DOTALL)
Row = Mapping[str, Any]


def updated_rows(text: str) -> str:
    """Return a page with its tables of rows as the results have them."""
    return PLACE.sub(lambda found: found.group(1) + _table(*found.group(2, 3, 4)) + found.group(5), text)


def _table(kind: str, name: str, words: str) -> str:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `python benchmarks/{name}.py`.\n"
    given = words.split()
    wanted = dict(word.split("=", 1) for word in given if "=" in word)
    matching = [row for row in json.loads(path.read_text())["rows"] if wanted.items() <= row.items()]
    plain = [word for word in given if "=" not in word]
    return listed(matching, tuple(wanted)) if kind == "rows" else pivoted(matching, *plain)


def listed(rows: Sequence[Row], shared: Sequence[str] = ()) -> str:
    """Return rows as Markdown, in their order; those that lack the first row's keys are left out."""
    keys = [key for key in rows[0] if key not in shared and not key.endswith("_sd")] if rows else []
    cells = [[_cell(row, key) for key in keys] for row in rows if set(keys) <= set(row)]
    return _markdown([key.replace("_", " ") for key in keys], cells)


def pivoted(rows: Sequence[Row], figure: str, down: str, across: str) -> str:
    """Return one figure as Markdown; rows and columns in the order of their first occurrence."""
    kept = [row for row in rows if figure in row]
    columns, lines = (list(dict.fromkeys(row[key] for row in kept)) for key in (across, down))
    by_place = {(row[down], row[across]): _cell(row, figure) for row in kept}
    cells = [[str(line), *(by_place.get((line, column), "") for column in columns)] for line in lines]
    return _markdown([down, *(str(column).replace("_", " ") for column in columns)], cells)


def _cell(row: Row, key: str) -> str:
    value, deviation = row[key], row.get(f"{key}_sd")
    if value is None:
        return "not defined"
    if not isinstance(value, float):
        return str(value).replace("_", " ")
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

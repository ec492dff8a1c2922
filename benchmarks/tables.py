"""Write the tables of the pages from the full results; `--check` only compares.

A table stands between `<!-- bench: NAME -->` and `<!-- end -->`; NAME is that of a file in `benchmarks/results/`. Where
that file does not exist, the table says that nothing was measured. Tables of rows: see `row_tables.py`. One figure in a
sentence, with its range, stands between `<!-- figure: NAME.FIGURE -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from row_tables import updated_rows

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(ROOT / name for name in ("README.md", "benchmarks/README.md", "docs/radiomics.md"))
PLACE = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
INLINE = re.compile(r"(<!-- figure: (\w+)\.(\w+) -->).*?(<!-- end -->)")


def table(name: str) -> str:
    """Return the table of one result, as Markdown."""
    result = _result(name)
    if result is None:
        return f"Not measured yet: `python benchmarks/{name}.py`.\n"
    rows = [_row(key, figure) for key, figure in result["headline"].items()]
    head = ["| figure | value | range | floor | asked | unit |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", _origin(result)]) + "\n"


def inline(name: str, key: str) -> str:
    """Return one figure of a result and its range, for a sentence."""
    result = _result(name)
    if result is None:
        return "(not measured yet)"
    figure = result["headline"][key]
    value, low, high = (_number(figure[part]) for part in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def _result(name: str) -> dict[str, Any] | None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    if result["quick"]:
        raise ValueError(f"{path} is the result of a quick run, which feeds no table")
    return result


def _row(key: str, figure: dict[str, Any]) -> str:
    spread = f"{_number(figure['low'])} to {_number(figure['high'])}"
    cells = (_number(figure["value"]), spread, _number(figure["floor"]), _number(figure["asked"]), figure["unit"])
    return f"| `{key}` | {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _origin(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{result['runs']} runs on {where}, {gpus}; {result['date']}, commit {result['commit']}: "
        f"`{result['command']}`, the last command that wrote it (finished cells of earlier ones count)."
    )


def updated(text: str) -> str:
    """Return a page with its tables as the results have them."""
    text = PLACE.sub(lambda found: found.group(1) + table(found.group(2)) + found.group(3), text)
    text = INLINE.sub(lambda found: found.group(1) + inline(found.group(2), found.group(3)) + found.group(4), text)
    return updated_rows(text)


def main() -> int:
    """Write or compare; returns 1 if `--check` found a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a table is out of date")
    given = parser.parse_args()
    stale = [page for page in PAGES if updated(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'out of date, run `make bench-tables`' if given.check else 'written'}")
        if not given.check:
            page.write_text(updated(page.read_text()))
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

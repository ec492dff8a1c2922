"""Tables of text: CSV and Parquet files in, rows of unchanged cells out, and back."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmmae.data.location import write_whole
from bmmae.errors import CohortError, OutputError
from bmmae.targets import EXACT, NUMBER

BLANK = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>", "#n/a"})
SEPARATOR_LINE = re.compile(r"sep=([,;\t])\n", re.IGNORECASE)
"""What some spreadsheets write above the header."""

Cell = str | float | bool | None


def is_blank(cell: str) -> bool:
    """Tell whether a cell means "not known"."""
    return cell.lower() in BLANK


def is_numeric(cells: Iterable[str]) -> bool:
    """Tell whether a column holds numbers: all of its filled cells, and at least one; codes of 16 digits are text."""
    filled = [cell for cell in cells if not is_blank(cell)]
    return bool(filled) and all(NUMBER.fullmatch(cell) and abs(float(cell)) < EXACT for cell in filled)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table's rows as text, blanks at both ends removed; as `read_numbered_rows`."""
    return [row for _, row in read_numbered_rows(path)]


def read_numbered_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read a table's rows as `read_rows`, each with its line as editors count it; empty rows are left out.

    Args:
        path: A .parquet file, or text separated by commas, semicolons or tabs.

    Raises:
        CohortError: If it is absent, a folder, no table, or has a ragged row or a repeated column.
    """
    if path.is_dir():
        raise CohortError(
            f"{path} is a folder: expected a cohort table; run `bmmae index {path} --out cohort.csv` first and pass "
            "cohort.csv"
        )
    if not path.is_file():
        raise CohortError(f"{path} does not exist: expected a cohort table (.csv, .tsv or .parquet)")
    try:
        return _read_parquet(path) if _is_parquet(path) else _read_text(path)
    except ImportError as error:
        raise CohortError(f"{path} needs pyarrow: `pip install pyarrow`, or save it as .csv") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CohortError(
            f"{path} cannot be read as a table: line {line} is not written in UTF-8; save it as 'CSV UTF-8', as "
            "spreadsheets call it, or as .parquet"
        ) from error
    except (OSError, csv.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CohortError(
            f"{path} cannot be read as a table: {reason}; expected UTF-8 .csv, .tsv or .parquet"
        ) from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Cell]], columns: Sequence[str]) -> None:
    """Write a .csv, .tsv or .parquet file in one step: readers never see a part of it.

    Raises:
        OutputError: If the name ends otherwise or the file cannot be written.
    """
    if path.suffix.lower() not in {".csv", ".tsv", ".parquet", ".pq"}:
        raise OutputError(f"cannot write {path}: expected a name ending in .csv, .tsv or .parquet")
    cells = [{name: row.get(name) for name in columns} for row in rows]
    try:
        content = _as_parquet(cells) if _is_parquet(path) else _as_text(cells, columns, path.suffix.lower())
    except ImportError as error:
        raise OutputError(f"cannot write {path}: it needs pyarrow; `pip install pyarrow`, or use .csv") from error
    write_whole(path, content)


def header_of(path: Path) -> list[str]:
    """Return the columns of a .csv file as its first line has them; none if it is no such file."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in {".parquet", ".pq"}


def _read_text(path: Path) -> list[tuple[int, dict[str, str]]]:
    text = path.read_text(encoding="utf-8-sig")
    if "\0" in text:
        raise CohortError(f"{path} is not a table but a binary file: expected .csv, .tsv or .parquet")
    told = SEPARATOR_LINE.match(text)
    body = text[told.end() :] if told else text
    header = body.lstrip("\n").partition("\n")[0]
    separator = told[1] if told else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator)
    numbered = [(reader.line_num + bool(told), line) for line in reader if line]
    if not numbered:
        raise CohortError(f"{path} is empty: expected a header with a 'subject' column, and one row a study")
    columns = [name.strip() for name in numbered[0][1]]
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise CohortError(f"{path}: column '{repeated[0]}' occurs twice; delete or rename one")
    for number, line in numbered[1:]:
        if len(line) != len(columns):
            raise CohortError(
                f"{path}, line {number}: expected {len(columns)} cells as in the header, got {len(line)}; "
                "quote cells that contain the separator"
            )
    rows = [(number, [cell.strip() for cell in line]) for number, line in numbered[1:]]
    return [(number, dict(zip(columns, row, strict=True))) for number, row in rows if any(row)]


def _read_parquet(path: Path) -> list[tuple[int, dict[str, str]]]:
    import pandas as pd

    frame = pd.read_parquet(path)
    rows = enumerate(frame.to_dict("records"), start=2)
    return [(number, {str(name): _as_cell(value) for name, value in row.items()}) for number, row in rows]


def _as_cell(value: Any) -> str:
    # A text `nan` may be a patient's name; whether a text means "not known" is for the reader of its column to say.
    if value is None or (not isinstance(value, str) and str(value) in {"<NA>", "NaT", "nan"}):
        return ""
    # Identifiers with gaps were turned into floats by whoever wrote the file: 12.0 was 12.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _as_text(rows: list[dict[str, Cell]], columns: Sequence[str], suffix: str) -> bytes:
    text = io.StringIO(newline="")
    separator = "\t" if suffix == ".tsv" else ","
    writer = csv.DictWriter(text, columns, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if cell is None else _as_cell(cell) for name, cell in row.items()})
    return text.getvalue().encode()


def _as_parquet(rows: list[dict[str, Cell]]) -> bytes:
    import pandas as pd

    stream = io.BytesIO()
    pd.DataFrame(rows).to_parquet(stream, index=False)
    return stream.getvalue()

"""Embeddings of a cohort in two dimensions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.data.cohort import Study
from bmmae.data.problems import counted
from bmmae.data.tables import Cell
from bmmae.errors import CohortError, OutputError
from bmmae.targets import as_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY = 12
"""More numbers than this are drawn on a scale of colours rather than one each."""
LISTED = 20
"""Names that have a colour and a mark of their own; those of fewer points are drawn together."""
LONGEST = 28
"""Letters of a name in the legend."""
BLANK = "blank"
GREY = "#9aa4b2"
MARKS = "os^"
"""Marks; the next one where the colours have been used up."""

OWN = ("subject", "session", "group", "split", "time", "event")
"""Columns that mean something in every table, beside its others."""


def require_picture(path: Path) -> None:
    """Find out before the work whether a picture can be drawn into a file of this name.

    Raises:
        OutputError: If its ending is that of no picture.
    """
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in known:
        raise OutputError(f"cannot write {path}: expected a picture's name, ending in one of .{', .'.join(known)}")


def cells_to_colour(studies: Sequence[Study], column: str) -> list[Cell]:
    """Return a column's cells; an event is 1 or 0.

    Raises:
        CohortError: If the table has no such column.
    """
    own = {name: [_cell(getattr(study, name)) for study in studies] for name in OWN}
    others = dict.fromkeys(name for study in studies for name in study.values)
    known = [name for name, cells in own.items() if any(cell is not None for cell in cells)] + list(others)
    if column not in known:
        raise CohortError(f"the cohort has no column '{column}' to colour by: it has {', '.join(known)}")
    return own[column] if column in own else [study.values.get(column) for study in studies]


def _cell(value: Cell) -> Cell:
    return float(value) if isinstance(value, bool) else None if value == "" else value


def draw_embeddings(
    path: Path, rows: Sequence[dict[str, Cell]], studies: Sequence[Study], colour: str | None = None
) -> str:
    """Draw embeddings as points: by UMAP where it is installed, else by their two principal components.

    Args:
        path: The picture.
        rows: As `bmmae.patient_prediction.embed` returns them.
        studies: With the column that colours the points.
        colour: That column; by default points are coloured by their subset of the modalities.

    Returns:
        How it was drawn, for people.

    Raises:
        CohortError: If there is no such column.
        OutputError: If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    vectors = np.array([[row[name] for name in row if name[:1] == "e" and name[1:].isdigit()] for row in rows], float)
    points, method = _two_dimensions(vectors)
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    groups = _groups(rows, studies, colour)
    if isinstance(groups, list):
        _draw_names(axes, points, groups)
        figure.legend(loc="outside right center", fontsize="small", title=colour or "modalities")
    else:
        blank = np.isnan(groups)
        drawn = axes.scatter(points[~blank][:, 0], points[~blank][:, 1], s=12, c=groups[~blank], cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=colour)
        if blank.any():
            axes.scatter(points[blank][:, 0], points[blank][:, 1], s=12, color=GREY, label=BLANK)
            figure.legend(loc="outside right lower", fontsize="small")
    axes.set(xticks=[], yticks=[])
    figure.suptitle(f"{counted(len(rows), 'embedding', 'embeddings')}\n{method}", fontsize="medium")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    return method


def _draw_names(axes: Axes, points: Float[np.ndarray, "N 2"], groups: Sequence[str]) -> None:
    """Draw each name's points so that no two look alike."""
    from matplotlib import colormaps

    counts = Counter(groups)
    listed = [name for name, _ in counts.most_common(LISTED)]
    palette = colormaps["tab10"](range(10))
    for place, name in enumerate(sorted(listed, key=_rank)):
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
        mark = MARKS[place // len(palette)]
        own = points[np.array([group == name for group in groups])]
        own_colour = GREY if name == BLANK else palette[place % len(palette)]
        axes.scatter(own[:, 0], own[:, 1], s=16, color=own_colour, marker=mark, label=shown)
    if len(counts) > len(listed):
        rest = points[np.array([group not in listed for group in groups])]
        axes.scatter(rest[:, 0], rest[:, 1], s=12, color=GREY, marker="x", label=f"{len(counts) - len(listed)} others")


def _rank(name: str) -> tuple[bool, float, int, str]:
    """Order names: numbers by value, then subsets from the smallest, the blank last."""
    try:
        return False, float(name), 0, name
    except ValueError:
        return name == BLANK, math.inf, name.count("+"), name


def _two_dimensions(vectors: Float[np.ndarray, "N E"]) -> tuple[Float[np.ndarray, "N 2"], str]:
    try:
        from umap import UMAP
    except ImportError:
        return _principal(vectors), "principal components (UMAP needs `pip install umap-learn`)"
    if len(vectors) < 4:
        return _principal(vectors), "principal components (UMAP needs four points or more)"
    reduced = UMAP(n_neighbors=min(15, len(vectors) - 1), random_state=0).fit_transform(vectors)
    return np.asarray(reduced, float), "UMAP"


def _principal(vectors: Float[np.ndarray, "N E"]) -> Float[np.ndarray, "N 2"]:
    centred = vectors - vectors.mean(0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    points[:, : min(2, len(scale))] = (left * scale)[:, :2]
    return points


def _groups(rows: Sequence[dict[str, Cell]], studies: Sequence[Study], colour: str | None) -> list[str] | Array:
    """A name a row, or numbers where the column holds many; NaN where it is blank."""
    if colour is None:
        return [str(row["subset"]) for row in rows]
    cells = dict(zip([study.key for study in studies], cells_to_colour(studies, colour), strict=True))
    own = [cells[(str(row["subject"]), str(row["session"]))] for row in rows]
    known = [cell for cell in own if cell is not None]
    if all(isinstance(cell, float) for cell in known) and len(set(known)) > MANY:
        return np.array([math.nan if cell is None else cell for cell in own], float)
    return [as_label(cell) or BLANK for cell in own]

"""What is wrong with many studies or files, told in few lines: one for each kind, not one for each file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bmmae.errors import few

ALIKE = 3
"""So many problems of one kind are told one by one; more are told by the first of them and the others' names."""

_PARTICULAR = re.compile(r"\S*[\d/\\]\S*|\S+\.\S+")
"""What differs between two sentences about the same kind of problem: numbers, paths and names of files."""


def gathered(lines: Iterable[str], most: int | None = None) -> list[str]:
    """Return lines `name: what is wrong`, in which many that say the same have become one.

    Args:
        lines: One for each study or file.
        most: Names listed beside the first one of a kind; all if None.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, _, told in (line.partition(": ") for line in lines):
        kinds.setdefault(_PARTICULAR.sub("*", told), []).append((name, told))
    return [line for kind in kinds.values() for line in _lines(kind, most)]


def _lines(kind: list[tuple[str, str]], most: int | None) -> list[str]:
    told = [f"{name}: {problem}" for name, problem in kind]
    if len(kind) <= ALIKE:
        return told
    names = few((name for name, _ in kind[1:]), most or len(kind), quote="")
    return [f"{told[0]} (and {len(kind) - 1} more like it: {names})"]


def counted(number: int, one: str, many: str) -> str:
    """Return a number and what it counts: `1 study`, `2 studies`."""
    return f"{number} {one if number == 1 else many}"

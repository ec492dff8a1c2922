"""What is wrong with many studies or files, told in few lines: one for each kind, not one for each file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from bmmae.errors import few

ALIKE = 3
"""So many problems of one kind are told one by one; more are told by the first of them and the others' names."""
MOST_KINDS, MOST_NAMES = 4, 5
"""Kinds of problems that one sentence tells, and studies that it names of each beside the first."""

NO_MEMORY = "there was not enough memory: it may be an unusually large image"

_PARTICULAR = re.compile(r"\S*[\d/\\]\S*|\S+\.\S+")
"""What differs between two sentences about the same kind of problem: numbers, paths and names of files."""


NamedProblem: TypeAlias = tuple[str, str]
"""The name of a study or file, and what is wrong with it."""


def gathered(problems: Iterable[NamedProblem], most: int | None = None) -> list[NamedProblem]:
    """Return problems in which many of a kind have become one: the first, which then names the others too.

    Args:
        problems: In the order in which they are to be told.
        most: Names listed beside the first one of a kind; all if None.
    """
    kinds: dict[str, list[NamedProblem]] = {}
    for name, told in problems:
        kinds.setdefault(_PARTICULAR.sub("*", told), []).append((name, told))
    return [problem for kind in kinds.values() for problem in _told(kind, most)]


def _told(kind: list[NamedProblem], most: int | None) -> list[NamedProblem]:
    if len(kind) <= ALIKE:
        return kind
    (name, told), *others = kind
    names = few((other for other, _ in others), most or len(kind), quote="")
    return [(name, f"{told} (and {len(others)} more like it: {names})")]


def lines_of(problems: Iterable[NamedProblem], most: int | None = None) -> list[str]:
    """Return `gathered` problems as lines `name: what is wrong`."""
    return [f"{name}: {told}" for name, told in gathered(problems, most)]


def in_short(problems: Iterable[NamedProblem]) -> str:
    """Return in one sentence what is wrong with many studies."""
    lines = lines_of(problems, MOST_NAMES)
    more = [f"{len(lines) - MOST_KINDS} more"] if len(lines) > MOST_KINDS else []
    return "; ".join([*lines[:MOST_KINDS], *more])


def counted(number: int, one: str, many: str) -> str:
    """Return a number and what it counts: `1 study`, `2 studies`."""
    return f"{number} {one if number == 1 else many}"

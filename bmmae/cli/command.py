"""What every command is made of."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from bmmae.data.naming import named_modalities
from bmmae.data.problems import counted, lines_of
from bmmae.errors import OutputError
from bmmae.modalities import STANDARD

if TYPE_CHECKING:
    from bmmae.data.cohort import Study

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run: TypeAlias = Callable[[argparse.Namespace], int]


def add_command(commands: Commands, name: str, summary: str, run: Run) -> argparse.ArgumentParser:
    """Add a command whose work is done by `run`."""
    command = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    return command


def add_modalities(command: argparse.ArgumentParser) -> None:
    """Let the user say which modalities to look for."""
    command.add_argument(
        "--modalities",
        nargs="+",
        default=list(STANDARD),
        metavar="NAME",
        help=f"modalities to look for, in any order (default: {' '.join(STANDARD)})",
    )


def given_modalities(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the modalities asked for, in table order."""
    return named_modalities(separate_names(given.modalities))


def separate_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return names that were given one by one, or joined as tables (`t1+flair`) or lists (`t1,flair`) join them."""
    names = tuple(name for text in texts for part in re.split(r"[+,]", text) if (name := part.strip()))
    return names or tuple(texts)  # nothing but a comma is no name, and not what leaving the option out means


def positive(text: str) -> int:
    """Read a number of one or more, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got '{text}'")
    return int(text)


def whole(text: str) -> int:
    """Read a number of zero or more, for `type=`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got '{text}'")
    return int(text)


def amount(text: str) -> float:
    """Read zero or more of something that is measured, for `type=`."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got '{text}'")
    return value


def millimetres(text: str) -> float:
    """Read a length above zero, for `type=`."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected millimetres above 0, got '{text}'")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None


def require_writable(folder: Path) -> None:
    """Find out before the work whether results can be written, not after it.

    Raises:
        OutputError: If they cannot.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write to {folder}: {nearest} is not a folder that you may write to; name another --out"
        )


@runtime_checkable
class Done(Protocol):
    """What became of one study of a cohort."""

    @property
    def study(self) -> Study:
        """Which one."""

    @property
    def status(self) -> str:
        """One word."""

    @property
    def remarks(self) -> Sequence[str]:
        """Reasons to doubt the result."""


def print_doubts(results: Sequence[Done]) -> None:
    """Print the reasons to doubt what became of a cohort's studies; one that many share is told once."""
    for line in lines_of((result.study.name, remark) for result in results for remark in result.remarks):
        print(f"warning: {line}", file=sys.stderr)


def tally(results: Sequence[Done], said: Mapping[str, str]) -> str:
    """Return a line that counts a cohort's studies.

    Args:
        results: One a study; `print_doubts` has told their remarks.
        said: What each status is called, in the order wanted.
    """
    counts = Counter(result.status for result in results)
    done = ", ".join(f"{counts[status]} {words}" for status, words in said.items() if counts[status])
    doubted = sum(bool(result.remarks) for result in results)
    if doubted:
        done += f"; {doubted} with reasons for doubt (see above)"
    return f"{counted(len(results), 'study', 'studies')}: {done}"

"""What the elements of a DICOM header hold: text, words and numbers, as scanners and converters write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

DECIMAL_COMMA = re.compile(r",(?=\d{1,2}$)")
"""Before three digits a comma may part thousands."""


class MalformedError(Exception):
    """An element that does not hold the numbers which it should."""


def text_of(header: Any, name: str) -> str:
    """Return an element's text; empty where it is not filled."""
    return str(header.get(name) or "").strip()


def words_of(header: Any, name: str) -> tuple[str, ...]:
    """Return an element's words in capitals, none where it is not filled."""
    value = header.get(name) or ()
    return (value.upper(),) if isinstance(value, str) else tuple(str(word).upper() for word in value)


def number_of(header: Any, *names: str) -> float | None:
    """Return the first of these elements that is filled; enhanced files keep them in shared functional groups.

    Raises:
        MalformedError: If it is no number.
    """
    groups = [
        header,
        *(item for group in header.get("SharedFunctionalGroupsSequence") or () for item in nested(group)),
    ]
    for group in groups:
        for name in names:
            if numbers := numbers_of(group, name):
                return numbers[0]
    return None


def numbers_of(group: Any, name: str, count: int | None = None) -> list[float]:
    """Return the numbers of an element, none where it is not filled.

    Raises:
        MalformedError: If it holds something else, or not so many of them.
    """
    try:
        value = group.get(name)
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        numbers = [float(DECIMAL_COMMA.sub(".", str(item))) for item in values if item not in (None, "")]
    except Exception as error:  # a parser's own exceptions: whatever it cannot read is no number
        raise MalformedError(f"{name} is no number") from error
    if not all(map(math.isfinite, numbers)):
        raise MalformedError(f"{name} is no number")
    if numbers and count and len(numbers) != count:
        raise MalformedError(f"{name} holds {len(numbers)} numbers: expected {count}")
    return numbers


def nested(group: Any) -> Iterator[Any]:
    """Yield the items of a group's sequences."""
    for element in group:
        if element.VR == "SQ":
            yield from element.value


def within(group: Any, sequence: str) -> Any:
    """Return the first item of a sequence; the group itself where it has no such sequence."""
    items = group.get(sequence)
    return items[0] if items else group

"""What the elements of a DICOM header hold: text, words and numbers, as scanners and converters write them."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

from bmmae.data.contrast import names_agent

AMOUNTS = ("ContrastBolusVolume", "ContrastBolusTotalDose")
"""Elements that hold how much contrast agent was given, ml."""
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Where enhanced files keep what classic ones have beside each other."""
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
    """Return the first of these elements that is filled; of enhanced files, in the groups of all or the first frame.

    Raises:
        MalformedError: If it is no number.
    """
    for group in (header, *_functional_groups(header)):
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


def agent_of(header: Any) -> str:
    """Return what the header says was given for contrast, an agent or an amount; `""` if it names neither.

    Enhanced files name agents in a sequence, with an answer beside each frame to whether any was given yet. An amount
    counts where no agent's field is filled.
    """
    coded = [
        text_of(item, "CodeMeaning") or text_of(item, "CodeValue")
        for item in header.get("ContrastBolusAgentSequence") or ()
    ]
    agents = [text for text in (text_of(header, "ContrastBolusAgent"), *coded) if text]
    answers = {text_of(group, "ContrastBolusAgentAdministered").upper() for group in _functional_groups(header)} - {""}
    if agents:
        return "" if answers == {"NO"} else next(filter(names_agent, agents), "")
    return next((f"{amount:g} ml" for amount in _amounts(header) if amount > 0), "")


def _amounts(header: Any) -> Iterator[float]:
    for name in AMOUNTS:
        with contextlib.suppress(MalformedError):  # beside the agent's name it adds nothing
            yield from numbers_of(header, name)


def _functional_groups(header: Any) -> Iterator[Any]:
    for name in GROUPS:
        for group in (header.get(name) or ())[:1]:
            yield from nested(group)


def nested(group: Any) -> Iterator[Any]:
    """Yield the items of a group's sequences."""
    for element in group:
        if element.VR == "SQ":
            yield from element.value


def within(group: Any, sequence: str) -> Any:
    """Return the first item of a sequence; the group itself where it has no such sequence."""
    items = group.get(sequence)
    return items[0] if items else group

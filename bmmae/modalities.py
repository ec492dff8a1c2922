"""The one table of MRI modalities: canonical names, their order, and the aliases found in file names.

Every other module addresses modalities by the names of this table. Users may declare further modalities
(`model.modalities` in a config, `--modalities` of commands); those follow the table's own in the order of declaration.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bmmae.errors import ModalityError


@dataclass(frozen=True)
class Modality:
    """One imaging sequence.

    Attributes:
        name: Canonical name, lower case.
        title: How the name is printed for people.
        aliases: Other spellings, lower case, compared after `-`, `_` and blanks are removed.
    """

    name: str
    title: str
    aliases: tuple[str, ...]


TABLE: tuple[Modality, ...] = (
    Modality("t1", "T1", ("t1", "t1n", "t1w", "t1pre", "t1native", "t1weighted", "t1mprage", "mprage")),
    Modality(
        "t1ce",
        "T1ce",
        (
            "t1ce",
            "t1c",
            "t1gd",
            "t1post",
            "t1km",
            "t1wce",
            "t1wpost",
            "t1contrast",
            "ce-t1w",
            "cet1w",
            "gadt1w",
        ),
    ),
    Modality("t2", "T2", ("t2", "t2w", "t2weighted", "t2tse")),
    Modality("flair", "FLAIR", ("flair", "fla", "t2f", "t2flair", "t2wflair", "flairw", "darkfluid", "tirm")),
    Modality("dwi", "DWI", ("dwi", "diffusion")),
    Modality("adc", "ADC", ("adc",)),
    Modality("swi", "SWI", ("swi",)),
    Modality("ct", "CT", ("ct",)),
)

STANDARD: tuple[str, ...] = ("t1", "t1ce", "t2", "flair")
"""The four sequences that brain tumours are read from: the default everywhere."""

_ORDER = {modality.name: rank for rank, modality in enumerate(TABLE)}


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", "", name.lower())


_BY_ALIAS = {_plain(alias): modality.name for modality in TABLE for alias in modality.aliases}


def find(text: str) -> str | None:
    """Return the canonical name of an alias (`"T1-post"` gives `"t1ce"`), or None if there is none."""
    return _BY_ALIAS.get(_plain(text))


def canonical(name: str, known: Iterable[str] = ()) -> str:
    """Return the canonical name of `name`, which may be an alias.

    Args:
        name: A modality name as a user wrote it.
        known: Accept only these names (say, a model's modalities); by default the whole table.

    Raises:
        ModalityError: If the name is not known; the message proposes the nearest one.
    """
    allowed = tuple(known) or tuple(_ORDER)
    if not isinstance(name, str):
        raise ModalityError(f"a modality goes by its name, got {name!r}: expected one of {', '.join(allowed)}")
    found = name if name in allowed else find(name)
    if found is None or found not in allowed:
        near = difflib.get_close_matches(name.lower(), allowed, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ModalityError(f"unknown modality '{name}': expected one of {', '.join(allowed)}.{hint}")
    return found


def table_names(names: Iterable[str]) -> tuple[str, ...]:
    """Spell names as the table does (`t1c` and `T1Gd` are `t1ce`), unless two would then be one; keeps the order.

    Raises:
        ModalityError: If one text is given in place of names.
    """
    listed = _listed(names)
    spelt = tuple((isinstance(name, str) and find(name)) or name for name in listed)
    return spelt if len(set(spelt)) == len(set(listed)) else listed


def _listed(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ModalityError(f"expected a list of modality names, got the text '{names}'")
    return tuple(names)


def in_table_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names into table order; names that the table lacks follow, in the order given.

    Raises:
        ModalityError: If a name occurs twice, or is not a lower-case word usable as a column name, or one text is given
            in place of names.
    """
    listed = _listed(names)
    for name in listed:
        if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
            raise ModalityError(
                f"'{name}' cannot be a modality name: expected lower-case letters, digits and '_', "
                "starting with a letter"
            )
        if listed.count(name) > 1:
            raise ModalityError(f"modality '{name}' is declared twice")
    return tuple(sorted(listed, key=lambda name: _ORDER.get(name, len(_ORDER) + listed.index(name))))


def title(name: str) -> str:
    """Return how a modality's name is printed for people (`"t1ce"` gives `"T1ce"`)."""
    return TABLE[_ORDER[name]].title if name in _ORDER else name.upper()


def subset_label(names: Collection[str]) -> str:
    """Return a short label of a subset, in table order: `"t1+flair"`."""
    return "+".join(in_table_order(names))

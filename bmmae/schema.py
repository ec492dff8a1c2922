"""Frozen dataclasses to JSON and back, without losing or inventing a key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bmmae.errors import ConfigError

T = TypeVar("T")


def to_dict(value: Any) -> Any:
    """Return nested dataclasses as dicts, and tuples as lists: what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_dict(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their whole keys: `{"optim.lr": 0.001}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def from_dict(kind: type[T], values: object, where: str = "config") -> T:
    """Build a dataclass, and those nested in it, from a dict: the inverse of `to_dict`.

    A key that is absent takes its default: configs written before a field existed stay readable.

    Args:
        kind: The dataclass.
        values: What JSON held.
        where: How messages name the place of `values`.

    Raises:
        ConfigError: If a key is unknown (the nearest known one is proposed), a required one is missing, or a value has
            another type than its field.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {values!r}")
    types_of = _hints(kind)
    for key in values:
        if key not in types_of:
            raise ConfigError(_unknown(f"{where}.{key}", str(key), types_of))
    for item in fields(cast(Any, kind)):
        if item.name not in values and _required(item):
            raise ConfigError(f"{where}.{item.name} is missing")
    return kind(**{key: _value(types_of[key], value, f"{where}.{key}") for key, value in values.items()})


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(cast(Any, kind))}


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _unknown(place: str, key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown key {place}: expected one of {', '.join(known)}.{hint}"


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as `kind`, a type as it stands in a dataclass."""
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}")
        return value
    if origin in (Union, types.UnionType):
        return _union(kind, value, where)
    if origin in (tuple, list, Sequence):
        kinds = get_args(kind) if origin is tuple else (*get_args(kind), ...)
        items = _sequence(kinds, value, where)
        return list(items) if origin is list else items
    if origin in (dict, Mapping):
        return _mapping(get_args(kind), value, where)
    if is_dataclass(kind):
        return from_dict(cast(type[Any], kind), value, where)
    return _scalar(kind, value, where)


def _union(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    options = [option for option in get_args(kind) if option is not type(None)]
    for option in options[:-1]:
        try:
            return _value(option, value, where)
        except ConfigError:
            continue
    return _value(options[-1], value, where)


def _sequence(kinds: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = [kinds[0]] * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} must have {len(kinds)} entries, got {value!r}")
    return tuple(_value(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _mapping(kinds: Sequence[Any], value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {value!r}")
    return {_key(kinds[0], key, where): _value(kinds[1], item, f"{where}.{key}") for key, item in value.items()}


def _key(kind: Any, key: object, where: str) -> Any:
    """Return a key of a mapping as it was before JSON, which has texts alone, made a text of a number."""
    if kind is not int:
        return str(key)
    try:
        return int(str(key))
    except ValueError:
        raise ConfigError(f"{where} must have whole numbers as keys, got {key!r}") from None


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any or kind is object:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a kind of int in Python, but `depth: true` is a mistake.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} must be of type {kind.__name__}, got {value!r}")
    return value

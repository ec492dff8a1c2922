"""Configs survive JSON; what is not one is refused by the name of the place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from bmmae.errors import ConfigError
from bmmae.provenance import Metric, Provenance
from bmmae.schema import from_dict, to_dict


@dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 2)
    mode: Literal["fast", "exact"] = "fast"
    limit: int | None = None
    either: int | str = 0
    flag: bool = False
    table: dict[str, Inner] = field(default_factory=dict)
    free: Any = None
    widths: list[int] = field(default_factory=list)
    inners: Sequence[Inner] = ()
    grades: dict[int, str] = field(default_factory=dict)


FULL = Outer(
    Inner(3, 1.0),
    ("a", "b"),
    (4, 5),
    "exact",
    7,
    "x",
    True,
    {"k": Inner(1)},
    {"any": [1]},
    widths=[8, 16],
    inners=(Inner(1), Inner(2)),
    grades={2: "low", 4: "high"},
)


@pytest.mark.parametrize("config", [FULL, Outer(Inner(1))])
def test_configs_survive_json(config) -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_whole_numbers_pass_for_floats() -> None:
    assert from_dict(Inner, {"width": 1, "rate": 2}) == Inner(1, 2.0)


def test_provenance_survives_json() -> None:
    provenance = Provenance(subjects=3, content_hashes=("ab",), metrics={"dice": Metric(0.8, 0.7, 0.9, "", 3)})
    assert Provenance.of(json.loads(json.dumps(provenance.as_dict()))) == provenance


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"width": 1}, "nmes": []}, r"unknown key config.nmes: .*Did you mean 'names'\?"),
        ({"inner": {"width": 1, "zzz": 1}}, r"unknown key config.inner.zzz: expected one of width, rate\.$"),
        ({}, "config.inner is missing"),
        ({"inner": {}}, "config.inner.width is missing"),
        ({"inner": 3}, "config.inner must be a mapping, got 3"),
        ({"inner": {"width": 1}, "widths": 8}, "config.widths must be a list, got 8"),
        ({"inner": {"width": 1}, "widths": ["a"]}, r"config.widths\[0\] must be of type int, got 'a'"),
        ({"inner": {"width": 1}, "grades": {"low": "x"}}, "config.grades must have whole numbers as keys, got 'low'"),
        ({"inner": {"width": True}}, "config.inner.width must be of type int, got True"),
        ({"inner": {"width": 1.5}}, "config.inner.width must be of type int, got 1.5"),
        ({"inner": {"width": 1}, "flag": "False"}, "config.flag must be of type bool, got 'False'"),
        ({"inner": {"width": 1}, "names": "ab"}, "config.names must be a list, got 'ab'"),
        ({"inner": {"width": 1}, "names": ["a", 2]}, r"config.names\[1\] must be of type str, got 2"),
        ({"inner": {"width": 1}, "size": [1, 2, 3]}, r"config.size must have 2 entries, got \[1, 2, 3\]"),
        ({"inner": {"width": 1}, "mode": "slow"}, "config.mode must be one of 'fast', 'exact', got 'slow'"),
        ({"inner": {"width": 1}, "limit": "x"}, "config.limit must be of type int, got 'x'"),
        ({"inner": {"width": 1}, "table": {"k": {}}}, "config.table.k.width is missing"),
        ([], r"config must be a mapping, got \[\]"),
    ],
)
def test_what_is_no_config_is_refused_by_place(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Outer, values)

"""Cells are written once, survive an interruption, and are not computed twice."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness
from cells import CellStore


def test_a_finished_cell_is_not_computed_again(tmp_path: Path) -> None:
    calls = []
    store = CellStore("toy", folder=tmp_path)
    for _ in range(2):
        row = CellStore("toy", folder=tmp_path).run(
            {"method": "a", "seed": 1}, lambda: calls.append(1) or {"dice": 0.5}
        )
        assert row["dice"] == 0.5
    assert len(calls) == 1
    assert store.find({"seed": 1, "method": "a"}) == row
    assert store.find({"seed": 2, "method": "a"}) is None


def test_half_a_line_costs_one_cell(tmp_path: Path) -> None:
    store = CellStore("toy", folder=tmp_path)
    store.run({"seed": 1}, lambda: {"dice": 0.5})
    with store.path.open("a") as stream:
        stream.write(json.dumps({"cell": {"seed": 2}})[:9])
    assert [row["cell"] for row in store] == [{"seed": 1}]
    store.run({"seed": 2}, lambda: {"dice": 0.6})
    assert [row["cell"] for row in store] == [{"seed": 1}, {"seed": 2}]


def test_a_report_alone_keeps_the_machine_that_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def machine_of(cpu: str, *cells: int) -> str:
        for module in ("harness", "cells"):
            monkeypatch.setattr(sys.modules[module], "machine", lambda: {"cpu": cpu})
        store = CellStore("toy", folder=tmp_path)
        for seed in cells:
            store.run({"seed": seed}, lambda: {"dice": 0.5})
        path = harness.write_result("toy", quick=False, runs=1, headline={}, rows=[], measured=store.ran > 0)
        return json.loads(path.read_text())["machine"]["cpu"]

    assert machine_of("first", 1) == "first"
    assert machine_of("second", 1) == "first"
    assert machine_of("second", 1, 2) == "second"
    assert [row["cpu"] for row in CellStore("toy", folder=tmp_path)] == ["first", "second"]

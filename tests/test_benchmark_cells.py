"""Cells are written once, survive an interruption, and are not computed twice."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
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

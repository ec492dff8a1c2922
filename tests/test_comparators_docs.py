"""The code of docs/comparators.md runs, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bmmae.baselines.patient_networks import PATIENT_NETWORKS
from bmmae.baselines.segmentation_networks import SEGMENTATION_NETWORKS

PAGE = (Path(__file__).parents[1] / "docs" / "comparators.md").read_text()


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out.strip() == ", ".join(SEGMENTATION_NETWORKS)
    assert names["logits"].shape == (1, 3, 32, 32, 32)
    assert names["outputs"]["subtype"].shape == (1, 1)


def test_the_tables_name_every_network() -> None:
    rows = "".join(re.findall(r"^\| (`.+`) \|", PAGE, flags=re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) >= {*SEGMENTATION_NETWORKS, *PATIENT_NETWORKS}

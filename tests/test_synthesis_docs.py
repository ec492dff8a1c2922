"""The code of docs/synthesis.md runs as it is written; its commands are those of the benchmark."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_studies import write_study

from bmmae.data.cohort import Cohort
from bmmae.evaluation.native_synthesis import NativeScore

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "synthesis.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's code names: a cohort, a patient of it, and a reconstruction, here of another patient."""
    from dataclasses import replace

    studies = [replace(write_study(tmp_path / f"p{n}", seed=n), split="train") for n in range(2)]
    studies.append(replace(write_study(tmp_path / "patient", seed=2), split="test"))
    write_study(tmp_path / "reconstructed", seed=3)
    Cohort(tuple(studies)).write(tmp_path / "cohort.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs_block_after_block(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    assert len(CODE) == 2
    for block in CODE:
        exec(compile(block, "docs/synthesis.md", "exec"), names)
    assert names["score"].psnr > 10
    assert " dB in the tumour" in capsys.readouterr().out
    given = names["given"]
    regression = names["score_native"](
        names["to_native"](given, names["ridge"].predict(given, "flair")), names["truth"]
    )
    assert np.isfinite(regression.psnr)


def test_every_figure_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| [^`]", PAGE, flags=re.MULTILINE))
    assert {field.name for field in fields(NativeScore)} <= explained


def test_the_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import synthesis

    assert len(COMMANDS) == 4
    for python, script, *arguments in COMMANDS:
        assert (python, script) == ("python", "benchmarks/synthesis.py")
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        given = synthesis.read_arguments()
        assert ("saved" in given.methods) == ("--model" in arguments)


def test_the_methods_named_are_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from synthesis_methods import METHODS

    assert set(re.findall(r"^\| `(\w+)` \| `", PAGE, flags=re.MULTILINE)) == set(METHODS) - {"ours", "saved"}

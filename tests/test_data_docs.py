"""Every command of docs/data.md works as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny_studies import write_study

from bmmae.cli import main
from bmmae.config import PretrainConfig, parse
from bmmae.data.location import RemoteFile, locate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line]
OWN = [line for line in LINES if line[0] == "bmmae"]
TRAINING = [line for line in LINES if line[0] == "accelerate"]
ADDRESSES = re.findall(r"^\| `(\w+://.+?)` \|", PAGE, flags=re.MULTILINE)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands name: a folder of studies, and the configs."""
    for subject in ("p1", "p2"):
        write_study(tmp_path / "DIR" / subject, labelled=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_shows_commands() -> None:
    assert len(OWN) == 5
    assert len(TRAINING) == 2
    assert len(ADDRESSES) == 6


@pytest.mark.slow
def test_the_commands_run_one_after_another(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in OWN:
        assert main(line[1:]) == 0, line
    assert len(list((world / "cache").iterdir())) == 2
    assert "0 studies to prepare (2 of 2 are stored already)" in capsys.readouterr().out


@pytest.mark.parametrize("line", TRAINING, ids=" ".join)
def test_the_training_commands_are_understood(line: list[str], world: Path) -> None:
    assert (ROOT / line[2]).is_file()
    config = parse(PretrainConfig, line[3:])
    assert config.data.cache == Path("cache")
    assert config.data.skip_broken == ("--data.skip_broken" in line)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_addresses_are_told_from_paths(address: str) -> None:
    assert isinstance(locate(address), RemoteFile) != address.startswith("file:")

"""`bmmae init` finds the training scripts, wherever pip has put them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bmmae import starter
from bmmae.errors import OutputError


@pytest.mark.parametrize(
    ("packages", "data"),
    [
        ("lib/python3.11/site-packages", "share/bmmae"),  # an environment, --user and --prefix
        ("lib/python3.11/dist-packages", "share/bmmae"),  # Debian
        ("", "share/bmmae"),  # --target
        ("clone", "clone"),
    ],
)
def test_scripts_lie_in_the_prefix_that_the_package_was_installed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: str, data: str
) -> None:
    monkeypatch.setattr(starter, "__file__", str(tmp_path / packages / "bmmae" / "starter.py"))
    with pytest.raises(OutputError, match=r"scripts are not in .*, nor in share/bmmae there or above it: install"):
        starter.starter_root()
    (tmp_path / data / "pretrain").mkdir(parents=True)
    (tmp_path / data / "pretrain" / "train.py").write_text("")
    assert starter.starter_root() == tmp_path / data

"""docs/check.md says what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from bmmae.cli import build_parser
from bmmae.config import SegmentConfig, parse
from bmmae.data.check import FULL_COVERAGE
from bmmae.data.findings import Finding
from bmmae.data.swaps import BRIGHTEST, RANK_MARGIN, TAIL_RATIO

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "check.md").read_text()


def test_commands_are_accepted() -> None:
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            if program == "bmmae":
                assert build_parser().parse_args(arguments).cohort == Path("cohort.csv")
            else:
                arguments[arguments.index("--config") + 1] = str(ROOT / arguments[arguments.index("--config") + 1])
                assert parse(SegmentConfig, arguments[2:]).data.splits == Path("folds.json")


def test_every_kind_of_finding_is_explained() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    named = re.search(r"code: (.*?)\.\n", str(Finding.__doc__), flags=re.DOTALL)
    assert named is not None
    assert listed == set(re.findall(r"`(\w+)`", named.group(1)))


def test_thresholds_are_those_of_the_code() -> None:
    flat = " ".join(PAGE.split())
    assert f"over {TAIL_RATIO} times" in flat
    assert f"brightest {BRIGHTEST:.0%}".replace("%", " %") in flat
    assert f"by over {RANK_MARGIN} " in flat
    assert f"less than {FULL_COVERAGE:.0%}".replace("%", " %") in flat

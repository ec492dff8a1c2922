"""docs/segmentation.md says what the code does, and its commands and code are understood."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from bmmae.cli import build_parser
from bmmae.config import SegmentConfig, parse
from bmmae.errors import ConfigError
from bmmae.metrics.regions import RegionMetrics

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "segmentation.md").read_text()
LINES = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]
REQUIRED = ["--config", str(ROOT / "configs/finetune/segmentation.yaml"), "--model", "m", "--data.cohort", "c.csv"]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_commands_are_accepted(line: list[str]) -> None:
    if line[0] == "bmmae":
        assert build_parser().parse_args(line[1:]).model == "runs/segmentation"
        return
    place = line.index("--config") + 1
    config = parse(SegmentConfig, [*line[3:place], str(ROOT / line[place]), *line[place + 1 :]])
    assert config.data.cohort == Path("cohort.csv")


def test_keys_are_those_of_the_configuration() -> None:
    keys = re.findall(r"^\| `([\w.]+): ([\w.]+)` \|", PAGE, flags=re.MULTILINE)
    assert len(keys) == 13
    for key, value in keys:
        extra = ["--augment.modality_dropout", "0"] if key == "distill.weight" else []
        parse(SegmentConfig, [*REQUIRED, *extra, f"--{key}", value])


def test_own_labels_are_understood(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "own.yaml").write_text(block)
    config = parse(SegmentConfig, [*REQUIRED, "--config", str(tmp_path / "own.yaml")])
    assert (config.classes, config.regions) == (yaml.safe_load(block)["classes"], yaml.safe_load(block)["regions"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--distill.weight", "1"], "do not go together"),
        (["--frozen", "true", "--model", "scratch:tiny"], "random weights from scratch would never learn"),
        (["--regions", "{a: [1]}"], "give classes too"),
        (["--classes", "{a: 1, b: 1}"], "a label value of its own"),
        (["--classes", "{a: 1}", "--data.labels", "binary"], "not both"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SegmentConfig, [*REQUIRED, *wrong])


def test_every_column_is_explained() -> None:
    columns = re.findall(r"^\| `(\w+)` \| .* \|$", PAGE, flags=re.MULTILINE)
    assert columns == [item.name for item in fields(RegionMetrics)]


def test_the_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "1.0\n"

"""What a configuration file may leave open, and what is refused in one sentence before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bmmae.config import PretrainConfig, SegmentConfig, parse
from bmmae.errors import ConfigError
from bmmae.patient_config import PatientConfig
from bmmae.training import OptimConfig


def written(folder: Path, text: str) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((PretrainConfig, key) for key in ("out", "train.seed", "train.tracker", "train.resume", "data.memory_mb")),
        *((PretrainConfig, key) for key in ("model.modalities", "model.encoder.dim", "preprocess.spacing")),
        *((PretrainConfig, key) for key in ("optim.lr", "optim.weight_decay", "augment.flip")),
        *((SegmentConfig, key) for key in ("decoder", "classes", "frozen")),
        *((PatientConfig, key) for key in ("mode", "targets.labels", "head.focal")),
    ],
)
def test_a_key_left_blank_is_refused_by_name_where_null_means_nothing(tmp_path: Path, kind: type, key: str) -> None:
    tree: dict[str, Any] = {"data": {"cohort": "c.csv"}, "train": {"steps": 2}}
    if kind is not PretrainConfig:
        tree["model"] = "m"
    node = tree
    *groups, last = key.split(".")
    for group in groups:
        node = node.setdefault(group, {})
    node[last] = None
    with pytest.raises(ConfigError, match=rf"key '{key}' needs a \w+, got null: fill it in, or leave the key out"):
        parse(kind, written(tmp_path, yaml.safe_dump(tree)))


def test_variables_of_the_environment_are_expanded_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    text = "train: {steps: 2}\nmodel: /data${SCRATCH}/runs/a\ndata: {cohort: c.csv, cache: $SCRATCH/cache}\n"
    config = parse(SegmentConfig, written(tmp_path, text))
    assert (config.model, config.data.cache) == ("/data/scratch/me/runs/a", Path("/scratch/me/cache"))
    with pytest.raises(ConfigError, match=r"'data\.cache' is \$NOWHERE/cache, and \$NOWHERE is not set"):
        parse(SegmentConfig, written(tmp_path, text.replace("$SCRATCH/", "$NOWHERE/")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n\tsteps: 2\n", r"line 2 is indented with a tab, and YAML takes blanks$"),
        ("train: {steps: 2\n", r"did not find expected .* in line 2, column 1$"),
        (
            "train: {steps: 2, tracker: Wandb}\n",
            r"Expected one of \['none', 'wandb', 'tensorboard'\]\. Got value: Wandb",
        ),
    ],
)
def test_a_slip_in_a_file_is_told_without_the_parsers_own_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(PretrainConfig, written(tmp_path, text))


def test_a_clipping_norm_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.clip_norm must be positive, got nan"):
        OptimConfig(clip_norm=float("nan"))


@pytest.mark.parametrize("words", [["--data.cache", ""], ["--data.cache="]])
def test_an_empty_value_is_no_path(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"value after --data\.cache=? is empty: fill it in"):
        parse(PretrainConfig, ["--data.cohort", "c.csv", "--train.steps", "2", *words])


def test_a_list_that_is_added_to_is_to_be_given_whole() -> None:
    words = ["--data.cohort", "c.csv", "--train.steps", "2", "--model.modalities+", "dwi"]
    with pytest.raises(ConfigError, match=r"'model\.modalities' cannot be added to: give the whole list"):
        parse(PretrainConfig, words)

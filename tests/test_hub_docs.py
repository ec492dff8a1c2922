"""Every row of "where can weights come from" in docs/weights.md is executed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Repository
from published import SMALL, published_state
from test_hub import files_of, hub, make_model  # noqa: F401 - `hub` is a fixture
from tiny_studies import write_study

from bmmae import checkpoint
from bmmae.checkpoint import PartialLoadWarning, save_model
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.tokens import TokenIndex

PAGE = (Path(__file__).parents[1] / "docs" / "weights.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (`.+`) \|$", PAGE, flags=re.MULTILINE)


@pytest.fixture
def world(hub, tmp_path, monkeypatch) -> dict[str, Any]:  # noqa: F811
    """What the page's commands name: folders, a run, files, and repositories on the local hub."""
    monkeypatch.chdir(tmp_path)
    model = make_model()
    files = files_of(model, Path("checkpoints/tiny"))
    for step in (100, 200):
        save_model(model, f"runs/mine/checkpoints/step-{step:08d}")
    index = {"best": "step-00000100", "last": "step-00000200"}
    Path("runs/mine/checkpoints/index.json").write_text(json.dumps(index))
    state = published_state(SMALL)
    torch.save(state, "bmmae.pth")
    torch.save({key: value for key, value in state.items() if key != "norm.bias"}, "half.pth")
    hub.repositories["org/name"] = Repository()
    hub.repositories["org/name"].refs["v1"] = hub.repositories["org/name"].commit(files)
    hub.repositories["luklebigbosse/BM-MAE"] = Repository()
    hub.repositories["luklebigbosse/BM-MAE"].commit({"bmmae.pth": Path("bmmae.pth").read_bytes()})
    names = ("convert", "info", "load_encoder", "load_model", "save_model", "add_modality", "truncate")
    return {"head": make_model(1), **{name: getattr(checkpoint, name) for name in names}}


def test_the_page_has_a_row_for_every_source() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize(("source", "commands"), ROWS, ids=[source for source, _ in ROWS])
def test_each_row_of_the_page_works(world, source, commands) -> None:
    for command in re.findall(r"`(.+?)`", commands):
        if "partial" in command:
            with pytest.warns(PartialLoadWarning, match=r"1 missing: norm.bias"):
                result = eval(command, world)
        else:
            result = eval(command, world)
        if command.startswith("load_model"):
            assert isinstance(result, PretrainedModel)
            assert not result.training


def test_the_code_for_features_and_heads_works(world, monkeypatch) -> None:
    monkeypatch.setattr(PretrainedModel, "registry", dict(PretrainedModel.registry))
    write_study(Path(), ("t1", "flair"), labelled=False)
    blocks = [b for b in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "tokens = " in b]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/weights.md", "exec", dont_inherit=True), world)
    assert world["embedding"].shape == (1, 24)
    assert world["logits"].shape == (1, 2)
    loaded = world["load_model"]("grader")
    assert torch.equal(loaded(world["volumes"], world["available"], world["brain"]), world["logits"])
    chosen = TokenIndex.of(world["model"].tokens(world["volumes"], world["available"], world["brain"]))
    assert torch.equal(loaded.encoder(world["volumes"], chosen), world["tokens"])


def test_the_pages_other_code_works(world) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    world["model"] = world["load_model"]("bmmae.pth")
    for block in blocks:
        if "push_to_hub" not in block and "dwi" in block:
            exec(block, world)
    assert world["five"].config.modalities == ("t1", "t1ce", "t2", "flair", "dwi")
    assert world["short"].config.encoder.depth == 2

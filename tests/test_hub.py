"""Models travel through a hub: fetched, pinned, resumed, cached, checked and pushed. No real network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from full_disk import files_of_at_most
from hub_server import Hub, Repository, serve
from published import SMALL, published_state

from bmmae.checkpoint import load_model, save_model
from bmmae.errors import CheckpointError, HubError
from bmmae.model.config import DecoderConfig, EncoderConfig, ModelConfig
from bmmae.model.mae import MAE

CONFIG = ModelConfig(
    patch=(8, 8, 8),
    size=(16, 16, 16),
    encoder=EncoderConfig(24, 1, 2),
    decoder=DecoderConfig(kind="cross", dim=12, depth=1, heads=2),
)
NAME = "lab/brain"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local hub, and the hub client pointed at it with a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        # The client waits seconds between its attempts.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield hub


# httpx calls its own way of sending a file deprecated.
pushing = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


def make_model(seed: int = 0) -> MAE:
    torch.manual_seed(seed)
    return MAE(CONFIG)


def files_of(model: MAE, folder: Path) -> dict[str, bytes]:
    save_model(model, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def model() -> MAE:
    return make_model()


@pytest.fixture
def stored(hub: Hub, model: MAE, tmp_path: Path) -> Repository:
    """A repository that holds `model`."""
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit(files_of(model, tmp_path / "saved"), "first")
    return hub.repositories[NAME]


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_model_is_fetched_by_name(stored, model) -> None:
    loaded = load_model(NAME)
    assert equal(loaded, model)
    assert not loaded.training


def test_loading_prints_and_logs_nothing(stored, capfd, caplog) -> None:
    load_model(NAME)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_revision_pins_branch_tag_or_commit(stored, model, tmp_path) -> None:
    first = stored.refs["main"]
    stored.refs["v1"] = first
    other = make_model(1)
    stored.commit(files_of(other, tmp_path / "other"), "second")
    for source in (f"{NAME}@v1", f"{NAME}@{first}"):
        assert equal(load_model(source), model)
    assert equal(load_model(NAME, revision="v1"), model)
    assert equal(load_model(NAME), other)


def test_both_files_come_from_one_commit(hub, stored) -> None:
    load_model(NAME)
    commit = stored.refs["main"]
    assert any(f"/resolve/{commit}/model.safetensors" in line for line in hub.requests)


def test_two_different_revisions_are_refused(stored) -> None:
    with pytest.raises(CheckpointError, match="two revisions are asked for: 'v1' in 'lab/brain@v1', and 'v2'"):
        load_model(f"{NAME}@v1", revision="v2")


def test_the_cache_is_used_and_weights_are_fetched_once(hub, stored) -> None:
    load_model(NAME)
    load_model(NAME)
    assert len(hub.downloads()) == 1


def test_offline_mode_uses_the_cache_and_asks_nobody(hub, stored, model, monkeypatch) -> None:
    load_model(NAME)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert equal(load_model(NAME), model)
    assert hub.requests == []


def test_offline_mode_with_an_empty_cache_says_what_to_do(hub, stored, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"config.json of lab/brain.*cache does not have it.*HF_HUB_OFFLINE=1.*folder"):
        load_model(NAME)


def test_a_missing_network_is_one_sentence_with_the_way_out(hub, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(
        HubError, match=r"no folder .* here, the hub cannot be reached for config.json of lab/brain"
    ) as caught:
        load_model(NAME)
    assert "\n" not in str(caught.value)


def test_a_cut_connection_is_resumed_where_it_broke(hub, stored, model, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cuts = 1
    assert equal(load_model(NAME), model)
    size = len(stored.commits[stored.refs["main"]]["model.safetensors"])
    first, second = hub.downloads()
    assert " bytes=" not in first
    assert size // 2 - 1024 <= int(second.partition(" bytes=")[2].rstrip("-")) <= size // 2


def test_a_connection_that_keeps_breaking_is_an_error_and_leaves_nothing(hub, stored, tmp_path) -> None:
    hub.cuts = 100
    with pytest.raises(HubError, match=r"the transfer of model.safetensors of lab/brain.* failed: .*Try again"):
        load_model(NAME)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_cache_that_cannot_be_written_is_not_called_a_failed_transfer(hub, stored, tmp_path, monkeypatch) -> None:
    told = r"cannot be kept in the hub client's cache: .*Make room there, or name another place with HF_HOME$"
    with pytest.raises(HubError, match=rf"model\.safetensors of {NAME}@\w+ {told}"), files_of_at_most(2000):
        load_model(NAME)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HubError, match=rf"config\.json of {NAME} {told}"):
        load_model(NAME)


def test_damaged_bytes_are_found_by_the_hubs_sha256(hub, stored) -> None:
    hub.corrupt = True
    with pytest.raises(
        HubError, match=r"model.safetensors of lab/brain is damaged: its SHA-256 is not the hub's.*Delete"
    ):
        load_model(NAME)


def test_an_unknown_repository_is_named(hub) -> None:
    with pytest.raises(HubError, match=r"the hub has no model 'lab/nothing'.*no folder 'lab/nothing' here either"):
        load_model("lab/nothing")


def test_a_private_repository_needs_the_token(hub, stored, model, monkeypatch) -> None:
    stored.private = True
    with pytest.raises(HubError, match=r"if it is private, log in with `hf auth login`"):
        load_model(NAME)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert equal(load_model(NAME), model)


def test_a_gated_repository_says_so(hub, stored) -> None:
    stored.gated = True
    with pytest.raises(HubError, match="lab/brain is gated: accept its terms"):
        load_model(NAME)


def test_an_unknown_revision_is_named(stored) -> None:
    with pytest.raises(HubError, match="lab/brain has no revision 'v9': expected a branch, a tag or a commit"):
        load_model(f"{NAME}@v9")


def test_a_repository_of_another_layout_lists_its_files(hub) -> None:
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"bmmae.pth": b"x", "bmmae_tcga.pth": b"y"})
    with pytest.raises(
        HubError, match=r"has no file config.json: it has bmmae.pth, bmmae_tcga.pth. Name one with filename"
    ):
        load_model(NAME)


def test_what_a_repository_has_in_place_of_a_model_is_told_with_a_way_to_use_it(hub) -> None:
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"bmmae.pth": b"x"})
    advice = f"filename='bmmae.pth' in Python; for a command, fetch it with `hf download {NAME} bmmae.pth` and name"
    with pytest.raises(HubError, match=re.escape(advice)):
        load_model(NAME)
    with pytest.raises(HubError, match=re.escape(f"`hf download {NAME} bmmae.pth --revision main`")):
        load_model(f"{NAME}@main")
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"model.safetensors": b"x"})
    with pytest.raises(HubError, match=r"has no file config.json: it has model.safetensors$"):
        load_model(NAME)


def test_a_model_of_another_library_is_refused_before_its_weights_travel(hub) -> None:
    hub.repositories[NAME] = Repository()
    hub.repositories[NAME].commit({"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x" * 10_000})
    with pytest.raises(CheckpointError, match=r"config\.json was not written by bmmae: expected \"format\""):
        load_model(NAME)
    assert hub.downloads() == []


def test_the_published_layout_loads_by_file_name(hub, tmp_path) -> None:
    state = published_state(SMALL)
    torch.save(state, tmp_path / "bmmae.pth")
    hub.repositories["luklebigbosse/BM-MAE"] = Repository()
    hub.repositories["luklebigbosse/BM-MAE"].commit({"bmmae.pth": (tmp_path / "bmmae.pth").read_bytes()})
    model = load_model("luklebigbosse/BM-MAE", filename="bmmae.pth")
    assert torch.equal(model.state_dict()["encoder.norm.weight"], state["norm.weight"])


def test_a_name_that_cannot_be_one_is_refused(hub) -> None:
    with pytest.raises(HubError, match="neither a folder here nor a hub name"):
        load_model("lab/..brain--")


@pushing
def test_pushing_makes_one_commit_that_loads_again(hub, model, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    address = model.push_to_hub("lab/new", commit_message="Share it", private=True)
    repository = hub.repositories["lab/new"]
    commit = repository.refs["main"]
    assert commit in str(address)
    assert repository.messages[commit] == "Share it"
    assert repository.private
    assert set(repository.commits[commit]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert equal(load_model("lab/new"), model)


@pushing
def test_saving_can_push_in_the_same_call_to_a_branch(hub, stored, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    other = make_model(1)
    other.save_pretrained(tmp_path / "out", push_to_hub=True, repo_id=NAME, branch="next")
    assert equal(load_model(f"{NAME}@next"), other)
    assert not equal(load_model(NAME), other)


def test_pushing_in_offline_mode_says_why_it_cannot(hub, model, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, so the hub cannot be asked about lab/new: unset it"):
        model.push_to_hub("lab/new")


def test_pushing_without_the_right_to_is_one_sentence(hub, model) -> None:
    with pytest.raises(HubError, match=r"does not let you write to lab/new: log in with `hf auth login`"):
        model.push_to_hub("lab/new")
    assert "lab/new" not in hub.repositories


def test_a_push_that_breaks_does_not_talk_of_fetching(hub, model, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.create_repo", broken)
    with pytest.raises(HubError, match=r"^lab/new was not pushed: the line is dead. Push again"):
        model.push_to_hub("lab/new")


@pytest.mark.slow
def test_environment_variables_alone_point_a_program_at_another_hub(hub, stored, tmp_path) -> None:
    program = f"import bmmae.checkpoint, json; print(json.dumps(bmmae.checkpoint.info('{NAME}').as_dict()))"
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **settings, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kind"] == "mae"
    assert done.stderr == ""

"""A checkpoint is complete or it is not there; damage is found, and the one before is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from full_disk import files_of_at_most
from safetensors.torch import save_file
from tiny_models import tiny_mae
from torch import nn

from bmmae.errors import CheckpointError, OutputError
from bmmae.model.mae import MAE
from bmmae.training import checkpointing
from bmmae.training.checkpointing import (
    checkpoint_folder,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    read_index,
    read_state,
    remove_old_checkpoints,
    write_checkpoint,
    write_index,
)


def save_model(model: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "weights.bin")


def write(run_dir: Path, *steps: int) -> None:
    for step in steps:
        write_checkpoint(run_dir, step, nn.Linear(2, 2), {"step": step}, save_model)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 5)
    folder = find_checkpoint(tmp_path, "last")
    assert folder == tmp_path / "checkpoints" / "step-00000005"
    assert read_state(folder) == {"step": 5}
    assert (folder / "weights.bin").exists()


def test_the_best_is_the_one_that_the_index_names(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3)
    write_index(tmp_path, {"best": "step-00000002"})
    assert find_checkpoint(tmp_path, "best").name == "step-00000002"
    assert find_checkpoint(tmp_path, "last").name == "step-00000003"


def test_without_evaluations_the_best_is_the_last(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    assert find_checkpoint(tmp_path, "best").name == "step-00000002"


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "no manifest"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, which: str, damage: str) -> None:
    write(tmp_path, 1, 2)
    write_index(tmp_path, {"best": "step-00000002"})
    file = checkpoint_folder(tmp_path, 2) / ("manifest.json" if damage == "no manifest" else "weights.bin")
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.unlink()
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert find_checkpoint(tmp_path, which).name == "step-00000001"  # type: ignore[arg-type]


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No intact checkpoint in .* \(0 folders looked at\)"):
        find_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_earlier_ones(tmp_path: Path) -> None:
    def full_disk(model: nn.Module, folder: Path) -> None:
        (folder / "half").write_text("...")
        raise OSError("No space left on device")

    write(tmp_path, 1)
    with pytest.raises(OutputError, match=r"step-00000002 cannot be written: No space left.*earlier .* untouched"):
        write_checkpoint(tmp_path, 2, nn.Linear(1, 1), {}, full_disk)
    assert find_checkpoint(tmp_path, "last").name == "step-00000001"


def save_plainly(model: nn.Module, folder: Path) -> None:
    save_file(dict(model.state_dict()), folder / "model.safetensors")


@pytest.mark.parametrize("writer", ["torch", "safetensors", "save_pretrained"])
def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path: Path, writer: str) -> None:
    model, save, state = {
        "torch": (nn.Linear(2, 2), save_model, {"model": torch.zeros(100_000)}),
        "safetensors": (nn.Linear(200, 200), save_plainly, {}),
        "save_pretrained": (tiny_mae(), MAE.save_pretrained, {}),
    }[writer]
    write(tmp_path, 1)
    with (
        files_of_at_most(30_000),
        pytest.raises(OutputError, match=r"step-00000002 cannot be written: .*Free some space.*untouched") as told,
    ):
        write_checkpoint(tmp_path, 2, model, state, save)  # type: ignore[arg-type]
    assert ("the disk may be full" in str(told.value)) == (writer == "torch")
    assert "inline_container" not in str(told.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_an_error_that_is_not_of_the_disk_keeps_its_form(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_checkpoint(tmp_path, 1, nn.Linear(2, 2), {}, fail)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("moment", ["_describe", "_flush_tree", "_put_in_place", "_flush"])
def test_a_kill_at_any_moment_leaves_a_good_one(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    write(tmp_path, 1)
    monkeypatch.setattr(checkpointing, moment, kill)
    with pytest.raises(Killed):
        write(tmp_path, 2)
    monkeypatch.undo()
    found = find_checkpoint(tmp_path, "last")
    assert found.name == ("step-00000001" if moment != "_flush" else found.name)
    write(tmp_path, 2)
    remove_old_checkpoints(tmp_path, 2, None, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_a_kill_while_a_step_is_replaced_leaves_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    rename = Path.rename

    def once(path: Path, target: Path) -> None:
        rename(path, target)
        raise Killed

    write(tmp_path, 2)
    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(Killed):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert read_state(find_checkpoint(tmp_path, "last")) == {"step": 2}
    remove_old_checkpoints(tmp_path, 2, None, keep=1)
    assert read_state(find_checkpoint(tmp_path, "last")) == {"step": 2}
    write(tmp_path, 2)
    remove_old_checkpoints(tmp_path, 2, None, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_what_a_kill_left_of_a_models_own_files_goes(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in ("..writing-step-00000002.0a1b2c3d.tmp", ".writing-step-00000002"):
        (tmp_path / "checkpoints" / name).mkdir()
    remove_old_checkpoints(tmp_path, 1, None, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_users_copy_is_no_checkpoint_and_stays(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step-00000002").rename(tmp_path / "checkpoints" / "step-00000002-backup")
    assert find_checkpoint(tmp_path, "last").name == "step-00000001"
    remove_old_checkpoints(tmp_path, 1, None, keep=1)
    assert (tmp_path / "checkpoints" / "step-00000002-backup").is_dir()


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    assert find_damage(checkpoint_folder(tmp_path, 1)) is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    remove_old_checkpoints(tmp_path, 4, best_step=1, keep=2)
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["4", "3", "1"]


def test_an_abandoned_future_goes(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 9)
    remove_old_checkpoints(tmp_path, 2, best_step=None, keep=2)
    assert [folder.name[-1] for folder in list_checkpoints(tmp_path)] == ["2", "1"]


def test_an_unreadable_state_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "training_state.pt").write_text("not a pickle")
    with pytest.raises(CheckpointError, match=r"training_state.pt cannot be read"):
        read_state(tmp_path)


def test_an_unreadable_index_is_as_none(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoints" / "index.json").write_text("{")
    assert read_index(tmp_path) == {}

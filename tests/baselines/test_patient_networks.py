"""Comparators of patients: called as the library's own model, absent modalities are zeros, and the parts are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import volumes

from bmmae.baselines.branch_network import BranchNetwork, FeatureBranch, TwofoldAttention
from bmmae.baselines.hybrid_network import TwoArmBlock
from bmmae.baselines.patient_networks import PATIENT_NETWORKS, PatientNetwork, PatientNetworkConfig, load_med3d
from bmmae.errors import CheckpointError, ConfigError
from bmmae.model.beside import Beside
from bmmae.model.patient import PatientModelConfig
from bmmae.targets import Target
from bmmae.tasks.patient import PatientTask

SIZE = (32, 32, 64)
HEAVY = ("densenet121", "senet154", "efficientnet_b0", "vit")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in PATIENT_NETWORKS]
TARGETS = (
    Target("subtype", "binary", ("subtype",), ("one", "two")),
    Target("survival", "cox", edges=(6.0, 12.0)),
)
AVAILABLE = torch.tensor([[1, 0, 1, 1]]).bool()


def network(name: str, **changes: object) -> PatientNetwork:
    torch.manual_seed(0)
    return PatientNetwork(PatientNetworkConfig(name, TARGETS, window=SIZE, width=4, **changes)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_an_absent_channel_is_not_read(name: str) -> None:
    model, images = network(name), volumes(size=SIZE)
    other = images.clone()
    other[0, 1] = torch.nan
    with torch.no_grad():
        found, same = model(images, AVAILABLE), model(other, AVAILABLE)
        full = model(images, torch.ones(1, 4, dtype=torch.bool))
    assert {key: value.shape for key, value in found.items()} == {"subtype": (1, 1), "survival": (1, 1)}
    assert all(torch.equal(found[key], same[key]) for key in found)
    assert any(not torch.equal(found[key], full[key]) for key in found)


def test_on_a_cpu_it_computes_in_float32_whatever_is_asked() -> None:
    model, images = network("branches"), volumes(size=SIZE)
    plain = model(images, AVAILABLE)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images, AVAILABLE)
    assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.slow
def test_it_learns_by_the_projects_task() -> None:
    model, size = network("branches").train(), (32, 32, 32)
    batch = {
        "images": volumes(2, size=size),
        "available": AVAILABLE.expand(2, -1),
        "valid": torch.ones(2, 4, *size, dtype=torch.bool),
        "brain": torch.ones(2, *size, dtype=torch.bool),
        "label": torch.tensor([[0], [1]]),
        "time": torch.tensor([1.0, 2.0]),
        "event": torch.tensor([True, True]),
    }
    task = PatientTask(PatientModelConfig(targets=TARGETS))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        output = task.step(model, batch)
        optimizer.zero_grad()
        output.loss_sum.backward()
        optimizer.step()
        losses.append(output.loss_sum.item())
    assert losses[-1] < losses[0] - 0.5


def test_the_lesion_map_is_read_where_there_is_one() -> None:
    model, images = network("branches"), volumes(size=SIZE)
    lesion = torch.zeros(1, 1, *SIZE)
    lesion[..., 3:9, 3:9, 3:9] = 1
    with torch.no_grad():
        without = model(images, AVAILABLE)
        known = model(images, AVAILABLE, beside=Beside(lesion=lesion, lesion_available=torch.tensor([True])))
        unknown = model(images, AVAILABLE, beside=Beside(lesion=lesion, lesion_available=torch.tensor([False])))
    assert torch.equal(without["subtype"], unknown["subtype"])
    assert not torch.equal(without["subtype"], known["subtype"])


def test_the_branch_network_has_the_papers_parts() -> None:
    model = BranchNetwork(2, 5, width=4)
    branch = model.branches[0]
    assert isinstance(branch, FeatureBranch)
    assert [type(part) for part in list(branch)[1:]] == [TwoArmBlock] * 5
    assert model(volumes(modalities=2, size=SIZE), torch.zeros(1, 1, *SIZE)).shape == (1, 5)
    assert sum(isinstance(part, torch.nn.Linear) for part in model.head) == 2


def test_the_lesion_map_is_pooled_to_its_maximum() -> None:
    lesion = torch.zeros(1, 1, *SIZE)
    lesion[0, 0, 3, 30, 40] = 0.7
    torch.testing.assert_close(BranchNetwork(1, 1, width=4).shrink(lesion).flatten(), torch.tensor([0.0, 0.7]))


def test_attention_is_the_sum_of_both_kinds() -> None:
    attention, x = TwofoldAttention(6), volumes(modalities=6, size=(2, 2, 2))
    weights = attention.channel(x.mean((2, 3, 4)))
    place = torch.sigmoid(x.mean(1))
    expected = x * weights[:, :, None, None, None] + x * place[:, None]
    torch.testing.assert_close(attention(x), expected)


def med3d_file(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as Med3D's authors write it: one channel, names under `module.`, a segmentation head."""
    state = {name: value.clone() for name, value in network("resnet18").network.state_dict().items()}
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    held = {f"module.{name}": value for name, value in state.items()} | {"module.conv_seg.0.weight": torch.ones(2)}
    path = folder / "resnet_18.pth"
    torch.save({"state_dict": held}, path)
    return path, state


@pytest.mark.slow
def test_med3d_weights_give_the_same_features_for_the_same_image_in_all_channels(tmp_path: Path) -> None:
    path, state = med3d_file(tmp_path)
    torch.manual_seed(1)
    model = PatientNetwork(PatientNetworkConfig("resnet18", TARGETS, window=SIZE, weights=path)).eval()
    one = volumes(modalities=1, size=SIZE)
    same = torch.nn.functional.conv3d(one, state["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(model.network.conv1(one.expand(-1, 4, -1, -1, -1)), same, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.network.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])


@pytest.mark.slow
def test_other_weights_are_refused(tmp_path: Path) -> None:
    path, state = med3d_file(tmp_path)
    torch.save({name: value for name, value in state.items() if not name.startswith("layer3")}, path)
    with pytest.raises(CheckpointError, match=r"are missing \(layer3.0.bn1.bias"):
        load_med3d(network("resnet18").network, path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load_med3d(network("resnet18").network, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vgg"}, "unknown network 'vgg': expected one of densenet121"),
        ({"window": (48, 64, 64)}, "multiples of 32"),
        ({"weights": Path("resnet_18.pth"), "name": "vit"}, "Med3D weights are for resnet18, not for vit"),
        ({"modalities": ("t1", "t2")}, "no branch can see t1ce: the batches have t1, t2"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatientNetworkConfig(**({"name": "branches", "targets": TARGETS} | changes))  # type: ignore[arg-type]

"""Classification networks that others would try first, each behind one adapter: absent modalities are zero channels.

The networks are MONAI's, but for the one of `bmmae.baselines.branch_network`. The adapter is called as
`bmmae.model.patient.PatientModel` is, so that all learn from the same batches by the same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.baselines.branch_network import BranchNetwork
from bmmae.baselines.precision import float32_on_cpu
from bmmae.baselines.segmentation_networks import zero_filled
from bmmae.errors import CheckpointError, ConfigError
from bmmae.modalities import STANDARD, in_table_order
from bmmae.model.beside import Beside
from bmmae.patches import Triple, as_triple
from bmmae.targets import Target

NOTHING = Beside()
FACTOR = 32
"""What the sides of a window must be multiples of."""
MED3D_HEADS = ("fc.", "conv_seg.")


@dataclass(frozen=True)
class PatientNetworkConfig:
    """One comparator.

    Attributes:
        name: A key of `PATIENT_NETWORKS`.
        targets: What is predicted, as for `PatientModelConfig`.
        modalities: Canonical names in the order of a batch's axis M; always in table order.
        branches: Modalities that `branches` has a branch for; the others are not read.
        window: Voxels of the window; it should hold a whole brain.
        width: Channels of the first convolution of `branches`.
        weights: A file of Med3D weights for `resnet18` (`resnet_18.pth` or `resnet_18_23dataset.pth` of its authors).
    """

    name: str
    targets: tuple[Target, ...]
    modalities: tuple[str, ...] = STANDARD
    branches: tuple[str, ...] = ("t1ce", "flair")
    window: Triple = (64, 64, 64)
    width: int = 16
    weights: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", in_table_order(self.modalities))
        object.__setattr__(self, "branches", in_table_order(self.branches))
        object.__setattr__(self, "window", as_triple(self.window))
        if self.name not in PATIENT_NETWORKS:
            raise ConfigError(f"unknown network '{self.name}': expected one of {', '.join(PATIENT_NETWORKS)}")
        if any(side % FACTOR for side in self.window):
            raise ConfigError(f"{self.name} needs a window whose sides are multiples of {FACTOR}, got {self.window}")
        if self.weights is not None and self.name != "resnet18":
            raise ConfigError(f"Med3D weights are for resnet18, not for {self.name}: leave weights out")
        absent = [name for name in self.branches if name not in self.modalities]
        if self.name == "branches" and absent:
            raise ConfigError(f"no branch can see {absent[0]}: the batches have {', '.join(self.modalities)}")

    @property
    def outputs(self) -> int:
        """Numbers that the network puts out, for all targets together."""
        return sum(target.outputs for target in self.targets)


class PatientNetwork(nn.Module):
    """A network with one channel a modality, called as `PatientModel` is.

    Args:
        config: Which network, and what it predicts.

    Raises:
        CheckpointError: If Med3D weights are asked for and the file does not hold them.
    """

    def __init__(self, config: PatientNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.network = PATIENT_NETWORKS[config.name](config)
        self.seen = [config.modalities.index(name) for name in config.branches if name in config.modalities]

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,  # noqa: ARG002 - the library's own model reads it
        valid: Bool[Tensor, "B M H W D"] | None = None,
        *,
        beside: Beside = NOTHING,
        kept: Tensor | None = None,  # noqa: ARG002 - there are no tokens to drop
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Return the outputs of each target by name; see `bmmae.model.patient.PatientModel`.

        Args:
            images: Volumes, z-scored; those of absent modalities are not read.
            available: Which modalities each sample has.
            tissue: Not used.
            valid: Where each modality was scanned; default: everywhere.
            beside: Of it, `branches` reads the lesion map; clinical variables are for other models.
            kept: Not used.
        """
        volumes = zero_filled(images, available, valid)
        with float32_on_cpu(images.device):
            if isinstance(self.network, BranchNetwork):
                logits = self.network(volumes[:, self.seen], _lesion_map(beside, images))
            else:
                found = self.network(volumes)
                logits = cast(Tensor, found[0] if isinstance(found, tuple) else found)
        sizes = [target.outputs for target in self.config.targets]
        return dict(zip((t.name for t in self.config.targets), torch.split(logits, sizes, dim=1), strict=True))


def _lesion_map(beside: Beside, images: Tensor) -> Float[Tensor, "B 1 H W D"]:
    if beside.lesion is None or beside.lesion_available is None:
        return torch.zeros_like(images[:, :1])
    return beside.lesion.to(images.dtype) * beside.lesion_available[:, None, None, None, None]


def _densenet(config: PatientNetworkConfig) -> nn.Module:
    from monai.networks.nets import DenseNet121

    network: nn.Module = DenseNet121(3, len(config.modalities), config.outputs)
    return network


def _resnet(config: PatientNetworkConfig) -> nn.Module:
    from monai.networks.nets import resnet18

    # Med3D's form of ResNet18: stride 2 at once, and shortcuts without weights.
    network: nn.Module = resnet18(
        spatial_dims=3,
        n_input_channels=len(config.modalities),
        num_classes=config.outputs,
        conv1_t_stride=2,
        shortcut_type="A",
    )
    if config.weights is not None:
        load_med3d(network, config.weights)
    return network


def _senet(config: PatientNetworkConfig) -> nn.Module:
    from monai.networks.nets import SENet154

    network: nn.Module = SENet154(spatial_dims=3, in_channels=len(config.modalities), num_classes=config.outputs)
    return network


def _efficientnet(config: PatientNetworkConfig) -> nn.Module:
    from monai.networks.nets import EfficientNetBN

    network: nn.Module = EfficientNetBN(
        "efficientnet-b0",
        pretrained=False,
        spatial_dims=3,
        in_channels=len(config.modalities),
        num_classes=config.outputs,
    )
    return network


def _vit(config: PatientNetworkConfig) -> nn.Module:
    from monai.networks.nets import ViT

    # Of the size of the recipe `small`; without the hyperbolic tangent that MONAI puts on the logits.
    network: nn.Module = ViT(
        in_channels=len(config.modalities),
        img_size=config.window,
        patch_size=(16, 16, 16),
        hidden_size=384,
        mlp_dim=1536,
        num_layers=12,
        num_heads=6,
        classification=True,
        num_classes=config.outputs,
        post_activation="",
    )
    return network


def _branches(config: PatientNetworkConfig) -> nn.Module:
    return BranchNetwork(len(config.branches), config.outputs, config.width)


PATIENT_NETWORKS: dict[str, Callable[[PatientNetworkConfig], nn.Module]] = {
    "densenet121": _densenet,
    "resnet18": _resnet,
    "senet154": _senet,
    "efficientnet_b0": _efficientnet,
    "vit": _vit,
    "branches": _branches,
}
"""How to build each comparator, by name."""


def load_med3d(network: nn.Module, path: Path) -> None:
    """Load the features of a Med3D ResNet (Chen 2019) into a MONAI ResNet of the same depth.

    Its one input channel becomes as many as the network has, divided by their number, so that an input that is the same
    in all gives the same features. The head is left as it is.

    Args:
        network: With shortcuts of type A.
        path: The file; only tensors are read from it, no code is run.

    Raises:
        CheckpointError: If it cannot be read, or holds other weights.
    """
    state = {name: value for name, value in _read_state(path).items() if not name.startswith(MED3D_HEADS)}
    first = "conv1.weight"
    wanted = network.state_dict()
    if first in state:
        channels = wanted[first].shape[1]
        state[first] = state[first].expand(-1, channels, -1, -1, -1) / channels
    features = {name: value.shape for name, value in wanted.items() if not name.startswith(MED3D_HEADS)}
    counters = {name for name in features if name.endswith("num_batches_tracked")}
    missing = sorted(set(features) - counters - set(state))
    unfit = sorted(name for name, value in state.items() if features.get(name) != value.shape)
    if missing or unfit:
        raise CheckpointError(
            f"{path} holds no Med3D weights of this network: {len(missing)} of {len(features)} are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(unfit)} do not fit ({', '.join(unfit[:3]) or 'none'}); "
            "expected resnet_18.pth as its authors publish it"
        )
    network.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch and pickle meet in a file that is none of theirs
        raise CheckpointError(f"{path} cannot be read as weights: {type(error).__name__}: {error}") from error
    state = held.get("state_dict", held) if isinstance(held, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no weights: expected names and tensors, or these under 'state_dict'")
    return {name.removeprefix("module."): value for name, value in state.items()}

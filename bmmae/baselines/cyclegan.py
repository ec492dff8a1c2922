"""CycleGAN between two modalities, slice by slice: the modality transfer of arXiv 2110.03588, from one to the other.

Two generators, first to second (G1) and back (G2), and a discriminator for each modality, trained by least-squares
adversarial and cycle losses on slices that need not be the same; each slice meets the one of the other modality with
which it shares most information. The paper leaves the networks to another one: these are the residual generator and
patch discriminator of CycleGAN (arXiv 1703.10593). `bmmae.training.adversarial` trains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from bmmae.arrays import Float, Tensor
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig
from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import STANDARD

BACKGROUND = -3.0
"""Z-score outside the brain: what no signal is in stripped scans, as the paper's images have it."""
MULTIPLE = 4
"""The generator halves a slice twice."""


@dataclass(frozen=True)
class CycleConfig:
    """Networks and losses.

    Attributes:
        first: One modality.
        second: The other.
        spacing: Millimetres between voxels; slices are axial.
        width: Channels of the networks' first layer.
        blocks: Residual blocks of a generator.
        cycle_weight: Weight of the cycle loss (lambda).
        reach: Slices to either side among which the most similar one is searched.
    """

    first: str = STANDARD[1]
    second: str = STANDARD[3]
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
    width: int = 32
    blocks: int = 6
    cycle_weight: float = 10.0
    reach: int = 2

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ConfigError(f"a transfer needs two modalities, got {self.first} twice")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels)[:-1])

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Return the block's output."""
        return x + cast(Tensor, self.layers(x))


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, padding_mode="reflect")
    return [convolution, nn.InstanceNorm2d(outputs), nn.ReLU(inplace=True)]


def make_generator(width: int, blocks: int) -> nn.Module:
    """Return CycleGAN's residual generator; its output is linear, for z-scores have no bounds."""
    layers = [*_convolution(1, width, 7)]
    layers += _convolution(width, 2 * width, stride=2) + _convolution(2 * width, 4 * width, stride=2)
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for inputs in (4 * width, 2 * width):
        layers += [nn.Upsample(scale_factor=2, mode="nearest"), *_convolution(inputs, inputs // 2)]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 7, padding=3, padding_mode="reflect"))


def make_discriminator(width: int) -> nn.Module:
    """Return a patch discriminator: one judgement for each patch of 34 by 34 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    for inputs, stride in ((width, 2), (2 * width, 1)):
        layers += [nn.Conv2d(inputs, 2 * inputs, 4, stride=stride, padding=1), nn.InstanceNorm2d(2 * inputs)]
        layers += [nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, padding=1))


class CycleGAN(nn.Module):
    """Both directions of a modality transfer.

    Args:
        config: Networks and losses.
    """

    def __init__(self, config: CycleConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocess = PreprocessConfig(spacing=config.spacing)
        self.to_second = make_generator(config.width, config.blocks)
        self.to_first = make_generator(config.width, config.blocks)
        self.judge_second = make_discriminator(config.width)
        self.judge_first = make_discriminator(config.width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def generators(self) -> list[nn.Parameter]:
        """Return the parameters that make images."""
        return [*self.to_second.parameters(), *self.to_first.parameters()]

    def discriminators(self) -> list[nn.Parameter]:
        """Return the parameters that judge them."""
        return [*self.judge_second.parameters(), *self.judge_first.parameters()]

    def generator_loss(
        self, x: Float[Tensor, "B 1 h w"], y: Float[Tensor, "B 1 h w"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B 1 h w"], Float[Tensor, "B 1 h w"]]:
        """Return the generators' loss on slices x of the first and y of the second modality (equations 2 to 4).

        Returns:
            The loss, the slices made from x, those made from y.
        """
        made_y, made_x = self.to_second(x), self.to_first(y)
        adversarial = (self.judge_second(made_y) - 1).square().mean() + (self.judge_first(made_x) - 1).square().mean()
        cycle = (self.to_first(made_y) - x).square().mean() + (self.to_second(made_x) - y).square().mean()
        return adversarial + self.config.cycle_weight * cycle, made_y, made_x

    def discriminator_loss(self, x: Tensor, y: Tensor, made_y: Tensor, made_x: Tensor) -> Float[Tensor, ""]:
        """Return both discriminators' loss on real and made slices (equations 5 and 6); no gradient to generators."""
        pairs = ((self.judge_second, y, made_y), (self.judge_first, x, made_x))
        losses = [
            judge(made.detach()).square().mean() + (judge(real) - 1).square().mean() for judge, real, made in pairs
        ]
        return cast(Tensor, sum(losses))

    @torch.inference_mode()
    def predict(self, study: PreparedStudy, wanted: str) -> Float[np.ndarray, "H W D"]:
        """Return z-scores of one modality from the other, whatever else the study has; 0 outside the brain.

        Raises:
            ModalityError: If it is not one of the two, or the study lacks the other.
        """
        first, second = self.config.first, self.config.second
        source = {first: second, second: first}.get(wanted)
        if source is None or source not in study.names:
            raise ModalityError(
                f"this model makes {second} from {first} and back: it cannot make {wanted} from "
                f"{', '.join(study.names)}"
            )
        network = self.to_second if wanted == second else self.to_first
        device = next(network.parameters()).device
        slices = torch.from_numpy(slices_of(study, source)).to(device)
        made = torch.cat([network(part) for part in torch.split(slices, 16)])
        height, width, _ = study.shape
        volume = made[:, 0, :height, :width].float().cpu().numpy()
        return np.where(study.brain, np.moveaxis(volume, 0, -1), np.float32(0))


def slices_of(study: PreparedStudy, name: str) -> Float[np.ndarray, "D 1 h w"]:
    """Return the axial slices of a modality, background as no signal, padded so that a generator can halve them."""
    index = study.names.index(name)
    inside = study.valid[index] & study.brain
    slices = np.moveaxis(np.where(inside, study.images[index], np.float32(BACKGROUND)), -1, 0)
    padding = [(0, 0), *((0, -length % MULTIPLE) for length in slices.shape[1:])]
    return np.pad(slices, padding, constant_values=BACKGROUND)[:, None].astype(np.float32)


@dataclass(frozen=True)
class SlicePairs:
    """The slices of one study that hold enough brain to learn from, and with which slice each is shown.

    Attributes:
        first: Float[D, 1, h, w].
        second: The same of the other modality.
        pairs: Index into `first` and into `second`.
    """

    first: Float[np.ndarray, "D 1 h w"]
    second: Float[np.ndarray, "D 1 h w"]
    pairs: tuple[tuple[int, int], ...]


def slice_pairs(study: PreparedStudy, config: CycleConfig, least: float = 0.1) -> SlicePairs | None:
    """Pair the slices of a study by mutual information; None if it lacks a modality.

    Args:
        study: Prepared as the config says.
        config: Which modalities, and how far to search.
        least: Share of a slice that has to be brain.
    """
    if not {config.first, config.second} <= set(study.names):
        return None
    first, second = slices_of(study, config.first), slices_of(study, config.second)
    enough = np.flatnonzero(study.brain.mean(axis=(0, 1)) >= least).tolist()
    pairs = []
    for place in enough:
        near = [other for other in enough if abs(other - place) <= config.reach]
        shared = [mutual_information(first[place, 0], second[other, 0]) for other in near]
        pairs.append((place, near[int(np.argmax(shared))]))
    return SlicePairs(first, second, tuple(pairs))


def mutual_information(one: Float[np.ndarray, "h w"], other: Float[np.ndarray, "h w"], bins: int = 32) -> float:
    """Return how many nats the intensities of one image tell about those of another at the same places."""
    joint = np.histogram2d(one.ravel(), other.ravel(), bins=bins)[0] / one.size
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())

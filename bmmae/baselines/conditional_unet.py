"""A U-Net that is told which modalities are absent: what a network without pretraining learns in the same time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from bmmae.arrays import Array, Float, Tensor
from bmmae.baselines.budget import Budget
from bmmae.data.augment import AugmentConfig, augment_sample
from bmmae.data.loaders import sample_generator
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig, Window, overlap
from bmmae.errors import ModalityError, TrainingError
from bmmae.modalities import STANDARD
from bmmae.patches import Triple


@dataclass(frozen=True)
class UNetConfig:
    """The network and its training.

    Attributes:
        modalities: The modalities it knows; one input and one output channel each, and one flag.
        channels: Channels at each resolution; each next one has half the voxels along each axis. The default has 2.7
            million parameters.
        window: Voxels of the training window.
        spacing: Millimetres between them.
        batch: Windows a step.
        lr: Peak learning rate (AdamW), reached after `warmup` steps; a cosine over the budget follows.
        warmup: Steps of linear warm-up.
        weight_decay: Of AdamW.
        bf16: Compute under bf16 autocast.
    """

    modalities: tuple[str, ...] = STANDARD
    channels: tuple[int, ...] = (24, 48, 96, 192)
    window: Triple = (64, 64, 64)
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
    batch: int = 4
    lr: float = 2e-3
    warmup: int = 20
    weight_decay: float = 1e-4
    bf16: bool = False


class ConditionalUNet:
    """MONAI's residual U-Net: hidden channels are zero and flagged, all absent modalities are predicted at once.

    Each training sample hides a random non-empty proper subset of its study's modalities; the loss is the mean squared
    error over the scanned brain voxels of those hidden.

    Args:
        config: The network and its training.
        budget: How long `fit` trains.
        seed: Of weights and samples.
        device: Where.
    """

    def __init__(self, config: UNetConfig, budget: Budget, *, seed: int = 0, device: str = "cpu") -> None:
        self.config, self.budget, self.seed, self.device = config, budget, seed, torch.device(device)
        self.preprocess = PreprocessConfig(spacing=config.spacing)
        torch.manual_seed(seed)
        self.network = make_network(config).to(self.device)
        self.steps = 0
        self.seconds = 0.0

    def fit(self, studies: Iterable[PreparedStudy]) -> None:
        """Train until the budget is spent; `steps` and `seconds` say how long that was.

        Raises:
            TrainingError: If no study has two modalities, or the loss is not finite.
        """
        usable = [study for study in studies if len(study.names) > 1]
        if not usable:
            raise TrainingError("no training study has two modalities: there is none to predict from another")
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        self.network.train()
        running = self.budget.start(self.device)
        while (share := running.share(self.steps)) < 1:
            warm = min(1.0, (self.steps + 1) / self.config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * warm * 0.5 * (1 + math.cos(math.pi * share))
            loss = self._loss(*self._batch(usable))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            if not bool(norm.isfinite()):
                raise TrainingError(f"the gradient is NaN or infinite at step {self.steps}: lower lr")
            optimizer.step()
            self.steps += 1
        self.seconds = running.spent()
        self.network.eval()

    def _batch(self, studies: Sequence[PreparedStudy]) -> tuple[Tensor, Tensor, Tensor]:
        """Input channels, targets and which of their voxels count, each with a leading axis B."""
        samples = []
        for place in range(self.config.batch):
            rng = sample_generator(self.seed, self.steps, place)
            samples.append(draw_sample(studies[int(rng.integers(len(studies)))], self.config, rng))
        inputs, targets, counted = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
        return inputs.to(self.device), targets.to(self.device), counted.to(self.device)

    def _loss(self, inputs: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            predicted = self.network(inputs)
        squared = ((predicted.float() - targets) ** 2 * counted).sum()
        return cast(Tensor, squared / counted.sum().clamp(min=1))

    def predict(self, study: PreparedStudy, wanted: str) -> Float[np.ndarray, "H W D"]:
        """Return z-scores of a modality; see `Comparator`.

        Raises:
            ModalityError: If it is given, or not known.
        """
        return self.predict_all(study, (wanted,))[wanted]

    @torch.inference_mode()
    def predict_all(self, study: PreparedStudy, wanted: Sequence[str]) -> dict[str, Float[np.ndarray, "H W D"]]:
        """Return z-scores of several modalities at once, which takes no longer than one.

        Raises:
            ModalityError: If one is given, or not known.
        """
        from monai.inferers.utils import sliding_window_inference

        names = self.config.modalities
        for name in wanted:
            if name in study.names or name not in names:
                raise ModalityError(f"cannot predict '{name}' from {', '.join(study.names)}")
        h, w, d = (max(extent, side) for extent, side in zip(study.shape, self.config.window, strict=True))
        x, y, z = ((extent - side) // 2 for extent, side in zip(study.shape, (h, w, d), strict=True))
        images, valid, _ = _laid_out(study.window((x, y, z), (h, w, d)), names)
        channels = torch.from_numpy(_channels(images, valid))[None]
        blended = sliding_window_inference(
            channels, self.config.window, 1, self._forward, 0.5, mode="gaussian", sw_device=self.device, device="cpu"
        )
        there = (..., *overlap((x, y, z), (h, w, d), study.shape)[1])
        volumes = cast(Tensor, blended)[0].numpy()[there]
        return {name: np.where(study.brain, volumes[names.index(name)], np.float32(0)) for name in wanted}

    def _forward(self, window: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return cast(Tensor, self.network(window)).float()

    def save(self, path: Path) -> None:
        """Write the weights."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        torch.save({"network": self.network.state_dict(), "steps": self.steps, "seconds": self.seconds}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Read weights that `save` wrote."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.network.eval()


def make_network(config: UNetConfig) -> nn.Module:
    """Return MONAI's residual U-Net for a config."""
    from monai.networks.nets.unet import UNet

    count = len(config.modalities)
    network: nn.Module = UNet(
        spatial_dims=3,
        in_channels=2 * count,
        out_channels=count,
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=2,
    )
    return network


def draw_sample(study: PreparedStudy, config: UNetConfig, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw a window, its augmentation, and which of the study's modalities are hidden.

    Returns:
        Input channels Float[2 * M, h, w, d], targets Float[M, h, w, d], and which of their voxels count, the same
        shape.
    """
    names = config.modalities
    low = [min(0, extent - size) for extent, size in zip(study.shape, config.window, strict=True)]
    high = [max(0, extent - size) for extent, size in zip(study.shape, config.window, strict=True)]
    x, y, z = (int(start) for start in rng.integers(low, high, endpoint=True))
    window = study.window((x, y, z), config.window)
    images, valid, slots = _laid_out(window, names)
    available = np.isin(np.arange(len(names)), slots)
    sample = {"images": images, "available": available, "valid": valid, "brain": window.brain}
    sample = augment_sample(sample, AugmentConfig(), rng)
    given = np.zeros(len(names), dtype=bool)
    given[rng.permutation(slots)[: rng.integers(1, len(slots))]] = True
    shown = given[:, None, None, None]
    inputs = _channels(np.where(shown, sample["images"], np.float32(0)), sample["valid"] & shown)
    hidden = (available & ~given)[:, None, None, None]
    return inputs, sample["images"], (sample["valid"] & sample["brain"] & hidden).astype(np.float32)


def _laid_out(window: Window, names: Sequence[str]) -> tuple[Array, Array, list[int]]:
    """Images Float[M, h, w, d] and coverage Bool[M, h, w, d] in the network's order, and the slots that are filled.

    Beyond a study, what it has is scanned background, and what it lacks is absent as everywhere.
    """
    shape = (len(names), *window.brain.shape)
    images, valid = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    slots = [names.index(name) for name in window.names]
    images[slots], valid[slots] = window.images, window.valid
    return images, valid, slots


def _channels(images: Array, valid: Array) -> Float[np.ndarray, "C H W D"]:
    """Images and absent-flags."""
    return np.concatenate([images, (~valid).astype(np.float32)])

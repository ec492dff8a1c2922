"""What may happen to a training sample besides its crop and its mask.

Everything is drawn from the sample's own generator, so that it is a function of the sample's address alone. What moves
voxels moves all modalities, coverage, brain and labels together (`bmmae.data.spatial`); what changes intensities is
drawn for each modality apart and stays inside its brain (`bmmae.data.intensity`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bmmae.arrays import Array, Bool
from bmmae.data.intensity import EFFECTS
from bmmae.data.spatial import Turn, turn_matrix, turn_sample
from bmmae.errors import ConfigError
from bmmae.patches import Triple


@dataclass(frozen=True)
class Draw:
    """How often something happens, and how strongly.

    Attributes:
        chance: How often, 0 to 1.
        low: Its strength is uniform between this
        high: and this.
    """

    chance: float
    low: float
    high: float


@dataclass(frozen=True)
class AugmentConfig:
    """What may happen to a training window, drawn anew for every address. The defaults are light.

    Attributes:
        flip: Chance of a left-right flip.
        scale: Intensities of each modality are multiplied by 1 plus up to this much, either way.
        shift: And shifted by up to this many standard deviations.
        modality_dropout: Chance that a random non-empty subset of the available modalities is kept, all sizes equally
            likely.
        single_share: How often such a subset is one modality, whatever size was drawn: what is hardest to learn is then
            seen more often.
        lesion_share: Chance that the window is placed so that it holds a labelled voxel, if there is one; a rotation
            or an enlargement may then move that voxel out.
        each_lesion: How many of these windows aim at a lesion chosen first, all with equal chance, instead of at any
            labelled voxel: small lesions are then seen as often as large ones.
        flip_others: Chance of a flip along each of the other two axes.
        rotation: Degrees about each axis.
        zoom: Size of the anatomy relative to its true one.
        bias: Coefficient of a smooth multiplicative field, either way.
        gamma: Exponent applied to intensities; half of the times to the negative.
        low_resolution: Sampling density that a modality is reduced to, and brought back from.
        blur: Deviation of a Gaussian, in voxels.
        noise: Deviation of Gaussian noise, in standard deviations of the tissue.
    """

    flip: float = 0.5
    scale: float = 0.1
    shift: float = 0.1
    modality_dropout: float = 0.0
    single_share: float = 0.0
    lesion_share: float = 0.0
    each_lesion: float = 0.0
    flip_others: float = 0.0
    rotation: Draw = Draw(0.0, -15.0, 15.0)
    zoom: Draw = Draw(0.0, 0.85, 1.15)
    bias: Draw = Draw(0.0, 0.05, 0.2)
    gamma: Draw = Draw(0.0, 0.7, 1.5)
    low_resolution: Draw = Draw(0.0, 0.5, 1.0)
    blur: Draw = Draw(0.0, 0.5, 1.0)
    noise: Draw = Draw(0.0, 0.0, 0.2)

    def __post_init__(self) -> None:
        for name in ("flip", "modality_dropout", "single_share", "lesion_share", "each_lesion", "flip_others"):
            _require_chance(name, getattr(self, name))
        if self.each_lesion and not self.lesion_share:
            raise ConfigError(
                "augment.each_lesion says which lesion a window aims at, and augment.lesion_share 0 aims at none: set "
                "augment.lesion_share above 0, or augment.each_lesion to 0"
            )
        for name, (least, most) in RANGES.items():
            draw: Draw = getattr(self, name)
            _require_chance(f"{name}.chance", draw.chance)
            if not least <= draw.low <= draw.high <= most:
                raise ConfigError(
                    f"augment.{name} must go from low to high within [{least:g}, {most:g}], got low {draw.low:g} and "
                    f"high {draw.high:g}"
                )

    @property
    def changes_something(self) -> bool:
        """Whether a window can come out otherwise than it went in."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in CHANGING_NOTHING}
        return any(value.chance if isinstance(value, Draw) else value for value in values.values())


CHANGING_NOTHING = ("lesion_share", "each_lesion", "single_share")
"""What decides where a window lies, or which subset is kept if one is: nothing in the window changes by these."""

RANGES = {
    "rotation": (-180.0, 180.0),
    "zoom": (0.2, 5.0),
    "bias": (0.0, 1.0),
    "gamma": (0.1, 10.0),
    "low_resolution": (0.1, 1.0),
    "blur": (0.0, 10.0),
    "noise": (0.0, 10.0),
}
"""What strengths are allowed: beyond these no anatomy is left."""


def _require_chance(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"augment.{name} must lie in [0, 1], got {value}")


NO_AUGMENTATION = AugmentConfig(flip=0.0, scale=0.0, shift=0.0)

HEAVY = AugmentConfig(
    scale=0.25,
    modality_dropout=0.8,
    single_share=0.5,
    lesion_share=0.5,
    flip_others=0.5,
    rotation=Draw(0.2, -30.0, 30.0),
    zoom=Draw(0.2, 0.7, 1.4),
    bias=Draw(0.15, 0.05, 0.3),
    gamma=Draw(0.3, 0.7, 1.5),
    low_resolution=Draw(0.125, 0.5, 1.0),
    blur=Draw(0.1, 0.5, 1.0),
    noise=Draw(0.1, 0.0, 0.3),
)
"""Chances and ranges of nnU-Net's default trainer for MRI where it has them (Isensee 2021), with bias fields and
modality dropout added; `configs/finetune/segmentation_few.yaml` spells it out."""


def draw_turn(config: AugmentConfig, rng: np.random.Generator, spacing: tuple[float, float, float]) -> Turn | None:
    """Draw the rotation and the zoom of a sample; None if neither happens.

    Drawn before the window is cut, because a turned window shows what lies beyond its own corners.

    Args:
        config: What may happen.
        rng: The sample's generator.
        spacing: Millimetres between voxels: a rotation turns millimetres, not voxels.
    """
    turns, zooms = rng.random() < config.rotation.chance, rng.random() < config.zoom.chance
    degrees = rng.uniform(config.rotation.low, config.rotation.high, 3) if turns else np.zeros(3)
    zoom = float(rng.uniform(config.zoom.low, config.zoom.high)) if zooms else 1.0
    return Turn(turn_matrix(degrees, zoom, spacing)) if turns or zooms else None


def augment_sample(
    sample: dict[str, Array],
    config: AugmentConfig,
    rng: np.random.Generator,
    turn: Turn | None = None,
    size: Triple | None = None,
) -> dict[str, Array]:
    """Return an augmented sample; absent stays absent, and outside the brain and the coverage all stays exactly 0.

    Args:
        sample: `images` Float[M, H, W, D], `available` Bool[M], `valid` Bool[M, H, W, D], `brain` Bool[H, W, D],
            perhaps `label` Bool[R, H, W, D], perhaps `lesion` Float32[1, H, W, D]; not changed.
        config: What may happen.
        rng: The sample's generator.
        turn: As drawn by `draw_turn`; the sample then is the window that `Turn.source` asks for.
        size: Voxels of the window that is wanted, needed with a turn.
    """
    out = dict(sample)
    if rng.random() < config.modality_dropout:
        _drop(out, keep_random_subset(out["available"], rng, config.single_share))
    if turn is not None and size is not None:
        out = turn_sample(out, turn, size)
    chances = np.array((config.flip, config.flip_others, config.flip_others))
    axes = tuple(int(axis) - 3 for axis in np.flatnonzero(rng.random(3) < chances))
    out.update({key: np.flip(out[key], axes) for key in set(out) - {"available"}})
    out["images"] = _change_intensities(out, config, rng)
    return out


def _drop(sample: dict[str, Array], kept: Bool[Array, " M"]) -> None:
    flags = kept[:, None, None, None]
    sample.update(
        available=kept,
        images=np.where(flags, sample["images"], np.float32(0)),
        valid=sample["valid"] & flags,
    )


def _change_intensities(sample: dict[str, Array], config: AugmentConfig, rng: np.random.Generator) -> Array:
    images = sample["images"].astype(np.float32)
    gain = 1 + config.scale * rng.uniform(-1, 1, len(images))
    offset = config.shift * rng.uniform(-1, 1, len(images))
    for index in np.flatnonzero(sample["available"]):
        inside = sample["valid"][index] & sample["brain"]
        image = images[index]
        for name, effect in EFFECTS.items():
            draw: Draw = getattr(config, name)
            if rng.random() < draw.chance and inside.any():
                image = effect(image, inside, float(rng.uniform(draw.low, draw.high)), rng)
        image = image * np.float32(gain[index]) + np.float32(offset[index])
        images[index] = np.where(inside, image, np.float32(0))
    return images


def keep_random_subset(available: Array, rng: np.random.Generator, single_share: float = 0.0) -> Array:
    """Return a non-empty subset of the available modalities, all sizes equally likely.

    Args:
        available: Bool[M], at least one.
        rng: The sample's generator.
        single_share: How often the subset is one modality, whatever size was drawn.
    """
    order = rng.permutation(np.flatnonzero(available))
    size = int(rng.integers(1, len(order) + 1))
    if single_share and rng.random() < single_share:
        size = 1
    out = np.zeros_like(available)
    out[order[:size]] = True
    return out

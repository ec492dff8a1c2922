"""Model shapes: the dataclasses that describe one, and the named recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from bmmae.errors import ConfigError
from bmmae.modalities import STANDARD, in_table_order, table_names
from bmmae.patches import as_triple, patch_grid


@dataclass(frozen=True)
class EncoderConfig:
    """A pre-norm vision transformer.

    Attributes:
        dim: Length of a token.
        depth: Number of blocks.
        heads: Attention heads; must divide `dim`.
        mlp_ratio: Hidden width of the MLP over `dim`.
        dropout: Dropout in the blocks' projections.
        rotary: Turn queries and keys by the place of their patch, beside the fixed position embeddings.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 2.0
    dropout: float = 0.0
    rotary: bool = False

    def __post_init__(self) -> None:
        _require_blocks("encoder", self.dim, self.depth, self.heads, self.mlp_ratio)
        length = self.dim // self.heads
        if self.rotary and (length < 6 or length % 2):
            raise ConfigError(
                f"encoder.rotary needs heads of an even number of values, 6 or more, got {length}: "
                "change encoder.dim or encoder.heads"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """A shallow transformer that predicts the voxels of hidden patches.

    Attributes:
        kind: `self` attends among all tokens (published); `cross` lets hidden tokens attend to the encoder's output.
        dim: Length of a token.
        depth: Number of blocks.
        heads: Attention heads; must divide `dim`.
        mlp_ratio: Hidden width of the MLP over `dim`.
        colocated: Hidden tokens start from the mean of the visible tokens at their own place.
    """

    kind: Literal["self", "cross"] = "self"
    dim: int = 384
    depth: int = 3
    heads: int = 12
    mlp_ratio: float = 4.0
    colocated: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("self", "cross"):
            raise ConfigError(f"decoder.kind must be 'self' or 'cross', got '{self.kind}'")
        _require_blocks("decoder", self.dim, self.depth, self.heads, self.mlp_ratio)


def _require_blocks(part: str, dim: int, depth: int, heads: int, mlp_ratio: float) -> None:
    if min(dim, depth, heads) < 1 or not 0 < mlp_ratio < math.inf:
        raise ConfigError(
            f"{part}.dim, depth and heads must be at least 1 and {part}.mlp_ratio above 0, got {dim}, {depth}, {heads} "
            f"and {mlp_ratio}"
        )
    if dim % heads:
        raise ConfigError(f"{part}.dim {dim} is not a multiple of {part}.heads {heads}")


@dataclass(frozen=True)
class SynthesisConfig:
    """A regression that writes absent modalities voxel by voxel; see `bmmae.model.synthesis`.

    Attributes:
        units: Rectified units with random weights; 0 leaves the regression out, and patches are all there is.
        scales: Millimetres of the cubes whose means it reads.
        deviations: Millimetres of the cubes whose standard deviations it reads.
        depth: It reads how deep a voxel lies in the brain.
        robust: Modalities that it reads on a scale of their own: median 0, and quartiles as a normal distribution's.
            Mean and deviation of T1 depend on vessels and fluid at both ends of its range.
        spacing: Millimetres between the voxels that it is fitted to and used on.
        penalty: Ridge penalty, in units of the terms' mean squares.
    """

    units: int = 0
    scales: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    deviations: tuple[float, ...] = ()
    depth: bool = False
    robust: tuple[str, ...] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    penalty: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        object.__setattr__(self, "deviations", tuple(float(scale) for scale in self.deviations))
        object.__setattr__(self, "spacing", tuple(float(step) for step in self.spacing))
        object.__setattr__(self, "robust", in_table_order(table_names(self.robust)))
        if self.units < 0 or self.penalty <= 0 or min((*self.scales, *self.deviations, *self.spacing)) <= 0:
            raise ConfigError(
                "synthesis needs 0 or more units, and scales, deviations, spacing and penalty above 0, got "
                f"{self.units}, {self.scales}, {self.deviations}, {self.spacing} and {self.penalty}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes a masked autoencoder's weights and what it expects to see.

    Attributes:
        modalities: Canonical names; always in table order, however they are given and spelt (`T1Gd` is `t1ce`).
        patch: Voxels of a patch along H, W, D.
        size: Voxels of the window it was trained on; other multiples of the patch work too.
        encoder: Shape of the encoder.
        decoder: Shape of the decoder.
        synthesis: The regression that writes absent modalities voxel by voxel.
        tissue_only: Leave patches without brain out of tokens and loss.
        targets: What training compares: `voxels` in z-units, or `patches`, whose deviations from their mean count in
            units of their own spread; predictions are voxels in z-units either way.
        surroundings: Patches along an axis, odd numbers: over each such cube around its place, every visible token also
            says mean and deviation of all modalities in pretraining; none for masked reconstruction alone.
    """

    modalities: tuple[str, ...] = STANDARD
    patch: tuple[int, int, int] = (16, 16, 16)
    size: tuple[int, int, int] = (128, 128, 128)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    tissue_only: bool = True
    targets: Literal["voxels", "patches"] = "voxels"
    surroundings: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "surroundings", tuple(self.surroundings))
        if any(width < 1 or width % 2 == 0 for width in self.surroundings):
            raise ConfigError(f"model.surroundings must be odd numbers of patches, got {self.surroundings}")
        for name, kind in (("encoder", EncoderConfig), ("decoder", DecoderConfig), ("synthesis", SynthesisConfig)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(f"model.{name} must be of type {kind.__name__}, got {getattr(self, name)!r}")
        object.__setattr__(self, "modalities", in_table_order(table_names(self.modalities)))
        object.__setattr__(self, "patch", as_triple(self.patch))
        object.__setattr__(self, "size", as_triple(self.size))
        if not self.modalities:
            raise ConfigError("a model needs at least one modality, got none")
        patch_grid(self.size, self.patch)


VOXELWISE = SynthesisConfig(units=512, deviations=(4.0, 8.0), depth=True, robust=("t1",))
AROUND = (1, 3, 5)
RECIPES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        patch=(8, 8, 8),
        size=(64, 64, 64),
        encoder=EncoderConfig(dim=192, depth=6, heads=6, mlp_ratio=2.0, rotary=True),
        decoder=DecoderConfig(kind="cross", dim=192, depth=2, heads=6, mlp_ratio=2.0, colocated=True),
        synthesis=VOXELWISE,
        surroundings=AROUND,
    ),
    "small": ModelConfig(
        encoder=EncoderConfig(dim=384, depth=12, heads=6, mlp_ratio=4.0, rotary=True),
        decoder=DecoderConfig(kind="cross", dim=192, depth=2, heads=6, colocated=True),
        synthesis=VOXELWISE,
        surroundings=AROUND,
    ),
    "base": ModelConfig(
        encoder=EncoderConfig(rotary=True),
        decoder=DecoderConfig(kind="cross", colocated=True),
        synthesis=VOXELWISE,
        surroundings=AROUND,
    ),
    "large": ModelConfig(
        encoder=EncoderConfig(dim=1024, depth=24, heads=16, mlp_ratio=4.0, rotary=True),
        decoder=DecoderConfig(kind="cross", dim=512, depth=4, heads=16, colocated=True),
        synthesis=VOXELWISE,
        surroundings=AROUND,
    ),
    "published": ModelConfig(tissue_only=False),
}
"""Named shapes. `published` is that of BM-MAE's released weights; `base` has its encoder's shape and rotary
positions besides, so neither's weights fit the other."""


def recipe(name: str, **changes: object) -> ModelConfig:
    """Return a named recipe, with fields replaced.

    Raises:
        ConfigError: If there is no such recipe or field.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}': expected one of {', '.join(RECIPES)}")
    known = [item.name for item in fields(ModelConfig)]
    if unknown := [key for key in changes if key not in known]:
        raise ConfigError(f"a recipe has no {', '.join(unknown)}: expected some of {', '.join(known)}")
    return replace(RECIPES[name], **changes)  # type: ignore[arg-type]

"""The masked autoencoder: what is pretrained, and what reconstructs absent modalities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import canonical
from bmmae.model.config import ModelConfig
from bmmae.model.decoder import Decoder
from bmmae.model.encoder import Encoder, initialise
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.surroundings import Surroundings
from bmmae.model.synthesis import VoxelSynthesis
from bmmae.model.tokens import TokenIndex, existing_tokens
from bmmae.patches import Triple, as_triple, patch_grid, spread, unpatchify


class UnpreparedWarning(UserWarning):
    """Volumes hold values that the preprocessing which the model was trained with never gives."""


@dataclass(frozen=True)
class Prediction:
    """Predicted voxels of the target patches.

    Attributes:
        values: Float[T, P], z-scored intensities.
        targets: Which token each row is.
        padding_share: Share of the encoder's sequences that was padding.
        visible: Which tokens the encoder saw.
        surroundings: Float[N, M, F], moments around each visible token, in the order of `moments_around`; None if the
            model does not predict them.
    """

    values: Float[Tensor, "T P"]
    targets: TokenIndex
    padding_share: float
    visible: TokenIndex
    surroundings: Float[Tensor, "N M F"] | None = None


class MAE(PretrainedModel):
    """Masked autoencoder over any subset of modalities (BM-MAE, arXiv 2505.00568).

    Args:
        config: Its shape and the modalities it knows.
    """

    kind = "mae"
    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = MAE.checked(config)
        count, dim = len(config.modalities), config.decoder.dim
        self.encoder = Encoder(count, config.patch, config.encoder)
        self.decoder = Decoder(count, config.encoder.dim, config.decoder)
        self.head = nn.Linear(dim, math.prod(config.patch))
        self.synthesis = VoxelSynthesis(count, config.synthesis) if config.synthesis.units else None
        widths = config.surroundings
        self.surroundings = Surroundings(count, config.encoder.dim, widths) if widths else None
        initialise(self.head)

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        visible: Bool[Tensor, "B M L"],
        targets: Bool[Tensor, "B M L"],
    ) -> Prediction:
        """Predict the target patches from the visible ones.

        Args:
            images: Volumes, z-scored; only visible patches are read.
            visible: True = the encoder sees this token.
            targets: True = predict this token.
        """
        grid = patch_grid(images.shape[-3:], self.config.patch)
        shown, wanted = TokenIndex.of(visible), TokenIndex.of(targets)
        encoded = self.encoder(images, shown)
        features = self.decoder(encoded, shown, wanted, grid)
        around = None if self.surroundings is None else self.surroundings(shown.flatten(encoded[:, 1:]))
        return Prediction(self.head(features), wanted, shown.padding_share, shown, around)

    def stack(
        self, images: Mapping[str, Float[Tensor, "B 1 H W D"]]
    ) -> tuple[Float[Tensor, "B M H W D"], Bool[Tensor, "B M"]]:
        """Lay named volumes out in this model's modality order; the absent ones are zero and not available.

        Floats of any precision are taken, and converted to that of the weights.

        Args:
            images: Preprocessed volumes by modality name, in any order: z-scores inside the brain and exactly 0 outside
                it, on axes that run to the right, anterior and superior, with the spacing that
                `bmmae.checkpoint.preprocessing_of(model)` names.

        Raises:
            ModalityError: If none is given, or one is not known to the model.
            ConfigError: If these are no volumes by name, of one shape that divides into patches, or not finite floats.

        Warns:
            UnpreparedWarning: If a volume is no z-score, as far as its range shows.
        """
        volumes, available = stack_modalities(images, self.config)
        _doubt_range(images, self.metadata.preprocessing.get("clip"))
        return volumes.to(self.encoder.cls_token.dtype), available

    def encode(
        self,
        images: Mapping[str, Float[Tensor, "B 1 H W D"]],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
    ) -> Float[Tensor, "B S E"]:
        """Encode all patches of the modalities given; with gradients, unless they are switched off.

        Args:
            images: Preprocessed volumes by modality name, in any order; see `stack`.
            tissue: Where the brain is; if given, patches without brain are left out of the tokens. A model with
                `config.tissue_only` has not seen such patches in training: give it.

        Returns:
            The class token, then the tokens of the modalities in table order, of each in the order of
            `bmmae.patches.patchify`: S = 1 + modalities x patches. With `tissue`, those that are left out are missing
            from that order, and shorter sequences end in padding; `bmmae.model.tokens.TokenIndex.of(model.tokens(...))`
            says which token is which, and its `keep()` where there is one.

        Raises:
            ModalityError: If none is given, or one is not known to the model.
            ConfigError: As `stack`, and if `tissue` is no mask of the volumes.

        Warns:
            UnpreparedWarning: As `stack`.
        """
        volumes, available = self.stack(images)
        encoded: Tensor = self.encoder(volumes, TokenIndex.of(self.tokens(volumes, available, tissue)))
        return encoded

    def tokens(
        self,
        volumes: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B _ H W D"] | None = None,
    ) -> Bool[Tensor, "B M L"]:
        """Return which tokens exist: those of available modalities that hold any of `tissue` (default: all).

        Raises:
            ConfigError: If these are not of the model's modalities, or do not fit each other.
        """
        wanted = (len(volumes), len(self.config.modalities))
        if tuple(volumes.shape[:2]) != wanted or tuple(available.shape) != wanted:
            raise ConfigError(
                f"expected volumes [B, M, H, W, D] and available [B, M] with M = {wanted[1]}, as the model knows "
                f"{', '.join(self.config.modalities)}; got {tuple(volumes.shape)} and {tuple(available.shape)}"
            )
        return existing_tokens(available, volumes.shape[-3:], self.config.patch, tissue)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Mapping[str, Float[Tensor, "B 1 H W D"]],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
    ) -> dict[str, Float[Tensor, "B 1 H W D"]]:
        """Predict the absent modalities from those given.

        Args:
            images: Preprocessed volumes by modality name, in any order; see `stack`.
            tissue: Where the brain is; patches without brain are neither read nor predicted (zero).

        Returns:
            The absent modalities by name, z-scored, without gradients.

        Raises:
            ModalityError: If none is given, one is not known to the model, or none is absent.
            ConfigError: As `stack`, and if `tissue` is no mask of the volumes.

        Warns:
            UnpreparedWarning: As `stack`.
        """
        volumes, available = self.stack(images)
        if bool(available.all()):
            raise ModalityError("all the model's modalities are given: there is none to reconstruct")
        visible = self.tokens(volumes, available, tissue)
        predicted = self.predict(volumes, visible, self.tokens(volumes, ~available, tissue))
        names = self.config.modalities
        return {n: predicted[:, i, None] for i, n in enumerate(names) if not bool(available[0, i])}

    def predict(
        self,
        volumes: Float[Tensor, "B M H W D"],
        visible: Bool[Tensor, "B M L"],
        targets: Bool[Tensor, "B M L"],
        valid: Bool[Tensor, "B M H W D"] | None = None,
    ) -> Float[Tensor, "B M H W D"]:
        """Return volumes that hold the predicted target patches, and zero elsewhere.

        A modality that is asked for nowhere may be read in full: where the model's voxel-wise regression knows the
        subset of these, voxels are its predictions, else the decoder's.

        Args:
            volumes: Z-scores, exactly 0 where not scanned and outside the brain.
            visible: True = the encoder sees this token.
            targets: True = predict this token.
            valid: True = scanned; None where each modality covers all of its visible patches.
        """
        size = as_triple(volumes.shape[-3:])
        out = self.place(self(volumes, visible, targets).values, targets, size)
        if self.synthesis is None:
            return out
        spacing = self.metadata.preprocessing.get("spacing", self.config.synthesis.spacing)
        grid = patch_grid(size, self.config.patch)
        for sample, asked in enumerate(targets.any(-1)):
            wanted = asked.nonzero()[:, 0].tolist()
            readable = visible[sample] & ~asked[:, None]
            brain = (volumes[sample] * readable.any(-1)[:, None, None, None] != 0).any(0)
            scanned = spread(readable, grid, self.config.patch) & brain
            scanned = scanned if valid is None else scanned & valid[sample]
            here = spread(targets[sample][wanted], grid, self.config.patch)
            made = self.synthesis.predict(volumes[sample], scanned, brain & here.any(0), spacing, wanted)
            known = made.known & here
            out[sample, wanted] = torch.where(known, made.values.to(out.dtype), out[sample, wanted])
        return out

    def place(
        self, values: Float[Tensor, "T P"], targets: Bool[Tensor, "B M L"], size: Triple
    ) -> Float[Tensor, "B M H W D"]:
        """Return volumes that hold the patches given, and zero elsewhere.

        Args:
            values: One row a patch that is flagged in `targets`.
            targets: Where they go.
            size: Voxels of the volumes.
        """
        patches = values.new_zeros(*targets.shape, values.shape[-1])
        patches[targets] = values
        return unpatchify(patches, patch_grid(size, self.config.patch), self.config.patch)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are embeddings and tokens rather than weights."""
        own = set() if self.surroundings is None else {"surroundings.bias"}
        return own | {
            "encoder.cls_token",
            "encoder.embedding.modality",
            "encoder.embedding.bias",
            "decoder.mask_token",
            "decoder.modality",
        }

    def group_matcher(self, coarse: bool = False) -> Mapping[str, object]:  # noqa: ARG002 - timm's signature
        """Name the layers, for `optim.layer_decay`; see `Encoder.layer_patterns`."""
        return self.encoder.layer_patterns()


def stack_modalities(
    images: Mapping[str, Tensor], config: ModelConfig
) -> tuple[Float[Tensor, "B M H W D"], Bool[Tensor, "B M"]]:
    """Lay named volumes [B, 1, H, W, D] out in a model's modality order; see `MAE.stack`."""
    _require_names(images, config)
    if not images:
        raise ModalityError(f"no modality given: expected at least one of {', '.join(config.modalities)}")
    named = {canonical(name, config.modalities): volume for name, volume in images.items()}
    if len(named) < len(images):
        raise ModalityError(f"a modality is given twice under two names: {', '.join(images)}")
    for name, volume in named.items():
        _require_volume(name, volume)
    shapes = {name: tuple(volume.shape) for name, volume in named.items()}
    first = next(iter(named.values()))
    if len(set(shapes.values())) > 1 or first.ndim != 5 or first.shape[1] != 1 or not len(first):
        raise ConfigError(f"expected volumes of one shape [B, 1, H, W, D], B at least 1, got {shapes}")
    patch_grid(first.shape[-3:], config.patch)
    absent = torch.zeros_like(first)
    volumes = torch.cat([named.get(name, absent) for name in config.modalities], dim=1)
    flags = torch.tensor([name in named for name in config.modalities], device=first.device)
    return volumes, flags.expand(len(first), -1)


def _doubt_range(images: Mapping[str, Tensor], clip: float | None) -> None:
    """Say so if volumes are no z-scores: raw intensities, or scaled to 0 and 1, would give features of nothing.

    Args:
        images: Volumes by name.
        clip: Where z-scores were clipped when the model was trained; None if that is not recorded.
    """
    if clip is None:
        return
    for name, volume in images.items():
        low, high = (float(value) for value in volume.detach().aminmax())
        if max(-low, high) > clip or (low >= 0 and high > 0):
            warnings.warn(
                f"{name}: values from {low:.4g} to {high:.4g}, but the model knows z-scores inside the brain, with 0 "
                f"outside it, between -{clip:g} and {clip:g}: preprocess images before a model sees them",
                UnpreparedWarning,
                stacklevel=4,
            )


def _require_names(images: object, config: ModelConfig) -> None:
    """Refuse volumes without names.

    Raises:
        ConfigError: If they are not given by name.
    """
    if not isinstance(images, Mapping):
        like = f"{{'{config.modalities[0]}': volume}}"
        raise ConfigError(f"expected volumes by modality name, such as {like}, got {type(images).__name__}")


def _require_volume(name: str, volume: Tensor) -> None:
    """Refuse what a user may hand over in place of a tensor.

    Raises:
        ConfigError: If it is none, or not of finite floats.
    """
    wanted = f"{name}: expected a torch tensor of finite floats [B, 1, H, W, D]"
    if not isinstance(volume, torch.Tensor):
        raise ConfigError(f"{wanted}, got {type(volume).__name__}; of an array make one with torch.from_numpy")
    if not volume.is_floating_point():
        raise ConfigError(f"{wanted}, got {volume.dtype}; convert it with .float()")
    if not bool(volume.isfinite().all()):
        raise ConfigError(f"{wanted}, got NaN or infinity among them; preprocess images before a model sees them")

"""What all models on the shared encoder have in common: named volumes in, tokens out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from bmmae.arrays import Bool, Float, Tensor
from bmmae.errors import ConfigError, ModalityError
from bmmae.modalities import canonical
from bmmae.model.config import ModelConfig
from bmmae.model.encoder import Encoder
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.tokens import TokenIndex, existing_tokens
from bmmae.patches import patch_grid


class UnpreparedWarning(UserWarning):
    """Volumes hold values that the preprocessing which the model was trained with never gives."""


ROUNDED = 1.01
"""By how much a clipped value may exceed the limit: bfloat16, which float32 images may have been, rounds by 0.4 %."""


class EncoderModel(PretrainedModel):
    """A model on the shared encoder, whatever its head.

    Attributes:
        encoder: The encoder.
    """

    encoder: Encoder

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
        volumes, available = stack_modalities(images, self.model_config)
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
                `model_config.tissue_only` has not seen such patches in training: give it.

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
        wanted = (len(volumes), len(self.model_config.modalities))
        if tuple(volumes.shape[:2]) != wanted or tuple(available.shape) != wanted:
            raise ConfigError(
                f"expected volumes [B, M, H, W, D] and available [B, M] with M = {wanted[1]}, as the model knows "
                f"{', '.join(self.model_config.modalities)}; got {tuple(volumes.shape)} and {tuple(available.shape)}"
            )
        return existing_tokens(available, volumes.shape[-3:], self.model_config.patch, tissue)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are embeddings and tokens rather than weights."""
        return {"encoder.cls_token", "encoder.embedding.modality", "encoder.embedding.bias"}

    def group_matcher(self, coarse: bool = False) -> Mapping[str, object]:  # noqa: ARG002 - timm's signature
        """Name the layers, for `optim.layer_decay`; see `Encoder.layer_patterns`."""
        return self.encoder.layer_patterns()


def stack_modalities(
    images: Mapping[str, Tensor], config: ModelConfig
) -> tuple[Float[Tensor, "B M H W D"], Bool[Tensor, "B M"]]:
    """Lay named volumes [B, 1, H, W, D] out in a model's modality order; see `EncoderModel.stack`."""
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
        far = max(-low, high) > ROUNDED * clip
        if far or (low >= 0 and high > 0):
            # No figures of this volume: a loop over studies gives the same text, and Python shows it once.
            found = f"values beyond {clip:g}" if far else "no value below 0"
            warnings.warn(
                f"{name} holds {found}, but the model knows z-scores inside the brain, with 0 outside it, between "
                f"-{clip:g} and {clip:g}: preprocess images before a model sees them",
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

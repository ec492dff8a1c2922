"""The masked autoencoder: what is pretrained, and what reconstructs absent modalities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.errors import ModalityError
from bmmae.model.config import ModelConfig
from bmmae.model.decoder import Decoder
from bmmae.model.encoder import Encoder, initialise
from bmmae.model.encoder_model import EncoderModel
from bmmae.model.surroundings import Surroundings
from bmmae.model.synthesis import VoxelSynthesis
from bmmae.model.tokens import TokenIndex
from bmmae.patches import Triple, as_triple, patch_grid, spread, unpatchify


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


class MAE(EncoderModel):
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
        self.synthesis = VoxelSynthesis(config.modalities, config.synthesis) if config.synthesis.units else None
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
        grid = patch_grid(size, self.config.patch)
        for sample, asked in enumerate(targets.any(-1)):
            wanted = asked.nonzero()[:, 0].tolist()
            readable = visible[sample] & ~asked[:, None]
            brain = (volumes[sample] * readable.any(-1)[:, None, None, None] != 0).any(0)
            scanned = spread(readable, grid, self.config.patch) & brain
            scanned = scanned if valid is None else scanned & valid[sample]
            here = spread(targets[sample][wanted], grid, self.config.patch)
            made = self.synthesis.predict(volumes[sample], scanned, brain & here.any(0), self.spacing, wanted)
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

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres of the grid that it was trained on; those of its voxel-wise regression if it does not say."""
        right, front, up = self.metadata.preprocessing.get("spacing", self.config.synthesis.spacing)
        return float(right), float(front), float(up)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are embeddings and tokens rather than weights."""
        own = {"decoder.mask_token", "decoder.modality"}
        return super().no_weight_decay() | own | ({"surroundings.bias"} if self.surroundings else set())

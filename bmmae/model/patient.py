"""What a patient has, from any subset of modalities: classes and survival on the shared encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.clinical import ClinicalVariable, VectorInput
from bmmae.errors import ConfigError
from bmmae.model.attention_pool import AttentionPool
from bmmae.model.beside import Beside, ClinicalTokens, clinical_of, design_matrix, vector_of
from bmmae.model.config import ModelConfig
from bmmae.model.encoder import Encoder, initialise, transformer_block
from bmmae.model.encoder_model import EncoderModel
from bmmae.model.tokens import TokenIndex, existing_tokens
from bmmae.patches import patchify
from bmmae.targets import Target

NOTHING = Beside()


@dataclass(frozen=True)
class PatientModelConfig:
    """A model of patients: the encoder's model, what is predicted, and what is known beside the images.

    All that was fitted on data was fitted on the training fold.

    Attributes:
        model: Shape of the pretrained model, whose decoder is not used; its window holds a whole brain.
        targets: What is predicted, one head each.
        clinical: Clinical variables, one token each.
        vector: Numbers from elsewhere, one token.
        lesion: Tokens weigh more where a lesion map says lesion, where one is given: a segmentation (`attention`) or a
            map of chances (`probability`); `none` takes no map.
        fusion: What is beside the images meets them in a transformer block; else it adds to the outputs, linearly.
        pool_heads: Parts of the embedding that attention weighs apart.
        dropout: Before the heads.
        subsets: Share of the training samples that came with each subset of the modalities (see `subset_label`).
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    targets: tuple[Target, ...] = ()
    clinical: tuple[ClinicalVariable, ...] = ()
    vector: VectorInput | None = None
    lesion: Literal["none", "attention", "probability"] = "none"
    fusion: bool = True
    pool_heads: int = 8
    dropout: float = 0.1
    subsets: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        names = [target.name for target in self.targets]
        if not names:
            raise ConfigError("a patient model needs at least one target, got none")
        if len(set(names)) < len(names):
            raise ConfigError(f"targets must have different names, got {', '.join(names)}")
        if self.model.encoder.dim % self.pool_heads:
            raise ConfigError(f"encoder.dim {self.model.encoder.dim} is not a multiple of pool_heads {self.pool_heads}")

    @property
    def extras(self) -> int:
        """Tokens beside the images."""
        return len(self.clinical) + (self.vector is not None) + (self.lesion != "none")

    @property
    def vector_length(self) -> int:
        """Length of the vector; 0 for none."""
        return len(self.vector.columns) if self.vector else 0

    @property
    def design_width(self) -> int:
        """Columns of the design matrix: what is known beside the images, lesions apart."""
        vector = self.vector_length + 1 if self.vector else 0
        return sum(variable.width for variable in self.clinical) + vector


class PatientModel(EncoderModel):
    """The shared encoder, attention pooling over the tokens that are there, and one linear head a target.

    Args:
        config: Its shape, and what was fitted on the training fold.
    """

    kind = "patient"

    def __init__(self, config: PatientModelConfig) -> None:
        super().__init__()
        self.config = PatientModel.checked(config)
        model, targets = config.model, config.targets
        dim = model.encoder.dim
        self.encoder = Encoder(len(model.modalities), model.patch, model.encoder)
        self.pool = AttentionPool(dim, len(targets), config.pool_heads)
        self.norm = nn.LayerNorm(2 * dim)
        self.drop = nn.Dropout(config.dropout)
        self.fused = config.fusion and config.extras > 0
        if self.fused:
            self.clinical = ClinicalTokens(config.clinical, dim) if config.clinical else None
            self.vector = nn.Linear(config.vector_length + 1, dim) if config.vector else None
            self.lesion = nn.Linear(2, dim) if config.lesion != "none" else None
            self.image = nn.Linear(2 * dim, dim)
            self.block = transformer_block(dim, model.encoder.heads, 2.0, config.dropout)
            self.block.apply(initialise)
        self.heads = nn.ModuleList(nn.Linear(self.feature_width, target.outputs) for target in targets)
        self.direct = nn.ModuleList(
            nn.Linear(config.design_width, target.outputs, bias=False) for target in targets if config.design_width
        )
        for layer in (*self.heads, *self.direct):
            nn.init.trunc_normal_(layer.weight, std=1e-3)

    @property
    def feature_width(self) -> int:
        """Length of what a head sees of the images."""
        dim: int = self.config.model.encoder.dim
        return (3 if self.fused else 2) * dim

    def forward(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
        *,
        beside: Beside = NOTHING,
        kept: Bool[Tensor, "B M L"] | None = None,
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Return the outputs of each target's head by name; `bmmae.model.outcomes` says what they mean.

        Args:
            images: Volumes, z-scored; those of absent modalities are not read.
            available: Which modalities each sample has; at least one.
            tissue: Patches without any of it are no tokens; default: all patches are.
            valid: Where each modality was scanned: elsewhere it counts as absent; default: everywhere.
            beside: What is known beside the images; what is None counts as missing.
            kept: Only these patches become tokens (others are dropped in training); default: all.
        """
        features = self.features(images, available, tissue, valid, beside=beside, kept=kept)
        return self.outputs(features, self.design(beside, len(images), images.device))

    def outputs(
        self, features: Float[Tensor, "B targets F"], design: Float[Tensor, "B W"]
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Return the outputs of each target's head from what `features` and `design` returned."""
        out = {}
        for index, target in enumerate(self.config.targets):
            logits = self.heads[index](self.drop(features[:, index]))
            out[target.name] = logits + self.direct[index](self._cast(design)) if len(self.direct) else logits
        return out

    def features(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
        *,
        beside: Beside = NOTHING,
        kept: Bool[Tensor, "B M L"] | None = None,
    ) -> Float[Tensor, "B Q F"]:
        """Return what each head sees of the images, F = `feature_width`; arguments as in `forward`."""
        tokens = self._index(available, images.shape[-3:], tissue, valid, kept)
        sequence = self.encoder(images, tokens)
        pooled = self.norm(self._cast(self.pool(sequence, self._keep(tokens), self._lesion_shares(tokens, beside))))
        return torch.cat([pooled, self._context(pooled, beside)], dim=2) if self.fused else pooled

    def attention(
        self,
        images: Float[Tensor, "B M H W D"],
        available: Bool[Tensor, "B M"],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
        *,
        beside: Beside = NOTHING,
    ) -> dict[str, Float[Tensor, "B M L"]]:
        """Return how much each patch weighs in each target's pooling; arguments as in `forward`.

        Weights are means over the parts of the embedding; with the class token's, which is left out, they add up to
        one. Patches that are no tokens weigh 0.
        """
        tokens = self._index(available, images.shape[-3:], tissue, valid)
        sequence = self.encoder(images, tokens)
        weights = self.pool.weights(sequence, self._keep(tokens), self._lesion_shares(tokens, beside)).mean(-1)[:, 1:]
        out = {}
        for index, target in enumerate(self.config.targets):
            volume = weights.new_zeros(tokens.chosen.shape)
            volume[tokens.sample, tokens.modality, tokens.place] = weights[tokens.sample, tokens.slot, index]
            out[target.name] = volume
        return out

    def design(self, beside: Beside, rows: int, device: torch.device) -> Float[Tensor, "B W"]:
        """Return what is known beside the images as plain columns; see `design_matrix`."""
        return design_matrix(self.config.clinical, beside, self.config.vector_length, rows, device)

    def _index(
        self,
        available: Bool[Tensor, "B M"],
        size: torch.Size | tuple[int, ...],
        tissue: Bool[Tensor, "B 1 H W D"] | None = None,
        valid: Bool[Tensor, "B M H W D"] | None = None,
        kept: Bool[Tensor, "B M L"] | None = None,
    ) -> TokenIndex:
        """Return the patches that become tokens; a sample without any is seen by its class token alone."""
        exists = existing_tokens(available, size, self.config.model.patch, valid, tissue)
        return TokenIndex.of(exists if kept is None else exists & kept)

    def _cast(self, values: Tensor) -> Tensor:
        """Return values in the precision of the weights: what is not of the encoder is computed in float32."""
        return values.to(self.norm.weight.dtype)

    @staticmethod
    def _keep(tokens: TokenIndex) -> Bool[Tensor, "B S"]:
        """The class token, and what is not padding."""
        keep = tokens.keep()
        return torch.cat([torch.ones_like(tokens.counts, dtype=torch.bool)[:, None], keep], dim=1)

    def _lesion_shares(self, tokens: TokenIndex, beside: Beside) -> Float[Tensor, "B S"]:
        """Share of lesion in each token's patch, 0 for the class token, padding and where there is no map."""
        shares = torch.zeros(len(tokens.counts), 1 + tokens.width, device=tokens.counts.device)
        if self.config.lesion == "none" or beside.lesion is None or beside.lesion_available is None:
            return shares
        inside = patchify(beside.lesion.float(), self.config.model.patch).mean(-1)[:, 0]
        inside = inside * beside.lesion_available[:, None]
        shares[tokens.sample, 1 + tokens.slot] = inside[tokens.sample, tokens.place]
        return shares

    def _context(self, pooled: Float[Tensor, "B Q E2"], beside: Beside) -> Float[Tensor, "B Q E"]:
        """What the images look like beside the other tokens: each question's image token after the block."""
        rows, questions, _ = pooled.shape
        image = self.image(pooled)
        extras = self._extra_tokens(beside, rows, pooled.device).to(image.dtype)
        extras = extras[:, None].expand(-1, questions, -1, -1)
        sequences = torch.cat([image[:, :, None], extras], dim=2).flatten(0, 1)
        context: Tensor = rearrange(self.block(sequences)[:, 0], "(b q) e -> b q e", b=rows)
        return context

    def _extra_tokens(self, beside: Beside, rows: int, device: torch.device) -> Float[Tensor, "B X E"]:
        tokens = []
        if self.clinical is not None:
            tokens.append(self.clinical(*clinical_of(self.config.clinical, beside, rows, device)))
        if self.vector is not None:
            numbers, there = vector_of(beside, self.config.vector_length, rows, device)
            vector = torch.cat([numbers, there[:, None].to(numbers.dtype)], dim=1)
            tokens.append(self.vector(self._cast(vector))[:, None])
        if self.lesion is not None:
            tokens.append(self.lesion(self._cast(_lesion_summary(beside, rows, device)))[:, None])
        return torch.cat(tokens, dim=1)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that are embeddings, scales and shifts rather than weights."""
        names = super().no_weight_decay() | {"pool.lesion_gain"}
        return names | {f"clinical.{name}" for name in ("name", "value", "missing") if self.fused}


def _lesion_summary(beside: Beside, rows: int, device: torch.device) -> Float[Tensor, "B 2"]:
    """Logarithm of the lesion's voxels (a scale of order one), and whether there is a map at all."""
    if beside.lesion is None or beside.lesion_available is None:
        return torch.zeros(rows, 2, device=device)
    there = beside.lesion_available.float()
    return torch.stack([beside.lesion.float().sum((1, 2, 3, 4)).log1p() / 5 * there, there], dim=1)

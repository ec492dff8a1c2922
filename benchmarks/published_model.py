"""BM-MAE as published, built the ordinary way from MONAI's blocks: what our step is measured against.

Every patch of every modality is projected, visible ones are gathered, all tokens are decoded, targets are cut out of
every volume. Parameter names are those of the published checkpoint, so that its values fit.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock
from torch import Tensor, nn

from bmmae.model.config import ModelConfig


def _blocks(dim: int, depth: int, heads: int, mlp_ratio: float) -> nn.ModuleList:
    return nn.ModuleList(TransformerBlock(dim, int(dim * mlp_ratio), heads, qkv_bias=True) for _ in range(depth))


class PublishedDecoder(nn.Module):
    """All tokens, visible and masked, of all modalities, in one sequence."""

    def __init__(self, config: ModelConfig, positions: Tensor) -> None:
        super().__init__()
        shape = config.decoder
        self.names = config.modalities
        self.mask_tokens = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.position_embeddings = nn.Parameter(positions, requires_grad=False)
        self.modality_embeddings = nn.ParameterDict({n: nn.Parameter(torch.zeros(1, 1, shape.dim)) for n in self.names})
        self.decoder_embed = nn.Linear(config.encoder.dim, shape.dim)
        self.decoder_blocks = _blocks(shape.dim, shape.depth, shape.heads, shape.mlp_ratio)
        self.decoder_norm = nn.LayerNorm(shape.dim)
        self.decoder_pred = nn.Linear(shape.dim, config.patch[0] * config.patch[1] * config.patch[2])

    def forward(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """Return voxels of every patch [B, M * L, P]; `restore` says where in the shuffled sequence each one is."""
        x = self.decoder_embed(encoded)
        hidden = self.mask_tokens.expand(len(x), restore.shape[1] - x.shape[1] + 1, -1).to(x.dtype)
        tokens = torch.cat([x[:, 1:], hidden], dim=1)
        tokens = torch.gather(tokens, 1, restore[..., None].expand(-1, -1, x.shape[-1]))
        address = torch.cat([self.position_embeddings + self.modality_embeddings[n] for n in self.names], dim=1)
        x = torch.cat([x[:, :1], tokens + address], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(x)[:, 1:]))


class PublishedMAE(nn.Module):
    """The published autoencoder.

    Args:
        config: Its shape; `recipe("published")` is that of the released weights.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, shape = config, config.encoder
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))

        def tokenizer(dim: int) -> PatchEmbeddingBlock:
            return PatchEmbeddingBlock(1, config.size, config.patch, dim, 1, "conv", "sincos")

        parts = {name: nn.ModuleDict({"patch_embedding": tokenizer(shape.dim)}) for name in config.modalities}
        self.tokenizers = nn.ModuleDict(parts)
        self.blocks = _blocks(shape.dim, shape.depth, shape.heads, shape.mlp_ratio)
        self.norm = nn.LayerNorm(shape.dim)
        self.decoder = PublishedDecoder(config, tokenizer(config.decoder.dim).position_embeddings.data)

    def tokenize(self, images: Tensor, modalities: tuple[int, ...]) -> Tensor:
        """Project every patch of the modalities given: [B, M * L, E]."""
        names = self.config.modalities
        parts = [self.tokenizers[names[m]]["patch_embedding"](images[:, [m]]) for m in modalities]  # type: ignore[index]
        return torch.cat(parts, dim=1)

    def encode(self, images: Tensor, modalities: tuple[int, ...]) -> Tensor:
        """Encode all patches of the modalities given, as for inference."""
        return self._encode(self.tokenize(images, modalities))

    def _encode(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return voxels of every patch [B, M, L, P]; every sample must have the same number of visible tokens."""
        hidden = mask.flatten(1)
        shuffle = hidden.to(torch.uint8).argsort(dim=1, stable=True)
        visible = int((~hidden[0]).sum())
        tokens = self.tokenize(images, tuple(range(images.shape[1])))
        kept = torch.gather(tokens, 1, shuffle[:, :visible, None].expand(-1, -1, tokens.shape[-1]))
        predicted: Tensor = self.decoder(self._encode(kept), shuffle.argsort(dim=1))
        return predicted.unflatten(1, mask.shape[1:])


def published_loss(model: PublishedMAE, images: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden patches, all targets cut out first."""
    p, q, r = model.config.patch
    predicted = model(images, mask)
    target = rearrange(images, "b m (h p) (w q) (d r) -> b m (h w d) (p q r)", p=p, q=q, r=r)
    error = ((predicted.float() - target) ** 2).mean(-1)
    return (error * mask).sum() / mask.sum()


def fill(model: PublishedMAE, state: dict[str, Tensor]) -> None:
    """Load published values; parameters that later MONAI versions add and never read may be absent."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    dead = [key for key in missing if "norm_cross_attn" in key]
    if unexpected or len(dead) < len(missing):
        raise RuntimeError(f"this is not the published model: missing {missing}, unexpected {unexpected}")

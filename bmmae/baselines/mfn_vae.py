"""MFN-VAE for tables of features: an encoder for each modality into one latent space, a decoder and a predictor.

Source: the comparator of doi 10.56578/ataiml050104, which names the parts and no more. Ours joins the modalities'
distributions as a product of Gaussians with a standard normal prior, so that absent modalities simply do not vote.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from bmmae.arrays import Bool, Float, Tensor
from bmmae.baselines.feature_table import Blocks
from bmmae.baselines.table_network import (
    TRAINING,
    Rows,
    Subsets,
    TableNetwork,
    TableNetworkClassifier,
    TableTraining,
    positions,
)
from bmmae.errors import ConfigError


class FusionNetwork(TableNetwork):
    """The network.

    Args:
        blocks: Columns of each modality.
        classes: How many there are.
        width: Of the hidden layers.
        latent: Length of the latent vector.
        dropout: After the hidden layers.
        reconstruction: Weight of the mean squared error of the features present.
        divergence: Weight of the Kullback-Leibler divergence from the prior, a mean over latent values.
        classification: Weight of the cross-entropy.
    """

    def __init__(
        self,
        blocks: Blocks,
        classes: int,
        *,
        width: int,
        latent: int,
        dropout: float,
        reconstruction: float,
        divergence: float,
        classification: float,
    ) -> None:
        super().__init__()
        self.columns = positions(blocks)
        self.weights = (reconstruction, divergence, classification)
        self.encoders = nn.ModuleList(_perceptron(len(block), width, 2 * latent, dropout) for block in blocks.values())
        self.decoders = nn.ModuleList(_perceptron(latent, width, len(block), dropout) for block in blocks.values())
        self.predictor = _perceptron(latent, width, classes, dropout)

    def latent(
        self, features: Float[Tensor, "B F"], available: Bool[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Return mean and variance of the latent vector, from the modalities present."""
        parts = zip(self.encoders, self.columns.values(), strict=True)
        coded = torch.stack([encode(features[:, columns]) for encode, columns in parts], dim=1)
        means, log_variances = coded.chunk(2, dim=2)
        precisions = torch.exp(-log_variances.clamp(-6, 6)) * available.unsqueeze(2)
        variance = 1 / (1 + precisions.sum(dim=1))
        return variance * (means * precisions).sum(dim=1), variance

    def logits(self, features: Float[Tensor, "B F"], available: Bool[Tensor, "B M"]) -> Float[Tensor, "B C"]:
        """Return unnormalised class scores, of the mean latent vector."""
        return self.predictor(self.latent(features, available)[0])  # type: ignore[no-any-return]

    def loss(self, rows: Rows) -> Tensor:
        """Return the weighted sum of reconstruction error, divergence and cross-entropy."""
        mean, variance = self.latent(rows.features, rows.available)
        drawn = mean + variance.sqrt() * torch.randn_like(mean)
        divergence = 0.5 * (mean**2 + variance - 1 - variance.log()).mean()
        errors = torch.stack(
            [
                (decode(drawn) - rows.features[:, columns]).pow(2).mean(dim=1)
                for decode, columns in zip(self.decoders, self.columns.values(), strict=True)
            ],
            dim=1,
        )
        counted = rows.available.float()
        reconstruction = (errors * counted).sum() / counted.sum()
        crossed = functional.cross_entropy(self.predictor(drawn), rows.labels)
        weights = self.weights
        return weights[0] * reconstruction + weights[1] * divergence + weights[2] * crossed


class MFNVAE(TableNetworkClassifier):
    """MFN-VAE as a scikit-learn classifier.

    Args:
        blocks: Positions of columns by modality.
        subsets: What is present in training, drawn anew for each patient and epoch; None for every subset.
        width: Of the hidden layers.
        latent: Length of the latent vector.
        dropout: After the hidden layers.
        reconstruction: Weight of the reconstruction error.
        divergence: Weight of the divergence from the prior.
        classification: Weight of the cross-entropy.
        training: How it is trained.
        random_state: Of weights, order, noise and subsets.
    """

    name: ClassVar[str] = "MFN-VAE"

    def __init__(
        self,
        blocks: Blocks,
        subsets: Subsets | None = None,
        *,
        width: int = 32,
        latent: int = 16,
        dropout: float = 0.2,
        reconstruction: float = 0.5,
        divergence: float = 0.1,
        classification: float = 1.0,
        training: TableTraining = TRAINING,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.subsets = subsets
        self.width = width
        self.latent = latent
        self.dropout = dropout
        self.reconstruction = reconstruction
        self.divergence = divergence
        self.classification = classification
        self.training = training
        self.random_state = random_state

    def _build(self, classes: int) -> TableNetwork:
        if min(self.width, self.latent) < 1 or self.classification <= 0:
            raise ConfigError(
                "expected a width and a latent length of 1 or more and a positive weight of the classes, got "
                f"{self.width}, {self.latent} and {self.classification}"
            )
        return FusionNetwork(
            self.blocks,
            classes,
            width=self.width,
            latent=self.latent,
            dropout=self.dropout,
            reconstruction=self.reconstruction,
            divergence=self.divergence,
            classification=self.classification,
        )


def _perceptron(inputs: int, width: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )

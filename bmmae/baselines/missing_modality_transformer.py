"""The Missing Modality Transformer for tables of features: absent modalities are generated on the way to a class.

Source: the paper on subtypes of lung cancer brain metastases, doi 10.56578/ataiml050104. It trains one network for each
set of present modalities, on patients who have all; so does `subsets=(("t1", "flair"),)`. With several subsets, or None
for every subset, one network serves all of them.

Where the text leaves the computation open, we read it thus. Of tokens x_m (present or missing modalities), after layer
normalisation, q_m, k_m, v_m are linear maps of each modality's own, and c is the classification token's query:

    q_m' = q_m + k_1 * ... * k_M + k_m * v_m          (* element by element)
    c'   = c + mean over missing m of k_m * v_m       (over all m, if none is missing)

then x_m + FNN(LayerNorm(q_m')) with one FNN for all tokens. A missing token that leaves the second layer is mapped
linearly to that modality's features for the reconstruction loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
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
    weight_of,
)
from bmmae.errors import ConfigError


class ModalInteraction(nn.Module):
    """One modal-interaction attention layer.

    Args:
        modalities: How many there are, present or missing.
        width: Length of a token.
        dropout: After each layer of the feed-forward network.
    """

    def __init__(self, modalities: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.maps = nn.Parameter(torch.randn(modalities, width, 3 * width) * width**-0.5)
        self.class_query = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
        )

    def forward(
        self, tokens: Float[Tensor, "B M E"], class_token: Float[Tensor, "B 1 E"], missing: Bool[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M E"], Float[Tensor, "B 1 E"]]:
        """Return both kinds of token after they met."""
        q, k, v = torch.einsum("bme,mef->bmf", self.norm(tokens), self.maps).chunk(3, dim=2)
        together = reduce(torch.mul, k.unbind(dim=1)).unsqueeze(1)
        own = k * v
        asked = torch.where(missing.any(dim=1, keepdim=True), missing, True).unsqueeze(2)
        generated = (own * asked).sum(dim=1, keepdim=True) / asked.sum(dim=1, keepdim=True)
        queries = torch.cat([q + together + own, self.class_query(self.norm(class_token)) + generated], dim=1)
        mixed = torch.cat([tokens, class_token], dim=1) + self.feed_forward(queries)
        return mixed[:, :-1], mixed[:, -1:]


class MissingModalityNetwork(TableNetwork):
    """The network.

    Args:
        blocks: Columns of each modality.
        classes: How many there are.
        width: Length of a token.
        dropout: Of the feed-forward networks.
        reconstruction: Weight of each modality's mean absolute error where it is missing.
        classification: Weight of the cross-entropy.
    """

    def __init__(
        self,
        blocks: Blocks,
        classes: int,
        *,
        width: int,
        dropout: float,
        reconstruction: Mapping[str, float] | float,
        classification: float,
    ) -> None:
        super().__init__()
        self.columns = positions(blocks)
        self.weights = [weight_of(reconstruction, name) for name in blocks]
        self.classification = classification
        self.project = nn.ModuleList(nn.Linear(len(block), width) for block in blocks.values())
        self.missing_tokens = nn.Parameter(torch.randn(len(blocks), width))
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(ModalInteraction(len(blocks), width, dropout) for _ in range(2))
        self.read_out = nn.ModuleList(nn.Linear(width, len(block)) for block in blocks.values())
        joined = (len(blocks) + 1) * width
        self.head = nn.Sequential(
            nn.LayerNorm(joined),
            nn.Linear(joined, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, classes),
        )

    def tokens(
        self, features: Float[Tensor, "B F"], available: Bool[Tensor, "B M"]
    ) -> tuple[Float[Tensor, "B M E"], Float[Tensor, "B 1 E"]]:
        """Return the tokens of the modalities, given or generated, and the classification token after both layers."""
        parts = zip(self.project, self.columns.values(), strict=True)
        projected = torch.stack([project(features[:, columns]) for project, columns in parts], dim=1)
        tokens = torch.where(available.unsqueeze(2), projected, self.missing_tokens)
        class_token = self.class_token.expand(len(features), -1, -1)
        for layer in self.layers:
            tokens, class_token = layer(tokens, class_token, ~available)
        return tokens, class_token

    def logits(self, features: Float[Tensor, "B F"], available: Bool[Tensor, "B M"]) -> Float[Tensor, "B C"]:
        """Return unnormalised class scores."""
        return self._classify(*self.tokens(features, available))

    def reconstructed(self, tokens: Float[Tensor, "B M E"]) -> list[Tensor]:
        """Return the features that each modality's token stands for, in the order of the blocks."""
        return [read(tokens[:, number]) for number, read in enumerate(self.read_out)]

    def loss(self, rows: Rows) -> Tensor:
        """Return the weighted sum of cross-entropy and, for each modality missing somewhere, mean absolute error."""
        tokens, class_token = self.tokens(rows.features, rows.available)
        total = self.classification * functional.cross_entropy(self._classify(tokens, class_token), rows.labels)
        targets = (rows.known & ~rows.available).float()
        parts = zip(self.columns.values(), self.reconstructed(tokens), strict=True)
        for number, (columns, guess) in enumerate(parts):
            counted = targets[:, number]
            errors = (guess - rows.features[:, columns]).abs().mean(dim=1)
            total = total + self.weights[number] * (errors * counted).sum() / counted.sum().clamp(min=1)
        return total

    def _classify(self, tokens: Tensor, class_token: Tensor) -> Tensor:
        return self.head(torch.cat([tokens, class_token], dim=1).flatten(1))  # type: ignore[no-any-return]


class MissingModalityTransformer(TableNetworkClassifier):
    """The Missing Modality Transformer as a scikit-learn classifier.

    Args:
        blocks: Positions of columns by modality.
        subsets: What is present in training, drawn anew for each patient and epoch; None for every subset.
        width: Length of a token.
        dropout: Of the feed-forward networks.
        reconstruction: The paper's alpha (and, of a second missing modality, gamma): weight of the mean absolute error,
            one for all modalities or one for each.
        classification: The paper's beta: weight of the cross-entropy.
        training: How it is trained.
        random_state: Of weights, order, dropout and subsets.
    """

    name: ClassVar[str] = "Missing Modality Transformer"

    def __init__(
        self,
        blocks: Blocks,
        subsets: Subsets | None = None,
        *,
        width: int = 32,
        dropout: float = 0.2,
        reconstruction: Mapping[str, float] | float = 0.5,
        classification: float = 1.0,
        training: TableTraining = TRAINING,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.subsets = subsets
        self.width = width
        self.dropout = dropout
        self.reconstruction = reconstruction
        self.classification = classification
        self.training = training
        self.random_state = random_state

    def _build(self, classes: int) -> TableNetwork:
        if self.width < 1 or self.classification <= 0:
            raise ConfigError(
                f"expected a width of 1 or more and a positive weight of the classes, got {self.width} and "
                f"{self.classification}"
            )
        return MissingModalityNetwork(
            self.blocks,
            classes,
            width=self.width,
            dropout=self.dropout,
            reconstruction=self.reconstruction,
            classification=self.classification,
        )

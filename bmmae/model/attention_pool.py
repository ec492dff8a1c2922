"""From the tokens of whatever is available to one vector a question: attentive statistics pooling."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor

SMALLEST_VARIANCE = 1e-6
LESION_GAIN = 2.0
"""Logarithm of how much more a token all of lesion weighs than one without, before training."""


class AttentionPool(nn.Module):
    """Weighted mean and deviation over tokens, with weights of its own for each question and part of the embedding.

    Scores come from a two-layer network (Ilse 2018), the deviation beside the mean from attentive
    statistics pooling (Okabe 2018). Scores start at zero, so that training starts from the plain mean over tokens.

    Args:
        dim: Length of a token.
        questions: How many vectors are wanted.
        heads: Parts of the embedding that are weighted apart; must divide `dim`.
    """

    def __init__(self, dim: int, questions: int, heads: int) -> None:
        super().__init__()
        self.questions, self.heads = questions, heads
        self.hidden = nn.Linear(dim, max(heads, dim // 4))
        self.score = nn.Linear(self.hidden.out_features, questions * heads)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.lesion_gain = nn.Parameter(torch.full((questions, heads), LESION_GAIN))

    def weights(
        self, tokens: Float[Tensor, "B N E"], keep: Bool[Tensor, "B N"], lesion: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B N Q A"]:
        """Return each token's weight; they add up to one over the tokens that are there.

        Args:
            tokens: Of one sample in a row, padding behind.
            keep: True = a token, not padding.
            lesion: Share of the token's patch that is lesion; 0 where no map is given.
        """
        scores = self.score(torch.tanh(self.hidden(tokens)))
        scores = rearrange(scores, "b n (q a) -> b n q a", q=self.questions).float()
        scores = scores + lesion.float()[:, :, None, None] * self.lesion_gain.float()
        weights: Tensor = scores.masked_fill(~keep[:, :, None, None], float("-inf")).softmax(dim=1)
        return weights

    def forward(
        self, tokens: Float[Tensor, "B N E"], keep: Bool[Tensor, "B N"], lesion: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B Q E2"]:
        """Return mean, then deviation, E2 = 2 E; see `weights`."""
        weights = self.weights(tokens, keep, lesion)
        # In float32 also under autocast: the variance is a small difference of large numbers.
        with torch.autocast(tokens.device.type, enabled=False):
            parts = rearrange(tokens.float(), "b n (a e) -> b n a e", a=self.heads)
            mean = torch.einsum("bnqa,bnae->bqae", weights, parts)
            square = torch.einsum("bnqa,bnae->bqae", weights, parts.square())
            deviation = (square - mean.square()).clamp(min=SMALLEST_VARIANCE).sqrt()
            return rearrange([mean, deviation], "s b q a e -> b q (s a e)")

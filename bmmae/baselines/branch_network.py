"""A branch a modality, attention over channels and places, and a lesion map: the network of Lyu et al. (Patterns 2022).

The paper describes it in words (its section "Tumor classification network design"), for T1ce and FLAIR. What is ours:
any number of branches, a reduction of four between the two layers of channel attention, and the hidden width of the
two fully connected layers at the end. How the paper draws patients by class in training is left out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import nn

from bmmae.arrays import Float, Tensor
from bmmae.baselines.hybrid_network import TwoArmBlock, convolution

BLOCKS = 5
REDUCTION = 4


class FeatureBranch(nn.Sequential):
    """A convolution and five down-sampling blocks on one modality.

    Args:
        width: Channels of the first convolution; doubled at each block, to at most eight times.
    """

    def __init__(self, width: int) -> None:
        widths = [width * min(2**level, 8) for level in range(BLOCKS + 1)]
        super().__init__(convolution(1, width), *(TwoArmBlock(a, b) for a, b in pairwise(widths)))
        self.outputs = widths[-1]


class TwofoldAttention(nn.Module):
    """Features weighted by channel, plus the same weighted by place.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "B C H W D"]) -> Float[Tensor, "B C H W D"]:
        """Return the sum of both."""
        by_channel = self.channel(x.mean((2, 3, 4)))[:, :, None, None, None]
        by_place = x.mean(1, keepdim=True).sigmoid()
        out: Tensor = x * by_channel + x * by_place
        return out


class BranchNetwork(nn.Module):
    """One feature branch a modality, joined with a lesion map by attention.

    Args:
        branches: How many modalities.
        outputs: Numbers that go out.
        width: Channels of the first convolution of a branch.
        hidden: Width of the first of the two fully connected layers.
    """

    def __init__(self, branches: int, outputs: int, width: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.branches = nn.ModuleList(FeatureBranch(width) for _ in range(branches))
        channels = sum(cast(FeatureBranch, branch).outputs for branch in self.branches) + 1
        self.shrink = nn.Sequential(*(nn.MaxPool3d(2) for _ in range(BLOCKS)))
        self.attention = TwofoldAttention(channels)
        self.head = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Float[Tensor, "B M H W D"], lesion: Float[Tensor, "B 1 H W D"]) -> Float[Tensor, "B K"]:
        """Return the outputs.

        Args:
            x: One channel a branch; sides are multiples of 32.
            lesion: Chance that a voxel is lesion; zero where nothing is known.
        """
        features = [branch(x[:, index, None]) for index, branch in enumerate(self.branches)]
        joined = self.attention(torch.cat([*features, self.shrink(lesion)], dim=1))
        out: Tensor = self.head(joined.mean((2, 3, 4)))
        return out

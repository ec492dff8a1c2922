"""Detail from what is there: hidden voxels as a learned mixture of the voxels visible at the same place."""

from __future__ import annotations

import torch
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.model.tokens import TokenIndex
from bmmae.patches import Triple, gather_patches


class VoxelMixing(nn.Module):
    """Mixes the visible voxels at a hidden patch's place by linear and quadratic terms.

    For a patch of features z and visible voxels x_m: `sum_m a_m(z) x_m + sum_mn B_mn(z) x_m x_n`. With constant
    coefficients this is the per-voxel quadratic regression; here they depend on context. Coefficients start at zero.

    Args:
        modalities: How many modalities there are.
        dim: Length of the decoder's features.
    """

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.modalities = modalities
        self.linear = nn.Linear(dim, modalities)
        self.quadratic = nn.Linear(dim, modalities * modalities)
        for layer in (self.linear, self.quadratic):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Float[Tensor, "T C"],
        images: Float[Tensor, "B M H W D"],
        visible: Bool[Tensor, "B M L"],
        targets: TokenIndex,
        patch: Triple,
    ) -> Float[Tensor, "T P"]:
        """Return what the visible voxels contribute to each target patch; zero where nothing is visible."""
        shown = visible[targets.sample, :, targets.place].to(features.dtype)
        voxels = torch.stack(
            [
                gather_patches(images, patch, targets.sample, torch.full_like(targets.modality, m), targets.place)
                for m in range(self.modalities)
            ],
            dim=1,
        ).to(features.dtype)
        voxels = voxels * shown[..., None]
        weights = self.quadratic(features).unflatten(-1, (self.modalities, self.modalities))
        slopes = self.linear(features)[..., None] + weights @ voxels
        mixed: Tensor = (slopes * voxels).sum(1)
        return mixed

"""What lies around a patch: a second aim of pretraining that no token can copy from its own voxels.

Each visible token also says, for every modality, which mean and deviation the tissue has around its place. Hidden
patches and other modalities count, so it has to look around; and as it is the encoder's own output that is read, the
encoder has to do it, and cannot leave it to the decoder.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from bmmae.arrays import Bool, Float, Tensor
from bmmae.patches import Triple, patch_grid

MOMENTS = 2
SMALLEST_SHARE = 1e-6
SMALLEST_VARIANCE = 1e-4


class Surroundings(nn.Module):
    """Reads mean and deviation of each modality around each token's place, on one scale or more.

    Args:
        modalities: How many modalities there are.
        dim: Length of a token.
        widths: Patches along an axis that surroundings span, one number a scale.
    """

    def __init__(self, modalities: int, dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(modalities, MOMENTS * len(widths), dim))
        self.bias = nn.Parameter(torch.zeros(modalities, MOMENTS * len(widths)))

    def forward(self, tokens: Float[Tensor, "T E"]) -> Float[Tensor, "T M F"]:
        """Return the moments in the order of `moments_around`."""
        return torch.einsum("te,mfe->tmf", tokens, self.weight) + self.bias


def moments_around(
    images: Float[Tensor, "B M H W D"], counted: Bool[Tensor, "B M H W D"], patch: Triple, widths: tuple[int, ...]
) -> tuple[Float[Tensor, "B M L F"], Bool[Tensor, "B M L F"]]:
    """Return each place's surroundings: means, then deviations, by scale; and where any voxel counts.

    Args:
        images: Z-scores.
        counted: Which voxels count.
        patch: Voxels of a patch.
        widths: Patches along an axis, odd; surroundings end at the window's rim.
    """
    h, w, d = patch_grid(images.shape[-3:], patch)
    # Sample by sample: a batch of whole windows three times over would be a tenth of a large model's memory.
    sums = torch.stack([_sums(*sample, patch) for sample in zip(images, counted, strict=True)], dim=1)
    means, deviations, known = [], [], []
    for width in widths:
        shaped = rearrange(sums, "sum b m (h w d) -> (sum b) m h w d", h=h, w=w, d=d)
        rim = (width // 2,) * 6
        count, first, second = F.avg_pool3d(F.pad(shaped, rim), width, 1).flatten(-3).view_as(sums)
        mean = first / count.clamp(min=SMALLEST_SHARE)
        variance = second / count.clamp(min=SMALLEST_SHARE) - mean.square()
        means.append(mean)
        deviations.append(variance.clamp(min=SMALLEST_VARIANCE).sqrt())
        known.append(count > 0)
    return torch.stack(means + deviations, dim=-1), torch.stack(known * MOMENTS, dim=-1)


def _sums(image: Float[Tensor, "M H W D"], counted: Bool[Tensor, "M H W D"], patch: Triple) -> Float[Tensor, "3 M L"]:
    """Return how many voxels of each patch count, their sum, and the sum of their squares."""
    weight = counted.float()
    values = image.float() * weight
    powers = (weight, values, values.square())
    return math.prod(patch) * torch.stack([F.avg_pool3d(each, patch).flatten(-3) for each in powers])

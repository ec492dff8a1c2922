"""Voxels of absent modalities from those of the modalities that were scanned at the same place.

A regression with a closed-form solution, fitted to the training studies before the transformer is trained. It sees the
voxel in every given modality, means and deviations over cubes around it, and how deep it lies in the brain: as they
are, the voxels multiplied with one another, and all through a layer of rectified units with random weights, of which
only the output is solved for (Huang et al., Extreme learning machine, Neurocomputing 2006; Rahimi and Recht, Random
features, NeurIPS 2007). Per-voxel quadratic regression is the special case of voxels and products alone. Every subset
of the modalities has coefficients of its own. Modalities that the config names are read on a robust scale, each
study's own; what is predicted are z-scores.

A second output is the logarithm of the variance, fitted to errors on patients that the coefficients were not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from torch import nn

from bmmae.arrays import Bool, Float, Int, Tensor
from bmmae.errors import ConfigError
from bmmae.model.config import SynthesisConfig

MOST_MODALITIES = 6
"""Subsets double with each; beyond this their coefficients would outgrow the model."""
CHUNK = 65536
"""Voxels predicted at a time, which bounds the memory."""
SMALLEST_SQUARE = 1e-4
MOST_SORTED = 1_000_000
"""Voxels, evenly spaced, whose quartiles are those of an image."""
QUARTILE_RANGE = 1.3489795003921634
"""Of a standard normal distribution."""
FARTHEST = 8.0
"""On the robust scale, as z-scores are clipped: quartiles of a background that is almost even lie close together."""
CORTEX, HEMISPHERE = 5.0, 20.0
"""Millimetres on which depth below the brain's surface is told: e-fold near the surface, and linear further in."""
COVERAGE, NORMAL_SQUARE = 0.9, 0.9952
"""Variances are scaled so that this share of the errors lies within normal intervals; the logarithm of their square."""
LOG_CHI_SQUARE = 1.2703628454614782
"""How far the mean logarithm of a squared standard normal value lies below the logarithm of its mean."""


@dataclass(frozen=True)
class Examples:
    """Voxels to learn from.

    Attributes:
        inputs: Float[N, M, S], what `VoxelSynthesis.look` returns of each modality; 0 where not scanned.
        given: Bool[N, M], which modalities were scanned at the voxel.
        half: Bool[N], which half of the patients it comes from.
        truth: Float[N, M], z-scores.
    """

    inputs: Float[Tensor, "N M S"]
    given: Bool[Tensor, "N M"]
    half: Bool[Tensor, " N"]
    truth: Float[Tensor, "N M"]


@dataclass(frozen=True)
class Voxels:
    """Predicted voxels of some modalities.

    Attributes:
        values: Float[T, H, W, D], z-scores; 0 where nothing is known.
        log_variance: Float[T, H, W, D], logarithms of their variances; 0 where nothing is known.
        known: Bool[T, H, W, D], where something was scanned, in a subset that the training studies had.
    """

    values: Float[Tensor, "T H W D"]
    log_variance: Float[Tensor, "T H W D"]
    known: Bool[Tensor, "T H W D"]


class VoxelSynthesis(nn.Module):
    """Predicts the voxels of any modality from those of any subset of the others. Nothing in it is trained by steps.

    Args:
        modalities: Their names.
        config: Its shape.

    Raises:
        ConfigError: If there are more than six modalities.
    """

    units: Tensor
    thresholds: Tensor
    coefficients: Tensor
    fitted: Tensor

    def __init__(self, modalities: Sequence[str], config: SynthesisConfig) -> None:
        super().__init__()
        count = len(modalities)
        if count > MOST_MODALITIES:
            raise ConfigError(
                f"voxel-wise synthesis knows subsets of at most {MOST_MODALITIES} modalities, got {count}: leave "
                "it out, with bmmae.recipe(..., synthesis=SynthesisConfig()) in Python (from bmmae.model.config), or "
                "model.synthesis.units 0 in a config; the decoder's patches then do alone"
            )
        self.modalities = count
        self.robust = [place for place, name in enumerate(modalities) if name in config.robust]
        self.config = config
        self.looks = 1 + len(config.scales) + len(config.deviations) + 2 * config.depth
        inputs = count * self.looks
        self.pairs = torch.triu_indices(count, count)
        terms = 1 + inputs + self.pairs.shape[1] + config.units
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("units", torch.randn(inputs, config.units, generator=draw))
        self.register_buffer("thresholds", 0.7 * torch.randn(config.units, generator=draw))
        self.register_buffer("coefficients", torch.zeros(2**count, count, 2, terms))
        self.register_buffer("fitted", torch.zeros(2**count, count, dtype=torch.bool))

    def look(
        self,
        images: Float[Tensor, "M H W D"],
        scanned: Bool[Tensor, "M H W D"],
        spacing: Sequence[float],
    ) -> Float[Tensor, "M S H W D"]:
        """Return what a study shows at each voxel: for every modality, what the module's first lines name, in order.

        Args:
            images: Z-scores.
            scanned: Which voxels count: scanned, and brain. A robust scale is that of these: give whole brains.
            spacing: Millimetres between voxels, which decides how many a cube spans.
        """
        read = images.float() * scanned
        for place in self.robust:
            read[place] = _on_robust_scale(read[place], scanned[place])
        values, share = read[None], scanned.float()[None]
        found = [values]
        for scale in sorted({*self.config.scales, *self.config.deviations}):
            count = _around(share, scale, spacing).clamp(min=1e-6)
            mean = _around(values, scale, spacing) / count
            if scale in self.config.scales:
                found.append(mean)
            if scale in self.config.deviations:
                square = _around(values.square(), scale, spacing) / count
                found.append((square - mean.square()).clamp(min=0).sqrt())
        if self.config.depth:
            found += [depth[None] for depth in _depths(scanned, spacing)]
        return torch.cat(found).transpose(0, 1)

    def predict(
        self,
        images: Float[Tensor, "M H W D"],
        scanned: Bool[Tensor, "M H W D"],
        where: Bool[Tensor, "H W D"],
        spacing: Sequence[float],
        wanted: Sequence[int],
    ) -> Voxels:
        """Predict voxels of the modalities wanted.

        Args:
            images: Z-scores; the modalities wanted are not read.
            scanned: Which voxels of each modality count.
            where: Which voxels to predict.
            spacing: Millimetres between voxels.
            wanted: Indices of the modalities.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._predict(images, scanned, where, spacing, wanted)

    def _predict(
        self, images: Tensor, scanned: Tensor, where: Tensor, spacing: Sequence[float], wanted: Sequence[int]
    ) -> Voxels:
        readable = scanned.clone()
        readable[list(wanted)] = False
        inputs = self.look(images, readable, spacing)[..., where].permute(2, 0, 1)
        codes = self._codes(readable[:, where].T)
        made = inputs.new_zeros(len(inputs), len(wanted), 2)
        for code in set(codes.tolist()):
            rows = (codes == code).nonzero()[:, 0]
            coefficients = self.coefficients[code, list(wanted)].flatten(0, 1).T.float()
            for part in rows.split(CHUNK):
                made[part] = (self._terms(inputs[part], code) @ coefficients).view(len(part), -1, 2)
        out = inputs.new_zeros(2, len(wanted), *where.shape)
        out[..., where] = made.permute(2, 1, 0)
        known = where.expand(len(wanted), *where.shape).clone()
        known[:, where] = self.fitted[:, list(wanted)][codes].T
        return Voxels(out[0], out[1], known)

    def knows(self, given: Sequence[int], wanted: Sequence[int]) -> list[bool]:
        """Return which modalities it has been fitted to predict from a subset; all as places in the table."""
        code = sum(1 << place for place in given)
        return [bool(self.fitted[code, place]) for place in wanted]

    def _codes(self, given: Bool[Tensor, "N M"]) -> Int[Tensor, " N"]:
        return (given * 2 ** torch.arange(self.modalities, device=given.device)).sum(1)

    def _subset(self, code: int) -> list[int]:
        return [index for index in range(self.modalities) if code >> index & 1]

    def _terms(self, inputs: Float[Tensor, "N M S"], code: int) -> Float[Tensor, "N K"]:
        """Return everything that a subset's regression is linear in; what belongs to the others is 0."""
        known = inputs.new_zeros(self.modalities, 1)
        known[self._subset(code)] = 1
        inputs = inputs * known
        flat, (first, second) = inputs.flatten(1), self.pairs
        # The sum over fewer inputs is as large as that over all.
        scale = (max(1, len(self._subset(code))) * self.looks) ** -0.5
        units = F.relu((flat * scale) @ self.units.float() + self.thresholds.float())
        return torch.cat([torch.ones_like(flat[:, :1]), flat, inputs[:, first, 0] * inputs[:, second, 0], units], 1)

    @torch.no_grad()
    def fit(self, examples: Examples) -> None:
        """Solve for the coefficients of every subset and target; those without enough voxels stay 0.

        Args:
            examples: Voxels of the training studies. If most of those that have a subset have all modalities, only
                these are used: one product of the terms then serves all targets.
        """
        complete = examples.given.all(1)
        for code in range(1, 2**self.modalities):
            subset, places = self._subset(code), self._places(self._subset(code))
            absent = [index for index in range(self.modalities) if index not in subset]
            here = examples.given[:, subset].all(1)
            if 2 * int(complete.sum()) > int(here.sum()) and int(complete.sum()) >= 2 * len(places):
                self._fit_subset(code, absent, examples, complete)
                continue
            for index in absent:
                known = here & examples.given[:, index]
                if int(known.sum()) >= 2 * len(places):
                    self._fit_subset(code, [index], examples, known)

    def _fit_subset(self, code: int, absent: Sequence[int], examples: Examples, rows: Bool[Tensor, " N"]) -> None:
        """Solve for one subset's coefficients for some targets, on the voxels flagged."""
        inputs, half, truth = examples.inputs[rows], examples.half[rows], examples.truth[rows]
        places = self._places(self._subset(code))
        parts = self._terms(inputs, code)[:, places]
        sides = [(half == side).nonzero()[:, 0] for side in (False, True)]
        halves = [parts[side] for side in sides]
        grams = [(part.T @ part).double() for part in halves]
        for index in absent:
            truths = [truth[side, index] for side in sides]
            self.coefficients[code, index][:, places] = self._solve(halves, truths, grams).to(self.coefficients)
            self.fitted[code, index] = True

    def _solve(
        self,
        terms: Sequence[Float[Tensor, "_ K"]],
        truths: Sequence[Float[Tensor, " _"]],
        grams: Sequence[Float[Tensor, "K K"]],
    ) -> Float[Tensor, "2 K"]:
        """Solve for the mean on all voxels, and for the variance on the errors each half's mean makes on the other.

        Args:
            terms: Of each half of the patients.
            truths: What to predict.
            grams: Products of the terms.
        """
        penalty, count = self.config.penalty, sum(map(len, truths))
        products = [(part.T @ truth).double() for part, truth in zip(terms, truths, strict=True)]
        mean = _ridge(grams[0] + grams[1], products[0] + products[1], count, penalty)
        logs = []
        for side in range(2):
            other = 1 - side
            enough = len(truths[other]) >= len(mean)
            unseen = _ridge(grams[other], products[other], len(truths[other]), penalty) if enough else mean
            error = truths[side] - terms[side] @ unseen.to(terms[side])
            logs.append((error.square() + SMALLEST_SQUARE).log() + LOG_CHI_SQUARE)
        product = sum((part.T @ log).double() for part, log in zip(terms, logs, strict=True))
        spread = _ridge(grams[0] + grams[1], torch.as_tensor(product), count, penalty)
        left = [log - LOG_CHI_SQUARE - part @ spread.to(part) for part, log in zip(terms, logs, strict=True)]
        spread[0] += torch.cat(left).quantile(COVERAGE) - NORMAL_SQUARE
        return torch.stack([mean, spread])

    @torch.no_grad()
    def grow_from(self, old: VoxelSynthesis, origin: Sequence[int], added: int) -> None:
        """Take over a fit that knows one modality less; the added one takes the part of the one that it is like.

        Where both are there, or one is asked for beside the other, nothing is known yet.

        Args:
            old: The fit before.
            origin: For each modality of the new order, which of the old ones it comes from.
            added: Which of the new order is the added one.
        """
        both = {index for index, source in enumerate(origin) if source == origin[added]}
        rows = [source * self.looks + look for source in origin for look in range(self.looks)]
        self.units.copy_(old.units[rows])
        self.thresholds.copy_(old.thresholds)
        for code in range(1, 2**self.modalities):
            subset = self._subset(code)
            for target in set(range(self.modalities)) - set(subset):
                if len(both & {*subset, target}) == 2:
                    continue
                source = sum(1 << origin[index] for index in subset)
                mine, theirs = self._places(subset), old._places([origin[index] for index in subset])
                self.coefficients[code, target][:, mine] = old.coefficients[source, origin[target]][:, theirs]
                self.fitted[code, target] = old.fitted[source, origin[target]]

    def _places(self, subset: Sequence[int]) -> list[int]:
        """Return where a subset's terms stand, in an order that two fits share."""
        inputs = [1 + index * self.looks + look for index in subset for look in range(self.looks)]
        pairs = {tuple(pair): number for number, pair in enumerate(self.pairs.T.tolist())}
        first = 1 + self.modalities * self.looks
        products = [first + pairs[min(a, b), max(a, b)] for n, a in enumerate(subset) for b in subset[n:]]
        units = first + len(pairs)
        return [0, *inputs, *products, *range(units, units + self.units.shape[1])]


def _on_robust_scale(image: Float[Tensor, "H W D"], scanned: Bool[Tensor, "H W D"]) -> Float[Tensor, "H W D"]:
    """Return an image with median 0 and the quartiles of a normal distribution; as it is where they are one value."""
    values = image[scanned]
    if not len(values):
        return image
    values = values[:: math.ceil(len(values) / MOST_SORTED)]
    low, middle, high = torch.quantile(values, torch.tensor((0.25, 0.5, 0.75), device=values.device))
    span = float(high - low)
    return ((image - middle) * (QUARTILE_RANGE / span)).clamp(-FARTHEST, FARTHEST) * scanned if span > 0 else image


def _around(volumes: Float[Tensor, "1 M H W D"], scale: float, spacing: Sequence[float]) -> Float[Tensor, "1 M H W D"]:
    """Return means over cubes, interpolated between their centres; the last along an axis may be less than whole."""
    h, w, d = volumes.shape[-3:]
    factors = [min(side, max(1, round(scale / step))) for side, step in zip((h, w, d), spacing, strict=True)]
    pooled = F.avg_pool3d(volumes, factors, ceil_mode=True, count_include_pad=False)
    # By the factor, not to the size: a last cube beyond the volume would be squeezed into it, and shift all others.
    spread = F.interpolate(pooled, scale_factor=[float(f) for f in factors], mode="trilinear", align_corners=False)
    return spread[..., :h, :w, :d]


def _depths(scanned: Bool[Tensor, "M H W D"], spacing: Sequence[float]) -> list[Float[Tensor, "M H W D"]]:
    """Return how deep each voxel lies in what was scanned of each modality, on two scales.

    Holes are no surface: single zeros within the brain would otherwise make all around them look like its rim.
    """
    masks = scanned.cpu().numpy()
    kept: dict[bytes, np.ndarray] = {}
    for mask in masks:  # most often all are the same
        key = np.packbits(mask).tobytes()
        if key not in kept:
            depths = distance_transform_edt(binary_fill_holes(mask), sampling=tuple(spacing))
            kept[key] = np.where(mask, depths, 0).astype(np.float32)
    millimetres = np.stack([kept[np.packbits(mask).tobytes()] for mask in masks])
    depth = torch.from_numpy(millimetres).to(scanned.device)
    return [depth / HEMISPHERE, torch.exp(-depth / CORTEX) * scanned]


def _ridge(gram: Float[Tensor, "K K"], product: Float[Tensor, " K"], count: int, penalty: float) -> Float[Tensor, " K"]:
    """Solve for coefficients, with a penalty in units of the terms' mean squares."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved: Tensor = torch.linalg.solve(gram / count + penalty * identity, product / count)
    return solved

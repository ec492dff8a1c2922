"""Tokens for what is known of a patient beside the images: clinical variables, lesion volume, other vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bmmae.arrays import Bool, Float, Tensor
from bmmae.clinical import ClinicalVariable


@dataclass(frozen=True)
class Beside:
    """What is known of each patient of a batch beside the images.

    Attributes:
        clinical: Float[B, V], encoded by the model's own `ClinicalVariable`s.
        clinical_available: Bool[B, V].
        vector: Float[B, K], standardised.
        vector_available: Bool[B].
        lesion: Float[B, 1, H, W, D], chance that a voxel is lesion.
        lesion_available: Bool[B].
    """

    clinical: Float[Tensor, "B V"] | None = None
    clinical_available: Bool[Tensor, "B V"] | None = None
    vector: Float[Tensor, "B K"] | None = None
    vector_available: Bool[Tensor, " B"] | None = None
    lesion: Float[Tensor, "B 1 H W D"] | None = None
    lesion_available: Bool[Tensor, " B"] | None = None


class ClinicalTokens(nn.Module):
    """One token a variable: its name, its value, and an embedding of its own where it is missing.

    Args:
        variables: As fitted on the training fold.
        dim: Length of a token.
    """

    def __init__(self, variables: Sequence[ClinicalVariable], dim: int) -> None:
        super().__init__()
        self.variables = tuple(variables)
        rows = sum(1 if v.kind == "numeric" else len(v.categories) for v in self.variables)
        self.name = nn.Parameter(torch.randn(len(self.variables), dim))
        self.value = nn.Parameter(torch.randn(rows, dim))
        self.missing = nn.Parameter(torch.randn(len(self.variables), dim))

    def forward(self, values: Float[Tensor, "B V"], known: Bool[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
        """Return the tokens in the variables' order."""
        columns = clinical_values(self.variables, values, known).to(self.value.dtype)
        content = torch.split(columns, self._widths(), dim=1)
        tables = torch.split(self.value, self._widths())
        parts = torch.stack([part @ table for part, table in zip(content, tables, strict=True)], dim=1)
        return self.name + parts + (~known)[..., None] * self.missing

    def _widths(self) -> list[int]:
        return [1 if v.kind == "numeric" else len(v.categories) for v in self.variables]


def clinical_values(
    variables: Sequence[ClinicalVariable], values: Float[Tensor, "B V"], known: Bool[Tensor, "B V"]
) -> Float[Tensor, "B W"]:
    """Return each variable's value or one-hot category; zeros where it is missing and not imputed."""
    imputed = torch.tensor([v.imputed is not None for v in variables], device=known.device)
    shown = (known | imputed).to(values.dtype)
    parts = []
    for index, variable in enumerate(variables):
        if variable.kind == "numeric":
            part = values[:, [index]]
        else:
            part = F.one_hot(values[:, index].long(), len(variable.categories)).to(values.dtype)
        parts.append(part * shown[:, [index]])
    return torch.cat(parts, dim=1)


def design_matrix(
    variables: Sequence[ClinicalVariable], batch: Beside, vector: int, rows: int, device: torch.device
) -> Float[Tensor, "B W"]:
    """Return all that is known beside the images as plain columns: values, missing flags, the vector and its flag.

    Args:
        variables: The clinical variables.
        batch: Their values; what is None counts as missing.
        vector: Length of the vector; 0 for none.
        rows: Patients.
        device: Where to make what is missing.
    """
    columns = [torch.zeros(rows, 0, device=device)]
    if variables:
        values, known = clinical_of(variables, batch, rows, device)
        columns += [clinical_values(variables, values, known), (~known).to(values.dtype)]
    if vector:
        numbers, there = vector_of(batch, vector, rows, device)
        columns += [numbers, (~there)[:, None].to(numbers.dtype)]
    return torch.cat(columns, dim=1)


def clinical_of(
    variables: Sequence[ClinicalVariable], batch: Beside, rows: int, device: torch.device
) -> tuple[Float[Tensor, "B V"], Bool[Tensor, "B V"]]:
    """Return the clinical values of a batch and which are known; without any, what stands in for missing ones."""
    if batch.clinical is not None and batch.clinical_available is not None:
        return batch.clinical, batch.clinical_available
    return unknown_values(variables, device).expand(rows, -1), torch.zeros(
        rows, len(variables), dtype=torch.bool, device=device
    )


def unknown_values(variables: Sequence[ClinicalVariable], device: torch.device) -> Float[Tensor, " V"]:
    """Return what stands in for values that are not known: imputed ones, else 0."""
    return torch.tensor([variable.imputed or 0.0 for variable in variables], device=device)


def shown_variables(
    variables: Sequence[ClinicalVariable], modalities: Sequence[str], available: Bool[Tensor, "B M"]
) -> Bool[Tensor, "B V"]:
    """Return which variables may be seen: a measure of an image only where its modality may."""
    always = torch.ones_like(available[:, :1])
    columns = torch.cat([available, always], dim=1)
    places = [modalities.index(v.modality) if v.modality else len(modalities) for v in variables]
    return columns[:, places]


def vector_of(
    batch: Beside, length: int, rows: int, device: torch.device
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Return the vectors of a batch, zeros where they are missing, and which are known."""
    if batch.vector is None or batch.vector_available is None:
        return torch.zeros(rows, length, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
    return batch.vector * batch.vector_available[:, None], batch.vector_available

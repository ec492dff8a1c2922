"""Predictions and embeddings of whole cohorts, from whatever subset of the modalities each patient has."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from bmmae.arrays import Float, Tensor
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import LESION, Study
from bmmae.data.dataset import View
from bmmae.data.loaders import EVALUATION_EPOCH, Batch, collate
from bmmae.data.packing import unpack
from bmmae.data.patients import Columns, PatientDataset, cut_by
from bmmae.data.subset_shares import subsets_of
from bmmae.data.tables import Cell
from bmmae.errors import CohortError, ModalityError, few
from bmmae.modalities import canonical, subset_label
from bmmae.model.patient import PatientModel
from bmmae.model.pretrained import PretrainedModel
from bmmae.model.tokens import TokenIndex
from bmmae.patches import any_in_patch
from bmmae.targets import Target, as_label
from bmmae.tasks.patient import run_model
from bmmae.tasks.task import tensors

RARE = 0.01
"""Subsets that came with fewer than one in a hundred training samples are warned of."""

FEW = 5
"""So many names are listed."""

FAR = 4.0
"""Where half of the patients are more deviations than this from the training patients' mean, units may differ."""


class RareSubsetWarning(UserWarning):
    """A prediction is made from a subset of the modalities that training has hardly shown."""


@dataclass(frozen=True)
class Outputs:
    """A patient model's outputs for some studies, each from one or several subsets.

    Attributes:
        studies: One a row; rows of one study may follow each other.
        subsets: What each row was predicted from, in table order.
        logits: By target, Float[N, K].
    """

    studies: tuple[Study, ...]
    subsets: tuple[tuple[str, ...], ...]
    logits: dict[str, Float[Tensor, "N _"]]


def choose_subsets(
    study: Study, known: Sequence[str], only: Sequence[str] | None = None, *, every: bool = False
) -> list[tuple[str, ...]]:
    """Return the subsets that a study is looked at from; none if it lacks what is asked for.

    Args:
        study: With any modalities.
        known: The model's modalities.
        only: Use only these of the study's modalities; default: all that the model knows.
        every: All non-empty subsets of these instead of their union.
    """
    names = tuple(name for name in known if name in study.images and (only is None or name in only))
    if not names:
        return []
    return subsets_of(names) if every else [names]


def given_subset(names: Sequence[str] | None, model: PretrainedModel) -> tuple[str, ...] | None:
    """Return the modalities that a user restricts a model to, by canonical name; None for no restriction.

    Raises:
        ModalityError: If one is unknown to the model or none is given.
    """
    if names is None:
        return None
    if not names:
        raise ModalityError("--subset expects at least one modality")
    return tuple(canonical(name, model.model_config.modalities) for name in names)


def columns_of(model: PatientModel) -> Columns:
    """Return how rows of a table become a model's numbers: as fitted on its training fold."""
    config = model.config
    return Columns(config.targets, config.clinical, config.vector, config.lesion)


def predict(
    model: PatientModel,
    studies: Sequence[Study],
    cache: StudyCache,
    *,
    only: Sequence[str] | None = None,
    every: bool = False,
    batch_size: int = 4,
    progress: bool = False,
) -> Outputs:
    """Return a model's outputs for studies, each encoded once per subset.

    Args:
        model: In eval mode.
        studies: Those without any of the modalities are left out.
        cache: Where prepared studies are.
        only: Use only these modalities.
        every: Predict from every non-empty subset of what each study has.
        batch_size: Studies loaded at a time.
        progress: Show a bar.

    Raises:
        CohortError: If no study is left.
        ImageError: If an image cannot be read.
    """
    unlabelled = replace(columns_of(model), targets=())  # whatever stands in columns of labels
    visits = Visits(studies, cache, unlabelled, only, every, batch_size, progress)
    return over_subsets(model, visits, lambda batch: run_model(model, batch, model.config))


@dataclass(frozen=True)
class Visits:
    """Which studies are looked at, from which subsets, and how; see `predict`."""

    studies: Sequence[Study]
    cache: StudyCache
    columns: Columns
    only: Sequence[str] | None = None
    every: bool = False
    batch_size: int = 4
    progress: bool = False


@torch.inference_mode()
def over_subsets(model: PretrainedModel, visits: Visits, look: Callable[[Batch], dict[str, Tensor]]) -> Outputs:
    """Call a function on batches of studies, once for each of their subsets, and put together what it returns.

    Args:
        model: Says which modalities are known, how large a window is, and where to compute.
        visits: What to look at.
        look: From an unpacked batch to tensors [B, K] by name.

    Raises:
        CohortError: If no study has any of the modalities.
        ImageError: If an image cannot be read.
    """
    config = model.model_config
    chosen = [study for study in visits.studies if choose_subsets(study, config.modalities, visits.only)]
    if not chosen:
        wanted = ", ".join(visits.only or config.modalities)
        raise CohortError(f"none of the {len(visits.studies)} studies has any of the modalities {wanted}")
    dataset = PatientDataset(chosen, View.of(config), visits.cache, visits.columns)
    rows: list[Study] = []
    seen: list[tuple[str, ...]] = []
    parts: list[dict[str, Tensor]] = []
    with tqdm(total=len(chosen), unit="study", disable=not visits.progress) as bar:
        for start in range(0, len(chosen), visits.batch_size):
            group = chosen[start : start + visits.batch_size]
            batch = unpack(collate([dataset.packed((EVALUATION_EPOCH, start + i)) for i in range(len(group))]))
            for index, subset, part in _by_subset(model, group, batch, visits):
                rows += [group[i] for i in index]
                seen += [subset] * len(index)
                parts.append({name: value.float().cpu() for name, value in look(part).items()})
            bar.update(len(group))
    return Outputs(tuple(rows), tuple(seen), {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _by_subset(
    model: PretrainedModel, studies: Sequence[Study], batch: Batch, visits: Visits
) -> Iterator[tuple[list[int], tuple[str, ...], Batch]]:
    """Yield which rows of a batch are looked at from which subset, and these rows as if they had no more than that."""
    names = model.model_config.modalities
    like = next(model.parameters())
    device = like.device
    wanted: dict[tuple[str, ...], list[int]] = {}
    for row, study in enumerate(studies):
        for subset in choose_subsets(study, names, visits.only, every=visits.every):
            wanted.setdefault(subset, []).append(row)
    for subset, rows in wanted.items():
        part: Batch = {key: value[rows].to(device) for key, value in batch.items() if isinstance(value, Tensor)}
        flags = torch.tensor([name in subset for name in names], device=device)
        images, available, valid = tensors(part, "images", "available", "valid")
        shown = {"available": available & flags, "valid": valid & flags[:, None, None, None]}
        yield rows, subset, {**part, "images": images.to(like.dtype), **shown}


def warn_of_rare_subsets(model: PatientModel, outputs: Outputs) -> None:
    """Warn of patients whose subset of the modalities was rare in training.

    Warns:
        RareSubsetWarning: Naming the subsets and how many patients have them.
    """
    labels = [subset_label(subset) for subset in outputs.subsets]
    rare = {label: labels.count(label) for label in labels if is_rare(model, label)}
    if rare:
        listed = ", ".join(f"{label} ({count})" for label, count in rare.items())
        warnings.warn(
            f"{sum(rare.values())} of {len(labels)} predictions are from subsets of the modalities that fewer than "
            f"1 in {1 / RARE:g} training samples had: {listed}; trust them less",
            RareSubsetWarning,
            stacklevel=2,
        )


def is_rare(model: PatientModel, subset: str) -> bool:
    """Tell whether training hardly showed a subset; never where the model does not say what it was shown."""
    return bool(model.config.subsets) and model.config.subsets.get(subset, 0.0) < RARE


def warn_of_lacking_inputs(model: PatientModel, studies: Sequence[Study]) -> None:
    """Warn where no study at all has what a model was trained with beside the images: columns of another name, say."""
    config = model.config
    values = [study.values for study in studies]
    lacking = [v.name for v in config.clinical if all(row.get(v.name) is None for row in values)]
    vector = config.vector.columns if config.vector else ()
    lacking += [name for name in vector if all(row.get(name) is None for row in values)]
    if vector and not lacking and not any(config.vector.encode(row)[1] for row in values if config.vector):
        lacking.append(f"all of {vector[0]} ... {vector[-1]}")
    column = {"attention": "seg", "probability": LESION}.get(config.lesion)
    files = [study.seg if config.lesion == "attention" else study.lesion for study in studies]
    lacking += [column] if column and not any(files) else []
    if lacking:
        warnings.warn(
            f"the model was trained with columns that no study of this cohort has: {few(lacking, quote='')}; "
            "they count as missing",
            stacklevel=2,
        )


def warn_of_unseen_categories(model: PatientModel, studies: Sequence[Study]) -> None:
    """Warn of values that training has not seen: they count as missing (`M` and `F` for `male` and `female`, say)."""
    for variable in model.config.clinical:
        if variable.kind == "categorical":
            unseen = _unseen(studies, variable.name, variable.categories)
            if unseen:
                listed = ", ".join(f"'{cell}' ({count})" for cell, count in unseen.most_common(FEW))
                warnings.warn(
                    f"column '{variable.name}' holds values that count as missing: {listed}; training knew "
                    f"{', '.join(variable.categories[:FEW])}",
                    stacklevel=2,
                )


def refuse_unreadable_cells(model: PatientModel, studies: Sequence[Study]) -> None:
    """Refuse clinical columns and vectors that hold something else than numbers, before images are opened.

    Raises:
        CohortError: Naming study, column and cell.
    """
    given = replace(columns_of(model), targets=())  # whatever stands in columns of labels
    for study in studies:
        given.encode(study)


def warn_of_other_units(model: PatientModel, studies: Sequence[Study]) -> None:
    """Warn of clinical numbers far from those of training: ages in days where the model knows years, say.

    Columns that hold 0 and 1 alone are flags, which have no unit: one that is rarely set is far from its mean.

    Raises:
        CohortError: If a cell holds something else than a number.

    Warns:
        UserWarning: Naming the column.
    """
    for variable in model.config.clinical:
        if variable.kind == "numeric" and variable.modality is None:
            encoded = [variable.encode(study.values.get(variable.name)) for study in studies]
            values = np.array([value for value, known in encoded if known])
            numbers = variable.mean + variable.deviation * values
            flags = np.isclose(numbers, 0) | np.isclose(numbers, 1)
            if not flags.all() and np.median(np.abs(values)) > FAR:
                warnings.warn(
                    f"column '{variable.name}' holds numbers around {np.median(numbers):g}, and training knew "
                    f"{variable.mean:.3g} with a deviation of {variable.deviation:.3g}: are they in the same unit?",
                    stacklevel=2,
                )


def warn_of_unseen_classes(targets: Sequence[Target], studies: Sequence[Study]) -> None:
    """Warn of studies whose class training has not seen: they count as not labelled."""
    for target in targets:
        if target.kind in ("binary", "multiclass"):
            unseen = _unseen(studies, target.columns[0], target.classes)
            if unseen:
                listed = few((f"'{label}' ({count})" for label, count in unseen.most_common()), FEW, quote="")
                warnings.warn(
                    f"{sum(unseen.values())} held-out studies count as not labelled: '{target.name}' is learned for "
                    f"{few(target.classes, FEW, quote='')} alone, and they have {listed}",
                    stacklevel=2,
                )


def _unseen(studies: Sequence[Study], column: str, known: Sequence[str]) -> Counter[str]:
    cells = [as_label(study.values.get(column)) for study in studies]
    return Counter(cell for cell in cells if cell is not None and cell not in known)


def warn_of_cut_brains(model: PretrainedModel, studies: Sequence[Study], cache: StudyCache) -> None:
    """Warn of brains that are larger than the model's window: what lies outside is not seen."""
    cut = cut_by(studies, cache, model.model_config.size)
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(studies)} brains are larger than the model's window "
            f"{model.model_config.size} and are seen in part: {', '.join(cut[:3])}",
            stacklevel=2,
        )


def embed(
    model: PretrainedModel,
    studies: Sequence[Study],
    cache: StudyCache,
    *,
    only: Sequence[str] | None = None,
    every: bool = False,
    batch_size: int = 4,
    progress: bool = False,
) -> list[dict[str, Cell]]:
    """Return one row a study and subset: `subject`, `session`, `subset`, `e0` ... (mean of the encoder's tokens).

    Arguments as in `predict`; any kind of model with an encoder will do.

    Raises:
        CohortError: If no study is left.
        ImageError: If an image cannot be read.
    """
    visits = Visits(studies, cache, Columns(), only, every, batch_size, progress)
    found = over_subsets(model, visits, lambda batch: {"e": mean_token(model, batch)})
    return [
        {"subject": study.subject, "session": study.session, "subset": subset_label(subset)}
        | {f"e{number}": value for number, value in enumerate(vector)}
        for study, subset, vector in zip(found.studies, found.subsets, found.logits["e"].tolist(), strict=True)
    ]


def mean_token(model: PretrainedModel, batch: Batch) -> Float[Tensor, "B E"]:
    """Return the mean of a batch's image tokens (the class token where there is none), after the final norm."""
    config = model.model_config
    images, available, valid, brain = tensors(batch, "images", "available", "valid", "brain")
    seen = valid & available[:, :, None, None, None]
    exists = any_in_patch(seen & brain[:, None] if config.tissue_only else seen, config.patch)
    tokens = TokenIndex.of(exists)
    sequence = cast(Any, model).encoder(images, tokens).float()
    total = (sequence[:, 1:] * tokens.keep()[..., None]).sum(1)
    counts = tokens.counts[:, None]
    return torch.where(counts > 0, total / counts.clamp(min=1), sequence[:, 0])

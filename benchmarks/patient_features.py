"""Patients by linear heads: what the frozen encoder says of every subset, kept on disk, and heads fitted to it.

The encoder and the measures are the same for a model of any subset and for one that is dedicated to a subset, so they
are computed once; a dedicated model is then fitted to its subset's rows alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from full_volumes import predict_volume, whole_study
from learning_data import WORK, Source
from patient_learning import TARGETS, Predictions, truth_of
from segmentation_contestants import digest

from bmmae.arrays import Array
from bmmae.checkpoint import load_encoder, load_model
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.dataset import centred
from bmmae.data.labels import BRATS2017, labels_from_regions
from bmmae.data.measures import measure, measured, with_measures
from bmmae.data.patient_columns import BesideConfig, fit_columns
from bmmae.data.patients import Columns
from bmmae.data.preprocess import overlap
from bmmae.data.subset_shares import subsets_of
from bmmae.linear_heads import Rows, collect, fit_linear_heads
from bmmae.modalities import subset_label
from bmmae.model.config import ModelConfig
from bmmae.model.outcomes import probabilities, risk
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.model.pretrained import PretrainedModel
from bmmae.patches import as_triple
from bmmae.patient_prediction import Outputs, Visits, columns_of, over_subsets
from bmmae.tasks.patient import beside_of
from bmmae.tasks.task import Batch, tensors


@dataclass(frozen=True)
class Encoded:
    """Rows of some studies from every subset, and which subset each is from."""

    rows: Rows
    subsets: tuple[str, ...]
    seconds: float

    def of(self, label: str | None) -> Encoded:
        """Return the rows from one subset, or all of them."""
        if label is None:
            return self
        chosen = np.array([name == label for name in self.subsets])
        return Encoded(self.rows.taken(chosen), (label,) * int(chosen.sum()), 0.0)

    def of_studies(self, keys: Collection[object]) -> Encoded:
        """Return the rows of some studies; the time to encode them is their share."""
        chosen = np.array([study.key in keys for study in self.rows.studies])
        subsets = tuple(name for name, kept in zip(self.subsets, chosen, strict=True) if kept)
        return Encoded(self.rows.taken(chosen), subsets, self.seconds * float(chosen.mean()))


def measured_parts(
    source: Source, work: Path = WORK, *, segmenter: Path | None = None
) -> tuple[tuple[Study, ...], tuple[Study, ...]]:
    """Return the training and the test studies with their measures, made once.

    Args:
        source: The data.
        work: Where the table is kept.
        segmenter: A segmentation model: its predictions from all modalities are measured, not what was drawn.
    """
    parts = source.parts[0]
    kept = work / f"measured-{source.name}{'' if segmenter is None else '-' + digest(segmenter)}.csv"
    if not kept.exists():
        drawn = partial(measured, cache=source.cache, coding=source.coding)
        look = drawn if segmenter is None else _measured_by(segmenter, source)
        work.mkdir(parents=True, exist_ok=True)
        Cohort(tuple(map(look, (*parts.train, *parts.test)))).write(kept)
    studies = read_cohort(kept).studies
    return studies[: len(parts.train)], studies[len(parts.train) :]


def _measured_by(segmenter: Path, source: Source) -> Callable[[Study], Study]:
    """Return what measures a study within the regions that a model finds."""
    model = load_model(segmenter, kind="segmentation").eval()
    shape = model.model_config

    def look(study: Study) -> Study:
        packed, sample = source.cache.load(study), whole_study(source, study, shape)
        masks = predict_volume(model, sample, sample["available"], shape, source.window).numpy()
        size = as_triple(masks.shape[1:])
        there, here = overlap(centred(packed.shape, size), size, packed.shape)
        label = np.zeros(packed.shape, np.int16)
        label[there] = labels_from_regions(masks, BRATS2017)[here]
        return with_measures(study, measure(replace(packed, label=label), source.cache.config.spacing, BRATS2017))

    return look


def model_of(
    pretrained: PretrainedModel | None, shape: ModelConfig, train: Sequence[Study], beside: BesideConfig
) -> PatientModel:
    """Return a model whose columns are fitted to training studies and whose heads are not fitted yet."""
    columns = fit_columns(train, TARGETS, beside)
    config = PatientModelConfig(shape, columns.targets, columns.clinical, lesion=beside.lesion, fusion=False)
    model = PatientModel(config).eval()
    if pretrained is not None:
        load_encoder(model, pretrained)
    return model


def encode(
    model: PatientModel, studies: Sequence[Study], source: Source, name: str, work: Path = WORK, *, every: bool = True
) -> Encoded:
    """Encode studies once for all contestants of that name, from every subset of their modalities or from all."""
    told = json.dumps(
        [name, source.name, model.config.lesion, [study.subject for study in studies], *([] if every else ["all"])]
    )
    kept = work / f"features-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
    if not kept.exists():
        started = time.process_time()
        found = over_subsets(model, Visits(studies, source.cache, columns_of(model), every=every), _look(model))
        names = [study.subject for study in found.studies]
        labels = [subset_label(subset) for subset in found.subsets]
        features = found.logits["features"].numpy()
        spent = time.process_time() - started
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, subjects=names, subsets=labels, features=features, seconds=spent)
    held = np.load(kept)
    by_name = {study.subject: study for study in studies}
    owners = [by_name[str(subject)] for subject in held["subjects"]]
    subsets = [tuple(str(label).split("+")) for label in held["subsets"]]
    design = _design(model, owners, subsets)
    rows = collect(owners, subsets, held["features"].astype(float), design)
    return Encoded(rows, tuple(map(str, held["subsets"])), float(held["seconds"]))


def beside_alone(model: PatientModel, studies: Sequence[Study]) -> Encoded:
    """Return rows from every subset whose features are zeros: only what is known beside the images."""
    pairs = [(study, subset) for study in studies for subset in subsets_of(tuple(study.images))]
    owners, subsets = [study for study, _ in pairs], [subset for _, subset in pairs]
    features = np.zeros((len(pairs), model.feature_width))
    rows = collect(owners, subsets, features, _design(model, owners, subsets))
    return Encoded(rows, tuple(map(subset_label, subsets)), 0.0)


def _look(model: PatientModel):  # type: ignore[no-untyped-def]
    def look(batch: Batch) -> dict[str, torch.Tensor]:
        images, available, valid, brain = tensors(batch, "images", "available", "valid", "brain")
        tissue = brain[:, None] if model.config.model.tissue_only else None
        features = model.features(images, available, tissue, valid, beside=beside_of(batch, model.config))
        return {"features": features[:, 0]}

    return look


def _design(model: PatientModel, studies: Sequence[Study], subsets: Sequence[tuple[str, ...]]) -> Array:
    """What is known beside the images, measures of modalities outside the subset left out."""
    columns = columns_of(model)
    if not model.config.design_width:
        return np.zeros((len(studies), 0))
    samples = [columns.encode(study) for study in studies]
    batch: Batch = {
        key: torch.stack([torch.as_tensor(sample[key]) for sample in samples])
        for key in ("clinical", "clinical_available")
    }
    names = model.config.model.modalities
    batch["available"] = torch.tensor([[name in subset for name in names] for subset in subsets])
    design = model.design(beside_of(batch, model.config), len(studies), torch.device("cpu"))
    return np.asarray(design.double().numpy())


def fit(model: PatientModel, train: Encoded, columns: Columns, *, images: bool = True) -> dict[str, object]:
    """Fit a model's heads, penalties by cross-validation inside the training rows; returns what it took."""
    started = time.process_time()
    chosen = fit_linear_heads(model, train.rows, None, columns, images=images)
    return {"steps": 0, "training_seconds": round(train.seconds + time.process_time() - started, 1), "chosen": chosen}


@torch.inference_mode()
def outputs_of(model: PatientModel, encoded: Encoded) -> Outputs:
    """Return what the heads make of encoded studies."""
    rows = encoded.rows
    features, design = (torch.from_numpy(values).float() for values in (rows.features, rows.design))
    shared = features[:, None].expand(-1, len(model.config.targets), -1)  # nothing is pooled for a target apart
    return Outputs(rows.studies, rows.subsets, model.outputs(shared, design))


def answers(model: PatientModel, test: Encoded) -> Iterator[tuple[str, Predictions]]:
    """Yield each subset and the predictions from it."""
    values: dict[str, torch.Tensor] = {}
    logits = outputs_of(model, test).logits
    for target in model.config.targets:
        said = logits[target.name]
        values[target.name] = risk(target, said)[:, None] if target.survival else probabilities(target, said)
    for label in dict.fromkeys(test.subsets):
        found: Predictions = {}
        for row, study in enumerate(test.rows.studies):
            if test.subsets[row] == label:
                told = {name: [round(v, 4) for v in value[row].tolist()] for name, value in values.items()}
                found[study.group] = told | {"true": truth_of(study, model.config.targets)}
        yield label, found

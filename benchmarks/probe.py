"""Linear probe: does a patch hold tumour? From frozen features of the encoder, or from plain statistics of the patch.

One row is a place with tissue, anywhere in the brain; its features are those of the given modalities, side by side
(zero where a modality was not scanned). The encoder sees the whole brain at once: a window that was laid where the
tumour is would tell by a place's position in it what is to be found out. A place holds tumour if any of its voxels
does. Test patients are scored one by one. There are two ways to fit the logistic regression: on the training patients
(`probe`), whom pretraining has seen too, and may have learned by heart; and on patients it has not seen
(`probe_unseen`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from budgeted import device
from learning_data import Source
from real import Parts
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bmmae.arrays import Array
from bmmae.data.cohort import Study
from bmmae.data.loaders import EVALUATION_EPOCH, Sample
from bmmae.metrics.classification import auc, average_precision
from bmmae.model.config import ModelConfig
from bmmae.model.mae import MAE
from bmmae.model.tokens import TokenIndex
from bmmae.patches import any_in_patch, as_triple, patchify

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
WHOLE_TUMOUR = "WT"
GROUPS = 6
"""Patients are left out in turn, or where there are more than these, in as many groups."""

Features: TypeAlias = Callable[[Sample, torch.Tensor], torch.Tensor]
"""From a sample and Bool[M], the modalities given, to Float[L, F]."""


@dataclass(frozen=True)
class Places:
    """The places of some studies.

    Attributes:
        features: Float[N, F].
        tumour: Bool[N].
        patient: Whose place each is.
    """

    features: Array
    tumour: Array
    patient: Array

    def of(self, patient: str) -> Places:
        """Return one patient's places."""
        return self._where(self.patient == patient)

    def without(self, patients: Sequence[str]) -> Places:
        """Return everyone else's."""
        return self._where(~np.isin(self.patient, patients))

    def _where(self, chosen: Array) -> Places:
        return Places(self.features[chosen], self.tumour[chosen], self.patient[chosen])


def frozen_features(model: MAE) -> Features:
    """Return the output of a model's encoder at each place."""
    config, where = model.config, device()
    model.to(where).eval()

    @torch.inference_mode()
    def features(sample: Sample, given: torch.Tensor) -> torch.Tensor:
        images, valid = sample["images"][None].to(where), (sample["valid"] & given[:, None, None, None])[None].to(where)
        within = valid & sample["brain"][None, None].to(where) if config.tissue_only else valid
        tokens = TokenIndex.of(any_in_patch(within, config.patch))
        encoded = tokens.flatten(model.encoder(images, tokens)[:, 1:])
        dense = encoded.new_zeros(*tokens.chosen.shape, encoded.shape[-1])
        dense[tokens.chosen] = encoded
        return dense[0, given.to(where)].transpose(0, 1).flatten(1).cpu()

    return features


def patch_statistics(config: ModelConfig) -> Features:
    """Return mean and deviation of each patch of each modality."""

    def features(sample: Sample, given: torch.Tensor) -> torch.Tensor:
        patches = patchify(sample["images"][None], config.patch)[0, given]
        return torch.stack([patches.mean(-1), patches.std(-1)], dim=-1).transpose(0, 1).flatten(1)

    return features


def whole_brain(source: Source, study: Study, shape: ModelConfig) -> Sample:
    """Return a labelled study as one sample of whole patches."""
    extent = source.cache.load(study).shape
    size = as_triple([side + -side % patch for side, patch in zip(extent, shape.patch, strict=True)])
    return replace(source, window=size).dataset([study], shape)[(EVALUATION_EPOCH, 0)]


def gather(
    source: Source, studies: Sequence[Study], shape: ModelConfig, names: Sequence[str], features: Features
) -> Places:
    """Return features and truth of every place with tissue."""
    region = list(source.coding.regions).index(WHOLE_TUMOUR)
    given = torch.tensor([name in names for name in shape.modalities])
    rows: list[tuple[Array, Array, Array]] = []
    for study in source.dataset(studies, shape).studies:
        sample = whole_brain(source, study, shape)
        tissue = any_in_patch(sample["brain"][None, None], shape.patch)[0, 0]
        tumour = any_in_patch(sample["label"][None, region, None], shape.patch)[0, 0]
        found = features(sample, given)[tissue]
        who = np.full(int(tissue.sum()), study.group)
        rows.append((found.float().numpy(), tumour[tissue].numpy(), who))
    return Places(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def probe(
    source: Source, parts: Parts, shape: ModelConfig, names: Sequence[str], features: Features
) -> dict[str, dict[str, float]]:
    """Fit on the training patients, choose the penalty on the validation patients, score each test patient.

    Returns:
        `ap` and `auc` by patient.
    """
    train, validation, test = (
        gather(source, part, shape, names, features) for part in (parts.train, parts.validation, parts.test)
    )
    fitted = [_fit(train, penalty) for penalty in PENALTIES]
    best = max(fitted, key=lambda model: average_precision(_scores(model, validation), validation.tumour))
    return _by_patient(dict.fromkeys(test.patient.tolist(), best), test)


def probe_unseen(
    source: Source, parts: Parts, shape: ModelConfig, names: Sequence[str], features: Features
) -> dict[str, dict[str, float]]:
    """Fit on the validation patients and the other test patients, for each test patient (or group of them) anew.

    The penalty is chosen by leaving out these patients in turn, see `GROUPS`.

    Returns:
        `ap` and `auc` by patient.
    """
    unseen = gather(source, [*parts.validation, *parts.test], shape, names, features)
    chosen: dict[str, object] = {}
    for group in _groups([study.group for study in parts.test]):
        others = unseen.without(group)
        best = max(PENALTIES, key=lambda penalty, others=others: _left_out(others, penalty))
        chosen |= dict.fromkeys(group, _fit(others, best))
    return _by_patient(chosen, unseen)


def _groups(patients: Sequence[str]) -> list[list[str]]:
    """Return who is left out together."""
    people = list(dict.fromkeys(patients))
    return [people[first::GROUPS] for first in range(min(GROUPS, len(people)))]


def _by_patient(models: Mapping[str, object], places: Places) -> dict[str, dict[str, float]]:
    """Score each patient by the model that is meant for it."""
    found: dict[str, dict[str, float]] = {"ap": {}, "auc": {}}
    for patient, model in models.items():
        own = places.of(patient)
        scores = _scores(model, own)
        found["ap"][patient] = average_precision(scores, own.tumour)
        found["auc"][patient] = auc(scores, own.tumour)
    return found


def _left_out(places: Places, penalty: float) -> float:
    """Return the mean average precision over patients, each scored by a model of the others."""
    models: dict[str, object] = {}
    for group in _groups(places.patient.tolist()):
        models |= dict.fromkeys(group, _fit(places.without(group), penalty))
    return statistics.fmean(_by_patient(models, places)["ap"].values())


def _fit(places: Places, penalty: float) -> object:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))
    return model.fit(places.features, places.tumour)


def _scores(model: object, places: Places) -> Array:
    return np.asarray(model.decision_function(places.features))  # type: ignore[attr-defined]

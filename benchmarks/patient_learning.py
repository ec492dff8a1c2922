"""Subtype, primary site and survival of synthetic subjects: one model with three heads, trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from budgeted import Training, device, on_device, train
from learning_data import OnlyModalities, Source
from torch import nn
from torch.utils.data import default_collate

from bmmae.arrays import Array
from bmmae.baselines.budget import Budget
from bmmae.checkpoint import load_encoder
from bmmae.data.augment import NO_AUGMENTATION, AugmentConfig
from bmmae.data.cohort import Study
from bmmae.data.dataset import View
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.data.patient_columns import BesideConfig, TargetsConfig, fit_columns
from bmmae.data.patients import Columns, PatientDataset
from bmmae.metrics import auc, harrell_c
from bmmae.modalities import in_table_order
from bmmae.model.config import ModelConfig
from bmmae.model.outcomes import probabilities, risk
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.model.pretrained import PretrainedModel
from bmmae.targets import Target
from bmmae.tasks.patient import PatientTask, run_model
from bmmae.tasks.task import tensors
from bmmae.training.optim import OptimConfig

SUBTYPE, SITE, SURVIVAL = "subtype", "primary_site", "survival"
TARGETS = TargetsConfig(labels=(SUBTYPE, SITE), survival=("cox",))
AUGMENT = AugmentConfig(modality_dropout=0.5)
OPTIM = OptimConfig(lr=5e-4, weight_decay=0.05)
LAYER_DECAY = 0.75
BATCH = 8
AT_ONCE = 16

Predictions = dict[str, dict[str, Any]]
"""By patient: `subtype` and `primary_site` (probabilities), `survival` (risk), and their truth under `true`."""


IMAGES_ALONE = BesideConfig()


def configuration_of(
    studies: Sequence[Study], shape: ModelConfig, beside: BesideConfig = IMAGES_ALONE
) -> PatientModelConfig:
    """Fit labels and clinical variables on training studies alone."""
    columns = fit_columns(studies, TARGETS, beside)
    return PatientModelConfig(shape, columns.targets, columns.clinical, lesion=beside.lesion)


def dataset_of(
    source: Source,
    studies: Sequence[Study],
    config: PatientModelConfig,
    *,
    seed: int = 0,
    augment: AugmentConfig = NO_AUGMENTATION,
) -> PatientDataset:
    """Return windows that hold a whole brain, with what the table says."""
    view = replace(View.of(config.model), size=source.window)
    columns = Columns(config.targets, config.clinical, lesions=config.lesion)
    return PatientDataset(studies, view, source.cache, columns, seed=seed, augment=augment)


def fit_patients(
    model: nn.Module,
    config: PatientModelConfig,
    dataset: Any,
    budget: Budget,
    *,
    pretrained: bool,
    seed: int,
) -> Training:
    """Train any model that is called as `PatientModel` is."""
    optim = replace(OPTIM, layer_decay=LAYER_DECAY) if pretrained else OPTIM
    batch_size = min(BATCH, len(dataset))
    return train(model, PatientTask(config), dataset, budget, optim=optim, batch_size=batch_size, seed=seed)


def fine_tune_patients(
    pretrained: PretrainedModel | None,
    shape: ModelConfig,
    source: Source,
    studies: Sequence[Study],
    budget: Budget,
    *,
    seed: int,
    only: Sequence[str] | None = None,
    beside: BesideConfig = IMAGES_ALONE,
) -> tuple[PatientModel, Training]:
    """Train the library's own model from pretrained weights, or from random ones.

    Args:
        pretrained: Whose encoder it starts from.
        shape: Of the encoder.
        source: The data.
        studies: Training studies.
        budget: How long.
        seed: Of weights and samples.
        only: Show it these modalities alone, always all of them: a dedicated model.
        beside: What it is given beside the images.
    """
    config = configuration_of(studies, shape, beside)
    torch.manual_seed(seed)
    model = PatientModel(config)
    if pretrained is not None:
        load_encoder(model, pretrained)
    augment = AUGMENT if only is None else replace(AUGMENT, modality_dropout=0.0)
    dataset = dataset_of(source, studies, config, seed=seed, augment=augment)
    shown = dataset if only is None else OnlyModalities(dataset, only)
    done = fit_patients(model, config, shown, budget, pretrained=pretrained is not None, seed=seed)
    return model, done


@torch.inference_mode()
def predict_patients(
    model: nn.Module,
    config: PatientModelConfig,
    source: Source,
    studies: Sequence[Study],
    names: Sequence[str] | None = None,
) -> Predictions:
    """Predict each study from all, or some, of its modalities."""
    where = device()
    model.to(where).eval()
    shape, targets = config.model, {target.name: target for target in config.targets}
    dataset = dataset_of(source, studies, config)
    kept = torch.tensor([name in in_table_order(names or shape.modalities) for name in shape.modalities])
    found: Predictions = {}
    for first in range(0, len(dataset), AT_ONCE):
        chosen = range(first, min(first + AT_ONCE, len(dataset)))
        batch = on_device(default_collate([dataset[(EVALUATION_EPOCH, index)] for index in chosen]), where)
        keep = kept.to(where)
        available, valid = tensors(batch, "available", "valid")
        shown = {"available": available & keep, "valid": valid & keep[:, None, None, None]}
        outputs = run_model(model, batch | shown, config)
        values = {
            name: (risk(target, outputs[name])[:, None] if target.survival else probabilities(target, outputs[name]))
            for name, target in targets.items()
        }
        for place, index in enumerate(chosen):
            study = dataset.studies[index]
            row = {name: [round(v, 4) for v in value[place].tolist()] for name, value in values.items()}
            found[study.group] = row | {"true": truth_of(study, config.targets)}
    return found


def truth_of(study: Study, targets: Sequence[Target]) -> dict[str, Any]:
    """Return the class of each label, and the follow-up."""
    codes = {target.name: target.encode(study.values)[0] for target in targets if not target.survival}
    return codes | {"time": study.time, "event": study.event}


Figure = Callable[[Predictions, Sequence[str]], float]
"""A figure of some patients, who may be named more than once."""


def subtype_auc(found: Predictions, patients: Sequence[str]) -> float:
    """Return the AUC of the second subtype."""
    truth = np.array([found[p]["true"][SUBTYPE] for p in patients])
    return auc(_column(found, patients, SUBTYPE, 1), truth == 1)


def site_auc(found: Predictions, patients: Sequence[str]) -> float:
    """Return the macro one-vs-rest AUC over the sites that occur."""
    truth = np.array([found[p]["true"][SITE] for p in patients])
    areas = [auc(_column(found, patients, SITE, code), truth == code) for code in sorted({*truth.tolist()})]
    return float(np.nanmean(areas))


def mean_auc(found: Predictions, patients: Sequence[str]) -> float:
    """Return the mean of the AUCs of subtype and primary site."""
    return (subtype_auc(found, patients) + site_auc(found, patients)) / 2


def c_index(found: Predictions, patients: Sequence[str]) -> float:
    """Return Harrell's C."""
    time = np.array([found[p]["true"]["time"] for p in patients], float)
    event = np.array([bool(found[p]["true"]["event"]) for p in patients])
    return harrell_c(_column(found, patients, SURVIVAL, 0), time, event)


FIGURES: dict[str, Figure] = {"subtype": subtype_auc, "primary_site": site_auc, "auc": mean_auc, "c_index": c_index}


def _column(found: Predictions, patients: Sequence[str], name: str, column: int) -> Array:
    return np.array([found[patient][name][column] for patient in patients], float)

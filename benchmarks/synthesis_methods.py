"""The contestants of synthesis: how each is trained on a fold's training patients, kept, and asked.

All that learn have the same computing seconds; what is fitted in closed form takes what it takes. Trained weights are
kept in `runs/`, so that the cells that judge them need not train them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from budgeted import device
from learning_data import REAL_SPACING, Source
from pretrained_weights import BATCH, TRAINING, Recipe, weights_of, write_note
from pretrained_weights import form_of as form_of_recipe
from real import Parts

from bmmae.baselines.budget import Budget
from bmmae.baselines.conditional_unet import ConditionalUNet, UNetConfig
from bmmae.baselines.cyclegan import CycleConfig, CycleGAN
from bmmae.baselines.histogram import HistogramMatching
from bmmae.baselines.voxel_regression import VoxelRegression
from bmmae.checkpoint import load_model, preprocessing_of
from bmmae.data.cohort import Study
from bmmae.data.preprocess import PreparedStudy, PreprocessConfig, prepare_study
from bmmae.evaluation.overlap import overlap
from bmmae.inference import reconstruct_prepared
from bmmae.modalities import STANDARD
from bmmae.model.mae import MAE
from bmmae.training.adversarial import AdversarialConfig, train_adversarially
from bmmae.training.devices import uses_bf16

Volumes = Mapping[str, np.ndarray]
METHODS = ("mean", "ridge", "ridge_2mm", "unet", "cyclegan", "published", "ours", "saved")
BATCHES = {"published": BATCH, "ours": None}
"""Of the recipes that pretrain: ours as it is (None), the published one as in its other comparisons."""
PRETRAINED = tuple(BATCHES)
TRAINED = ("unet", "cyclegan", *PRETRAINED)
ONE_MILLIMETRE = 1.0
LOOKS = 3
"""Raised when the same configuration of the regression looks at other numbers: its older cells count no more."""


class Method(Protocol):
    """A trained contestant.

    Attributes:
        preprocess: How studies have to be prepared.
    """

    preprocess: PreprocessConfig

    def predict_all(self, study: PreparedStudy, wanted: Sequence[str]) -> Volumes:
        """Return z-scores on the grid of the prepared study; what the method cannot make is left out."""
        ...


@dataclass(frozen=True)
class Scale:
    """What a run is made for: the real cases at the recipe's spacing, or a quick look.

    Attributes:
        voxelwise: Millimetres at which methods without a window work: the native ones.
        unet: The U-Net.
        cycle: The CycleGAN.
        segmenter_width: Half the channels of the segmenter at half resolution.
    """

    voxelwise: float
    unet: UNetConfig
    cycle: CycleConfig
    segmenter_width: int

    @classmethod
    def real(cls) -> Scale:
        """Return that of the real cases."""
        return cls(ONE_MILLIMETRE, UNetConfig(), CycleConfig(spacing=(REAL_SPACING,) * 3), 8)

    @classmethod
    def quick(cls, source: Source) -> Scale:
        """Return one for tiny subjects."""
        spacing = source.cache.config.spacing
        unet = UNetConfig(channels=(4, 8), window=source.window, spacing=spacing, batch=1, warmup=2)
        return cls(spacing[0], unet, CycleConfig(spacing=spacing, width=4, blocks=1), 4)


@dataclass(frozen=True)
class OneByOne:
    """A comparator that predicts one modality at a time."""

    comparator: VoxelRegression | HistogramMatching

    @property
    def preprocess(self) -> PreprocessConfig:
        """How studies have to be prepared."""
        return self.comparator.preprocess

    def predict_all(self, study: PreparedStudy, wanted: Sequence[str]) -> Volumes:
        """See `Method`."""
        return {name: self.comparator.predict(study, name) for name in wanted}


@dataclass(frozen=True)
class Transfer:
    """The CycleGAN, which knows two modalities."""

    model: CycleGAN

    @property
    def preprocess(self) -> PreprocessConfig:
        """How studies have to be prepared."""
        return self.model.preprocess

    def predict_all(self, study: PreparedStudy, wanted: Sequence[str]) -> Volumes:
        """See `Method`; only from one of the two alone, as it would look at nothing else."""
        config = self.model.config
        possible = [
            target
            for source, target in ((config.first, config.second), (config.second, config.first))
            if study.names == (source,) and target in wanted
        ]
        return {name: self.model.predict(study, name) for name in possible}


@dataclass(frozen=True)
class Reconstruction:
    """The masked autoencoder, by the way that `bmmae reconstruct` takes."""

    model: MAE
    preprocess: PreprocessConfig

    def predict_all(self, study: PreparedStudy, wanted: Sequence[str]) -> Volumes:
        """See `Method`."""
        return reconstruct_prepared(self.model, study, wanted)


@dataclass(frozen=True)
class Assignment:
    """Which contestant is trained on what, and for how long.

    Attributes:
        method: One of `METHODS`.
        source: The data.
        parts: The fold; only its training patients are seen.
        fold: Its name.
        seed: Of weights and samples.
        seconds: Of computing, see `bmmae.baselines.budget`.
        scale: Sizes of networks.
        work: Where trained weights are kept.
        weights: A model folder, for the method `saved`.
    """

    method: str
    source: Source
    parts: Parts
    fold: str
    seed: int
    seconds: float
    scale: Scale
    work: Path
    weights: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the weights trained here are kept."""
        form = form_of(self.method, self.source, self.scale)
        name = f"{self.source.name}-{self.method}-{form}-fold{self.fold}-seed{self.seed}-{self.seconds:g}s"
        return self.work / name

    @property
    def budget(self) -> Budget:
        """How long it trains."""
        return Budget(seconds=self.seconds)


def form_of(method: str, source: Source, scale: Scale) -> str:
    """Return what tells one configuration of a method from another."""
    if method in PRETRAINED:
        form = form_of_recipe(cast(Recipe, method), source, BATCHES[method])
        return f"{form}-{LOOKS}" if method == "ours" else form
    forms: dict[str, object] = {"unet": scale.unet, "cyclegan": scale.cycle}
    return hashlib.sha256(repr(forms.get(method)).encode()).hexdigest()[:8]


def obtain(assignment: Assignment) -> tuple[Method, dict[str, Any]]:
    """Return a trained contestant, and how long it was trained: from what is kept, else trained now."""
    if assignment.method in PRETRAINED:
        return _pretrained(assignment)
    made = MAKERS[assignment.method](assignment)
    note = assignment.folder / TRAINING
    return made, json.loads(note.read_text()) if note.exists() else {}


def _mean(assignment: Assignment) -> Method:
    comparator = HistogramMatching(preprocess=_spaced(assignment.scale.voxelwise))
    comparator.fit(prepared(assignment.parts.train, comparator.preprocess))
    return OneByOne(comparator)


def _ridge(assignment: Assignment, spacing: float | None = None) -> Method:
    comparator = VoxelRegression(preprocess=_spaced(spacing or assignment.scale.voxelwise))
    comparator.fit(prepared(assignment.parts.train, comparator.preprocess))
    return OneByOne(comparator)


def _unet(assignment: Assignment) -> Method:
    where = device()
    config = replace(assignment.scale.unet, bf16=uses_bf16("auto", where))
    unet = ConditionalUNet(config, assignment.budget, seed=assignment.seed, device=where.type)
    weights = assignment.folder / "unet.pt"
    if weights.exists():
        unet.load(weights)
    else:
        unet.fit(list(prepared(assignment.parts.train, unet.preprocess)))
        write_note(assignment.folder, unet.steps, unet.seconds)
        unet.save(weights)
    return unet


def _cyclegan(assignment: Assignment) -> Method:
    torch.manual_seed(assignment.seed)
    model = CycleGAN(assignment.scale.cycle).to(device())
    studies = prepared(assignment.parts.train, model.preprocess)
    config = AdversarialConfig(assignment.budget, seed=assignment.seed)
    done = train_adversarially(model, studies, config, assignment.folder)
    write_note(assignment.folder, done.steps, done.seconds)
    return Transfer(model.eval())


def _pretrained(assignment: Assignment) -> tuple[Method, dict[str, Any]]:
    """The masked autoencoder, its pretraining counted: by our recipe, or the published one."""
    source, recipe = assignment.source, cast(Recipe, assignment.method)
    folder, training = weights_of(
        recipe,
        source,
        assignment.parts.train,
        fold=assignment.fold,
        seconds=assignment.seconds,
        seed=assignment.seed,
        batch_size=BATCHES[recipe],
        work=assignment.work,
    )
    # Prepared as in training, whatever a model that was never described would say.
    return _reconstruction(_autoencoder(folder), source.cache.config, assignment.scale), training


def _saved(assignment: Assignment) -> Method:
    if assignment.weights is None:
        raise SystemExit("error: the method `saved` needs --model")
    model = _autoencoder(assignment.weights)
    return _reconstruction(model, preprocessing_of(model), assignment.scale)


def _reconstruction(model: MAE, preprocess: PreprocessConfig, scale: Scale) -> Reconstruction:
    """A model on the grid that it writes voxels on: the images' own where voxels are regressed."""
    regressed = model.synthesis is not None and bool(model.synthesis.fitted.any())
    return Reconstruction(model, _spaced(scale.voxelwise) if regressed else preprocess)


def unfair(weights: Path, source: Source, parts: Parts) -> str | None:
    """Say why a saved model cannot be judged on a fold's test patients; None if it can: it has seen none of them."""
    seen = overlap(load_model(weights), parts.test, source.cache)
    return str(seen) if seen.studies or not seen.known else None


def _autoencoder(folder: Path) -> MAE:
    model = load_model(folder)
    if not isinstance(model, MAE):
        raise SystemExit(f"error: {folder} holds a model of kind '{model.kind}', expected 'mae'")
    return cast(MAE, model.to(device()).eval())


MAKERS: dict[str, Callable[[Assignment], Method]] = {
    "mean": _mean,
    "ridge": _ridge,
    "ridge_2mm": partial(_ridge, spacing=REAL_SPACING),
    "unet": _unet,
    "cyclegan": _cyclegan,
    "saved": _saved,
}


def prepared(studies: Sequence[Study], config: PreprocessConfig) -> Iterator[PreparedStudy]:
    """Prepare studies one after another: at 1 mm each takes 70 MB."""
    return (prepare_study(study, config, STANDARD) for study in studies)


def _spaced(millimetres: float) -> PreprocessConfig:
    return PreprocessConfig(spacing=(millimetres,) * 3)

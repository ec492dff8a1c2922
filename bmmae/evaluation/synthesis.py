"""How good are synthesised modalities? Against the truth, and against what anyone would try first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmmae.arrays import Array
from bmmae.data.dataset import StudyDataset
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.evaluation.overlap import Overlap
from bmmae.metrics import psnr
from bmmae.modalities import title
from bmmae.model.mae import MAE

METHODS = ("model", "mean of the available", "training-set mean")


@dataclass(frozen=True)
class SynthesisScore:
    """Mean PSNR over studies for one absent modality, by one method.

    Attributes:
        modality: The absent one; all others were given.
        method: One of `METHODS`.
        psnr: Decibels inside the brain, in z-scores as they are; higher is better.
        psnr_fitted: The same after the least-squares affine map onto the truth.
        studies: How many studies have the modality, some of it in the window, and at least one other.
        each: `psnr` of each of them.
    """

    modality: str
    method: str
    psnr: float
    psnr_fitted: float
    studies: int
    each: tuple[float, ...] = ()


def compare_synthesis(model: MAE, train: StudyDataset, test: StudyDataset) -> list[SynthesisScore]:
    """Leave out each modality of each test study in turn, and predict it from the others.

    Everything happens on the model's grid, in the window at the study's centre. A modality that was not scanned there,
    or is constant, cannot be judged in that study, and is left out.

    Args:
        model: The masked autoencoder.
        train: Its training studies; their voxel-wise mean is one of the comparators.
        test: Studies that neither the model nor a comparator has seen.
    """
    names = model.config.modalities
    average = mean_windows(train)
    scores: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for window in windows(test):
        for index, name in enumerate(names):
            given = window.available.copy()
            given[index] = False
            if not window.available[index] or not given.any():
                continue
            truth, inside = window.images[index], window.brain & window.valid[index]
            if math.isnan(psnr(truth, truth, inside)):
                continue  # it was not scanned here: one such study would leave no mean over the others
            guesses = (predict_absent(model, window, index), window.images[given].mean(axis=0), average[index])
            for method, guess in zip(METHODS, guesses, strict=True):
                pair = (psnr(guess, truth, inside), psnr(guess, truth, inside, fit=True))
                scores.setdefault((name, method), []).append(pair)
    return [_mean_score(name, method, pairs) for (name, method), pairs in scores.items()]


def _mean_score(name: str, method: str, pairs: Sequence[tuple[float, float]]) -> SynthesisScore:
    plain, fitted = (float(value) for value in np.mean(pairs, axis=0))
    return SynthesisScore(name, method, plain, fitted, len(pairs), tuple(pair[0] for pair in pairs))


@dataclass(frozen=True)
class CentralWindow:
    """The window at a study's centre.

    Attributes:
        images: Float[M, H, W, D].
        available: Bool[M].
        valid: Bool[M, H, W, D].
        brain: Bool[H, W, D].
    """

    images: Array
    available: Array
    valid: Array
    brain: Array


def windows(dataset: StudyDataset) -> Iterator[CentralWindow]:
    """Yield the window at the centre of each study."""
    for index in range(len(dataset)):
        sample = dataset[(EVALUATION_EPOCH, index)]
        yield CentralWindow(*(sample[key].numpy() for key in ("images", "available", "valid", "brain")))


def mean_windows(dataset: StudyDataset) -> Array:
    """Return the voxel-wise mean of each modality over the studies that have brain there, Float[M, H, W, D]."""
    total: Array = np.zeros(())
    count: Array = np.zeros(())
    for window in windows(dataset):
        inside = window.valid & window.brain & window.available[:, None, None, None]
        total = total + window.images * inside
        count = count + inside
    return np.asarray(total / np.maximum(count, 1))


@torch.inference_mode()
def predict_absent(model: MAE, window: CentralWindow, wanted: int) -> Array:
    """Predict modality number `wanted` inside the brain from all others, Float[H, W, D]."""
    volumes = torch.from_numpy(window.images)[None]
    brain = torch.from_numpy(window.brain)[None, None]
    given = torch.from_numpy(window.available)[None].clone()
    given[:, wanted] = False
    asked = torch.zeros_like(given)
    asked[:, wanted] = True
    valid = torch.from_numpy(window.valid)[None]
    visible, targets = model.tokens(volumes, given, valid & brain), model.tokens(volumes, asked, brain)
    return np.asarray(model.predict(volumes, visible, targets, valid)[0, wanted].numpy())


def verdict(scores: Sequence[SynthesisScore]) -> str:
    """Say in one sentence for how many modalities the model beats both comparators, whatever the answer is."""
    modalities = list(dict.fromkeys(score.modality for score in scores))
    by_key = {(score.modality, score.method): score.psnr for score in scores}
    won = [name for name in modalities if by_key[(name, METHODS[0])] > max(by_key[(name, m)] for m in METHODS[1:])]
    lost = [title(name) for name in modalities if name not in won]
    tail = f"; it does not for {', '.join(lost)}" if lost else ""
    return f"The model beats both comparators for {len(won)} of {len(modalities)} absent modalities{tail}."


def format_synthesis(scores: Sequence[SynthesisScore], seen: Overlap) -> str:
    """Return the comparison as a table for the terminal, under what the model has seen of the test studies."""
    modalities = list(dict.fromkeys(score.modality for score in scores))
    by_key = {(score.modality, score.method): score for score in scores}
    title_line = "PSNR in dB inside the brain, absent modality from all others (in brackets: after an affine fit)"
    lines = [str(seen), title_line]
    lines.append(f"{'':24}" + "".join(f"{name:>16}" for name in modalities))
    for method in METHODS:
        cells = [by_key[(name, method)] for name in modalities]
        lines.append(f"{method:24}" + "".join(f"{c.psnr:>8.2f} ({c.psnr_fitted:5.2f})" for c in cells))
    return "\n".join(lines)

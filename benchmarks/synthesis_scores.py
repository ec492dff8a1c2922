"""Scores of synthesis by patient: on the native grid, in calibration, and in use by a segmenter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from learning_data import Source
from segmentation_contestants import Start, fine_tune, form_of
from synthesis_methods import Assignment, Method, Reconstruction

from bmmae.baselines.budget import Budget
from bmmae.baselines.comparator import restricted
from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.data.labels import region_masks
from bmmae.data.preprocess import PreparedStudy, prepare_images, prepare_study, read_on_grid
from bmmae.data.reading import Image, read_image
from bmmae.errors import ConfigError
from bmmae.evaluation.native_synthesis import Truth, score_native, subset_pairs
from bmmae.inference import segment_prepared, to_native
from bmmae.inference.prediction import predict_absent
from bmmae.metrics import dice
from bmmae.modalities import STANDARD, subset_label
from bmmae.model.segmentation import SegmentationModel

Scores = dict[str, dict[str, dict[str, float]]]
"""`t1+t2>flair`, metric, patient: value."""
NOMINAL = 0.9
INTERVAL = 1.6449
"""Deviations to either side that hold so much of a normal distribution."""


def pair_label(given: Sequence[str], wanted: str) -> str:
    """Return `t1+t2>flair`."""
    return f"{subset_label(given)}>{wanted}"


def score_patients(method: Method, studies: Sequence[Study], sizes: Collection[int], quiet: bool = False) -> Scores:
    """Score every subset of these sizes and every modality absent from it, for each patient."""
    found: Scores = {}
    for study in studies:
        for label, values in score_patient(method, study, sizes).items():
            for metric, value in values.items():
                found.setdefault(label, {}).setdefault(metric, {})[study.group] = value
        if not quiet:
            print(f"  {study.name} scored", flush=True)
    return found


def score_patient(method: Method, study: Study, sizes: Collection[int]) -> dict[str, dict[str, float]]:
    """Score one patient by pair; metrics that are not defined (no lesion) are left out."""
    truths = truths_of(study)
    whole = prepare_study(study, method.preprocess, STANDARD)
    absent: dict[tuple[str, ...], list[str]] = {}
    for given, wanted in subset_pairs(tuple(truths)):
        if len(given) in sizes:
            absent.setdefault(given, []).append(wanted)
    scores = {}
    for given, wanted in absent.items():
        shown = restricted(whole, given)
        for name, volume in method.predict_all(shown, wanted).items():
            score = asdict(score_native(to_native(shown, volume), truths[name]))
            scores[pair_label(given, name)] = {key: v for key, v in score.items() if not math.isnan(v)}
    return scores


def truths_of(study: Study) -> dict[str, Truth]:
    """Read the real images of a study."""
    images = {name: read_image(study.images[name]) for name in STANDARD if name in study.images}
    first = next(iter(images.values()))
    lesion = None if study.seg is None else read_on_grid(study.seg, first) > 0
    return {name: Truth.of(image.array, lesion, first.spacing) for name, image in images.items()}


def coverage_of_patients(method: Method, studies: Sequence[Study]) -> dict[str, dict[str, float]]:
    """Return which share of the brain's voxels lies in the interval that should hold `NOMINAL` of them.

    Returns:
        `t1+t1ce+t2>flair`, patient: share; each absent modality from all others. Empty if the method says nothing
        about its uncertainty.
    """
    if not isinstance(method, Reconstruction):
        return {}
    found: dict[str, dict[str, float]] = {}
    for study in studies:
        whole = prepare_study(study, method.preprocess, STANDARD)
        for wanted in whole.names:
            given = [name for name in whole.names if name != wanted]
            shown = restricted(whole, given)
            try:
                made = predict_absent(method.model, shown, [wanted], uncertainty=True)
            except ConfigError:  # a model without that output
                return {}
            index = whole.names.index(wanted)
            inside = whole.valid[index] & whole.brain & shown.brain
            error = np.abs(whole.images[index] - made.means[wanted])
            held = error <= INTERVAL * np.sqrt(made.variances[wanted])
            found.setdefault(pair_label(given, wanted), {})[study.group] = float(held[inside].mean())
    return found


def segmenter_of(fold: Assignment, seconds: float) -> SegmentationModel:
    """Return a segmenter that was trained on full sets of a fold's training patients, from random weights."""
    source = fold.source
    form = form_of(source.window, fold.scale.segmenter_width)
    folder = fold.work / f"{source.name}-segmenter-{form}-fold{fold.fold}-seed{fold.seed}-{seconds:g}s"
    if not (folder / "model.safetensors").exists():
        start = Start.of(None, source.window, fold.scale.segmenter_width)
        budget = Budget(seconds=seconds)
        trained, _ = fine_tune(start, source, fold.parts.train, budget, seed=fold.seed, only=STANDARD)
        if not isinstance(trained, SegmentationModel):
            raise TypeError(f"expected a segmentation model, got {type(trained).__name__}")
        trained.save_pretrained(folder)
    model = load_model(folder)
    if not isinstance(model, SegmentationModel):
        raise SystemExit(f"error: {folder} holds a model of kind '{model.kind}', expected 'segmentation'")
    return model


def score_in_use(
    method: Method | None, segmenter: SegmentationModel, source: Source, studies: Sequence[Study]
) -> dict[str, dict[str, dict[str, float]]]:
    """Replace each modality in turn by what was synthesised from the others, and segment.

    Args:
        method: Who synthesises; None leaves the modality out instead.
        segmenter: Trained on full sets.
        source: Says how studies are prepared for it.
        studies: Test studies with segmentations; incomplete ones are left out.

    Returns:
        Modality, region, patient: Dice on the segmenter's grid; `none` instead of a modality: the real, full set.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for study in studies:
        if study.seg is None or not set(STANDARD) <= set(study.images):
            continue
        images = {name: read_image(study.images[name]) for name in STANDARD}
        seg = read_on_grid(study.seg, images[STANDARD[0]])
        for replaced in ("none", *STANDARD):
            completed = _completed(method, study, images, replaced)
            if completed is None:
                continue
            names = tuple(completed)
            ready = prepare_images(names, list(completed.values()), source.cache.config, label=seg)
            for region, value in _dice_by_region(segmenter, ready, source).items():
                found.setdefault(replaced, {}).setdefault(region, {})[study.group] = value
    return found


def _completed(
    method: Method | None, study: Study, images: Mapping[str, Image], replaced: str
) -> dict[str, Image] | None:
    """The set of images with one modality synthesised, or left out; None if the method cannot make it."""
    if replaced not in images:
        return dict(images)
    if method is None:
        return {name: image for name, image in images.items() if name != replaced}
    whole = prepare_study(study, method.preprocess, STANDARD)
    shown = restricted(whole, [name for name in STANDARD if name != replaced])
    made = method.predict_all(shown, [replaced])
    if replaced not in made:
        return None
    synthetic = replace(images[replaced], array=to_native(shown, made[replaced]).astype(np.float32))
    return {**images, replaced: synthetic}


def _dice_by_region(segmenter: SegmentationModel, ready: PreparedStudy, source: Source) -> dict[str, float]:
    """Dice of each region on the segmenter's grid; 1 for what is empty in truth and prediction (BraTS's rule)."""
    if ready.label is None:
        return {}
    with torch.inference_mode():
        predicted = segment_prepared(segmenter, ready) > 0.5
    truth = region_masks(ready.label, source.coding)
    pairs = zip(source.coding.regions, predicted, truth, strict=True)
    values = {region: dice(np.asarray(one, bool), np.asarray(other, bool)) for region, one, other in pairs}
    return {region: 1.0 if math.isnan(value) else value for region, value in values.items()}


def summary(scores: Scores) -> dict[str, Any]:
    """Return the mean PSNR of each modality from all others, for the terminal."""
    longest = max((label.count("+") for label in scores), default=0)
    full = {label.split(">")[1]: found for label, found in scores.items() if label.count("+") == longest}
    return {name: round(float(np.mean(list(found["psnr"].values()))), 2) for name, found in full.items()}

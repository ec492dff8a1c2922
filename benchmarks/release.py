"""Measure a pretrained run on its cohort's test studies, and turn its best checkpoint into a model to share.

python benchmarks/release.py --run runs/tiny/pretrain --cohort runs/tiny/data/cohort.csv --out checkpoints/tiny

`--refit` solves for the voxel-wise regression again first, on the table's training studies, as the recipes have it
today: where what it looks at has changed, a released model needs that and no training. Without test studies, as after a
training on everybody, nothing is measured, and the model's card says so.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from full_volumes import score_volumes
from learning_data import Source
from paired import by_patient, means
from real import Parts

from bmmae.checkpoint import load_model, preprocessing_of, provenance_of, save_model
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.origin import content_hashes
from bmmae.evaluation.intervals import mean_with_interval
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.subsets import all_subsets
from bmmae.evaluation.synthesis import METHODS, compare_synthesis, format_synthesis, verdict
from bmmae.modalities import STANDARD, subset_label, title
from bmmae.model.config import VOXELWISE
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationModel
from bmmae.model.synthesis import VoxelSynthesis
from bmmae.provenance import Metric
from bmmae.tasks.reconstruction import fit_synthesis
from bmmae.tasks.segmentation import label_coding

UNIT = "dB PSNR in z-scores, absent modality from all others, higher is better"
DICE = "Dice from {}, whole volume at the model's spacing, higher is better"


def main() -> None:
    """Measure, save, and print the line for the manifest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument("--refit", action="store_true", help="fit the voxel-wise regression again")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(given.run)
    judged = any(study.split == "test" for study in read_cohort(given.cohort, STANDARD))
    if given.refit and not (isinstance(model, MAE) and model.synthesis):
        sys.exit(f"error: {given.run} has no voxel-wise regression to fit again")
    if isinstance(model, SegmentationModel):
        metrics = measure_segmentation(model, given.cohort) if judged else {}
    elif isinstance(model, MAE):
        if given.refit:
            refit(model, given.cohort)
        metrics = measure(model, given.cohort) if judged else {}
    else:
        sys.exit(f"error: {given.run} holds a model of kind '{model.kind}': expected 'mae' or 'segmentation'")
    provenance = replace(provenance_of(model), metrics=metrics, licence=given.licence)
    save_model(model, given.out, provenance=provenance)
    digest = hashlib.sha256((given.out / "model.safetensors").read_bytes()).hexdigest()
    shown = "; ".join(f"{name.removesuffix(' from the others')} {_spread(metric)}" for name, metric in metrics.items())
    print(f"| {given.out.name} | ... | {provenance.data} | {shown} | {digest} | ... |")


def refit(model: MAE, cohort_path: Path) -> None:
    """Fit a model's regression again to the studies that it was trained on; stops if the table holds others."""
    train = [s for s in read_cohort(cohort_path, model.config.modalities) if s.split == "train"]
    if not train or set(content_hashes(train)) != set(provenance_of(model).content_hashes):
        sys.exit(f"error: the training studies of {cohort_path} are not those that the model was trained on")
    model.config = replace(model.config, synthesis=VOXELWISE)
    model.synthesis = VoxelSynthesis(model.config.modalities, VOXELWISE)
    fit_synthesis(model, train, preprocessing_of(model))


def _spread(metric: Metric) -> str:
    """Return a figure with its interval; one patient has none."""
    if metric.low is None or metric.high is None:
        return f"{metric.value:.2f}"
    return f"{metric.value:.2f} ({metric.low:.2f} to {metric.high:.2f})"


def measure(model: MAE, cohort_path: Path) -> dict[str, Metric]:
    """Return the PSNR of each absent modality on the test studies, with intervals by patient."""
    cohort = read_cohort(cohort_path, model.config.modalities)
    cache = StudyCache(None, preprocessing_of(model), model.config.modalities)
    parts = {
        split: StudyDataset([s for s in cohort if s.split == split], View.of(model.config), cache)
        for split in ("train", "test")
    }
    scores = compare_synthesis(model, parts["train"], parts["test"])
    print(format_synthesis(scores, overlap(model, parts["test"].studies)))
    print(verdict(scores))
    ours = [score for score in scores if score.method == METHODS[0]]
    return {f"{title(s.modality)} from the others": mean_with_interval(s.each, UNIT) for s in ours}


def measure_segmentation(model: SegmentationModel, cohort_path: Path) -> dict[str, Metric]:
    """Return the Dice of each region on the test studies, from all modalities and over all subsets, with intervals."""
    shape, coding = model.model_config, label_coding(model.config)
    test = tuple(study for study in read_cohort(cohort_path, shape.modalities) if study.split == "test")
    cache = StudyCache(None, preprocessing_of(model), shape.modalities)
    source = Source("release", (Parts((), (), test),), cache, coding, shape.size)
    scores = score_volumes(model, source, test, shape, all_subsets(shape.modalities))
    whole, each = DICE.format("all modalities"), DICE.format(f"each of {len(scores)} subsets, their mean")
    found = {}
    for region, patients in scores[subset_label(shape.modalities)].items():
        found[region] = mean_with_interval(list(patients.values()), whole)
        over_subsets = means(by_patient([{"scores": scores}], lambda _, name, region=region: name == region))
        found[f"{region}, any subset"] = mean_with_interval(list(over_subsets.values()), each)
    return found


if __name__ == "__main__":
    main()

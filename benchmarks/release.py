"""Measure a pretrained run on its cohort's test studies, and turn its best checkpoint into a model to share.

python benchmarks/release.py --run runs/tiny/pretrain --cohort runs/tiny/data/cohort.csv --out checkpoints/tiny
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

from bmmae.checkpoint import load_model, preprocessing_of, provenance_of, save_model
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.evaluation.intervals import mean_with_interval
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.synthesis import METHODS, compare_synthesis, format_synthesis, verdict
from bmmae.modalities import title
from bmmae.model.mae import MAE
from bmmae.provenance import Metric

UNIT = "dB PSNR in z-scores, absent modality from all others, higher is better"


def main() -> None:
    """Measure, save, and print the line for the manifest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--licence", default="Apache-2.0")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(given.run, kind="mae")
    assert isinstance(model, MAE)
    metrics = measure(model, given.cohort)
    provenance = replace(provenance_of(model), metrics=metrics, licence=given.licence)
    save_model(model, given.out, provenance=provenance)
    digest = hashlib.sha256((given.out / "model.safetensors").read_bytes()).hexdigest()
    shown = "; ".join(f"{name.split()[0]} {m.value:.2f} ({m.low:.2f} to {m.high:.2f})" for name, m in metrics.items())
    print(f"| {given.out.name} | ... | {provenance.data} | {shown} | {digest} | ... |")


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


if __name__ == "__main__":
    main()

"""Reports on the synthetic cohort, one a task: what `bmmae evaluate` says of the model that `patient.py` calls `ours`.

python benchmarks/patient_reports.py [--model checkpoints/tiny] [--draws 300]

The model is fitted as there, to 800 subjects; the 400 others are judged from every subset of their sequences, beside a
model that sees the clinical columns alone. What the encoder says of each study is kept by `patient.py` and taken from
there if it is there. Tables of predictions and of all figures stay in `runs/benchmarks/reports`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from harness import RESULTS, ROOT
from learning_data import WORK, synthetic_source
from patient import BESIDE, CLINICAL, COHORT_SEED, TEST, TRAIN
from patient_features import beside_alone, encode, fit, measured_parts, model_of, outputs_of
from segmentation_contestants import digest

from bmmae.checkpoint import describe, load_model, provenance_of
from bmmae.data.origin import content_hashes
from bmmae.data.patient_columns import BesideConfig
from bmmae.patient_evaluation import evaluate_cohort
from bmmae.patient_prediction import columns_of
from bmmae.provenance import Provenance

REPORTS = RESULTS / "reports"


def main() -> None:
    """Write the reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "tiny", help="pretrained weights")
    parser.add_argument("--draws", type=int, default=300, help="bootstrap draws of patients for the intervals")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source, pretrained = synthetic_source(TRAIN, TEST, seed=COHORT_SEED), load_model(given.model)
    train, test = measured_parts(source)
    shape = pretrained.model_config
    ours = model_of(pretrained, shape, train, BESIDE)
    clinical = model_of(None, shape, train, BesideConfig(clinical=CLINICAL))
    rows = {
        "ours": [encode(ours, studies, source, digest(given.model)) for studies in (train, test)],
        "clinical": [beside_alone(clinical, studies) for studies in (train, test)],
    }
    parent = provenance_of(pretrained).seen
    origin = Provenance(content_hashes=content_hashes(train, source.cache), synthetic=True, parent_hashes=parent)
    judged = {}
    for name, model in (("ours", ours), ("clinical", clinical)):
        fit(model, rows[name][0], columns_of(model), images=name == "ours")
        describe(model, source.cache.config, origin)
        judged[name] = (model, outputs_of(model, rows[name][1]))
    print(evaluate_cohort(judged, source.cache, WORK / "reports", draws=given.draws))
    REPORTS.mkdir(exist_ok=True)
    for page in (WORK / "reports").glob("*.html"):
        shutil.copy(page, REPORTS / page.name)


if __name__ == "__main__":
    main()

"""Patients: subtype, primary site and survival on the synthetic cohort, against its ceilings and against others.

python benchmarks/patient.py [--model checkpoints/tiny] [--seconds 300] [--only ours clinical densenet121]

800 subjects train, 400 test; all models learn the three targets. `ours` are linear heads on the frozen encoder, the
clinical columns and the measures that `bmmae measure` takes of each image within the cohort's segmentations; one model
for all fifteen subsets, beside one dedicated to each. `measures` and `clinical` leave the encoder, and the images, out.
`fine-tuned` trains the whole model by gradients from images and clinical columns, `scratch` the same from random
weights, comparators learn from images alone; these have equal computing seconds, no segmentation, and are scored from
all four sequences. Feature tables have a benchmark of their own, whose headline is repeated here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import CellStore
from harness import RESULTS, ROOT, Figure, arguments, parse, refuse_unknown, write_result
from learning_data import Source, synthetic_source
from patient_features import answers, beside_alone, encode, fit, measured_parts, model_of
from patient_figures import CEILING, CLINICAL_ALONE, FULL, GIVEN, LABELS, MEASURES, headline_figures, table_rows
from patient_learning import (
    AUGMENT,
    FIGURES,
    SITE,
    SUBTYPE,
    SURVIVAL,
    Predictions,
    configuration_of,
    dataset_of,
    fine_tune_patients,
    fit_patients,
    predict_patients,
    truth_of,
)
from segmentation_contestants import DEDICATED, digest, weights_file

from bmmae.baselines.budget import Budget
from bmmae.baselines.patient_networks import PATIENT_NETWORKS, PatientNetwork, PatientNetworkConfig
from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.data.patient_columns import BesideConfig
from bmmae.data.synthetic.findings import FINDINGS, best_scores, draw_patients, log_hazard
from bmmae.data.synthetic.findings import site_probabilities as chances_of_sites
from bmmae.data.synthetic.findings import subtype_probability as chance_of_subtype
from bmmae.evaluation.clinical import clinical_classifier, clinical_cox
from bmmae.modalities import STANDARD
from bmmae.model.config import recipe
from bmmae.patient_prediction import columns_of

CLINICAL = ("age", "sex", "karnofsky")
BESIDE = BesideConfig(clinical=CLINICAL, measures=True, lesion="attention")
TRAIN, TEST = 800, 400
COHORT_SEED = 100
FINE_TUNED, SCRATCH = "fine-tuned", "scratch"
TRAINED = (FINE_TUNED, *PATIENT_NETWORKS, SCRATCH)
"""By gradients, for so many seconds."""
QUICK_METHODS = (CEILING, "ours", f"{DEDICATED}{STANDARD[0]}", MEASURES, CLINICAL_ALONE, FINE_TUNED, "branches")
Cell = dict[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("patient", quick=True).path.unlink(missing_ok=True)
    source = synthetic_source(24, 12, size=32) if given.quick else synthetic_source(TRAIN, TEST, seed=COHORT_SEED)
    store = CellStore("patient", quick=given.quick)
    for cell in cells(given, source, given.only or methods()):
        row = store.run(cell, partial(run_cell, given, cell, source))
        subset = FULL if FULL in row["figures"] else next(iter(row["figures"]))
        told = ", ".join(f"{name} {value:.3f}" for name, value in row["figures"][subset].items())
        print(f"{cell['method']}, seed {cell['seed']}, from {subset}: {told}", flush=True)
    rows = [row for row in map(store.find, cells(given, source, methods())) if row is not None]
    size = {"patients": 400, "draws": 20} if given.quick else {}
    ceilings = {"images": best_scores(**size), "given": best_scores(**size, given=GIVEN)}
    headline = headline_figures(rows, ceilings["given"]) | _radiomics()
    write_result(
        "patient",
        quick=given.quick,
        runs=len(rows),
        headline=headline,
        rows=table_rows(rows, ceilings),
        measured=store.ran > 0,
    )


def methods() -> list[str]:
    """Return every contestant, in the order in which cells are run."""
    dedicated = [DEDICATED + label for label in reversed(LABELS)]
    return [CEILING, "ours", *dedicated, MEASURES, CLINICAL_ALONE, *TRAINED]


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "tiny", help="pretrained weights")
    parser.add_argument("--seconds", type=float, default=300.0, help="training budget of what is trained by gradients")
    parser.add_argument("--only", nargs="+", default=None, help="only these methods")
    parser.add_argument("--med3d", type=Path, default=None, help="Med3D weights for resnet18")
    given = parse(parser)
    refuse_unknown("method", given.only, methods())
    weights_file(given.model)  # stops here where there is none
    if given.quick:
        given.seconds = 1.0
        given.only = given.only or list(QUICK_METHODS)
    return given


def cells(given: argparse.Namespace, source: Source, chosen: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells in the order in which they are run."""
    for method in chosen:
        cell: Cell = {"method": method, "data": source.name, "seed": 0}
        if method in TRAINED:
            cell |= {"seconds": given.seconds, "threads": given.threads}
        if method in ("ours", FINE_TUNED) or method.startswith(DEDICATED):
            cell |= {"weights": digest(given.model)}
        if method == "resnet18" and given.med3d:
            cell |= {"weights": "med3d"}
        yield cell


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Train one contestant and score it on the test subjects."""
    method, parts = cell["method"], source.parts[0]
    if method == CEILING:
        return _scored({FULL: predict_by_generator(parts.train, parts.test)}, {})
    if method == CLINICAL_ALONE:
        return _scored({FULL: predict_clinical(parts.train, parts.test)}, {})
    if method in TRAINED:
        return _train(given, cell, source)
    return _fit(given, method, source)


def _fit(given: argparse.Namespace, method: str, source: Source) -> dict[str, Any]:
    """Fit linear heads to all subsets, or to one."""
    pretrained = load_model(given.model)
    train, test = measured_parts(source)
    torch.manual_seed(0)
    model = model_of(pretrained, pretrained.model_config, train, BESIDE)
    if method == MEASURES:
        encoded = [beside_alone(model, studies) for studies in (train, test)]
    else:
        encoded = [encode(model, studies, source, digest(given.model)) for studies in (train, test)]
    label = method.removeprefix(DEDICATED) if method.startswith(DEDICATED) else None
    cost = fit(model, encoded[0].of(label), columns_of(model), images=method != MEASURES)
    return _scored(dict(answers(model, encoded[1].of(label))), cost)


def _train(given: argparse.Namespace, cell: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Train a network by gradients."""
    method, seed, parts = cell["method"], cell["seed"], source.parts[0]
    pretrained = load_model(given.model)
    budget, shape = Budget(seconds=cell["seconds"]), pretrained.model_config
    if method in PATIENT_NETWORKS:
        config = configuration_of(parts.train, shape)
        torch.manual_seed(seed)
        weights = given.med3d if method == "resnet18" else None
        network = PatientNetworkConfig(method, config.targets, shape.modalities, window=source.window, weights=weights)
        model: Any = PatientNetwork(network)
        dataset = dataset_of(source, parts.train, config, seed=seed, augment=AUGMENT)
        training = fit_patients(model, config, dataset, budget, pretrained=False, seed=seed)
    else:
        start = pretrained if method == FINE_TUNED else None
        beside = BesideConfig(clinical=CLINICAL)
        model, training = fine_tune_patients(start, shape, source, parts.train, budget, seed=seed, beside=beside)
        config = model.config
    return _scored({FULL: predict_patients(model, config, source, parts.test)}, training.row())


def _scored(found: Mapping[str, Predictions], cost: Mapping[str, Any]) -> dict[str, Any]:
    figures = {
        label: {name: figure(rows, list(rows)) for name, figure in FIGURES.items()} for label, rows in found.items()
    }
    return {"steps": 0, "training_seconds": 0.0, **cost, "figures": figures, "predictions": dict(found)}


def predict_clinical(train: Sequence[Study], test: Sequence[Study]) -> Predictions:
    """Return what age, sex and Karnofsky index alone say: logistic regression and proportional hazards."""
    targets = {target.name: target for target in configuration_of(train, recipe("tiny")).targets}
    found: Predictions = {study.group: {} for study in test}
    for name in (SUBTYPE, SITE):
        answer = clinical_classifier(CLINICAL, name)(train, ())(test, ())
        order = [answer.classes.index(label) for label in targets[name].classes]
        for study, chances in zip(test, np.asarray(answer.probabilities)[:, order], strict=True):
            found[study.group][name] = [round(float(chance), 4) for chance in chances]
    risk = clinical_cox(CLINICAL, (12.0,))(train, ())(test, ()).risk
    for study, value in zip(test, np.asarray(risk), strict=True):
        found[study.group] |= {SURVIVAL: [float(value)], "true": truth_of(study, tuple(targets.values()))}
    return found


def predict_by_generator(train: Sequence[Study], test: Sequence[Study]) -> Predictions:
    """Return what the generator's own knowledge of each test subject's findings says: nobody can know more."""
    from bmmae.data.synthetic.findings import SITES, SUBTYPES

    targets = {target.name: target for target in configuration_of(train, recipe("tiny")).targets}
    found: Predictions = {}
    for study in test:
        number = int(study.subject.removeprefix("sub-")) - 1
        (patient,) = draw_patients(np.random.default_rng((COHORT_SEED, number, 0)), 1)
        values = {name: np.array([patient.findings[name]]) for name in FINDINGS}
        second, sites = float(chance_of_subtype(values)[0]), chances_of_sites(values)[0]
        pair = {SUBTYPES[0]: 1 - second, SUBTYPES[1]: second}
        age = np.array([(patient.age - 60) / 11])
        found[study.group] = {
            SUBTYPE: [pair[name] for name in targets[SUBTYPE].classes],
            SITE: [float(sites[SITES.index(name)]) for name in targets[SITE].classes],
            SURVIVAL: [float(log_hazard(values, age)[0])],
            "true": truth_of(study, tuple(targets.values())),
        }
    return found


def _radiomics() -> dict[str, Figure]:
    """Repeat the headline of the benchmark of feature tables, if it has been run."""
    path = RESULTS / "feature_tables.json"
    if not path.exists():
        return {}
    name = "mmt_vs_mfn_vae"
    return {name: Figure(**json.loads(path.read_text())["headline"][name])}


if __name__ == "__main__":
    main()

"""Patients: subtype, primary site and survival on the synthetic cohort, against its ceilings and against others.

python benchmarks/patient.py [--model checkpoints/tiny] [--seconds 300] [--only ours clinical densenet121]

400 subjects train, 400 test; all models learn the three targets together, from images and the clinical columns
(comparators: images alone, as published; `clinical`: the columns alone). `ours` and the comparators have equal
computing seconds; `scratch` and the dedicated models take as many steps as `ours`. Every model is scored on all fifteen
subsets, a dedicated one on its own. Feature tables have a benchmark of their own, whose headline is repeated here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import CellStore
from harness import RESULTS, ROOT, Figure, arguments, parse, write_result
from learning_data import Source, synthetic_source
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
from segmentation_contestants import DEDICATED, digest
from transfer_figures import DRAWS, gain

from bmmae.baselines.budget import Budget
from bmmae.baselines.patient_networks import PATIENT_NETWORKS, PatientNetwork, PatientNetworkConfig
from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.data.patient_columns import BesideConfig
from bmmae.data.synthetic.findings import best_scores
from bmmae.evaluation.clinical import clinical_classifier, clinical_cox
from bmmae.evaluation.comparison import paired_bootstrap
from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import STANDARD, subset_label
from bmmae.model.config import recipe

CLINICAL = ("age", "sex", "karnofsky")
FULL = subset_label(STANDARD)
LABELS = tuple(map(subset_label, all_subsets()))
TRAIN, TEST = 400, 400
CLINICAL_ALONE = "clinical"
QUICK_METHODS = ("ours", f"{DEDICATED}{STANDARD[0]}", CLINICAL_ALONE, "branches")
Cell = dict[str, Any]


def main() -> None:
    """Run what has not been run, and write the figures of what has."""
    given = _parse()
    if given.quick:
        CellStore("patient", quick=True).path.unlink(missing_ok=True)
    source = synthetic_source(16, 8, size=32) if given.quick else synthetic_source(TRAIN, TEST)
    store = CellStore("patient", quick=given.quick)
    for cell in cells(given, source, given.only or methods()):
        row = store.run(cell, lambda cell=cell: run_cell(given, cell, source, store))
        subset = FULL if FULL in row["figures"] else next(iter(row["figures"]))
        told = ", ".join(f"{name} {value:.3f}" for name, value in row["figures"][subset].items())
        print(f"{cell['method']}, seed {cell['seed']}, from {subset}: {told}")
    keys = list(cells(given, source, methods()))
    rows = [row for row in map(store.find, keys) if row is not None]
    ceilings = best_scores(patients=400, draws=20) if given.quick else best_scores()
    headline = headline_figures(rows, ceilings)
    write_result("patient", quick=given.quick, runs=len(rows), headline=headline, rows=table_rows(rows, ceilings))


def methods() -> list[str]:
    """Return every contestant, in the order in which cells are run."""
    dedicated = [DEDICATED + label for label in reversed(LABELS)]
    return ["ours", CLINICAL_ALONE, "scratch", *PATIENT_NETWORKS, *dedicated]


def _parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "tiny", help="pretrained weights")
    parser.add_argument("--seconds", type=float, default=300.0, help="training budget of a cell")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=None, help="only these methods")
    parser.add_argument("--lesion", action="store_true", help="give the true lesion map to `ours` and `branches`")
    parser.add_argument("--med3d", type=Path, default=None, help="Med3D weights for resnet18")
    given = parse(parser)
    unknown = set(given.only or ()) - set(methods())
    if unknown:
        sys.exit(f"error: unknown method {', '.join(sorted(unknown))}: expected some of {', '.join(methods())}")
    if given.quick:
        given.seconds, given.seeds = 2.0, 1
        given.only = given.only or list(QUICK_METHODS)
    return given


def cells(given: argparse.Namespace, source: Source, chosen: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells in the order in which they are run."""
    for seed in range(given.seeds):
        for method in chosen:
            cell = {"method": method, "data": source.name, "seed": seed}
            if method != CLINICAL_ALONE:
                cell |= {"seconds": given.seconds, "threads": given.threads, "lesion": given.lesion}
            if method == "ours" or method.startswith(DEDICATED):
                cell |= {"weights": digest(given.model)}
            if method == "resnet18" and given.med3d:
                cell |= {"weights": "med3d"}
            yield cell


def run_cell(given: argparse.Namespace, cell: Mapping[str, Any], source: Source, store: CellStore) -> dict[str, Any]:
    """Train one contestant and score it on the test subjects from every subset."""
    method, seed, parts = cell["method"], cell["seed"], source.parts[0]
    if method == CLINICAL_ALONE:
        found = {label: predict_clinical(parts.train, parts.test) for label in (FULL,)}
        return _scored(found, {"steps": 0, "training_seconds": 0.0})
    lesion = "attention" if given.lesion else "none"
    pretrained = load_model(given.model) if "weights" in cell and method not in PATIENT_NETWORKS else None
    shape = load_model(given.model).model_config
    subsets = all_subsets()
    if method in PATIENT_NETWORKS:
        config = configuration_of(parts.train, shape, BesideConfig(lesion=lesion))
        torch.manual_seed(seed)
        weights = given.med3d if method == "resnet18" else None
        model: Any = PatientNetwork(
            PatientNetworkConfig(method, config.targets, shape.modalities, window=source.window, weights=weights)
        )
        dataset = dataset_of(source, parts.train, config, seed=seed, augment=AUGMENT)
        budget = Budget(seconds=cell["seconds"])
        training = fit_patients(model, config, dataset, budget, pretrained=False, seed=seed)
    else:
        budget = Budget(seconds=cell["seconds"]) if method == "ours" else _same_steps(cell, store)
        only = tuple(method.removeprefix(DEDICATED).split("+")) if method.startswith(DEDICATED) else None
        beside = BesideConfig(clinical=CLINICAL, lesion=lesion)
        model, training = fine_tune_patients(
            pretrained, shape, source, parts.train, budget, seed=seed, only=only, beside=beside
        )
        config, subsets = model.config, subsets if only is None else (only,)
    found = {subset_label(s): predict_patients(model, config, source, parts.test, s) for s in subsets}
    return _scored(found, training.row())


def _scored(found: Mapping[str, Predictions], cost: Mapping[str, float]) -> dict[str, Any]:
    figures = {
        label: {name: figure(rows, list(rows)) for name, figure in FIGURES.items()} for label, rows in found.items()
    }
    return {**cost, "figures": figures, "predictions": dict(found)}


def _same_steps(cell: Mapping[str, Any], store: CellStore) -> Budget:
    """Return as many steps as `ours` took with the same seed."""
    shared = ("data", "seed", "seconds", "threads", "lesion")
    for row in store:
        other = row["cell"]
        same = other["method"] == "ours" and all(other.get(key) == cell[key] for key in shared)
        if same and other["weights"] == cell.get("weights", other["weights"]):
            return Budget(steps=row["steps"])
    sys.exit(f"error: {cell['method']} takes as many steps as 'ours' with its seed, which has not been run")


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


def headline_figures(rows: list[dict[str, Any]], ceilings: Mapping[str, Mapping[str, float]]) -> dict[str, Figure]:
    """Return the figures that the finished cells allow."""
    runs = {method: [row for row in rows if row["cell"]["method"] == method] for method in methods()}
    ours, found = runs["ours"], {}
    if ours:
        best = (ceilings[FULL][SUBTYPE] + ceilings[FULL][SITE]) / 2
        found["auc_to_ceiling"] = _to_ceiling(ours, "auc", best, "AUC below the ceiling, lower is better")
        unit = "C-index below the ceiling, lower is better"
        found["c_index_to_ceiling"] = _to_ceiling(ours, "c_index", ceilings[FULL][SURVIVAL], unit)
        for method in ("scratch", CLINICAL_ALONE):
            if runs[method]:
                for name in ("auc", "c_index"):
                    found[f"{name}_over_{method}"] = gain(_of(ours, FULL), _of(runs[method], FULL), name, None)
    dedicated = {label: runs[DEDICATED + label] for label in LABELS if runs[DEDICATED + label]}
    if ours and dedicated:
        gains = {label: gain(_of(ours, label), _of(theirs, label), "auc", -0.01) for label, theirs in dedicated.items()}
        worst = min(gains, key=lambda label: gains[label].value)
        mean = statistics.fmean(figure.value for figure in gains.values())
        low, high = min(figure.value for figure in gains.values()), max(figure.value for figure in gains.values())
        unit = f"AUC, mean over {len(gains)} subsets and their range"
        found["any_vs_dedicated_auc"] = Figure(mean, low, high, None, -0.01, unit)
        found["any_vs_dedicated_auc_worst"] = Figure(
            gains[worst].value, gains[worst].low, gains[worst].high, None, -0.01, f"AUC, from {worst}"
        )
    rivals = {name: runs[name] for name in PATIENT_NETWORKS if runs[name]}
    if ours and rivals:
        best_rival = max(rivals, key=lambda name: rivals[name][0]["figures"][FULL]["auc"])
        over = gain(_of(ours, FULL), _of(rivals[best_rival], FULL), "auc", 0.0)
        unit = f"AUC over {best_rival}, the best of {len(rivals)}"
        found["best_comparator_gap"] = Figure(over.value, over.low, over.high, None, 0.0, unit)
    return found | _radiomics()


def _of(rows: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """Return the predictions from one subset."""
    return [{"predictions": row["predictions"][label]} for row in rows]


def _to_ceiling(rows: list[dict[str, Any]], name: str, ceiling: float, unit: str) -> Figure:
    tables, figure = [row["predictions"][FULL] for row in rows], FIGURES[name]
    patients = sorted(tables[0])

    def below(places: Any) -> float:
        chosen = [patients[int(place)] for place in np.asarray(places)]
        return ceiling - statistics.fmean(figure(table, chosen) for table in tables)

    tested = paired_bootstrap(below, patients, draws=DRAWS)
    value = tested.difference
    low, high = (value if bound is None else bound for bound in (tested.low, tested.high))
    return Figure(value, min(low, value), max(high, value), 0.0, 0.03, unit)


def _radiomics() -> dict[str, Figure]:
    """Repeat the headline of the benchmark of feature tables, if it has been run."""
    path = RESULTS / "feature_tables.json"
    if not path.exists():
        return {}
    name = "mmt_vs_mfn_vae"
    return {name: Figure(**json.loads(path.read_text())["headline"][name])}


def table_rows(rows: list[dict[str, Any]], ceilings: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return every model's figures from every subset, and the ceilings; what a modality is worth can be read off."""
    table = [{"method": "ceiling", "subset": label, **ceilings[label]} for label in LABELS]
    for row in rows:
        cost = {key: row[key] for key in ("steps", "training_seconds")}
        for label, figures in row["figures"].items():
            table.append({**row["cell"], "subset": label, **figures, **cost})
    return table


if __name__ == "__main__":
    main()

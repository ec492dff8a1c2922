"""Figures and table of the patients' benchmark, from its finished cells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from harness import Figure
from patient_learning import SITE, SUBTYPE, SURVIVAL
from segmentation_contestants import DEDICATED
from transfer_figures import gain

from bmmae.baselines.patient_networks import PATIENT_NETWORKS
from bmmae.data.synthetic.findings import SEGMENTED
from bmmae.evaluation.subsets import all_subsets
from bmmae.modalities import STANDARD, subset_label

GIVEN = SEGMENTED
"""What the segmentations tell, which `ours` is given."""
FULL = subset_label(STANDARD)
LABELS = tuple(map(subset_label, all_subsets()))
CEILING, CLINICAL_ALONE, MEASURES = "generator", "clinical", "measures"
CLEAR = 0.02
"""Losses whose ceilings differ by less have no known order."""
FIGURE_OF = {SUBTYPE: "subtype", SITE: "primary_site", SURVIVAL: "c_index"}

Row = dict[str, Any]
Ceilings = Mapping[str, Mapping[str, float]]


def headline_figures(rows: list[Row], ceilings: Ceilings) -> dict[str, Figure]:
    """Return the figures that the finished cells allow.

    Args:
        rows: Finished cells.
        ceilings: Of each subset, segmentations given.
    """
    runs = {row["cell"]["method"]: row for row in rows}
    ours = runs.get("ours")
    if ours is None:
        return {}
    found: dict[str, Figure] = {}
    if CEILING in runs:
        for name, key in (("auc", "auc_to_ceiling"), ("c_index", "c_index_to_ceiling")):
            over = gain(_of(runs[CEILING], FULL), _of(ours, FULL), name, 0.03)
            unit = "below the generator's own knowledge of the same patients, lower is better"
            found[key] = Figure(over.value, over.low, over.high, 0.0, 0.03, f"{over.unit} {unit}")
    agreeing, pairs = known_order(ours, ceilings)
    if pairs:
        share = agreeing / pairs
        told = f"share of {pairs} pairs of missing modalities whose losses are in the generator's order"
        found["missing_order"] = Figure(share, share, share, None, 1.0, told)
    for method in (CLINICAL_ALONE, MEASURES, "fine-tuned"):
        if method in runs:
            for name in ("auc", "c_index"):
                key = f"{name}_over_{method.replace('-', '_')}"
                found[key] = gain(_of(ours, FULL), _of(runs[method], FULL), name, None)
    return found | _against_dedicated(ours, runs) | _against_comparators(ours, runs)


def known_order(ours: Row, ceilings: Ceilings) -> tuple[int, int]:
    """Count the pairs of missing modalities whose losses have a known order, and how many of them ours has in it."""
    without = {name: subset_label([m for m in STANDARD if m != name]) for name in STANDARD}
    agreeing = pairs = 0
    for ceiling, figure in FIGURE_OF.items():
        for one, two in combinations(STANDARD, 2):
            best = ceilings[without[one]][ceiling] - ceilings[without[two]][ceiling]
            if abs(best) >= CLEAR:
                own = ours["figures"][without[one]][figure] - ours["figures"][without[two]][figure]
                pairs, agreeing = pairs + 1, agreeing + (own * best > 0)
    return agreeing, pairs


def _against_dedicated(ours: Row, runs: Mapping[str, Row]) -> dict[str, Figure]:
    dedicated = {label: runs[DEDICATED + label] for label in LABELS if DEDICATED + label in runs}
    if not dedicated:
        return {}
    gains = {label: gain(_of(ours, label), _of(theirs, label), "auc", -0.01) for label, theirs in dedicated.items()}
    worst = min(gains, key=lambda label: gains[label].value)
    values = [figure.value for figure in gains.values()]
    unit = f"AUC, mean over {len(gains)} subsets and their range"
    low, high = gains[worst].low, gains[worst].high
    return {
        "any_vs_dedicated_auc": Figure(statistics.fmean(values), min(values), max(values), None, -0.01, unit),
        "any_vs_dedicated_auc_worst": Figure(gains[worst].value, low, high, None, -0.01, f"AUC, from {worst}"),
    }


def _against_comparators(ours: Row, runs: Mapping[str, Row]) -> dict[str, Figure]:
    rivals = [name for name in PATIENT_NETWORKS if name in runs]
    if not rivals:
        return {}
    best = max(rivals, key=lambda name: runs[name]["figures"][FULL]["auc"])
    over = gain(_of(ours, FULL), _of(runs[best], FULL), "auc", 0.0)
    unit = f"AUC over {best}, the best of {len(rivals)}; they see no segmentation"
    return {"best_comparator_gap": Figure(over.value, over.low, over.high, None, 0.0, unit)}


def _of(row: Row, label: str) -> list[Row]:
    """Return the predictions from one subset."""
    return [{"predictions": row["predictions"][label]}]


def table_rows(rows: list[Row], ceilings: Mapping[str, Ceilings]) -> list[Row]:
    """Return every model's figures from every subset, and the ceilings; what a modality is worth can be read off."""
    table: list[Row] = [
        {"method": f"ceiling, {kind}", "subset": label, **best[label]}
        for kind, best in ceilings.items()
        for label in LABELS
    ]
    for row in rows:
        told = {key: row[key] for key in ("steps", "training_seconds", "chosen") if key in row}
        table += [{**row["cell"], "subset": label, **figures, **told} for label, figures in row["figures"].items()]
    return table

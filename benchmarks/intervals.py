"""How often do 95 % intervals of few patients hold the truth? Simulated, with plain bootstrap levels and the library's.

python benchmarks/intervals.py [--cohorts 1000]

Means of values that are skewed as Dice is (beta(5, 1.2), BCa), and the AUC of normal scores, .8 in truth, with 40 % of
the patients positive (percentiles over draws of patients).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Figure, arguments, parse, write_result
from scipy import stats

from bmmae.evaluation.intervals import DRAWS, LEVEL, mean_with_interval, percentile_interval
from bmmae.metrics import auc

PATIENTS = (8, 12, 16, 24, 40, 100)
MANY = 10**9
"""Of so many patients the library's levels are the plain ones."""
DICE = stats.beta(5, 1.2)
AUC, POSITIVE = 0.8, 0.4
DISTANCE = float(np.sqrt(2) * stats.norm.ppf(AUC))
"""Between the normal scores of negatives and positives, in deviations."""
UNIT = "share of the intervals that hold the truth"
Held = dict[str, bool]


def main() -> None:
    """Simulate and write."""
    parser = arguments(__doc__)
    parser.add_argument("--cohorts", type=int, default=1000, help="simulated, of each size")
    given = parse(parser)
    cohorts, sizes = (10, PATIENTS[:2]) if given.quick else (given.cohorts, PATIENTS)
    rows: list[dict[str, Any]] = []
    for patients in sizes:
        for figure, simulate in FIGURES.items():
            held = [simulate(patients, np.random.default_rng(seed)) for seed in range(cohorts)]
            shares = {levels: float(np.mean([each[levels] for each in held])) for levels in held[0]}
            rows += [{"figure": figure, "patients": patients, "levels": key, "held": shares[key]} for key in shares]
            print(f"{figure} of {patients} patients: {shares}", flush=True)
    headline = {
        f"{row['figure']}_of_{row['patients']}_patients": Figure(*3 * (row["held"],), asked=LEVEL, unit=UNIT)
        for row in rows
        if row["levels"] == "widened" and row["patients"] == sizes[len(sizes) // 2 - 1]
    }
    write_result("intervals", quick=given.quick, runs=cohorts, headline=headline, rows=rows)


def hold_mean(patients: int, random: np.random.Generator) -> Held:
    """Tell whether intervals of a simulated cohort's mean hold the true one."""
    values, truth = DICE.rvs(patients, random_state=random), DICE.mean()
    plain = stats.bootstrap((values,), np.mean, n_resamples=DRAWS, rng=random).confidence_interval
    ours = mean_with_interval(values.tolist())
    if ours.low is None or ours.high is None:
        raise ValueError(f"no interval of {patients} patients")
    return {"plain": plain[0] <= truth <= plain[1], "widened": ours.low <= truth <= ours.high}


def hold_auc(patients: int, random: np.random.Generator) -> Held:
    """Tell whether intervals of a simulated cohort's AUC hold the true one; none of them is a miss."""
    positive = random.permutation(patients) < max(1, round(POSITIVE * patients))
    scores = random.normal(size=patients) + DISTANCE * positive
    drawn = random.integers(patients, size=(DRAWS, patients))
    values = np.array([auc(scores[rows], positive[rows]) for rows in drawn])
    found = {name: percentile_interval(values, of) for name, of in (("plain", MANY), ("widened", patients))}
    return {name: bool(edges and edges[0] <= AUC <= edges[1]) for name, edges in found.items()}


FIGURES: dict[str, Callable[[int, np.random.Generator], Held]] = {"mean": hold_mean, "auc": hold_auc}


if __name__ == "__main__":
    main()

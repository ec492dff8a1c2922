"""What a patient's images show, and what follows from it: findings, labels, and the best scores anyone could reach.

Findings are independent and standardised. Each can be seen on some modalities only, so each label loses something
known with every modality that is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bmmae.arrays import Array, Float
from bmmae.modalities import STANDARD, subset_label

T1, T1CE, T2, FLAIR = STANDARD

VISIBLE_ON: dict[str, tuple[str, ...]] = {
    "rim": (T1CE,),
    "blood": (T1,),
    "cyst": (T2,),
    "oedema": (T2, FLAIR),
    "satellites": (FLAIR,),
    "count": STANDARD,
    "infratentorial": STANDARD,
}
"""Findings, and the modalities on which they can be seen.

`rim`: thickness of the enhancing rim over the lesion's radius. `blood`: share of core and rim that is bright on T1.
`cyst`: how fluid-like core and rim are on T2. `oedema`: its width. `satellites`: small FLAIR-bright
foci. `count`: number of lesions. `infratentorial`: whether one lies in the cerebellum.
"""

FINDINGS = tuple(VISIBLE_ON)
SEGMENTED = ("rim", "oedema", "count", "infratentorial")
"""Findings that a segmentation tells on its own, whichever modalities there are."""
SUBTYPES = ("NSCLC", "SCLC")
SITES = ("lung", "breast", "melanoma", "kidney", "colorectal")

SUBTYPE_WEIGHTS = {"rim": 1.5, "oedema": -1.0, "blood": 0.9, "cyst": 0.7}
SITE_LOG_PRIOR = (1.5, -0.2, -1.0, -1.2, -1.5)
SITE_WEIGHTS: dict[str, tuple[float, ...]] = {
    "blood": (-0.7, -0.9, 2.0, 0.8, -0.9),
    "cyst": (0.7, -0.5, -0.9, -1.0, 1.6),
    "rim": (0.2, 1.2, -0.6, -1.3, 0.4),
    "oedema": (0.7, -0.8, -0.4, 1.3, -0.6),
    "count": (0.0, 1.0, 0.9, -1.1, -0.8),
    "infratentorial": (0.2, 0.2, -0.8, -0.5, 1.2),
}
HAZARD_WEIGHTS = {"satellites": 1.1, "rim": 1.0, "oedema": 0.8, "count": 0.5}
HAZARD_AGE = 0.5
MEDIAN_MONTHS = 11.0
WEIBULL_SHAPE = 1.6
FOLLOW_UP_MONTHS = (8.0, 48.0)

LESION_COUNTS = (1.0, 2.0, 3.0, 4.0)
COUNT_SHARES = (0.45, 0.27, 0.17, 0.11)
INFRATENTORIAL_SHARE = 0.3


@dataclass(frozen=True)
class Patient:
    """One patient's findings, clinical variables and labels.

    Attributes:
        findings: Standardised value of each finding.
        lesions: Number of lesions.
        infratentorial: Whether one lies in the cerebellum.
        age: Years.
        sex: `F` or `M`.
        karnofsky: Performance status, 50 to 100; falls with age, and says nothing beyond it.
        subtype: Index into `SUBTYPES`.
        site: Index into `SITES`.
        time: Months until death or the end of follow-up.
        event: Whether death was observed.
    """

    findings: dict[str, float]
    lesions: int
    infratentorial: bool
    age: float
    sex: str
    karnofsky: int
    subtype: int
    site: int
    time: float
    event: bool


def draw_patients(rng: np.random.Generator, count: int) -> list[Patient]:
    """Draw patients: findings first, then labels that depend on them and on chance."""
    values = draw_findings(rng, count)
    age = rng.standard_normal(count)
    subtype = rng.random(count) < subtype_probability(values)
    cumulative = site_probabilities(values).cumsum(axis=1)
    site = (rng.random((count, 1)) > cumulative[:, :-1]).sum(axis=1)
    hazard = log_hazard(values, age)
    time, event = draw_survival(rng, hazard)
    fitness = 80 - 5 * age + rng.normal(0, 12, count)
    female = rng.random(count) < 0.5
    counts, below = _count_of(values["count"]), values["infratentorial"] > 0
    return [
        Patient(
            findings={name: float(values[name][i]) for name in FINDINGS},
            lesions=int(counts[i]),
            infratentorial=bool(below[i]),
            age=float(np.clip(60 + 11 * age[i], 18, 92)),
            sex="F" if female[i] else "M",
            karnofsky=int(np.clip(round(fitness[i] / 10) * 10, 50, 100)),
            subtype=int(subtype[i]),
            site=int(site[i]),
            time=float(time[i]),
            event=bool(event[i]),
        )
        for i in range(count)
    ]


def draw_findings(rng: np.random.Generator, count: int) -> dict[str, Float[np.ndarray, " N"]]:
    """Draw independent findings with zero mean and unit deviation."""
    values = {name: rng.standard_normal(count) for name in FINDINGS}
    values["count"] = _standard(rng.choice(LESION_COUNTS, count, p=COUNT_SHARES), LESION_COUNTS, COUNT_SHARES)
    shares = (1 - INFRATENTORIAL_SHARE, INFRATENTORIAL_SHARE)
    values["infratentorial"] = _standard((rng.random(count) < INFRATENTORIAL_SHARE).astype(float), (0.0, 1.0), shares)
    # Beyond two deviations images could not show the difference.
    return {
        name: np.clip(value, -2, 2) if name not in ("count", "infratentorial") else value
        for name, value in values.items()
    }


def _standard(values: Array, levels: Sequence[float], shares: Sequence[float]) -> Array:
    mean = float(np.dot(levels, shares))
    deviation = float(np.sqrt(np.dot(np.square(levels), shares) - mean**2))
    return np.asarray((values - mean) / deviation)


def _count_of(standard: Array) -> Array:
    mean = float(np.dot(LESION_COUNTS, COUNT_SHARES))
    deviation = float(np.sqrt(np.dot(np.square(LESION_COUNTS), COUNT_SHARES) - mean**2))
    return np.rint(standard * deviation + mean).astype(int)


def subtype_probability(values: dict[str, Array]) -> Float[np.ndarray, "*N"]:
    """Return the chance of the second subtype."""
    score = sum(weight * values[name] for name, weight in SUBTYPE_WEIGHTS.items())
    return np.asarray(1 / (1 + np.exp(-score)))


def site_probabilities(values: dict[str, Array]) -> Float[np.ndarray, "*N 5"]:
    """Return the chances of the primary sites."""
    scores = np.asarray(SITE_LOG_PRIOR) + sum(
        np.multiply.outer(values[name], np.asarray(weights)) for name, weights in SITE_WEIGHTS.items()
    )
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=-1, keepdims=True))


def log_hazard(values: dict[str, Array], age: Array) -> Float[np.ndarray, " N"]:
    """Return the logarithm of the relative hazard of death."""
    return np.asarray(HAZARD_AGE * age + sum(weight * values[name] for name, weight in HAZARD_WEIGHTS.items()))


def draw_survival(rng: np.random.Generator, hazard: Array) -> tuple[Array, Array]:
    """Draw Weibull survival times in months under proportional hazards, censored by the end of follow-up."""
    scale = MEDIAN_MONTHS / np.log(2) ** (1 / WEIBULL_SHAPE)
    death = scale * (rng.exponential(size=len(hazard)) / np.exp(hazard)) ** (1 / WEIBULL_SHAPE)
    end = rng.uniform(*FOLLOW_UP_MONTHS, len(hazard))
    return np.maximum(np.minimum(death, end), 0.1), death <= end


def best_scores(
    patients: int = 4000, draws: int = 200, seed: int = 0, *, given: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Compute the best scores that any method could reach, for every subset of modalities.

    What a subset does not show is integrated over its known distribution; age is always known to the
    survival score. Monte Carlo, with a standard error of about 0.005.

    Args:
        patients: How many are drawn.
        draws: Of what a subset does not show, for each patient.
        seed: Of the draws.
        given: Findings that are known whatever the subset shows: `SEGMENTED`, where a segmentation is given.

    Returns:
        For each subset `subtype` (AUC), `primary_site` (macro one-vs-rest AUC) and `survival` (Harrell's C).
    """
    rng = np.random.default_rng((seed, 1))
    values, age = draw_findings(rng, patients), rng.standard_normal(patients)
    subtype = rng.random(patients) < subtype_probability(values)
    sites = (rng.random((patients, 1)) > site_probabilities(values).cumsum(axis=1)[:, :-1]).sum(axis=1)
    time, event = draw_survival(rng, log_hazard(values, age))
    imagined = draw_findings(rng, draws)
    found = {}
    for subset in all_subsets(STANDARD):
        known = {name for name in FINDINGS if name in given or set(VISIBLE_ON[name]) & set(subset)}
        mixed = {name: values[name][:, None] if name in known else imagined[name][None, :] for name in FINDINGS}
        full = {name: np.broadcast_to(value, (patients, draws)) for name, value in mixed.items()}
        probability = site_probabilities(full).mean(axis=1)
        macro = np.mean([auc(sites == k, probability[:, k]) for k in range(len(SITES))])
        # Unseen findings shift the log hazard by their mean, which is zero: they cannot change the order.
        seen = {name: values[name] if name in known else np.zeros(patients) for name in FINDINGS}
        found[subset_label(subset)] = {
            "subtype": auc(subtype, subtype_probability(full).mean(axis=1)),
            "primary_site": float(macro),
            "survival": concordance(time, event, log_hazard(seen, age)),
        }
    return found


def all_subsets(names: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Yield every non-empty subset, small ones first."""
    for size in range(1, len(names) + 1):
        yield from combinations(names, size)


def auc(positive: Array, score: Array) -> float:
    """Return the area under the ROC curve, from ranks."""
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    hits = int(positive.sum())
    misses = len(score) - hits
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def concordance(time: Array, event: Array, risk: Array) -> float:
    """Return Harrell's C: of the pairs whose order of death is known, the share in which the higher risk died first."""
    earlier = event[:, None] & (time[:, None] < time[None, :])
    agree = (risk[:, None] > risk[None, :])[earlier].sum() + 0.5 * (risk[:, None] == risk[None, :])[earlier].sum()
    return float(agree / earlier.sum())

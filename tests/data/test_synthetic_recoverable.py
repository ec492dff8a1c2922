"""What the synthetic images tell: each finding on its own modalities alone, and the labels by findings."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import spearmanr

from bmmae.arrays import Array
from bmmae.data.synthetic import SyntheticConfig, make_study
from bmmae.data.synthetic.anatomy import FIELD_OF_VIEW, make_anatomy
from bmmae.data.synthetic.contrast import make_contrast
from bmmae.data.synthetic.findings import (
    FINDINGS,
    SITES,
    VISIBLE_ON,
    Patient,
    auc,
    best_scores,
    concordance,
    draw_patients,
    log_hazard,
    site_probabilities,
    subtype_probability,
)
from bmmae.data.synthetic.lesions import make_lesions
from bmmae.modalities import STANDARD, subset_label

T1, T1CE, T2, FLAIR = STANDARD


def images_with(patient: Patient, seed: int) -> dict[str, Array]:
    chance, scanner = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
    anatomy = make_anatomy(chance, 40)
    lesions = make_lesions(chance, anatomy, patient)
    return {name: make_contrast(scanner, name, anatomy, lesions) for name in STANDARD}


@pytest.mark.parametrize("finding", [name for name, seen in VISIBLE_ON.items() if seen != STANDARD])
def test_a_finding_changes_no_voxel_of_modalities_that_cannot_show_it(finding: str) -> None:
    for seed in range(3):
        (patient,) = draw_patients(np.random.default_rng((seed, 9)), 1)
        patient = replace(patient, lesions=3)
        low, high = (
            images_with(replace(patient, findings={**patient.findings, finding: value}), seed) for value in (-1.5, 1.5)
        )
        changed = {name for name in STANDARD if not np.array_equal(low[name], high[name])}
        assert changed == set(VISIBLE_ON[finding])


EVERY_OTHER = (np.indices((7, 7, 7)) % 2 == 0).all(0)
"""A cube's voxels at every other place along each axis: a median of few is quick."""


def readings(index: int, size: int, seed: int) -> dict[str, float]:
    """What a reader measures on the images, given where the lesions' bodies are."""
    study = make_study(SyntheticConfig(seed=seed, size=size), index)
    voxel = FIELD_OF_VIEW / size
    mass, brain = np.isin(study.seg, (1, 4)), study.images[T1] > 0
    relative = {name: image / np.median(image[brain & ~mass]) for name, image in study.images.items()}
    away = ndimage.distance_transform_edt(~mass) * voxel
    bright = (relative[FLAIR] > 1.5) & brain & ~mass
    near, _ = ndimage.label(bright | mass)
    halo = bright & np.isin(near, np.unique(near[mass]))
    # Cortex is bright on FLAIR too: foci are bright against what surrounds them.
    flair = np.where(brain, relative[FLAIR], 1)
    around = ndimage.median_filter(flair, footprint=EVERY_OTHER)
    foci, _ = ndimage.label((flair - around > 0.55) & ~ndimage.binary_dilation(study.seg > 0))
    sizes = np.bincount(foci.ravel())[1:] * voxel**3
    # In the undeformed brain's axes, -1 to 1: the array's axes point left, posterior, superior.
    centres = np.array(ndimage.center_of_mass(mass, ndimage.label(mass)[0], range(1, ndimage.label(mass)[1] + 1)))
    _, back, up = (centres / size * 2 - 1).T
    found = {
        "rim": float(np.clip(relative[T1CE][mass], 0.5, 1.6).mean()),
        "blood": float((relative[T1][mass] > 1.0).mean()),
        "cyst": float(np.median(relative[T2][mass])),
        "oedema": float(np.percentile(away[halo], 80)) if halo.any() else 0.0,
        "satellites": float((sizes > 100).sum()),
        "count": float(len(centres)),
        "infratentorial": float(((up < -0.35) & (back > 0.2)).any()),
    }
    patient = study.patient
    found |= {f"latent_{name}": patient.findings[name] for name in FINDINGS}
    found |= {"age": (patient.age - 60) / 11, "subtype": patient.subtype, "site": patient.site}
    return found | {"time": patient.time, "event": patient.event}


def global_intensities(index: int, size: int, seed: int) -> dict[str, float]:
    """What is left of the images without looking at places: native, and with gain and offset taken out."""
    study = make_study(SyntheticConfig(seed=seed, size=size), index)
    found: dict[str, float] = {}
    for name, image in study.images.items():
        inside = image[image > 0].astype(float)
        found[f"mean_{name}"], found[f"std_{name}"] = inside.mean(), inside.std()
        padded = np.where(image > 0, (image - inside.mean()) / inside.std(), 0)
        found[f"ratio_{name}"], found[f"padded_{name}"] = inside.std() / inside.mean(), padded.std()
    patient = study.patient
    return found | {
        "subtype": patient.subtype,
        "site": patient.site,
        "time": patient.time,
        "event": patient.event,
    }


def measure(what: Callable[..., dict[str, float]], count: int, size: int, seed: int) -> dict[str, Array]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(partial(what, size=size, seed=seed), range(count), chunksize=8))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


@pytest.fixture(scope="module")
def read() -> dict[str, Array]:
    return measure(readings, 90, 64, 3)


def correlations(read: dict[str, Array]) -> dict[str, float]:
    return {name: float(spearmanr(read[name], read[f"latent_{name}"])[0]) for name in FINDINGS}


def scores(findings: dict[str, Array], read: dict[str, Array], where: slice) -> dict[str, float]:
    sites = site_probabilities(findings)
    site = read["site"][where]
    return {
        "subtype": auc(read["subtype"][where] == 1, subtype_probability(findings)),
        "primary_site": float(np.mean([auc(site == k, sites[:, k]) for k in range(len(SITES))])),
        "survival": concordance(
            read["time"][where], read["event"][where].astype(bool), log_hazard(findings, read["age"][where])
        ),
    }


def losses(read: dict[str, Array]) -> dict[str, float]:
    """Score of the true findings minus that of the measured ones, calibrated on the first 45 subjects."""
    rest, measured = slice(45, None), {}
    for name in FINDINGS:
        slope, offset = np.polyfit(read[name][:45], read[f"latent_{name}"][:45], 1)
        measured[name] = slope * read[name][rest] + offset
    best = scores({name: read[f"latent_{name}"][rest] for name in FINDINGS}, read, rest)
    reader = scores(measured, read, rest)
    return {task: best[task] - reader[task] for task in best}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_findings_can_be_read_from_their_modalities(read: dict[str, Array]) -> None:
    found = correlations(read)
    assert min(found.values()) > 0.75, found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_reader_of_the_images_nearly_reaches_the_best_scores(read: dict[str, Array]) -> None:
    found = losses(read)
    assert max(found.values()) < 0.06, found


def shortcut_scores(values: dict[str, Array], kinds: tuple[str, ...]) -> dict[str, float]:
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.log(np.stack([values[f"{kind}_{name}"] for kind in kinds for name in STANDARD], axis=1))

    def predicted(labels: Array) -> Array:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return np.asarray(cross_val_predict(model, features, labels, cv=5, method="predict_proba"))

    died, event = values["event"].astype(bool), np.zeros(len(features))
    for fold in range(5):
        train, test = np.arange(len(features)) % 5 != fold, np.arange(len(features)) % 5 == fold
        model = make_pipeline(StandardScaler(), LinearRegression())
        event[test] = -model.fit(features[train & died], np.log(values["time"][train & died])).predict(features[test])
    return {
        "subtype": float(roc_auc_score(values["subtype"], predicted(values["subtype"])[:, 1])),
        "primary_site": float(roc_auc_score(values["site"], predicted(values["site"]), multi_class="ovr")),
        "survival": concordance(values["time"], died, event),
    }


KINDS = (("mean", "std"), ("ratio", "padded"), ("mean", "std", "ratio", "padded"))


@pytest.mark.slow
def test_global_intensities_stay_below_half_way_to_the_best_score() -> None:
    values, best = measure(global_intensities, 160, 32, 7), best_scores()[subset_label(STANDARD)]
    for kinds in KINDS:
        found = shortcut_scores(values, kinds)
        assert all(found[task] < 0.5 + (best[task] - 0.5) / 2 for task in best), (kinds, found)

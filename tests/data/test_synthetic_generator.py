"""The synthetic cohort: anatomy, findings on their own modalities, labels with known best scores, no shortcuts."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bmmae.arrays import Array
from bmmae.data.check import check_cohort
from bmmae.data.cohort import read_cohort
from bmmae.data.synthetic import GENERATOR_VERSION, SyntheticConfig, SyntheticStudy, make_cohort, make_study
from bmmae.data.synthetic.anatomy import Anatomy, make_anatomy
from bmmae.data.synthetic.findings import SITES, all_subsets, auc, best_scores, concordance, draw_patients
from bmmae.errors import ConfigError, OutputError
from bmmae.modalities import STANDARD, subset_label

T1, T1CE, T2, FLAIR = STANDARD
SMALL = SyntheticConfig(subjects=3, seed=5, size=32)


@pytest.fixture(scope="module")
def study() -> SyntheticStudy:
    return make_study(SyntheticConfig(seed=1), 0)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return make_anatomy(np.random.default_rng((1, 0, 1)), 64)


@pytest.fixture(scope="module")
def best() -> dict[str, dict[str, float]]:
    return best_scores()


def images_of(study: SyntheticStudy) -> dict[str, Array]:
    """In the anatomy's axes: right, anterior, superior."""
    return {name: image[::-1, ::-1] for name, image in study.images.items()}


def test_the_same_seed_gives_the_same_study_and_another_seed_another() -> None:
    again, other = make_study(SMALL, 1), make_study(SyntheticConfig(seed=6, size=32), 1)
    assert all(np.array_equal(image, again.images[name]) for name, image in make_study(SMALL, 1).images.items())
    assert not np.array_equal(again.images[T1], other.images[T1])


def test_what_is_left_out_changes_nothing_in_the_rest() -> None:
    whole, partial_ = make_study(SMALL, 2), make_study(SyntheticConfig(seed=5, size=32, missing=0.5), 2)
    assert 0 < len(partial_.images) <= 4
    assert all(np.array_equal(image, whole.images[name]) for name, image in partial_.images.items())


def test_the_background_is_zero_and_the_brain_positive(study: SyntheticStudy) -> None:
    brains = [image > 0 for image in study.images.values()]
    assert all(np.array_equal(brain, brains[0]) for brain in brains)
    assert 0.15 < brains[0].mean() < 0.6
    labels, _ = ndimage.label(brains[0])
    assert np.bincount(labels.ravel())[1:].max() > 0.99 * brains[0].sum()


def test_segmentations_use_the_coding_inside_the_brain(study: SyntheticStudy) -> None:
    assert set(np.unique(study.seg)) == {0, 1, 2, 4}
    assert (study.images[T1][study.seg > 0] > 0).all()


def test_tissues_are_ordered_as_in_the_literature(study: SyntheticStudy, anatomy: Anatomy) -> None:
    healthy = ndimage.binary_erosion(study.seg[::-1, ::-1] == 0, iterations=2)
    means = {
        name: [image[(share > 0.8) & healthy].mean() for share in anatomy.tissues[:3]]
        for name, image in images_of(study).items()
    }
    for name in (T1, T1CE):
        csf, grey, white = means[name]
        assert csf < grey < white
    csf, grey, white = means[T2]
    assert csf > grey > white
    csf, grey, white = means[FLAIR]
    assert csf < white < grey


def contrast(study: SyntheticStudy, name: str, where: Array, against: Array) -> float:
    image = study.images[name].astype(float)
    return float(image[where].mean() / image[against].mean())


def test_the_rim_is_bright_on_t1ce_and_looks_like_the_core_elsewhere() -> None:
    for index in range(4):
        study = make_study(SyntheticConfig(seed=1), index)
        rim, core = study.seg == 4, study.seg == 1
        assert contrast(study, T1CE, rim, core) > 1.8
        # The outermost voxels are partly oedema.
        rim &= ndimage.binary_erosion(rim | core)
        # On T1 blood lies over both, wherever it happened to; without it they look alike there too.
        assert all(contrast(study, name, rim, core) == pytest.approx(1, abs=0.1) for name in (T2, FLAIR))


def test_oedema_is_bright_on_flair_and_t2_and_invisible_on_t1(study: SyntheticStudy, anatomy: Anatomy) -> None:
    white = ((anatomy.tissues[2] > 0.9) & (study.seg[::-1, ::-1] == 0))[::-1, ::-1]
    halo = study.seg == 2
    assert contrast(study, FLAIR, halo, white) > 1.4
    assert contrast(study, T2, halo, white) > 1.4
    assert 0.8 < contrast(study, T1, halo, white) < 1.1


def test_a_cohort_on_disk_says_where_it_comes_from(tmp_path: Path) -> None:
    table = make_cohort(tmp_path / "c", SMALL, progress=False, workers=1)
    cohort = read_cohort(table)
    assert len(cohort) == 3
    assert "labels" not in {finding.code for finding in check_cohort(cohort, progress=False).findings}
    written = json.loads((tmp_path / "c" / "ceilings.json").read_text())
    assert written["generator_version"] == GENERATOR_VERSION
    assert f"version {GENERATOR_VERSION}" in (tmp_path / "c" / "README.md").read_text()
    image = nib.load(cohort.studies[0].images[T1])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == pytest.approx((6, 6, 6))
    assert b"synth" in bytes(image.header["descrip"])
    np.testing.assert_array_equal(image.get_fdata(), make_study(SMALL, 0).images[T1])


def test_the_best_scores_are_those_of_hard_but_possible_tasks(best: dict[str, dict[str, float]]) -> None:
    assert all(0.80 <= score <= 0.92 for score in best[subset_label(STANDARD)].values())


def test_one_more_modality_never_lowers_a_best_score(best: dict[str, dict[str, float]]) -> None:
    for subset in all_subsets(STANDARD):
        for extra in set(STANDARD) - set(subset):
            fewer, more = best[subset_label(subset)], best[subset_label((*subset, extra))]
            assert all(more[task] > fewer[task] - 0.015 for task in fewer)


def test_every_modality_is_worth_something_to_some_label(best: dict[str, dict[str, float]]) -> None:
    full = best[subset_label(STANDARD)]
    for name in STANDARD:
        rest = best[subset_label([other for other in STANDARD if other != name])]
        assert max(full[task] - rest[task] for task in full) > 0.02, name


def test_sites_are_imbalanced_and_survival_is_partly_censored() -> None:
    patients = draw_patients(np.random.default_rng(0), 3000)
    shares = np.bincount([p.site for p in patients], minlength=len(SITES)) / len(patients)
    assert shares.argmax() == 0
    assert shares[0] > 0.35
    assert shares.min() > 0.04
    assert 0.1 < np.mean([not p.event for p in patients]) < 0.5
    assert min(p.time for p in patients) > 0


def test_auc_and_concordance_agree_with_hand_computed_cases() -> None:
    assert auc(np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(0.75)
    time, event = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    assert concordance(time, event, np.array([3.0, 2.0, 1.0])) == 1.0
    assert concordance(time, event, np.array([1.0, 2.0, 3.0])) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"subjects": 0}, "at least one subject"),
        ({"size": 8}, "at least 24 voxels"),
        ({"missing": 1.0}, r"\[0, 1\)"),
        ({"seed": -1}, "not be negative"),
    ],
)
def test_impossible_cohorts_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(**values)  # type: ignore[arg-type]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        make_cohort(tmp_path, SMALL, progress=False)


KILLED_AT_WORK = """
import os, signal, sys, threading, time
from pathlib import Path
from bmmae.data.synthetic import SyntheticConfig, make_cohort

def kill():
    while len(list(Path(sys.argv[1]).glob("sub-*"))) < 1:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=kill, daemon=True).start()
    make_cohort(Path(sys.argv[1]), SyntheticConfig(subjects=4, size=32), progress=False)
"""


def test_processes_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED_AT_WORK)
    # It has the output of all of them, which ends when the last does.
    command = subprocess.Popen([sys.executable, script, tmp_path / "made"], stdout=subprocess.PIPE)
    command.communicate(timeout=120)
    assert command.returncode == -signal.SIGKILL

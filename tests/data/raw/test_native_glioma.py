"""A real study, four sequences on four grids in native space: it comes out co-registered."""

from pathlib import Path

import numpy as np
import pytest

from bmmae.data.check import check_study
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.raw.cohort_pipeline import preprocess_cohort
from bmmae.data.raw.native import Registration, read_registration
from bmmae.data.raw.registration import mutual_information
from bmmae.data.raw.resampling import Volume, resample
from bmmae.data.raw.study_pipeline import PipelineConfig
from bmmae.data.reading import read_image, read_labels
from bmmae.modalities import STANDARD

pytest.importorskip("SimpleITK")
pytestmark = [pytest.mark.real, pytest.mark.slow]
T1, T1CE, T2, FLAIR = STANDARD
OTHERS = (T1, T2, FLAIR)


@pytest.fixture(scope="module")
def raw(real: Path) -> Study:
    folder = real / "tcga_native" / "TCGA-FG-6692"
    masks = {name: folder / f"brainmask_{name}.nii.gz" for name in STANDARD}
    return Study(subject="a", images={name: folder / f"{name}.nii.gz" for name in STANDARD}, brain_masks=masks)


@pytest.fixture(scope="module")
def prepared(raw: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Registration]:
    out = tmp_path_factory.mktemp("native")
    report = preprocess_cohort(Cohort((raw,)), out, PipelineConfig(), progress=False)
    return read_cohort(report.table)[0], read_registration(out / "a")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def by_header(path: Path, registration: Registration, *, mask: bool) -> np.ndarray:
    """A file on the common grid, placed by its header alone."""
    if mask:
        volume = Volume(*read_labels(path))
    else:
        image = read_image(path)
        volume = Volume(image.array, image.affine)
    return resample(volume, np.eye(4), registration.grid)


def test_four_grids_become_one(prepared: tuple[Study, Registration]) -> None:
    study, registration = prepared
    assert registration.reference == T1CE
    assert not [finding for finding in check_study(study) if finding.severity == "error"]
    assert registration.grid.spacing == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("name", OTHERS)
def test_mutual_information_with_the_reference_rises(
    raw: Study, prepared: tuple[Study, Registration], name: str
) -> None:
    study, registration = prepared
    brain = read_labels(study.brain_mask)[0] > 0
    reference = read_image(study.images[T1CE]).array
    before = mutual_information(reference, by_header(raw.images[name], registration, mask=False), brain)
    after = mutual_information(reference, read_image(study.images[name]).array, brain)
    print(f"{name}: {before:.3f} -> {after:.3f} nats")
    assert after > 2 * before


@pytest.mark.parametrize("name", OTHERS)
def test_brain_masks_drawn_apart_come_to_lie_on_each_other(
    raw: Study, prepared: tuple[Study, Registration], name: str
) -> None:
    _, registration = prepared
    fixed = by_header(raw.brain_masks[T1CE], registration, mask=True) > 0.5
    placed = by_header(raw.brain_masks[name], registration, mask=True) > 0.5
    volume = Volume(*read_labels(raw.brain_masks[name]))
    moved = resample(volume, registration.natives[name].matrix, registration.grid) > 0.5
    before, after = dice(fixed, placed), dice(fixed, moved)
    print(f"{name}: Dice {before:.3f} -> {after:.3f}")
    assert after > max(0.96, before)


def test_a_template_receives_the_brain(raw: Study, tmp_path: Path) -> None:
    pytest.importorskip("nilearn")
    from bmmae.data.raw.atlas import MNI152, load_atlas

    one = Study(subject="a", images={T1CE: raw.images[T1CE]}, brain_masks={T1CE: raw.brain_masks[T1CE]})
    report = preprocess_cohort(Cohort((one,)), tmp_path, PipelineConfig(atlas=MNI152, affine=True), progress=False)
    brain = read_labels(read_cohort(report.table)[0].brain_mask)[0] > 0
    template = load_atlas(MNI152).volume.array != 0
    # The scan ends above the lowest slices of the template.
    assert (brain & template).sum() / brain.sum() > 0.93
    assert dice(brain, template) > 0.9

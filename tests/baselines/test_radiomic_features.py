"""Features of volumes: equal to hand-computed ones where PyRadiomics is installed, and readable as a table."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_studies import lesion, picture, save

from bmmae.baselines.feature_table import read_feature_tables
from bmmae.baselines.radiomic_features import Extraction, extract_features, write_feature_table
from bmmae.data.cohort import Study
from bmmae.data.labels import BRATS2017
from bmmae.data.location import locate
from bmmae.errors import CohortError, ConfigError, GeometryError, LabelError

SPACING = (1.0, 2.0, 3.0)
FIRST_ORDER = Extraction(classes=("firstorder",), minimum_voxels=5)


def study(folder: Path, subject: str = "a", modalities: tuple[str, ...] = ("t1", "flair"), seed: int = 0) -> Study:
    images = {
        name: locate(save(folder / f"{subject}_{name}.nii.gz", picture(number, seed=seed), spacing=SPACING))
        for number, name in enumerate(modalities)
    }
    return Study(subject, images, seg=locate(save(folder / f"{subject}_seg.nii.gz", lesion(), spacing=SPACING)))


class StandIn:
    """Answers as PyRadiomics does, with the number of voxels alone."""

    def __init__(self, **settings: Any) -> None:
        self.classes: list[str] = []

    def disableAllFeatures(self) -> None:
        self.classes = []

    def disableAllImageTypes(self) -> None:
        pass

    def enableFeatureClassByName(self, name: str) -> None:
        self.classes.append(name)

    def enableImageTypeByName(self, name: str, customArgs: dict[str, Any]) -> None:
        assert name == "Original"

    def execute(self, image: np.ndarray, mask: np.ndarray, label: int) -> dict[str, float]:
        names = {"shape": "original_shape_VoxelVolume", "firstorder": "original_firstorder_Mean"}
        return {names[kind]: float(np.asarray(mask.array == label).sum()) for kind in self.classes}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("radiomics.featureextractor")
    module.RadiomicsFeatureExtractor = StandIn  # type: ignore[attr-defined]
    itk = ModuleType("SimpleITK")
    itk.GetImageFromArray = lambda array: SimpleNamespace(array=array, SetSpacing=lambda spacing: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radiomics", ModuleType("radiomics"))
    monkeypatch.setitem(sys.modules, "radiomics.featureextractor", module)
    monkeypatch.setitem(sys.modules, "SimpleITK", itk)


@pytest.mark.usefixtures("stand_in")
def test_shape_is_measured_once_for_a_region_and_the_rest_on_each_modality(tmp_path: Path) -> None:
    found = extract_features(study(tmp_path), BRATS2017, FIRST_ORDER)
    regions = {"ET": (lesion() == 4).sum(), "TC": ((lesion() == 4) | (lesion() == 1)).sum(), "WT": (lesion() > 0).sum()}
    assert found == {
        **{f"original_shape_VoxelVolume_{name}": count for name, count in regions.items()},
        **{f"original_firstorder_Mean_{name}_{m}": count for name, count in regions.items() for m in ("t1", "flair")},
    }


@pytest.mark.usefixtures("stand_in")
def test_the_table_written_is_one_that_can_be_read(tmp_path: Path) -> None:
    cohort = [study(tmp_path, "a"), study(tmp_path, "b", ("t1",))]
    path = write_feature_table(cohort, BRATS2017, tmp_path / "features.csv", FIRST_ORDER)
    table = read_feature_tables({"GBM": path}, subject="subject", ignore=("session",))
    assert {name: len(block) for name, block in table.blocks.items()} == {"t1": 3, "flair": 3}
    assert table.subjects == ("a", "b")
    assert np.isnan(table.features[1]).tolist() == [name.endswith("flair") for name in table.columns]


@pytest.mark.usefixtures("stand_in")
def test_small_regions_are_not_measured(tmp_path: Path) -> None:
    found = extract_features(study(tmp_path), BRATS2017, Extraction(classes=("firstorder",), minimum_voxels=50))
    assert (lesion() == 4).sum() < 50 <= (lesion() > 0).sum()
    assert not [name for name in found if "_ET" in name]
    assert [name for name in found if "_WT" in name]


def test_first_order_and_volume_equal_those_computed_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("radiomics")
    found = extract_features(study(tmp_path), BRATS2017, FIRST_ORDER)
    image, whole = picture(1).astype(float), lesion() > 0
    scaled = (image - image[image != 0].mean()) / image[image != 0].std()
    assert found["original_firstorder_Mean_WT_flair"] == pytest.approx(scaled[whole].mean(), rel=1e-4)
    assert found["original_firstorder_Maximum_WT_flair"] == pytest.approx(scaled[whole].max(), rel=1e-4)
    assert found["original_shape_VoxelVolume_WT"] == pytest.approx(whole.sum() * np.prod(SPACING), rel=1e-4)


def test_textures_do_not_depend_on_the_scale_of_the_image(tmp_path: Path) -> None:
    pytest.importorskip("radiomics")
    one, two = study(tmp_path, "a", ("t1",)), study(tmp_path, "b", ("t1",))
    save(tmp_path / "b_t1.nii.gz", 7 * picture(0), spacing=SPACING)
    extraction = Extraction(classes=("glcm", "ngtdm"), filters={"Original": {}, "Gradient": {}}, minimum_voxels=5)
    first, second = (extract_features(given, BRATS2017, extraction) for given in (one, two))
    assert {name.split("_")[0] for name in first} == {"original", "gradient"}
    assert first == pytest.approx(second, rel=1e-3)


@pytest.mark.usefixtures("stand_in")
def test_a_segmentation_with_turned_axes_marks_the_same_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = study(tmp_path)
    drawn = nib.load(tmp_path / "a_seg.nii.gz")
    turned = drawn.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    marked: list[float] = []

    def execute(self: StandIn, image: Any, mask: Any, label: int) -> dict[str, float]:
        inside = np.asarray(mask.array) == label
        marked.extend((np.asarray(image.array)[inside].sum(), inside.sum()))
        return {}

    monkeypatch.setattr(StandIn, "execute", execute)
    for given in (straight, Study("a", straight.images, seg=locate(tmp_path / "turned.nii.gz"))):
        extract_features(given, BRATS2017, FIRST_ORDER)
    half = len(marked) // 2
    assert half > 0
    assert marked[half:] == pytest.approx(marked[:half])


def test_what_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = study(tmp_path)
    with pytest.raises(LabelError, match="'a' has no segmentation"):
        extract_features(Study("a", given.images), BRATS2017)
    with pytest.raises(CohortError, match="one study or more"):
        write_feature_table([], BRATS2017, tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="shape is added by itself"):
        Extraction(classes=("shape",))
    with pytest.raises(ConfigError, match="positive bin width"):
        Extraction(bin_width=0.0)
    with monkeypatch.context() as changed:
        changed.setitem(sys.modules, "radiomics", None)
        changed.setitem(sys.modules, "radiomics.featureextractor", None)
        with pytest.raises(ConfigError, match=r"needs pyradiomics.*pip install 'bmmae\[radiomics\]'"):
            extract_features(given, BRATS2017)
    nib.save(nib.Nifti1Image(picture(0)[:-1], np.eye(4)), tmp_path / "a_t1.nii.gz")
    with pytest.raises(GeometryError, match="is not on the grid"):
        extract_features(given, BRATS2017)

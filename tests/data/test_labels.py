"""The meaning of a segmentation's numbers is named, proposed where names and values agree, and else refused."""

from pathlib import Path

import numpy as np
import pytest

from bmmae.data.labels import (
    BINARY,
    BRATS2017,
    BRATS2023,
    BRATS2024_POST,
    CODINGS,
    Coding,
    check_values,
    find_coding,
    fitting,
    labels_from_regions,
    own_coding,
    propose_coding,
    region_masks,
    values_of,
)
from bmmae.data.reading import read_labels
from bmmae.errors import LabelError

LINE = np.arange(5, dtype=np.int16).reshape(5, 1, 1)


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        (BRATS2017, {"ET": [4], "TC": [1, 4], "WT": [1, 2, 4]}),
        (BRATS2023, {"ET": [3], "TC": [1, 3], "WT": [1, 2, 3]}),
        (BRATS2024_POST, {"ET": [3], "TC": [1, 3], "WT": [1, 2, 3], "RC": [4]}),
        (BINARY, {"lesion": [1]}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_regions_unite_the_right_values(coding: Coding, expected: dict[str, list[int]]) -> None:
    values = np.array([0, *coding.classes], dtype=np.uint8).reshape(-1, 1, 1)
    masks = region_masks(values, coding)
    assert list(coding.regions) == list(expected)
    assert {name: values[mask].tolist() for name, mask in zip(coding.regions, masks, strict=True)} == expected


@pytest.mark.parametrize("coding", CODINGS.values(), ids=list(CODINGS))
def test_regions_and_values_are_inverses(coding: Coding) -> None:
    values = np.array([0, *coding.classes], dtype=np.int16).reshape(-1, 1, 1)
    np.testing.assert_array_equal(labels_from_regions(region_masks(values, coding), coding), values)


def test_regions_that_do_not_nest_cannot_be_painted() -> None:
    coding = own_coding({1: "a", 2: "b"}, {"both": (1, 2)})
    with pytest.raises(LabelError, match=r"region 'both' leaves the values \[1, 2\]"):
        labels_from_regions(region_masks(LINE[:3], coding), coding)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_regions_do_not_depend_on_how_labels_are_stored(dtype: type) -> None:
    labels = np.array([0, 1, 2, 3], dtype=dtype).reshape(2, 2, 1) * dtype(1)
    np.testing.assert_array_equal(region_masks(labels, BRATS2023)[0], labels == 3)


def test_enhancing_tumour_and_cavity_are_never_mixed_up() -> None:
    with pytest.raises(LabelError, match=r"values \[3\].*'brats2017' knows only 0 and \[1, 2, 4\]"):
        region_masks(LINE, BRATS2017)
    with pytest.raises(LabelError, match=r"values \[4\].*data.labels"):
        region_masks(LINE, BRATS2023)
    assert not (region_masks(LINE, BRATS2024_POST)[3] & region_masks(LINE, BRATS2024_POST)[2]).any()


@pytest.mark.parametrize(
    ("name", "values", "coding"),
    [
        ("Brats17_2013_2_1_seg.nii.gz", {0, 1, 2, 4}, BRATS2017),
        ("Brats18_CBICA_AME_1/seg.nii.gz", {0, 2}, BRATS2017),
        ("BraTS20_Training_002_seg.nii.gz", {0, 1, 2, 4}, BRATS2017),
        ("BraTS2021_00006_seg.nii.gz", {0, 1, 2, 4}, BRATS2017),
        ("BraTS-GLI-00000-000-seg.nii.gz", {0, 1, 2, 3}, BRATS2023),
        ("BraTS-GLI-00000-000-seg.nii.gz", {0, 2}, BRATS2023),
        ("BraTS-GLI-02063-100-seg.nii.gz", {0, 1, 2, 3, 4}, BRATS2024_POST),
        ("BraTS-SSA-00002-000-seg.nii.gz", {0, 1, 2, 3}, BRATS2023),
        ("patient07/seg.nii.gz", {0, 1}, BINARY),
        ("brats2021/p/BraTS-GLI-00000-000-seg.nii.gz", {0, 3}, BRATS2023),
    ],
)
def test_names_and_values_propose(name: str, values: set[int], coding: Coding) -> None:
    assert propose_coding([Path(name)], values) == coding


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["patient1/seg.nii.gz"], {0, 1, 2, 4}, "is open.*brats2017, brats2024-post; say which"),
        (["patient1/seg.nii.gz"], {0, 1, 2}, "is open"),
        (["patient1/seg.nii.gz"], {0}, "is open"),
        (["patient1/seg.nii.gz"], {0, 9}, "no known coding; say what they mean in a YAML file"),
        (["BRATS_001.nii.gz"], {0, 1, 2, 3}, "is open"),
        (["BraTS-PED-00002-000-seg.nii.gz"], {0, 1, 2, 3, 4}, "is open"),
        (["Brats18_2013_2_1_seg.nii.gz"], {0, 1, 3}, "named like brats2017.*values \\[3\\]"),
        (["BraTS-GLI-00000-000-seg.nii.gz"], {5}, "values \\[5\\]"),
        (["Brats18_2013_2_1_seg.nii.gz", "BraTS-GLI-00000-000-seg.nii.gz"], {0, 1}, "mix BraTS editions"),
        ([], {0, 2}, "is open"),
    ],
)
def test_what_is_open_or_contradictory_is_refused(names: list[str], values: set[int], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        propose_coding(names, values)


def test_values_are_found_in_any_storage() -> None:
    assert values_of(LINE) == values_of(LINE.astype(np.float32) + np.float32(1e-5)) == (0, 1, 2, 3, 4)
    assert values_of(LINE - 3) == (-3, -2, -1, 0, 1)
    assert values_of(LINE.astype(np.int64) * 30000)[-1] == 120000
    for strange in (0.5, np.nan):
        with pytest.raises(LabelError, match="whole label values"):
            values_of(np.full((1, 1, 1), strange, np.float32))


def test_own_codings_are_checked() -> None:
    own = own_coding({1: "a", 7: "b"})
    assert own.regions == {"a": (1,), "b": (7,)}
    check_values((0, 7), own)
    with pytest.raises(LabelError, match=r"values \[255\].*name the right one, or a YAML file with `classes`"):
        check_values((0, 255), own)
    assert own_coding({1: "a", 7: "b"}, {"all": [1, 7]}).regions == {"all": (1, 7)}
    for classes, regions, message in (
        ({0: "background"}, None, "from 1 on"),
        ({1: "a"}, {"x": [2]}, "region 'x' unites values"),
        ({1: "a"}, {"x": []}, "region 'x'"),
    ):
        with pytest.raises(LabelError, match=message):
            own_coding(classes, regions)
    with pytest.raises(LabelError, match="at least one region"):
        Coding("mine", {1: "a"}, {})


def test_codings_are_found_by_name() -> None:
    assert all(find_coding(name) is coding for name, coding in CODINGS.items())
    assert fitting({0, 1, 3}) == ("brats2023", "brats2024-post")
    with pytest.raises(LabelError, match="'brats': expected one of brats2017, brats2023"):
        find_coding("brats")


def test_a_users_own_coding_has_to_be_spelt_out() -> None:
    with pytest.raises(LabelError, match=r"column `seg_coding` may say.*`classes` .* \(--labels own.yaml of a command"):
        find_coding("own")


def test_an_own_coding_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "coding.yaml"
    file.write_text("width: 8\nclasses: {core: 1, rim: 2}\nregions: {lesion: [1, 2], core: [1]}\n")
    assert find_coding(str(file)) == own_coding({1: "core", 2: "rim"}, {"lesion": [1, 2], "core": [1]})
    file.write_text("classes: {lesion: 3}\n")
    assert find_coding(str(file)).regions == {"lesion": (3,)}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_coding("~/coding.yaml") == find_coding(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the label coding"),
        ("classes: {core: 1", "cannot read the label coding"),
        ("- 1\n", "does not say what labels mean"),
        ("regions: {lesion: [1]}\n", "does not say what labels mean"),
        ("classes: {core: one}\n", "does not say what labels mean"),
        ("classes: {core: 1}\nregions: {lesion: 1}\n", "does not say what labels mean"),
        ("classes: {core: 1, rim: 1}\n", "a label value of its own"),
        ("classes: {core: 1}\nregions: {lesion: [2]}\n", "region 'lesion' unites values"),
    ],
)
def test_a_file_that_says_no_coding_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "coding.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LabelError, match=message):
        find_coding(str(file))


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "coding"),
    [
        ("brats18", BRATS2017),
        ("brats20", BRATS2017),
        ("brats21", BRATS2017),
        ("brats23", BRATS2023),
        ("open_ms", BINARY),
    ],
)
def test_real_segmentations_are_recognised(real: Path, folder: str, coding: Coding) -> None:
    path = min((real / folder).rglob("*seg.nii.gz"))
    labels, _ = read_labels(path)
    assert propose_coding([path], values_of(labels)) == coding
    sizes = region_masks(labels, coding).sum(axis=(1, 2, 3))
    assert sizes[-1] == np.count_nonzero(labels)
    assert (np.diff(sizes) >= 0).all()

"""The check opens every file, lists what is wrong, and never stops at a broken one."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_studies

from bmmae.data.check import SYNTHETIC, StudyGlance, check_cohort, check_study
from bmmae.data.coding import SEG_CODING
from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.findings import WHOLE, CheckReport, Finding, format_table
from bmmae.data.index import index_folder
from bmmae.data.labels import BRATS2017
from bmmae.data.writing import write_image
from bmmae.inference import cohort as reconstructed

SHAPE = (10, 10, 10)


def brain(seed: int = 0, low: int = 2, high: int = 8) -> np.ndarray:
    """Round in its slices: what fills its box is taken for a head."""
    x, y, z = np.indices(SHAPE)
    inside = (abs(x - 4.5) + abs(y - 4.5) <= 3) & (low <= z) & (z < high)
    return np.where(inside, np.random.default_rng(seed).integers(1, 999, SHAPE), 0).astype(np.int16)


def save(path: Path, array: np.ndarray, shift: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4)
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def study(folder: Path, seed: int = 0, **more: object) -> Study:
    images = {name: save(folder / f"{name}.nii.gz", brain(seed + n)) for n, name in enumerate(("t1", "t2"))}
    return Study(folder.name, images, **more)  # type: ignore[arg-type]


def codes(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in findings]


def test_a_clean_study_has_no_findings(tmp_path: Path) -> None:
    lesion = save(tmp_path / "p" / "seg.nii.gz", (brain() > 500).astype(np.float32))
    assert check_study(study(tmp_path / "p", seg=lesion)) == []


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_broken_files_are_errors_and_the_rest_is_still_checked(tmp_path: Path, content: bytes | None) -> None:
    broken, whole = study(tmp_path / "a"), study(tmp_path / "b", seed=5)
    broken.images["t1"].unlink()
    if content is not None:
        broken.images["t1"].write_bytes(content)
    save(whole.images["t2"], brain(low=2, high=4))
    report = check_cohort(Cohort((broken, whole)), workers=2, progress=False)
    assert [(f.study, f.severity, f.code) for f in report.findings] == [
        ("a", "error", "file"),
        ("b", "warning", "coverage"),
    ]
    assert report.failed
    assert (report.studies, report.files) == (2, 4)


def test_truncated_four_dimensional_empty_and_not_finite_files_are_told_apart(tmp_path: Path) -> None:
    kinds = {
        "not finite": brain() * np.float32(np.nan),
        "expected 3 axes": np.stack([brain()] * 2, -1),
        "only zeros": np.zeros(SHAPE, np.int16),
        "truncated": brain(),
    }
    paths = {name: save(tmp_path / f"{name}.nii.gz", array) for name, array in kinds.items()}
    paths["truncated"].write_bytes(paths["truncated"].read_bytes()[:-50])
    for sentence, path in paths.items():
        (finding,) = check_study(Study("p", {"t1": path}))
        assert sentence in finding.message
        assert finding.path == path
        assert str(tmp_path) not in finding.message


@pytest.mark.parametrize(("shape", "shift", "word"), [((10, 10, 9), 0, "10x10x9"), (SHAPE, 0.01, "up to 0.01 mm")])
def test_grids_that_differ_are_errors_that_name_the_way_out(
    tmp_path: Path, shape: tuple[int, ...], shift: float, word: str
) -> None:
    case = study(tmp_path / "p")
    save(case.images["t2"], brain()[: shape[0], : shape[1], : shape[2]], shift=shift)
    (finding,) = check_study(case)
    assert codes([finding]) == [("error", "grid")]
    assert word in finding.message
    assert "bmmae preprocess" in finding.message


def test_affines_within_tolerance_are_one_grid(tmp_path: Path) -> None:
    case = study(tmp_path / "p")
    save(case.images["t2"], brain(3), shift=5e-4)
    assert check_study(case) == []


def test_a_mask_in_an_images_column_is_an_error(tmp_path: Path) -> None:
    one = study(tmp_path)
    mask = save(tmp_path / "mask.nii.gz", (brain() > 0).astype(np.float32))
    (found,) = check_study(replace(one, images=dict(one.images) | {"t1": mask}))
    assert (found.severity, found.code) == ("error", "constant")
    assert "mask.nii.gz holds 1 wherever it is not 0" in found.message


def test_heads_are_warned_of_unless_they_have_a_mask(tmp_path: Path) -> None:
    images = {"t1": save(tmp_path / "t1.nii", np.random.default_rng(0).integers(1, 99, SHAPE).astype(np.int16))}
    (finding,) = check_study(Study("p", images))
    assert codes([finding]) == [("warning", "head")]
    assert "brain_mask_t1" in finding.message
    mask = save(tmp_path / "brainmask.nii", (brain() > 0).astype(np.uint8))
    assert check_study(Study("p", images, brain_mask=mask)) == []


def test_what_is_larger_than_a_brain_is_warned_of(tmp_path: Path) -> None:
    """A head whose air is exactly 0 looks skull-stripped."""
    for spacing, expected in ((9.0, []), (12.0, [("warning", "head")])):
        path = tiny_studies.save(tmp_path / f"{spacing:g}.nii", tiny_studies.picture(), spacing=(spacing,) * 3)
        found = check_study(Study("p", {"t1": path}))
        assert codes(found) == expected
    assert "ml, more than a brain holds" in found[0].message
    mask = tiny_studies.save(tmp_path / "mask.nii", tiny_studies.brain().astype(np.uint8), spacing=(spacing,) * 3)
    assert check_study(Study("p", {"t1": path}, brain_mask=mask)) == []


def test_heads_with_slices_that_were_not_scanned_are_warned_of_too(tmp_path: Path) -> None:
    head = np.random.default_rng(0).integers(1, 99, SHAPE).astype(np.int16)
    head[:, :, 7:] = 0
    assert codes(check_study(Study("p", {"t1": save(tmp_path / "t1.nii", head)}))) == [("warning", "head")]


def test_brain_masks_are_checked(tmp_path: Path) -> None:
    case = study(tmp_path / "p")
    for array, code in ((np.zeros(SHAPE, np.uint8), "empty"), (np.ones((9, 10, 10), np.uint8), "grid"), (None, "file")):
        mask = tmp_path / f"{code}.nii"
        if array is not None:
            save(mask, array)
        assert codes(check_study(Study("p", {"t1": case.images["t1"]}, brain_mask=mask))) == [("error", code)]


def test_partial_coverage_is_given_in_percent(tmp_path: Path) -> None:
    case = study(tmp_path / "p")
    save(case.images["t2"], brain(low=2, high=5))
    (finding,) = check_study(case)
    assert codes([finding]) == [("warning", "coverage")]
    assert "t2.nii.gz covers 50% of the brain" in finding.message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seg.nii.gz", 1, []),
        ("seg.nii.gz", 0, [("warning", "empty")]),
        ("seg.nii.gz", 4, [("warning", "labels")]),
        ("seg.nii.gz", 9, [("error", "labels")]),
        ("seg.nii.gz", 0.5, [("error", "labels")]),
        ("Brats18_1_seg.nii.gz", 4, []),
        ("Brats18_1_seg.nii.gz", 3, [("error", "labels")]),
    ],
)
def test_segmentation_values(tmp_path: Path, name: str, value: float, expected: list[tuple[str, str]]) -> None:
    labels = np.where(brain() > 500, np.float32(value), np.float32(0))
    assert codes(check_study(study(tmp_path / "p", seg=save(tmp_path / "p" / name, labels)))) == expected


def test_a_named_coding_settles_what_values_leave_open(tmp_path: Path) -> None:
    case = study(tmp_path / "p", seg=save(tmp_path / "p" / "seg.nii", (brain() > 500) * np.int16(4)))
    assert codes(check_study(case)) == [("warning", "labels")]
    assert check_study(case, BRATS2017) == []


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("brats2017", []),
        ("brats2023", [("error", "labels")]),
        ("brats1999", [("error", "labels")]),
        ("own", [("warning", "labels")]),
    ],
)
def test_a_coding_that_the_table_states_settles_it_too(
    tmp_path: Path, stated: str, expected: list[tuple[str, str]]
) -> None:
    seg = save(tmp_path / "p" / "seg.nii", (brain() > 500) * np.int16(4))
    case = study(tmp_path / "p", seg=seg, values={SEG_CODING: stated})
    assert codes(check_study(case)) == expected
    assert check_study(case, BRATS2017) == []


def test_segmentations_on_another_grid_are_errors(tmp_path: Path) -> None:
    seg = save(tmp_path / "p" / "seg.nii", (brain()[:9] > 500).astype(np.uint8))
    assert codes(check_study(study(tmp_path / "p", seg=seg))) == [("error", "grid")]
    assert codes(check_study(study(tmp_path / "p", seg=tmp_path / "none.nii"))) == [("error", "file")]


def test_drawings_with_other_axes_on_the_same_voxels_are_fine(tmp_path: Path) -> None:
    case, label = study(tmp_path / "p"), (brain() > 500).astype(np.uint8)
    drawn = {"mask": (brain() > 0).astype(np.uint8), "soft": label / np.float32(2), "seg": label}
    turned = {name: tiny_studies.save(tmp_path / f"{name}.nii", array, "PSL") for name, array in drawn.items()}
    images = {name: tiny_studies.save(path, brain(n)) for n, (name, path) in enumerate(case.images.items())}
    case = replace(case, images=images, brain_mask=turned["mask"], lesion=turned["soft"], seg=turned["seg"])
    shown: list[StudyGlance] = []
    assert not check_cohort(Cohort((case,)), progress=False, show=shown.append).findings
    assert shown[0].outline_grid is not None
    assert shown[0].outline_grid.same(shown[0].images[0].grid)
    assert np.array_equal(shown[0].outline, label)


def test_axes_that_are_not_at_right_angles_are_errors(tmp_path: Path) -> None:
    case = study(tmp_path / "p")
    affine = np.eye(4)
    affine[0, 1] = 0.2
    for path in case.images.values():
        nib.save(nib.Nifti1Image(nib.load(path).get_fdata(dtype=np.float32), affine), path)
    found = check_study(case)
    assert codes(found) == [("error", "grid")] * 2
    assert "the axes of t1.nii.gz are not at right angles" in found[0].message
    assert "bmmae preprocess" in found[0].message


@pytest.mark.parametrize(("splits", "severity"), [((None, None), "warning"), (("train", "test"), "error")])
def test_one_patient_under_two_names_is_found(tmp_path: Path, splits: tuple[str | None, ...], severity: str) -> None:
    cohort = Cohort(tuple(study(tmp_path / name, split=split) for name, split in zip("ab", splits, strict=True)))
    report = check_cohort(cohort, progress=False)
    assert [(f.study, f.severity, f.code) for f in report.findings] == [("b", severity, "duplicate")] * 2
    assert "same voxels as t1.nii.gz of a" in report.findings[0].message


def test_one_path_for_two_patients_or_two_modalities_is_found(tmp_path: Path) -> None:
    one = study(tmp_path / "a", split="train")
    findings = check_cohort(Cohort((one, Study("b", one.images, split="test"))), progress=False).findings
    assert [(f.study, f.severity, f.code) for f in findings] == [("b", "error", "duplicate")] * 2
    twice = Study("c", {"t1": one.images["t1"], "t2": one.images["t1"]})
    findings = check_cohort(Cohort((twice,)), progress=False).findings
    assert ("c", "warning", "duplicate") in [(f.study, f.severity, f.code) for f in findings]


def test_the_table_lines_up_and_counts(tmp_path: Path) -> None:
    findings = (
        Finding("a", "error", "file", tmp_path, "is broken"),
        Finding("long_name", "warning", "coverage", tmp_path, "covers 66%"),
    )
    assert format_table(CheckReport(findings, studies=2, files=9)).splitlines() == [
        "         study      code      what was found",
        "error    a          file      is broken",
        "warning  long_name  coverage  covers 66%",
        "2 studies, 9 files: 1 error, 1 warning",
    ]
    assert format_table(CheckReport((), 1, 4)) == "1 study, 4 files: 0 errors, 0 warnings; nothing wrong"
    assert not CheckReport(findings[1:], 2, 9).failed


def table_of(folder: Path, columns: str, *rows: str) -> CheckReport:
    for number in range(len(rows)):
        save(folder / f"{number}.nii.gz", brain(number))
    (folder / "cohort.csv").write_text("\n".join((f"subject,t1,{columns}", *rows)))
    return check_cohort(read_cohort(folder / "cohort.csv", set_bare_apart=True), progress=False)


def test_visits_written_as_subjects_are_warned_of(tmp_path: Path) -> None:
    rows = ("p01_v1,0.nii.gz,{}", "p01_v2,1.nii.gz,{}", "p02,2.nii.gz,{}")
    report = table_of(tmp_path, "group", *(row.format("") for row in rows))
    assert [(f.study, f.severity, f.code) for f in report.findings] == [(WHOLE, "warning", "visits")]
    assert report.findings[0].message.startswith("p01_v1 and p01_v2 look like visits of one patient: fill in `group`")
    assert table_of(tmp_path, "group", *(row.format(row[:3]) for row in rows)).findings == ()


@pytest.mark.parametrize(
    ("column", "advice"),
    [
        ("flaire", "did you mean 'flair'? Rename it, or name it with --modalities"),
        ("SEGM", "did you mean 'seg'? Rename it, or name it with --modalities"),
        ("brain_mask_t1ec", "did you mean 'brain_mask_t1ce'? Rename it, or name it with --modalities"),
        ("pet", "and is used for nothing: rename it, or name it with --modalities"),
    ],
)
def test_a_misspelt_image_column_is_warned_of(tmp_path: Path, column: str, advice: str) -> None:
    report = table_of(tmp_path, column, "a,0.nii.gz,x.nii.gz", "b,1.nii.gz,y.NII", "c,,z.nii", "d,2.nii.gz,")
    assert [(f.study, f.severity, f.code) for f in report.findings] == [
        (WHOLE, "warning", "column"),
        ("c", "error", "bare"),
    ]
    assert report.findings[0].message.startswith(f"column '{column}' holds image files but names no modality known")
    assert report.findings[0].message.endswith(advice)


@pytest.mark.parametrize("column", ["dwi", "ADC", "brain_mask_dwi"])
def test_images_that_are_not_asked_for_are_no_misspelling(tmp_path: Path, column: str) -> None:
    assert table_of(tmp_path, column, "a,0.nii.gz,x.nii.gz").findings == ()


def test_a_column_with_few_image_names_is_left_alone(tmp_path: Path) -> None:
    assert table_of(tmp_path, "remark", "a,0.nii.gz,see t1.nii", "b,1.nii.gz,good").findings == ()


def test_a_name_is_not_proposed_that_is_taken(tmp_path: Path) -> None:
    report = table_of(tmp_path, "flair,flair_raw", "a,0.nii.gz,1.nii.gz,x.nii", "b,1.nii.gz,0.nii.gz,y.nii")
    (message,) = (finding.message for finding in report.findings if finding.code == "column")
    assert "did you mean" not in message


def test_modalities_that_nobody_has_are_noted(tmp_path: Path) -> None:
    report = table_of(tmp_path, "flair", "a,0.nii.gz,")
    assert report.absent == ("t1ce", "t2", "flair")
    assert format_table(report).splitlines()[-2:] == [
        "note: no study has T1ce, T2, FLAIR: if there are such images, look at the table's column names",
        "1 study, 1 file: 0 errors, 0 warnings; nothing wrong",
    ]


@pytest.mark.real
def test_native_space_is_refused_and_partial_coverage_is_seen(real: Path) -> None:
    native = check_cohort(index_folder(real / "tcga_native").cohort, progress=False)
    assert [f.path.name for f in native.findings if f.code == "grid"] == ["t2.nii.gz", "flair.nii.gz"]
    assert native.failed
    partial = check_cohort(index_folder(real / "brats18" / "Brats18_2013_20_1").cohort, progress=False)
    assert [finding.code for finding in partial.findings] == ["coverage"]
    assert "flair.nii.gz covers 66% of the brain" in partial.findings[0].message
    assert not partial.failed


@pytest.mark.real
@pytest.mark.slow
def test_all_other_real_studies_pass(real: Path) -> None:
    cohort = index_folder(real).cohort
    report = check_cohort(cohort, progress=False)
    assert {finding.study for finding in report.findings} == {"TCGA-FG-6692", "Brats18_2013_20_1"}
    assert {finding.study for finding in report.findings if finding.severity == "error"} == {"TCGA-FG-6692"}


@pytest.mark.parametrize("others", [0, 1])
def test_a_row_without_an_image_is_a_line_of_the_report(tmp_path: Path, others: int) -> None:
    save(tmp_path / "t1.nii.gz", brain())
    rows = ["subject,t1,t2", *(f"p{number},t1.nii.gz," for number in range(others)), "empty,,"]
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    report = check_cohort(read_cohort(tmp_path / "cohort.csv", set_bare_apart=True), progress=False)
    assert codes(list(report.findings)) == [("error", "bare")]
    assert "fill in a path" in format_table(report)
    assert (report.failed, report.studies) == (True, others + 1)


def test_voxels_of_an_impossible_size_are_an_error(tmp_path: Path) -> None:
    one = study(tmp_path / "p")
    nib.save(nib.Nifti1Image(brain(), np.diag([2000.0, 2000, 2000, 1])), one.images["t1"])
    (finding,) = check_study(one)
    assert (finding.severity, finding.code) == ("error", "file")
    assert "t1.nii.gz has voxels of 2000 x 2000 x 2000 mm by its header" in finding.message


def test_a_header_that_leaves_right_and_left_open_is_warned_of_once_a_study(tmp_path: Path) -> None:
    one = study(tmp_path / "p")
    for path in (one.images["t1"], one.images["t2"]):
        image = nib.load(path)
        open_header = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        open_header.set_qform(None, code=0)
        open_header.set_sform(None, code=0)
        nib.save(open_header, path)
    found = [finding for finding in check_study(one) if finding.code == "axes"]
    assert [(finding.severity, finding.path) for finding in found] == [("warning", one.images["t1"])]
    assert "right and left may be swapped" in found[0].message


def test_a_synthetic_image_that_the_table_does_not_call_so_is_warned_of(tmp_path: Path) -> None:
    one = study(tmp_path / "p")
    write_image(one.images["t2"], brain(1), np.eye(4), description="bmmae SYNTHETIC T2, not acquired; scale: given")
    (finding,) = check_study(one)
    assert (finding.severity, finding.code, finding.path) == ("warning", "synthetic", one.images["t2"])
    assert "t2.nii.gz was synthesised, as its header says" in finding.message
    assert codes(check_study(replace(one, values={SYNTHETIC: "t1ce+flair"}))) == [("warning", "synthetic")]
    assert check_study(replace(one, values={SYNTHETIC: "t2+flair"})) == []
    assert reconstructed.SYNTHETIC == SYNTHETIC


def test_the_same_file_in_two_columns_or_for_two_visits_is_told_as_such(tmp_path: Path) -> None:
    one = study(tmp_path / "a", split="train")
    again = Study("a", {"t2": one.images["t2"]}, session="later", group=one.group)
    (finding,) = check_cohort(Cohort((one, again)), progress=False).findings
    assert (finding.severity, finding.code) == ("warning", "duplicate")
    assert finding.message.endswith("of a, another visit of the same patient: name the right file in one of the rows")
    twice = Study("c", {"t1": one.images["t1"], "t2": one.images["t1"]})
    messages = [f.message for f in check_cohort(Cohort((twice,)), progress=False).findings if f.code == "duplicate"]
    assert messages == [
        "t1.nii.gz has the same voxels as t1.nii.gz, which stands in another column of its row: name the right file in "
        "one of them"
    ]


def test_images_of_a_few_slices_are_warned_of(tmp_path: Path) -> None:
    one = study(tmp_path / "a")
    path = save(tmp_path / "a" / "flat.nii.gz", brain()[:, :, 4:7])
    findings = check_study(Study("a", {**one.images, "t1": path}))
    (thin,) = (finding for finding in findings if finding.code == "thin")
    assert thin.message.startswith("flat.nii.gz has ")
    assert thin.message.endswith(": is it a localiser or a part of a scan? Leave its cell blank")

"""Studies are found by file names in any mixture of layouts, and nothing is guessed."""

from pathlib import Path

import numpy as np
import pytest

from bmmae.data.cohort import Study, read_cohort
from bmmae.data.index import IndexReport, index_folder
from bmmae.data.naming import Role, role_of
from bmmae.data.writing import write_image
from bmmae.errors import CohortError


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(root: Path, report: IndexReport) -> dict[tuple[str, str], dict[str, str]]:
    return {
        study.key: {name: path.relative_to(root).as_posix() for name, path in study.images.items()}
        for study in report.cohort
    }


def only(report: IndexReport) -> Study:
    assert len(report.cohort) == 1
    return report.cohort[0]


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        (
            "t1 T1w t1n T1_native mprage T1_brain T1_pre_contrast t1_without_contrast post_op_T1 T1_post_op pat_c_t1",
            "t1",
        ),
        ("T1_sans_gado T1_pré_gado t1_o.KM t1_gre CE12_t1 GAD01_t1 sub_01_t1 T1_Warped t1_post_rt", "t1"),
        ("AX_T1_SE_+C T1_nach_KM t1_se_tra_KM t1_mit_km T1_Gadovist p01_pre_T1_gd pre_t1ce CE_T1_post T1_-_gd", "t1ce"),
        ("t2_tirm_tra_dark-fluid t2_space_dark-fluid tirm_tra dark_fluid", "flair"),
        (
            "t1ce T1c t1+c T1-Gd T1Gd t1_post T1_3D_post post_T1 mprage_post T1w_ce T1_axial_gd gad_T1w T1_contrast",
            "t1ce",
        ),
        ("t2 T2w t2_tse T2_post", "t2"),
        ("flair t2f t2_flair T2-FLAIR fla", "flair"),
    ],
)
def test_the_longest_alias_in_a_name_decides(names: str, modality: str) -> None:
    for name in names.split():
        role = role_of(name)
        assert isinstance(role, Role), f"{name}: {role}"
        assert (role.kind, role.modality) == ("image", modality), name


@pytest.mark.parametrize(
    ("name", "kind", "modality"),
    [
        ("seg", "seg", None),
        ("mask", "seg", None),
        ("tumor_segmentation", "seg", None),
        ("lesion_mask", "seg", None),
        ("W39_1998.09.19_Segm", "seg", None),
        ("flair_seg", "seg", None),
        ("brainmask", "brain_mask", None),
        ("brain_segmentation", "brain_mask", None),
        ("brainmask_t1ce", "brain_mask", "t1ce"),
        ("t1_post_brain_mask", "brain_mask", "t1ce"),
    ],
)
def test_masks_are_told_from_images(name: str, kind: str, modality: str | None) -> None:
    role = role_of(name)
    assert isinstance(role, Role)
    assert (role.kind, role.modality) == (kind, modality)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("t2_star t2_gre T2_FFE T2* t2-*_axial", "its name says T2*, another sequence"),
        (
            "T1_map t1_sub T1_bias_field T1_jacobian t1_warp t1_1Warp t1_aseg t1_pve_0 T1w_probseg T2_map SWI_mIP",
            "its name says that it was computed from images",
        ),
        ("T1_bias T1c_bias pat01_FLAIR_bias", "its name says that it was computed from images (bias)"),
        (
            "t2_std t1ce_std seg_probability_ET probability_ET lesion_probability",
            "its name says that it was computed from images",
        ),
        (
            "T1_+-_GD T1_-GD T1_pre_axial_gd T1_contrast_none T1_gd- KM_t1",
            "its name leaves open whether it is with or without",
        ),
    ],
)
def test_names_of_something_else_or_of_open_contrast_are_left_out_with_the_reason(names: str, reason: str) -> None:
    for name in names.split():
        role = role_of(name)
        assert isinstance(role, str), f"{name}: {role}"
        assert role.startswith(reason), name


def test_a_map_may_be_an_image_by_itself() -> None:
    declared_maps = (("T1_map", ("t1map",), "t1map"), ("swi_mip", ("swi_mip",), "swi_mip"))
    for name, declared, modality in (("adc_map", (), "adc"), *declared_maps):
        role = role_of(name, declared)
        assert isinstance(role, Role)
        assert role.modality == modality


@pytest.mark.parametrize(
    "name", ["001", "flair_in_t1", "FLAIR_T2", "t1_mask", "t1_lesion", "head_mask", "brain_tumor_mask", ""]
)
def test_names_that_say_two_things_or_none_are_left_out(name: str) -> None:
    assert isinstance(role_of(name), str)


def test_brats_editions(tmp_path: Path) -> None:
    old = [f"HGG/Brats18_X_1/Brats18_X_1_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair", "seg")]
    new = [
        f"T/BraTS-GLI-00000-{v}/BraTS-GLI-00000-{v}-{n}.nii.gz" for v in ("000", "001") for n in ("t1n", "t1c", "seg")
    ]
    report = index_folder(tree(tmp_path, *old, *new, "T/BraTS-MEN-RT-0007-1/BraTS-MEN-RT-0007-1_t1c.nii.gz"))
    keys = [("BraTS-GLI-00000", "000"), ("BraTS-GLI-00000", "001"), ("BraTS-MEN-RT-0007", "1"), ("Brats18_X_1", "")]
    assert [study.key for study in report.cohort] == keys
    assert [list(study.images) for study in report.cohort][0::3] == [["t1", "t1ce"], ["t1", "t1ce", "t2", "flair"]]
    assert report.cohort[0].group == report.cohort[1].group == "BraTS-GLI-00000"
    assert report.cohort[0].seg == tmp_path / new[2]
    assert not report.problems


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("acq-postGd_T1w", "t1ce"),
        ("acq-ce_T1w", "t1ce"),
        ("acq-t1ce_T1w", "t1ce"),
        ("rec-contrast_T1w", "t1ce"),
        ("acq-space_T1w", "t1"),
        ("acq-preGd_T1w", "t1"),
        ("acq-mprage_T1w", "t1"),
        ("acq-KM_T1w", "t1ce"),
        ("acq-t1c_T1w", "t1ce"),
        ("acq-sansGado_T1w", "t1"),
        ("ce-none_T1w", "t1"),
    ],
)
def test_contrast_told_by_acquisition_or_reconstruction(tmp_path: Path, name: str, modality: str) -> None:
    (study,) = index_folder(tree(tmp_path, f"sub-01/anat/sub-01_{name}.nii.gz")).cohort
    assert set(study.images) == {modality}


def test_bids_entities(tmp_path: Path) -> None:
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    report = index_folder(
        tree(
            tmp_path,
            f"{anat}_T1w.nii.gz",
            f"{anat}_ce-Omniscan_T1w.nii.gz",
            f"{anat}_acq-T1like_FLAIR.nii.gz",
            f"{anat}_space-T1w_label-lesion_mask.nii.gz",
            f"derivatives/bet/{anat}_space-T1w_desc-brain_mask.nii.gz",
            f"derivatives/prep/{anat}_desc-preproc_T1w.nii.gz",
            "sub-02/anat/sub-02_T2w.nii.gz",
            "sub-02/func/sub-02_task-rest_bold.nii.gz",
        )
    )
    first, second = report.cohort
    assert (first.key, second.key) == (("sub-01", "ses-a"), ("sub-02", ""))
    assert {name: path.name.split("ses-a_")[1] for name, path in first.images.items()} == {
        "t1": "T1w.nii.gz",
        "t1ce": "ce-Omniscan_T1w.nii.gz",
        "flair": "acq-T1like_FLAIR.nii.gz",
    }
    assert first.seg is not None
    assert first.seg.name.endswith("lesion_mask.nii.gz")
    assert first.brain_mask is not None
    assert [problem.reason for problem in report.problems] == ["is a derivative", "its name says no modality"]
    assert report.problems[1].advice.startswith("name its sequence with --modalities")


def test_one_folder_a_patient_at_any_depth(tmp_path: Path) -> None:
    report = index_folder(
        tree(
            tmp_path,
            "site/p1/t1.nii.gz",
            "site/p1/anat/T1_post.nii",
            "site/p1/mask.nii.gz",
            "site/p1/brainmask_t1.nii.gz",
            "p2/visit1/flair.nii.gz",
            "p2/20200131/flair.nii.gz",
            "CT_001/CT_001_t2.nii.gz",
            "p3/T2/series.nii.gz",
            "p3/FLAIR/series.nii.gz",
        )
    )
    assert found(tmp_path, report) == {
        ("CT_001", ""): {"t2": "CT_001/CT_001_t2.nii.gz"},
        ("p1", ""): {"t1": "site/p1/t1.nii.gz", "t1ce": "site/p1/anat/T1_post.nii"},
        ("p2", "20200131"): {"flair": "p2/20200131/flair.nii.gz"},
        ("p2", "visit1"): {"flair": "p2/visit1/flair.nii.gz"},
        ("p3", ""): {"t2": "p3/T2/series.nii.gz", "flair": "p3/FLAIR/series.nii.gz"},
    }
    assert report.cohort[1].seg == tmp_path / "site/p1/mask.nii.gz"
    assert report.cohort[1].brain_mask_of("t1") == tmp_path / "site/p1/brainmask_t1.nii.gz"
    assert not report.problems


def test_one_study_alone(tmp_path: Path) -> None:
    assert only(index_folder(tree(tmp_path / "patient7", "t1.nii.gz", "t2.nii.gz"))).subject == "patient7"


@pytest.mark.parametrize("name", ["p{}_{}.nii.gz", "{1}/p{0}.nii.gz"])
def test_many_patients_side_by_side(tmp_path: Path, name: str) -> None:
    tree(tmp_path, *(name.format(patient, modality) for patient in (1, 2) for modality in ("t1", "t2")))
    report = index_folder(tmp_path)
    assert [(study.subject, list(study.images)) for study in report.cohort] == [
        ("p1", ["t1", "t2"]),
        ("p2", ["t1", "t2"]),
    ]


def test_one_sequence_of_many_patients_side_by_side(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p01_t1.nii.gz", "p02_t1.nii.gz", "p03_t1.nii.gz", "p03_t2.nii.gz"))
    assert [(study.subject, list(study.images)) for study in report.cohort] == [
        ("p01", ["t1"]),
        ("p02", ["t1"]),
        ("p03", ["t1", "t2"]),
    ]
    assert not report.problems


@pytest.mark.parametrize(
    "names",
    [
        ("s3_t1", "s5_t1"),
        ("scan1_t1", "scan2_t1"),
        ("anna_v1_t1", "anna_v2_t1"),
        ("n4_t1", "reg2_t1"),
        ("p1_t1", "p1_t1_n4", "p2_t1"),
        ("p1_t1", "t1"),
    ],
)
def test_scans_of_one_patient_are_no_patients(tmp_path: Path, names: tuple[str, ...]) -> None:
    report = index_folder(tree(tmp_path, "anna/t2.nii.gz", *(f"anna/{name}.nii.gz" for name in names)))
    assert list(only(report).images) == ["t2"]
    assert "files claim to be the T1" in report.problems[0].reason


def test_visits_side_by_side_in_a_patients_folder(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p01/visit1_t1.nii.gz", "p01/visit2_t1.nii.gz", "p02/t1.nii.gz"))
    assert [study.key for study in report.cohort] == [("p01", "visit1"), ("p01", "visit2"), ("p02", "")]


def test_series_numbers_are_no_patients(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path / "anna", "003_t1.nii.gz", "004_t2.nii.gz", "005_t1.nii.gz"))
    assert list(only(report).images) == ["t2"]
    assert "2 files claim to be the T1 (003_t1.nii.gz, 005_t1.nii.gz)" in report.problems[0].reason


def test_two_files_for_one_place_leave_it_blank(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p/t1.nii.gz", "p/t1_n4.nii.gz", "p/t2.nii.gz", "p/seg.nii.gz", "p/label.nii"))
    assert list(only(report).images) == ["t2"]
    assert only(report).seg is None
    assert [problem.advice.split(";")[0] for problem in report.problems] == ["left blank", "left blank"]


def test_a_folder_inside_that_of_a_patient_is_a_visit_of_that_patient(tmp_path: Path) -> None:
    names = ("p1/t1.nii.gz", "p1/t2.nii.gz", "p1/old/t1.nii.gz", "p2/t1.nii.gz", "p2/t2.nii.gz")
    report = index_folder(tree(tmp_path, *names))
    assert [(study.key, study.group) for study in report.cohort] == [
        (("p1", ""), "p1"),
        (("p1", "old"), "p1"),
        (("p2", ""), "p2"),
    ]
    assert "holds folders beside images of its own, so 'p1' is taken as the patient" in report.problems[0].reason


def test_patients_beside_a_template_stay_patients(tmp_path: Path) -> None:
    names = ("site/template_t1.nii.gz", "site/p1/t1.nii.gz", "site/p2/t1.nii.gz")
    assert [study.subject for study in index_folder(tree(tmp_path, *names)).cohort] == ["p1", "p2", "site"]


def test_nothing_found_tells_every_reason(tmp_path: Path) -> None:
    names = ("p1/adc.nii.gz", "p1/t1_a.nii.gz", "p1/t1_b.nii.gz", "p1/x.nii.gz")
    with pytest.raises(CohortError) as raised:
        index_folder(tree(tmp_path, *names))
    for reason in ("is adc, which is not asked for", "2 files claim to be the T1 (t1_a.nii.gz, t1_b.nii.gz)"):
        assert reason in str(raised.value)


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    names = ("p/t1.nii.gz", "p/adc.nii.gz", "p/unknown.nii.gz", "q/seg.nii.gz", "p/notes.txt", "p/._t1.nii.gz")
    report = index_folder(tree(tmp_path, *names))
    assert {problem.path.relative_to(tmp_path).as_posix(): problem.reason for problem in report.problems} == {
        "p/adc.nii.gz": "is adc, which is not asked for",
        "p/unknown.nii.gz": "its name says no modality",
        "q/seg.nii.gz": "its study has no usable image",
    }
    assert all(str(problem.path) in str(problem) and problem.advice in str(problem) for problem in report.problems)


def test_declared_modalities_are_found(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p/pet.nii.gz", "p/t1.nii.gz", "p/adc.nii.gz"), ("pet", "t1", "adc"))
    assert list(only(report).images) == ["t1", "adc", "pet"]


def test_folders_of_the_same_name_never_leak_a_patient(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "a/1/t1.nii.gz", "a/2/t1.nii.gz", "b/1/t1.nii.gz", "c/t1.nii.gz"))
    assert [(study.key, study.group) for study in report.cohort] == [
        (("a", "1"), "a"),
        (("a", "2"), "a"),
        (("b", "1"), "b"),
        (("c", ""), "c"),
    ]
    assert {problem.path.name for problem in report.problems} == {"a", "b"}
    assert "taken as the patient" in report.problems[0].reason


def groups(report: IndexReport) -> dict[tuple[str, str], str]:
    return {study.key: study.group for study in report.cohort}


@pytest.mark.parametrize(
    "visits",
    [
        ("2019_01_31", "2019_02_28"),
        ("2019.01.31", "31.12.2019"),
        ("week-000", "week-044-2"),
        ("06-08-1997-NA-MRI BRAIN-12345", "10-28-1997-NA-MRI-54321"),
        ("visit1_20190131", "followup-2019-02-28"),
    ],
)
def test_folders_named_as_visits_are_the_patients_own(tmp_path: Path, visits: tuple[str, str]) -> None:
    report = index_folder(tree(tmp_path, *(f"p01/{visit}/t1.nii.gz" for visit in visits), "p02/t1.nii.gz"))
    assert groups(report) == {("p01", visits[0]): "p01", ("p01", visits[1]): "p01", ("p02", ""): "p02"}
    assert not report.problems


def test_other_folders_beside_visits_are_visits_too(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p01/week-001/t1.nii.gz", "p01/extra/t1.nii.gz", "p02/t1.nii.gz"))
    assert groups(report) == {("p01", "extra"): "p01", ("p01", "week-001"): "p01", ("p02", ""): "p02"}
    (problem,) = report.problems
    assert (
        problem.reason == "holds folders named as visits beside others, so 'p01' is taken as the patient and they "
        "as visits"
    )


def test_a_site_with_more_patients_than_visits_is_no_patient(tmp_path: Path) -> None:
    names = ("p01", "p02", "followup")
    report = index_folder(tree(tmp_path, *(f"site/{name}/t1.nii.gz" for name in names)))
    assert sorted(groups(report).values()) == ["p01", "p02", "site"]


@pytest.mark.parametrize("name", ["{0}/{0}_t1.nii.gz", "{0}/t1.nii.gz", "data/{0}_t1.nii.gz", "{0}_t1.nii.gz"])
@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00002_11"),
        ("p01_baseline", "p01_followup", "p02_baseline"),
        ("p01_2019-01-31", "p01_20190228", "p02_31.01.2019"),
        ("UCSF-PDGM-0429_nifti", "UCSF-PDGM-0429_FU003d_nifti", "UCSF-PDGM-0431_nifti"),
    ],
)
def test_subjects_named_as_visits_share_a_group(tmp_path: Path, name: str, first: str, second: str, other: str) -> None:
    report = index_folder(tree(tmp_path, *(name.format(subject) for subject in (first, second, other))))
    group = groups(report)
    assert group[first, ""] == group[second, ""] != group[other, ""]
    assert first.startswith(group[first, ""])
    assert "share a `group`" in report.problems[0].reason
    assert len(report.problems) == 1


def test_numbers_in_a_name_are_no_visits(tmp_path: Path) -> None:
    names = ("Brats18_2013_10_1", "Brats18_2013_11_1", "BraTS2021_00006", "900-00-1961", "900-00-5303", "TCGA-02-0003")
    report = index_folder(tree(tmp_path, *(f"{name}/{name}_t1.nii.gz" for name in names)))
    assert {study.group for study in report.cohort} == set(names)
    assert not report.problems


def test_series_folders_of_an_archives_visit_are_one_study(tmp_path: Path) -> None:
    visit = "TCGA-02-0003/06-08-1997-NA-MRI BRAIN-12345"
    study = only(index_folder(tree(tmp_path, f"{visit}/3.000000-AX T1-1/t1.nii", f"{visit}/4.000000-AX T2-2/t2.nii")))
    assert (study.group, list(study.images)) == ("TCGA-02-0003", ["t1", "t2"])


def test_a_copied_patient_stays_one_patient(tmp_path: Path) -> None:
    names = [f"{place}/Brats18_{n}/Brats18_{n}_t1.nii.gz" for place, n in (("HGG", 1), ("HGG", 2), ("copy", 1))]
    report = index_folder(tree(tmp_path, *names))
    assert [(s.subject, s.group) for s in report.cohort] == [
        ("Brats18_2", "Brats18_2"),
        ("HGG_Brats18_1", "Brats18_1"),
        ("copy_Brats18_1", "Brats18_1"),
    ]
    assert len(report.problems) == 2


def test_subjects_of_two_data_sets_keep_apart(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "A/sub-1/anat/sub-1_T1w.nii.gz", "B/sub-1/anat/sub-1_T1w.nii.gz"))
    assert [study.group for study in report.cohort] == ["A_sub-1", "B_sub-1"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    tree(tmp_path, "p/t1.nii.gz")
    (tmp_path / "p" / "back").symlink_to(tmp_path, target_is_directory=True)
    assert only(index_folder(tmp_path)).subject == "p"


def test_a_folder_goes_by_its_own_name_and_not_by_a_links(tmp_path: Path) -> None:
    tree(tmp_path, "p/2019-01-31/t1.nii.gz", "p/2018-02-03/t1.nii.gz")
    (tmp_path / "p" / "latest").symlink_to("2019-01-31", target_is_directory=True)
    (tmp_path / "a").symlink_to("p", target_is_directory=True)
    (tmp_path / "z").symlink_to("p", target_is_directory=True)
    assert [study.key for study in index_folder(tmp_path).cohort] == [("p", "2018-02-03"), ("p", "2019-01-31")]


def test_nothing_found_names_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="is not a folder"):
        index_folder(tmp_path / "none")
    with pytest.raises(CohortError, match=r"it has no NIfTI files\. Recognised layouts:\nBraTS 2017(.|\n)*BIDS"):
        index_folder(tmp_path)
    with pytest.raises(CohortError, match=r"1 file could not be used, such as .*x\.nii"):
        index_folder(tree(tmp_path, "x.nii"))


def test_an_index_is_read_back_from_its_table(tmp_path: Path) -> None:
    report = index_folder(tree(tmp_path, "p/t1.nii.gz", "p/seg.nii.gz", "q/t2.nii.gz", "q/brainmask_t2.nii.gz"))
    assert read_cohort(report.cohort.write(tmp_path / "cohort.csv")).studies == report.cohort.studies


def test_a_subject_may_be_named_as_what_means_not_known(tmp_path: Path) -> None:
    names = ("nan", "NA", "none", "null")
    report = index_folder(tree(tmp_path, *(f"{name}/t1.nii.gz" for name in names)))
    for table in ("cohort.csv", "cohort.parquet"):
        assert {study.subject for study in read_cohort(report.cohort.write(tmp_path / table))} == set(names)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_what_reconstruct_wrote_beside_the_scans_is_left_out_and_told(tmp_path: Path, ending: str) -> None:
    tree(tmp_path, "p/t1.nii.gz", "p/seg.nii.gz")
    voxels, affine = np.arange(8.0).reshape(2, 2, 2), np.eye(4)
    write_image(tmp_path / "p" / "flair.nii.gz", voxels, affine, description="bmmae import-dicom")
    write_image(
        tmp_path / "p" / f"t2{ending}", voxels, affine, description="bmmae SYNTHETIC T2, not acquired; scale: x"
    )
    tree(tmp_path, "p/t2_std.nii.gz", "p/probability_ET.nii.gz", "p/seg_probability_WT.nii.gz")
    report = index_folder(tmp_path)
    assert list(only(report).images) == ["t1", "flair"]
    assert only(report).seg == tmp_path / "p" / "seg.nii.gz"
    reasons = {problem.path.name: problem.reason for problem in report.problems}
    assert reasons.pop(f"t2{ending}") == "is a synthesised image by its header"
    assert len(reasons) == 3
    assert all("computed from images" in reason for reason in reasons.values())


def test_indexing_goes_by_names_and_opens_no_file(tmp_path: Path) -> None:
    for number in range(200):
        folder = tmp_path / f"Brats_{number:05d}"
        folder.mkdir()
        for name in ("t1", "t1ce", "t2", "flair"):
            (folder / f"{folder.name}_{name}.nii.gz").touch()  # empty: whoever opened it would fail
    assert len(index_folder(tmp_path).cohort) == 200


@pytest.mark.real
def test_real_layouts_together(real: Path) -> None:
    report = index_folder(real)
    studies = {study.subject: study for study in report.cohort}
    assert len(report.cohort) == len(studies) == 18
    assert not report.problems
    assert sum(name.startswith("Brats18_") for name in studies) == 12
    assert (studies["sub-113"].session, list(studies["sub-113"].images)) == ("ses-2", ["t1", "t2", "flair"])
    assert (studies["BraTS-GLI-00000"].session, studies["BraTS-GLI-00000"].group) == ("000", "BraTS-GLI-00000")
    assert set(studies["TCGA-FG-6692"].brain_masks) == {"t1", "t1ce", "t2", "flair"}
    assert sum(study.seg is not None for study in report.cohort) == 16
    assert sum(len(study.images) for study in report.cohort) == 71
    assert all(path.is_file() for study in report.cohort for path in study.files())


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "count"), [("brats18", 12), ("brats23", 1), ("open_ms/patient07", 1), ("kirby21", 1)]
)
def test_real_layouts_alone(real: Path, folder: str, count: int) -> None:
    assert len(index_folder(real / folder).cohort) == count


def test_images_of_other_formats_are_told(tmp_path: Path) -> None:
    tree(tmp_path, "p1/t1.nii.gz", "p1/seg.nrrd")
    (problem,) = index_folder(tmp_path).problems
    assert (problem.path.name, problem.reason) == ("seg.nrrd", "is no NIfTI file")


def test_a_link_to_itself_is_told_and_stops_nothing(tmp_path: Path) -> None:
    tree(tmp_path, "p/t1.nii.gz")
    (tmp_path / "p" / "t2.nii.gz").symlink_to("t2.nii.gz")
    report = index_folder(tmp_path)
    assert [set(study.images) for study in report.cohort] == [{"t1"}]
    (problem,) = report.problems
    assert problem.path.name == "t2.nii.gz"
    assert "cannot be opened (Too many levels of symbolic links)" in problem.told

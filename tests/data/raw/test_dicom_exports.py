"""Exports as hospitals hand them out: copied, linked, anonymised badly, in colour, of several patients."""

import os
import re
import shutil
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_writer import Patient, _item, oblique, phantom

from bmmae.cli import main
from bmmae.data.raw import dicom_files
from bmmae.data.raw.conversion import convert_series
from bmmae.data.raw.dicom_files import READ, Identity, scan_folder
from bmmae.data.raw.dicom_import import find_series, import_series
from bmmae.data.raw.dicom_planes import Plane, misplaced, plane_problems
from bmmae.data.raw.privacy import scrubbed
from bmmae.errors import ImageError
from bmmae.modalities import STANDARD

T1, T1CE, T2, FLAIR = STANDARD
LONG = {"RepetitionTime": 9000, "EchoTime": 95}


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "in")


def change(patient: Patient, pattern: str = "*", **elements: object) -> None:
    """Write elements into the files of a patient."""
    for path in patient.folder.glob(f"{pattern}.dcm"):
        file = pydicom.dcmread(path)
        for name, value in elements.items():
            setattr(file, name, value)
        file.save_as(path)


@pytest.mark.parametrize("study_uid", ["", "1.2.3.4.5"])
def test_patients_whose_studies_share_a_uid_or_have_none_stay_apart(tmp_path: Path, study_uid: str) -> None:
    Patient(tmp_path / "in" / "a", patient_id="A", study_uid=study_uid).series("T1 ax")
    Patient(tmp_path / "in" / "b", patient_id="B", study_uid=study_uid).series("T2 tse", phantom(1), **LONG)
    found = find_series(tmp_path / "in")
    assert sorted((row.name.subject, row.name.session) for row in found.rows) == [
        ("sub-0001", "ses-1"),
        ("sub-0002", "ses-1"),
    ]
    told = "sub-0001, sub-0002 share a StudyInstanceUID: if it is one visit of one patient, give all its files the same"
    assert f"{told} PatientID" in found.doubts or not study_uid


def test_two_patients_in_one_series_are_never_one_volume(tmp_path: Path) -> None:
    first, second = Patient(tmp_path / "in" / "a", patient_id="A"), Patient(tmp_path / "in" / "b", patient_id="B")
    uid = first.series("T1 ax")
    beyond = oblique()
    beyond[:3, 3] += phantom().shape[2] * beyond[:3, 2]
    second.series("T1 ax", phantom(1), beyond)
    change(second, SeriesInstanceUID=uid, StudyInstanceUID=first.study_uid)
    found = find_series(tmp_path / "in")
    assert [row.verdict.reason for row in found.rows] == ["files of 2 patients in one series"]
    with pytest.raises(ImageError, match=r"files of 2 patients .* leave the series out"):
        convert_series(found.series[0])


def test_slices_of_a_tilted_gantry_are_never_a_straight_volume(patient: Patient) -> None:
    sheared = np.diag([-1.5, -2.0, 4.0, 1.0])
    sheared[1, 2] = 1.2
    patient.series("T1 ax", affine=sheared)
    found = find_series(patient.folder)
    assert found.rows[0].verdict.reason == "slices up to 13.2 mm beside each other, as of a tilted gantry"
    with pytest.raises(ImageError, match=r"tilted gantry; leave the series out"):
        convert_series(found.series[0])


def test_slices_in_one_place_are_one_whatever_the_rounding_of_their_places() -> None:
    tilt = np.array([0.0, 2e-4, 1.0])  # as of orientations that were written with few digits
    normals = (np.array([0.0, 0.0, 1.0]), tilt / np.linalg.norm(tilt))
    corners = [(0.0, 120.0, 3.5 * k + 0.005 + off) for k in range(12) for off in (-1e-6, 1e-6)]
    planes = [Plane(normals[i % 2], np.array(corner)) for i, corner in enumerate(corners)]
    assert plane_problems(planes) == (12, ("2 volumes in one series",))
    assert misplaced(planes) == ()
    assert plane_problems([*planes[0:8:2], *planes[10::2]])[0] == 11
    assert misplaced([*planes[0:8:2], *planes[10::2]]) == ("1 of 12 slices missing",)


def test_an_agent_in_a_sequence_or_as_an_amount_is_contrast(tmp_path: Path) -> None:
    told = {
        "coded": {"ContrastBolusAgentSequence": [_item(CodeValue="G", CodeMeaning="Gadobutrol")]},
        "amount": {"ContrastBolusVolume": "7.5"},
        "dose": {"ContrastBolusTotalDose": "10"},
    }
    silent = {
        "zero": {"ContrastBolusVolume": "0"},
        "denied": {"ContrastBolusAgent": "none", "ContrastBolusVolume": "7.5"},
        "not yet": {
            "ContrastBolusAgentSequence": [_item(CodeValue="G", CodeMeaning="Gadobutrol")],
            "SharedFunctionalGroupsSequence": [
                _item(ContrastBolusUsageSequence=[_item(ContrastBolusAgentAdministered="NO")])
            ],
        },
    }
    for name, header in {**told, **silent}.items():
        Patient(tmp_path / name, patient_id=name).series("T1 ax", **header)
    assert {name: find_series(tmp_path / name).rows[0].modality for name in told} == dict.fromkeys(told, T1CE)
    assert {name: find_series(tmp_path / name).rows[0].modality for name in silent} == dict.fromkeys(silent, T1)


def test_times_of_enhanced_files_may_stand_beside_each_frame(patient: Patient) -> None:
    frames = [_item(MREchoSequence=[_item(EffectiveEchoTime=95.0)])]
    patient.series("axial", EchoTime=None, RepetitionTime=9000, PerFrameFunctionalGroupsSequence=frames)
    assert {item.acquisition.te for item in find_series(patient.folder).series} == {95.0}


def test_a_series_that_was_copied_is_one_series(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 ax")
    key = find_series(patient.folder).rows[0].key
    shutil.copytree(patient.folder, patient.folder / "copy")
    found = find_series(patient.folder)
    assert [(row.modality, row.slices, row.key) for row in found.rows] == [(T1, 12, key)]


def test_linked_folders_are_looked_into_once(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 ax")
    for name in ("one", "two", "circle"):
        (tmp_path / name).mkdir()
    (tmp_path / "circle" / "up").symlink_to(tmp_path / "circle")
    for name in ("a", "b"):
        (tmp_path / "circle" / name).symlink_to(patient.folder)
    found = find_series(tmp_path / "circle")
    assert [(row.modality, row.slices) for row in found.rows] == [(T1, 12)]


def test_a_folder_that_cannot_be_opened_is_no_series_to_do_without(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.series("T1 ax")
    (patient.folder / "locked").mkdir()
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ImageError, match=r"locked cannot be opened: Permission denied; check its permissions"):
        find_series(patient.folder)


def test_colour_pictures_are_no_scan(patient: Patient, tmp_path: Path) -> None:
    patient.series("T2 tse", **LONG)
    patient.series("T1 ax", number=2)
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    pixels = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": bytes(24 * 20 * 3)}
    change(patient, "s2*", **colours, **pixels)
    found = find_series(patient.folder)
    report = import_series(found, found.rows, tmp_path / "out", progress=False)
    assert list(report.cohort[0].images) == [T2]
    assert report.problems == (
        "sub-0001 ses-1, t1: the series holds colour pictures: expected grey values; leave it out of the table",
    )


def test_a_series_that_cannot_be_decoded_is_told_by_the_error_not_by_a_remark(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 ax")
    for path in patient.folder.iterdir():
        file = pydicom.dcmread(path)
        file.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        file.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(200)])
        file["PixelData"].is_undefined_length = True
        file.save_as(path)
    with pytest.raises(ImageError, match=r"dcm2niix made no volume of 12 files: Error"):
        convert_series(find_series(patient.folder).series[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Müller^Jörg", "T1 Mueller MULLER ax"),
        ("Yamada^Tarou=山田^太郎", "T1 山田 ax"),
        ("Çelik^Ay", "T1 celik ax"),
        ("Müller^Jörg", unicodedata.normalize("NFD", "T1 Müller ax")),
    ],
)
def test_other_spellings_of_a_name_are_cut_out_too(tmp_path: Path, name: str, words: str) -> None:
    patient = Patient(tmp_path, name=name)
    patient.series(words, SpecificCharacterSet="ISO_IR 192")
    kept = find_series(tmp_path).rows[0].description
    assert set(kept.split()) == {"T1", "[removed]", "ax"}


@pytest.mark.parametrize(
    "date", ["14MAR2019", "14-Mar-2019", "14. März 2019", "14-MAR-19", "March 14, 2019", "14.03.19", "2019-03-14"]
)
def test_dates_are_cut_out_however_they_are_written(tmp_path: Path, date: str) -> None:
    Patient(tmp_path).series(f"T1 post {date} ax", SpecificCharacterSet="ISO_IR 192")
    assert find_series(tmp_path).rows[0].description == "T1 post [removed] ax"


def test_sizes_and_numbers_are_no_dates() -> None:
    words = "t1 mpr sag 1 mm 256 mar 3 dec 2 T2 3D 12 FLAIR"
    assert scrubbed(words, Identity("MRN4711A")) == words


def test_of_a_header_only_what_is_looked_at_is_kept(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 post gad")
    heavy = 200_000
    for path in patient.folder.iterdir():
        header = pydicom.dcmread(path)
        header.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"0" * heavy)
        header.save_as(path)
    tracemalloc.start()
    found = scan_folder(patient.folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.series[0].slices == 12
    assert peak < 5 * heavy


def test_every_element_that_is_looked_at_is_read() -> None:
    """A name that some module asks for and `READ` lacks would be empty in every header."""
    folder = Path(dicom_files.__file__).parent
    words = {
        word
        for name in ("dicom_files", "dicom_elements", "dicom_planes")
        for word in re.findall(r'"([A-Z][A-Za-z]+)"', (folder / f"{name}.py").read_text())
    }
    inside = {"CodeMeaning", "CodeValue", "ContrastBolusAgentAdministered"}  # of sequences, which are read whole
    meta = {"TransferSyntaxUID", "MediaStorageSOPClassUID"}
    asked = {word for word in words if pydicom.datadict.tag_for_keyword(word) is not None}
    assert asked - inside - meta == set(READ)


def test_one_name_and_date_of_birth_under_two_identifiers_is_doubted(tmp_path: Path) -> None:
    for letter, name in (("A", "Quimby^Wilhelmina"), ("B", "QUIMBY^WILHELMINA"), ("C", "Other^Name")):
        Patient(tmp_path / letter, patient_id=letter, name=name).series("T1 ax")
    found = find_series(tmp_path)
    twins = sorted(name.subject for (person, _), name in found.names.items() if person != "C")
    assert found.doubts == (
        f"{', '.join(twins)} have the same name and date of birth: if they are one patient, give them one `group` in "
        "cohort.csv",
    )


def test_visits_that_differ_in_the_date_of_birth_are_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for day in ("01", "02"):
        patient = Patient(tmp_path / "in" / day, patient_id="ANON")
        patient.series("T1 ax")
        change(patient, PatientBirthDate=f"194802{day}")
    assert main(["import-dicom", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "warning: sub-0001 has 2 dates of birth" in capsys.readouterr().err


def test_a_gap_is_never_filled_with_what_nobody_scanned(patient: Patient) -> None:
    patient.series("T1 ax", skip=(5,), PixelRepresentation=1)
    with pytest.raises(ImageError, match=r"11 files, it would be wrong: 1 of 12 slices missing"):
        convert_series(find_series(patient.folder).series[0])


def test_slices_without_a_position_are_put_nowhere(patient: Patient) -> None:
    patient.series("T1 ax")
    for path in patient.folder.iterdir():
        file = pydicom.dcmread(path)
        del file.ImagePositionPatient
        file.save_as(path)
    found = find_series(patient.folder)
    assert found.rows[0].verdict.reason == "12 of 12 files without position and orientation"
    with pytest.raises(ImageError, match="without position and orientation; leave the series out"):
        convert_series(found.series[0])


def test_names_of_sequences_may_be_in_any_letters(patient: Patient, tmp_path: Path) -> None:
    accents = {"ProtocolName": "Schädel", "SequenceName": "sé"}
    patient.series("T1 ax", SpecificCharacterSet="ISO_IR 100", **accents)
    array, _ = convert_series(find_series(patient.folder).series[0])
    assert array.shape == phantom().shape


def test_no_spreadsheet_takes_a_series_key_for_a_number(patient: Patient) -> None:
    patient.series("T1 ax")
    assert find_series(patient.folder).rows[0].key[0].isalpha()


def test_what_the_converter_says_is_told_beyond_its_first_remark(patient: Patient) -> None:
    patient.series("T1 ax", PatientPosition="HFS")
    normal = oblique()[:3, 2] * (-1, -1, 1) / 4
    for path in sorted(patient.folder.iterdir())[6:]:
        file = pydicom.dcmread(path)
        file.ImagePositionPatient = [f"{v:.6f}" for v in np.array(file.ImagePositionPatient, float) + 0.6 * normal]
        file.save_as(path)
    with pytest.raises(ImageError, match="Interslice distance varies"):
        convert_series(find_series(patient.folder).series[0])

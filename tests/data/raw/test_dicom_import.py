"""DICOM in, cohort out: the right voxels in the right place, and nothing of whose they are."""

import gzip
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_writer import Patient, block, oblique, phantom, rectangle

from bmmae.cli import main
from bmmae.data.check import check_study
from bmmae.data.cohort import Study, read_cohort
from bmmae.data.raw.dicom_import import find_series, import_series
from bmmae.data.raw.series_table import apply_table
from bmmae.data.raw.structures import Choice
from bmmae.data.reading import read_image, read_labels
from bmmae.errors import ImageError
from bmmae.modalities import STANDARD

T1, T1CE, T2, FLAIR = STANDARD
LONG = {"RepetitionTime": 9000, "EchoTime": 95}


def imported(folder: Path, out: Path, *structures: str) -> tuple[Study, tuple[str, ...]]:
    found = find_series(folder)
    chosen = [Choice.parse(name) for name in structures]
    report = import_series(found, found.rows, out, structures=chosen, progress=False)
    return report.cohort[0], report.problems


def same_place(array: np.ndarray, affine: np.ndarray, truth: np.ndarray, at: np.ndarray) -> bool:
    """Whether each voxel of the truth has the same value at the same place in the world."""
    places = np.argwhere(np.ones(truth.shape, dtype=bool))
    to_voxel = np.linalg.inv(affine) @ at
    there = places @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    assert np.abs(there - np.rint(there)).max() < 0.01
    return bool((array[tuple(np.rint(there).astype(int).T)] == truth.ravel()).all())


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path / "in" / "Quimby_20190314")


def test_an_oblique_series_keeps_its_place(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 ax")
    study, problems = imported(patient.folder, tmp_path / "out")
    image = read_image(study.images[T1])
    assert not problems
    assert same_place(image.array, image.affine, phantom(), oblique())


def test_contours_lie_where_they_were_drawn_and_inner_ones_are_holes(patient: Patient, tmp_path: Path) -> None:
    uid = patient.series("T1 ax post", ContrastBolusAgent="Gadovist")
    x, y, z = block()
    slices = range(z.start, z.stop)
    outer = [rectangle((x.start - 0.5, y.start - 0.5), (x.stop - 0.5, y.stop - 0.5), k, oblique()) for k in slices]
    hole = [rectangle((8.5, 7.5), (10.5, 9.5), 5, oblique())]
    patient.contours(uid, {"GTV": outer + hole})
    study, problems = imported(patient.folder, tmp_path / "out")
    truth = np.zeros(phantom().shape, np.int16)
    truth[block()] = 1
    truth[9:11, 8:10, 5] = 0
    assert study.seg
    assert not problems
    assert same_place(*read_labels(study.seg), truth, oblique())
    assert not [finding for finding in check_study(study) if finding.severity == "error"]


def test_segments_lie_at_their_frames_positions(patient: Patient, tmp_path: Path) -> None:
    uid = patient.series("T1 ax")
    masks = {name: np.zeros(phantom().shape, bool) for name in ("Core", "Oedema")}
    masks["Core"][block()] = True
    masks["Oedema"][1:4, 2, 9:11] = True
    patient.segmentation(uid, masks)
    study, problems = imported(patient.folder, tmp_path / "out", "core", "oedema=2")
    assert study.seg
    assert not problems
    assert same_place(*read_labels(study.seg), masks["Core"] + 2 * masks["Oedema"], oblique())


def test_several_structures_are_listed_until_one_is_named(patient: Patient, tmp_path: Path) -> None:
    uid = patient.series("T1 ax")
    patient.contours(uid, {name: [rectangle((2, 2), (8, 8), 4, oblique())] for name in ("GTV 1", "Skin")})
    study, problems = imported(patient.folder, tmp_path / "a")
    assert study.seg is None
    assert "2 structures: 'GTV 1', 'Skin'; choose with --structure NAME" in problems[0]
    _, problems = imported(patient.folder, tmp_path / "b", "PTV")
    assert "no structure is called 'PTV': there are 'GTV 1', 'Skin'" in problems[0]
    assert imported(patient.folder, tmp_path / "c", "gtv*")[0].seg
    study, problems = imported(patient.folder, tmp_path / "d", "gtv*", "oedema=2")
    assert study.seg
    assert "no structure is called 'oedema': there are 'GTV 1', 'Skin'" in problems[0]


def test_contours_off_the_slices_or_on_another_series_are_refused(patient: Patient, tmp_path: Path) -> None:
    uid = patient.series("T1 ax")
    between = [rectangle((2, 2), (8, 8), 4, oblique()) + oblique()[:3, 2] / 2]
    patient.contours(uid, {"GTV": between})
    assert "does not lie in a slice" in imported(patient.folder, tmp_path / "a")[1][0]
    other = Patient(tmp_path / "other")
    other.series("T1 ax")
    other.contours("1.2.3", {"GTV": between})
    assert "0 of which were imported" in imported(other.folder, tmp_path / "b")[1][0]


def test_structures_in_a_study_of_their_own_join_the_visit_that_they_refer_to(patient: Patient, tmp_path: Path) -> None:
    patient.series("T1 ax", phantom(1))
    later = Patient(patient.folder / "later", date="20200314")
    uid = later.series("T1 ax")
    drawn = Patient(patient.folder / "drawn", date="20210314")
    drawn.contours(uid, {"GTV": [rectangle((2, 2), (8, 8), 4, oblique())]})
    found = find_series(patient.folder)
    report = import_series(found, found.rows, tmp_path / "out", progress=False)
    assert [(study.session, study.seg is not None) for study in report.cohort] == [("ses-1", False), ("ses-2", True)]
    assert not report.problems


def test_structures_without_their_images_are_told(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient.series("T1 ax")
    drawn = Patient(patient.folder / "drawn", date="20210314")
    drawn.contours("1.2.3", {"GTV": [rectangle((2, 2), (8, 8), 4, oblique())]})
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--yes"]) == 1
    assert "left out: sub-0001 ses-2, seg: its visit has no image: give the series" in capsys.readouterr().err


def test_a_segmentation_on_another_grid_is_refused(patient: Patient, tmp_path: Path) -> None:
    uid = patient.series("T1 ax")
    mask = np.zeros(phantom().shape, bool)
    mask[block()] = True
    patient.segmentation(uid, {"Core": mask}, oblique((1.5, 2.0, 4.0), degrees=25))
    assert "another grid than the series it refers to" in imported(patient.folder, tmp_path / "out")[1][0]


def test_nothing_that_is_written_names_the_patient(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = patient.series("T1 ax Quimby 14.03.2019", ProtocolName="MRN4711A 1.2.840.113619.2.55.3")
    patient.series("T2 tse", number=2, **LONG)
    patient.contours(uid, {"GTV": [rectangle((2, 2), (8, 8), 4, oblique())]})
    out = tmp_path / "out"
    assert main(["import-dicom", str(patient.folder), "--out", str(out), "--yes"]) == 0
    files = [path for path in out.rglob("*") if path.is_file()]
    content = {path: path.read_bytes() for path in files}
    everything = b"".join(gzip.decompress(c) if p.suffix == ".gz" else c for p, c in content.items())
    everything += "".join(str(path.relative_to(out)) for path in files).encode() + capsys.readouterr().out.encode()
    for secret in (*patient.secrets(), uid, "14.03.2019", "1.2.840", "112233"):
        assert secret.lower().encode() not in everything.lower(), secret
    assert {path.name for path in files} == {
        *(f"{name}.nii.gz" for name in (T1, T2, "seg")),
        "cohort.csv",
        "series.csv",
    }


def test_patients_are_numbered_and_visits_are_in_order_of_time(tmp_path: Path) -> None:
    for index, (patient_id, date) in enumerate((("B", "20200101"), ("A", "20180101"), ("B", "20190101"))):
        Patient(tmp_path / "in" / str(index), patient_id=patient_id, date=date).series("T1 ax", phantom(index))
    found = find_series(tmp_path / "in")
    date_of = {item.identity.visit: item.identity.study_date for item in found.series}
    visits = {(name.subject, name.session): date_of[visit][:4] for visit, name in found.names.items()}
    assert sorted(visits.values()) == ["2018", "2019", "2020"]
    twice = next(subject for subject, session in visits if session == "ses-2")
    assert (visits[twice, "ses-1"], visits[twice, "ses-2"]) == ("2019", "2020")


def test_a_mapping_is_written_on_request_outside_and_keeps_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, mapping = tmp_path / "in", tmp_path / "out", tmp_path / "who.csv"
    Patient(source / "x", patient_id="X").series("T1 ax")
    call = ["import-dicom", str(source), "--out", str(out), "--mapping"]
    assert main([*call, str(mapping)]) == 0
    assert "X,Quimby^Wilhelmina" in mapping.read_text()
    assert mapping.stat().st_mode & 0o077 == 0
    first = find_series(source, mapping=mapping).names
    for letter in "ABCDEF":
        Patient(source / letter, patient_id=letter).series("T1 ax")
    assert first.items() <= find_series(source, mapping=mapping).names.items()
    assert main([*call, str(out / "who.csv")]) == 2
    assert "must not lie inside" in capsys.readouterr().err


def test_another_table_is_no_mapping(patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("subject,t1\na,a.nii.gz\n")
    patient.series("T1 ax")
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--mapping", str(other)]) == 2
    assert f"{other} is no mapping that import-dicom wrote: it lacks the column 'session'" in capsys.readouterr().err


def test_an_edited_table_decides(patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patient.series("T2 tse", number=1, **LONG)
    patient.series("T2 tse", phantom(1), number=2, **LONG)
    out = tmp_path / "out"
    assert main(["import-dicom", str(patient.folder), "--out", str(out)]) == 0
    assert "0 of 2 series are recognised" in capsys.readouterr().out
    assert not (out / "cohort.csv").exists()
    table = out / "series.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[2].replace(",,ambiguous", ",t2,ambiguous")]) + "\n")
    assert main(["import-dicom", str(patient.folder), "--out", str(out)]) == 2
    assert "is there already and says something else" in capsys.readouterr().err
    assert main(["import-dicom", str(patient.folder), "--out", str(out), "--table", str(table)]) == 0
    image = read_image(read_cohort(out / "cohort.csv")[0].images[T2])
    assert same_place(image.array, image.affine, phantom(1), oblique())
    table.write_text("key,modality\nffff,t2\n")
    assert main(["import-dicom", str(patient.folder), "--out", str(out), "--table", str(table)]) == 2
    assert "no series with key 'ffff' in this folder" in capsys.readouterr().err


def test_a_table_whose_keys_are_numbers_as_they_once_were_is_applied(patient: Patient, tmp_path: Path) -> None:
    patient.series("T2 tse", **LONG)
    (row,) = find_series(patient.folder).rows
    table = tmp_path / "series.csv"
    table.write_text(f"key,modality\n{row.key[1:]},flair\n")
    (applied,) = apply_table(table, [row])
    assert (applied.key, applied.modality) == (row.key, FLAIR)


def test_columns_added_to_the_cohort_are_kept(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient.series("T2 tse", number=1, **LONG)
    command = ["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--yes"]
    assert main(command) == 0
    assert main(command) == 0
    table = tmp_path / "out" / "cohort.csv"
    header, row = table.read_text().splitlines()
    table.write_text(f"{header},seg,idh\n{row},mine.nii.gz,1\n")
    assert main(command) == 2
    assert "lacks its columns seg, idh: choose another --out" in capsys.readouterr().err


def test_a_table_of_other_numbers_is_refused(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient.series("T2 tse", number=1, **LONG)
    command = ["import-dicom", str(patient.folder), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    table = tmp_path / "table.csv"
    table.write_text((tmp_path / "out" / "series.csv").read_text().replace("sub-0001", "sub-0002"))
    capsys.readouterr()
    assert main([*command, "--table", str(table)]) == 2
    assert "is of sub-0002" in (said := capsys.readouterr().err)
    assert "numbered anew" in said


def test_a_missing_slice_or_a_short_file_leaves_a_series_out(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient.series("T1 ax", skip=(5,))
    patient.series("T2 tse", number=2, **LONG)
    short = patient.folder / "s2_004.dcm"
    short.write_bytes(short.read_bytes()[:-200])
    rows = find_series(patient.folder).rows
    assert [(row.modality, row.verdict.status, row.verdict.modality) for row in rows] == [
        ("", "broken", T1),
        ("", "broken", T2),
    ]
    assert rows[0].verdict.reason == "1 of 12 slices missing"
    assert rows[1].verdict.reason == "1 of 12 files truncated"
    table = tmp_path / "forced.csv"
    table.write_text("\n".join(["key,modality", *(f"{row.key},{row.verdict.modality}" for row in rows)]))
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--table", str(table)]) == 2
    assert "no volume is made of 11 files, it would be wrong: 1 of 12 slices missing" in capsys.readouterr().err


def test_a_series_of_two_orientations_is_told(patient: Patient) -> None:
    patient.series("T1 ax")
    uid = patient.series("T1 ax", affine=oblique(degrees=70), number=2)
    for path in patient.folder.glob("s1_*"):
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID = uid
        header.save_as(path)
    (row,) = find_series(patient.folder).rows
    assert (row.modality, row.verdict.status) == ("", "broken")
    assert row.verdict.reason == "12 of 24 slices in another orientation than the first"


def test_a_folder_without_dicom_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM here, whatever the parser is told to force upon it")
    assert main(["import-dicom", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no DICOM file (1 files looked at)" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_is_no_slice_to_do_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slice.dcm").symlink_to(tmp_path / "gone")
    assert main(["import-dicom", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "slice.dcm cannot be opened: No such file or directory" in capsys.readouterr().err


def damage(path: Path, kept: int) -> Path:
    """Keep the first bytes of a DICOM file: less than its header."""
    path.write_bytes(path.read_bytes()[:kept])
    return path


def test_a_slice_with_a_damaged_header_is_told(
    patient: Patient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the end of a series it leaves no gap by which it would be missed."""
    patient.series("T1 ax")
    first = damage(min(find_series(patient.folder).series[0].files), 150)
    found = find_series(patient.folder)
    assert found.unreadable == (first,)
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out")]) == 0
    told = f"1 DICOM files whose header cannot be read; slices may be missing: {first}"
    assert f"warning: {told}" in capsys.readouterr().err
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--yes"]) == 1
    assert f"left out: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [132, 140, 150, 300, 500])
def test_damaged_headers_alone_are_no_folder_without_dicom(patient: Patient, kept: int) -> None:
    patient.series("T1 ax")
    files = find_series(patient.folder).series[0].files
    for path in files:
        damage(path, kept)
    with pytest.raises(ImageError, match=f"{len(files)} of them DICOM with unreadable headers"):
        find_series(patient.folder)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x05\x00CS", bytes(300)])
def test_a_file_named_as_dicom_that_cannot_be_read_is_told_without_a_preamble(patient: Patient, content: bytes) -> None:
    patient.series("T1 ax")
    (patient.folder / "last.DCM").write_bytes(content)
    (patient.folder / "notes").write_bytes(content)
    assert find_series(patient.folder).unreadable == (patient.folder / "last.DCM",)


def spoil(patient: Patient, number: int, keyword: str, value: bytes) -> None:
    """Write a series that has these bytes for an element in each file, as no writer that checks them would."""
    patient.series("T1 ax", phantom(number), number=number)
    tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
    kind = pydicom.datadict.dictionary_VR(tag)
    for path in patient.folder.glob(f"s{number}_*"):
        file = pydicom.dcmread(path)
        file._dict[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(value), value, 0, False, True, True)
        file.save_as(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RepetitionTime", b"abc ", "RepetitionTime is no number"),
        ("EchoTime", b"1,500 ", "EchoTime is no number"),
        ("InversionTime", b"nan ", "InversionTime is no number"),
        ("ImagePositionPatient", b"1\\2\\x ", "ImagePositionPatient is no number"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1 ", "ImageOrientationPatient holds 5 numbers: expected 6"),
        ("Rows", b"abcd", "Rows holds 2 numbers: expected 1"),
    ],
)
def test_a_malformed_number_breaks_its_series_alone(patient: Patient, keyword: str, value: bytes, reason: str) -> None:
    patient.series("T2 tse", number=9, **LONG)
    spoil(patient, 1, keyword, value)
    broken, sound = find_series(patient.folder).rows
    assert (broken.modality, broken.verdict.status, broken.verdict.reason) == ("", "broken", reason)
    assert (sound.modality, sound.verdict.status) == (T2, "taken")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_decimal_comma_is_read_and_a_number_of_the_series_may_be_any_text(patient: Patient) -> None:
    spoil(patient, 1, "EchoTime", b"10,5")
    spoil(patient, 2, "SeriesNumber", b"x1")
    assert sorted(item.number for item in find_series(patient.folder).series) == [0, 1]
    assert sorted(item.acquisition.te or 0 for item in find_series(patient.folder).series) == [10, 10.5]


def test_an_element_that_cannot_be_decoded_leaves_the_other_series(patient: Patient) -> None:
    patient.series("T2 tse", number=9, **LONG)
    patient.series("T1 ax", number=1)
    paths = sorted(patient.folder.glob("s1_*"))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"\x20\x00\x10\x00SH", b"\x20\x00\x10\x00S\x83", 1))
    found = find_series(patient.folder)
    assert [row.modality for row in found.rows] == [T2]
    assert sorted(found.unreadable) == paths


NO_AGENT = (
    *(
        "NO CONTRAST",
        "NONE GIVEN",
        "NA",
        "N.A.",
        "n/a",
        "NIL",
        "Nein",
        "kein KM",
        "ohne",
        "without contrast",
        "unknown",
    ),
    *("-", ".", "0", "0 ml", "0.0 ml", "Not given", "no", "none", "sans", ""),
)


def test_an_agent_that_was_not_given_is_none(patient: Patient) -> None:
    for number, agent in enumerate(NO_AGENT):
        patient.series("T1 ax", phantom()[:4, :4, :2], number=number, ContrastBolusAgent=agent)
    assert {item.acquisition.contrast for item in find_series(patient.folder).series} == {""}


def test_whatever_else_is_in_the_agents_field_is_an_agent(patient: Patient) -> None:
    agents = ("Gadovist", "10 ml", "IV", "yes", "Dotarem 0.5 mmol/ml", "contrast", "BOLUS")
    for number, agent in enumerate(agents):
        patient.series("T1 ax", phantom()[:4, :4, :2], number=number, ContrastBolusAgent=agent)
    assert {item.acquisition.contrast for item in find_series(patient.folder).series} == set(agents)


def test_a_directory_of_files_is_no_damaged_slice(patient: Patient) -> None:
    patient.series("T1 ax")
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.FileSetID = "EXPORT"
    pydicom.dcmwrite(patient.folder / "DICOMDIR", directory, enforce_file_format=True)
    assert find_series(patient.folder).unreadable == ()


def test_without_dcm2niix_the_error_says_how_to_install_it(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient.series("T1 ax")
    monkeypatch.setitem(__import__("sys").modules, "dcm2niix", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["import-dicom", str(patient.folder), "--out", str(tmp_path / "out"), "--yes"]) == 2
    assert "run `pip install dcm2niix`" in capsys.readouterr().err

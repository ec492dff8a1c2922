"""A cohort table is read as it was written, or refused with the reason."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.errors import CohortError, ModalityError, OutputError


def table(folder: Path, text: str, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


FULL = """subject,session,group,T1Gd,t1n,FLAIR,seg,brain_mask,brain_mask_T1c,split,time,event,site,age,grade
0012,01,P7,a/t1c.nii.gz,/data/t1.nii.gz,,a/seg.nii.gz,a/m.nii.gz,a/mc.nii.gz,train,12.5,1,007,61,IV
0013,,,,,b/f.nii.gz,,,,Val,3,0,008,,
"""


def test_every_column_finds_its_place(tmp_path: Path) -> None:
    first, second = read_cohort(table(tmp_path, FULL))
    assert first.key == ("0012", "01")
    assert (first.group, second.group) == ("P7", "0013")
    assert dict(first.images) == {"t1": Path("/data/t1.nii.gz"), "t1ce": tmp_path / "a/t1c.nii.gz"}
    assert list(first.images) == ["t1", "t1ce"]
    assert dict(second.images) == {"flair": tmp_path / "b/f.nii.gz"}
    assert (first.seg, second.seg) == (tmp_path / "a/seg.nii.gz", None)
    assert first.brain_mask_of("t1") == tmp_path / "a/m.nii.gz"
    assert first.brain_mask_of("t1ce") == tmp_path / "a/mc.nii.gz"
    assert second.brain_mask_of("flair") is None
    assert (first.split, first.time, first.event) == ("train", 12.5, True)
    assert (second.split, second.time, second.event) == ("validation", 3.0, False)
    assert len(first.files()) == 5


def test_codes_stay_text_and_numbers_become_numbers(tmp_path: Path) -> None:
    first, second = read_cohort(table(tmp_path, FULL))
    assert first.values == {"site": "007", "age": 61.0, "grade": "IV"}
    assert second.values == {"site": "008", "age": None, "grade": None}


@pytest.mark.parametrize("name", ["new/copy.csv", "new/copy.tsv", "new/copy.parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    cohort = read_cohort(table(tmp_path, FULL))
    again = read_cohort(cohort.write(tmp_path / name))
    resolved = [[path.resolve() for path in study.files()] for study in again]
    assert resolved == [[path.resolve() for path in study.files()] for study in cohort]
    for one, two in zip(cohort, again, strict=True):
        assert (one.key, one.group, one.split, one.time, one.event) == (
            two.key,
            two.group,
            two.split,
            two.time,
            two.event,
        )
        assert one.values == two.values
    assert [path.name for path in (tmp_path / "new").iterdir()] == [Path(name).name]


def test_paths_are_written_relative_to_the_table(tmp_path: Path) -> None:
    cohort = Cohort((Study("a", {"t2": tmp_path / "images" / "a.nii"}),))
    assert cohort.write(tmp_path / "tables" / "c.csv").read_text() == "subject,t2\na,../images/a.nii\n"


def test_images_that_were_not_asked_for_are_still_found_from_a_table_elsewhere(tmp_path: Path) -> None:
    text = "subject,t1,dwi,brain_mask_dwi,swi,adc,ct,pet\na,a.nii,i/d.nii.gz,m.nii,s3://b/s.nii,0.8,yes,p.nii\n"
    cohort = read_cohort(table(tmp_path, text))
    written = Cohort(cohort.studies).write(tmp_path / "tables" / "c.csv")
    assert written.read_text().splitlines()[1] == "a,../a.nii,../i/d.nii.gz,../m.nii,s3://b/s.nii,0.8,yes,p.nii"
    (again,) = read_cohort(written, ("t1", "dwi", "swi"))
    assert again.images["dwi"].resolve() == tmp_path / "i" / "d.nii.gz"
    assert again.brain_mask_of("dwi").resolve() == tmp_path / "m.nii"
    assert cohort.write(tmp_path / "beside.csv").read_text() == text


def test_so_are_images_of_modalities_with_names_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "p.nii.gz").touch()
    cohort = read_cohort(table(tmp_path, "subject,t1,t2star,report\na,a.nii,i/p.nii.gz,i/p.nii.txt\n"))
    written = Cohort(cohort.studies).write(tmp_path / "tables" / "c.csv")
    assert written.read_text().splitlines()[1] == "a,../a.nii,../i/p.nii.gz,i/p.nii.txt"
    assert read_cohort(written, ("t2star",))[0].images["t2star"].is_file()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_byte_order_marks_of_spreadsheets_are_understood(tmp_path: Path, separator: str) -> None:
    path = table(tmp_path, "\ufeff" + FULL.replace(",", separator) + "\n")
    assert [study.subject for study in read_cohort(path)] == ["0012", "0013"]


def test_parquet_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"subject": [12, 13], "t1": ["a.nii", None], "t2": [None, "b.nii"], "session": [2.0, None]})
    frame.to_parquet(tmp_path / "c.parquet")
    assert [study.key for study in read_cohort(tmp_path / "c.parquet")] == [("12", "2"), ("13", "")]


def test_the_order_of_asked_modalities_is_the_tables_own(tmp_path: Path) -> None:
    path = table(tmp_path, "subject,pet,adc,t1\n1,p.nii,a.nii,t.nii\n")
    cohort = read_cohort(path, ("pet", "ADC", "t1n"))
    assert cohort.modalities == ("t1", "adc", "pet")
    assert list(cohort[0].images) == ["t1", "adc", "pet"]
    assert read_cohort(path)[0].values == {"pet": "p.nii", "adc": str(tmp_path / "a.nii")}
    with pytest.raises(ModalityError, match="twice"):
        read_cohort(path, ("t1", "t1n"))


REFUSED = {
    "empty file": ("", "is empty"),
    "no rows": ("subject,t1\n", "no rows"),
    "no subject": ("patient,t1\n1,a.nii\n", "no 'subject' column.*got columns patient, t1"),
    "no image column": (
        "subject,pet\n1,a.nii\n",
        "no image column: expected at least one of t1, .*got columns subject, pet",
    ),
    "alias twice": ("subject,T1Gd,t1ce\n1,a.nii,b.nii\n", "columns 'T1Gd' and 't1ce' both mean 't1ce'"),
    "column twice": ("subject,t1,t1\n1,a.nii,b.nii\n", "column 't1' occurs twice"),
    "ragged": ("subject,t1\n1,a.nii,b.nii\n", "line 2: expected 2 cells as in the header, got 3"),
    "no subject cell": ("subject,t1\n,a.nii\n", "line 2: the subject is blank"),
    "no modality": ("subject,t1\n1,\n2,b.nii\n", "'1' without any of the modalities"),
    "duplicate": ("subject,t1\n1,a.nii\n1,b.nii\n", "lists '1' more than once"),
    "same output": ("subject,session,t1\na,b,a.nii\na_b,,b.nii\n", "written as 'a_b'"),
    "split": (
        "subject,t1,split\n1,a.nii,holdout\n",
        "line 2: unknown split 'holdout'; expected train, validation, test",
    ),
    "time": ("subject,t1,time\n1,a.nii,-3\n", "time is '-3'"),
    "a decimal comma": (
        "subject;t1;time\n1;a.nii;1,48\n",
        "time is '1,48'; expected a number of months with a decimal",
    ),
    "not a time": ("subject,t1,time\n1,a.nii,3 months\n", "time is '3 months'"),
    "event": ("subject,t1,event\n1,a.nii,dead\n", r"event is 'dead'; expected 1 \(died\) or 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_contradiction_is_refused(tmp_path: Path, case: str) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(CohortError, match=sentence) as caught:
        read_cohort(table(tmp_path, text))
    assert "cohort.csv" in str(caught.value)


def test_a_patient_in_two_splits_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "subject,session,t1,split\n7,1,a.nii,train\n7,2,b.nii,test\n8,1,c.nii,test\n")
    with pytest.raises(CohortError, match=r"puts '7 \(test and train\)' into more than one split"):
        read_cohort(path)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"is a folder.*run `bmmae index"):
        read_cohort(tmp_path)
    with pytest.raises(CohortError, match="does not exist"):
        read_cohort(tmp_path / "none.csv")
    for name, content in {
        "a.nii.gz": b"\x1f\x8b\xff\xfe",
        "b.csv": b"a\0b",
        "c.parquet": b"PAR0",
        "d.csv": b"t\xe4st",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CohortError, match="table"):
            read_cohort(tmp_path / name)


def test_a_table_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    cohort = Cohort((Study("a", {"t2": Path("a.nii")}),))
    (tmp_path / "file").touch()
    for name in ("c.xlsx", "file/c.csv"):
        with pytest.raises(OutputError, match="cannot write"):
            cohort.write(tmp_path / name)


def test_subsets_are_by_split(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, FULL))
    assert [study.subject for study in cohort.subset("train")] == ["0012"]
    assert cohort.subset("val").studies == cohort.subset("validation").studies == (cohort[1],)
    with pytest.raises(CohortError, match=r"no study in split 'test': .* train \(1\), validation \(1\)"):
        cohort.subset("test")
    with pytest.raises(CohortError, match="unknown split"):
        cohort.subset("holdout")


def test_a_cohort_travels_to_workers(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, FULL))
    assert pickle.loads(pickle.dumps(cohort)) == cohort
    assert len(cohort) == len(list(cohort)) == 2


def test_output_names_are_safe() -> None:
    assert Study("../a b", {"t1": Path("x")}, session="1/2").name == "-a-b_1-2"


def test_the_hash_sees_content_and_neither_names_nor_order(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        voxels = value * np.arange(8, dtype=np.int16).reshape(2, 2, 2)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{value}.nii")
    files = {value: tmp_path / f"{value}.nii" for value in (1, 2, 3)}
    cohort = Cohort((Study("a", {"t1": files[1], "t2": files[2]}), Study("b", {"t1": files[3]})))
    renamed = Cohort((Study("x", {"t1": files[3]}), Study("y", {"t2": files[2], "t1": files[1]})))
    swapped = Cohort((Study("a", {"t2": files[1], "t1": files[2]}), Study("b", {"t1": files[3]})))
    assert cohort.content_hash() == renamed.content_hash() != swapped.content_hash()


def test_rows_without_an_image_are_set_apart_where_that_is_asked_for(tmp_path: Path) -> None:
    cohort = read_cohort(table(tmp_path, "subject,t1\n1,\n2,b.nii\n"), set_bare_apart=True)
    assert [study.subject for study in cohort] == ["2"]
    assert [study.subject for study in cohort.bare] == ["1"]


def test_long_codes_keep_every_digit(tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text("subject,t1,accession\na,a.nii,12345678901234567891\nb,b.nii,12345678901234567892\n")
    again = read_cohort(read_cohort(table).write(tmp_path / "again.csv"))
    assert [study.values["accession"] for study in again] == ["12345678901234567891", "12345678901234567892"]


@pytest.mark.parametrize("start", ["sep=;\n", "\n\n", "\ufeffsep=;\r\n\r\n"])
def test_what_spreadsheets_write_above_the_header_is_passed_over(tmp_path: Path, start: str) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(f"{start}subject;t1\n007;a.nii\n", newline="")
    assert [study.subject for study in read_cohort(path)] == ["007"]


def test_errors_name_the_line_that_an_editor_shows(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("sep=,\n\nsubject,t1,time\n\n,,\na,a.nii,soon\n")
    with pytest.raises(CohortError, match="line 6: time is 'soon'"):
        read_cohort(path)


def test_a_table_in_another_encoding_is_told_how_to_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes("subject;t1\n1;a.nii\nMüller;b.nii\n".encode("cp1252"))
    with pytest.raises(CohortError, match="line 3 is not written in UTF-8; save it as 'CSV UTF-8'"):
        read_cohort(path)


def test_what_spreadsheets_write_for_not_known_is_blank(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("subject,t1,t2,age\na,a.nii,#N/A,61\nb,b.nii,,#N/A\n")
    first, second = read_cohort(path)
    assert (list(first.images), first.values["age"], second.values["age"]) == (["t1"], 61.0, None)


def test_a_folder_that_may_not_be_opened_does_not_stop_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def locked(path: Path) -> bool:  # root may look into all: the system's refusal is played
        if path.suffix == ".nii":
            raise PermissionError
        return is_file(path)

    (tmp_path / "cohort.csv").write_text("subject,t1,pet\np1,a/t1.nii,a/pet.nii\n")
    monkeypatch.setattr(Path, "is_file", locked)
    assert read_cohort(tmp_path / "cohort.csv")[0].values["pet"] == "a/pet.nii"

"""A table that someone filled in is not written over, and what would be lost is named."""

from pathlib import Path

import pytest

from bmmae.data.cohort import Cohort, Study
from bmmae.data.replacing import refuse_losing, refuse_losing_columns
from bmmae.errors import OutputError

NEW = Cohort(
    (
        Study("a", {"t1": Path("a.nii.gz")}),
        Study("b", {"t1": Path("b.nii.gz")}, session="1", group="b1", seg=Path("seg.nii.gz")),
    )
)


def table(folder: Path, *lines: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "lines",
    [
        ("subject,t1", "a,old/a.nii.gz"),
        ("subject,session,group,t1,note", "a,,a,a.nii.gz,", "b,1,b1,b.nii.gz,n/a"),
        ("subject", "a"),
    ],
)
def test_a_table_that_says_no_more_is_replaced(tmp_path: Path, lines: tuple[str, ...]) -> None:
    refuse_losing(table(tmp_path, *lines), NEW)
    refuse_losing(NEW.write(tmp_path / "new.csv"), NEW)
    refuse_losing(tmp_path / "none.csv", NEW)


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        (("subject,t1,idh,time", "a,a.nii.gz,1,12"), "columns idh, time:"),
        (("subject,session,t1", "a,1,a.nii.gz", "c,,c.nii.gz"), "rows a 1, c:"),
        (("subject,t1,t2", "a,a.nii.gz,a2.nii.gz", "c,,"), "columns t2 and rows c:"),
        (("subject,session,group", "b,1,mine"), "columns group:"),
        (("subject,group", "a,mine"), "columns group:"),
        (("name,age", "a,61"), "columns name, age:"),
        (("subject,t1", "nan,a.nii.gz", "NA,a.nii.gz"), "rows nan, NA:"),
        (("subject,t1", ",a.nii.gz"), "rows without a subject:"),
    ],
)
def test_what_would_be_lost_is_named(tmp_path: Path, lines: tuple[str, ...], lost: str) -> None:
    path = table(tmp_path, *lines)
    with pytest.raises(OutputError, match=f"{path} is there already and the new table lacks its {lost} choose another"):
        refuse_losing(path, NEW)


def test_filled_columns_that_are_not_made_again_are_named(tmp_path: Path) -> None:
    path = table(tmp_path, "subject,t1,idh,note", "a,a.nii.gz,1,")
    refuse_losing_columns(path, {"subject", "t1", "idh"})
    refuse_losing_columns(tmp_path / "none.csv", ())
    with pytest.raises(OutputError, match="lacks its columns idh: choose another"):
        refuse_losing_columns(path, {"subject", "t1"})


def test_many_names_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path, "subject", *(f"p{number}" for number in range(7)))
    with pytest.raises(OutputError, match="rows p0, p1, p2, p3, p4 and 2 more:"):
        refuse_losing(path, NEW)

"""Many files with the same trouble are told in one line that names them all."""

from bmmae.data.problems import counted, gathered


def truncated(name: str) -> str:
    return f"{name}: /data/{name}/flair.nii.gz is truncated at byte {len(name)}; copy it again"


def test_many_of_a_kind_are_one_line_that_names_them() -> None:
    lines = [*map(truncated, ("a", "bb", "ccc", "d9")), "e: t1.nii is absent", truncated("f")]
    assert gathered(lines) == [f"{truncated('a')} (and 4 more like it: bb, ccc, d9, f)", "e: t1.nii is absent"]
    assert gathered(lines, most=2)[0].endswith("(and 4 more like it: bb, ccc and 2 more)")


def test_a_few_of_a_kind_stay_as_they_are() -> None:
    assert gathered(map(truncated, "abc")) == list(map(truncated, "abc"))
    assert gathered([]) == []


def test_different_troubles_are_told_apart() -> None:
    lines = [f"{name}: {what}" for name in "abcd" for what in ("x.nii is a folder", "x.nii is empty")]
    assert [line.partition(" (and 3 more")[0] for line in gathered(lines)] == lines[:2]


def test_one_is_no_plural() -> None:
    assert [counted(number, "study", "studies") for number in (0, 1, 2)] == ["0 studies", "1 study", "2 studies"]

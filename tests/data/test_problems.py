"""Many files with the same trouble are told in one line that names them all."""

from bmmae.data.problems import counted, gathered, lines_of


def truncated(name: str) -> tuple[str, str]:
    return name, f"/data/{name[0]}/flair.nii.gz is truncated at byte {len(name)}: copy it again"


def test_many_of_a_kind_are_one_line_that_names_them() -> None:
    problems = [*map(truncated, ("a: 1", "bb", "ccc", "d9")), ("e", "t1.nii is absent"), truncated("f")]
    first, told = truncated("a: 1")
    assert gathered(problems) == [(first, f"{told} (and 4 more like it: bb, ccc, d9, f)"), problems[4]]
    assert gathered(problems, most=2)[0][1].endswith("(and 4 more like it: bb, ccc and 2 more)")
    assert lines_of(problems, most=2) == [
        f"{first}: {told} (and 4 more like it: bb, ccc and 2 more)",
        "e: t1.nii is absent",
    ]


def test_a_few_of_a_kind_stay_as_they_are() -> None:
    assert gathered(map(truncated, "abc")) == list(map(truncated, "abc"))
    assert gathered([]) == []


def test_different_troubles_are_told_apart() -> None:
    problems = [(name, what) for name in "abcd" for what in ("x.nii is a folder", "x.nii is empty")]
    assert [(name, told.partition(" (and 3 more")[0]) for name, told in gathered(problems)] == problems[:2]


def test_one_is_no_plural() -> None:
    assert [counted(number, "study", "studies") for number in (0, 1, 2)] == ["0 studies", "1 study", "2 studies"]

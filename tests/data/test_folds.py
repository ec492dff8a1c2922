"""Folds: nobody is in two parts, classes are spread evenly, and a file only fits the cohort it was made for."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import picture, save, write_study

from bmmae.cli import main
from bmmae.config import PretrainConfig, parse
from bmmae.data.cohort import Cohort, Study
from bmmae.data.fold_file import read_fold, write_folds
from bmmae.data.folds import PARTS, Fold, FoldPlan, format_folds, make_folds
from bmmae.data.splits import train_and_validation
from bmmae.errors import CohortError
from bmmae.modalities import STANDARD


def cohort(patients: int = 30, seed: int = 0) -> Cohort:
    """Patients with one or two visits; subtypes A, B and C in a ratio of 6 to 3 to 1."""
    rng = np.random.default_rng(seed)
    return Cohort(
        tuple(
            Study(
                f"p{p:02}",
                {"t1": Path(f"{p}-{v}.nii")},
                session=str(v),
                event=bool(p % 2),
                time=float(rng.uniform(1, 60)),
                values={"subtype": "AAAAAABBBC"[p % 10], "site": None if p % 3 else float(p % 2)},
            )
            for p in range(patients)
            for v in range(1 + p % 2)
        )
    )


def written(folder: Path, patients: int = 6) -> Cohort:
    return Cohort(
        tuple(
            Study(f"p{p}", {"t1": save(folder / f"{p}.nii", picture(seed=p, shape=(8, 8, 8)))}) for p in range(patients)
        )
    )


def groups(fold: Fold) -> list[set[str]]:
    return [{subject for subject, _ in getattr(fold, part)} for part in PARTS]


@pytest.mark.parametrize("stratify", [(), ("subtype",), ("subtype", "event"), ("time", "event"), ("site",)])
@pytest.mark.parametrize("seed", range(3))
def test_every_patient_is_in_one_part_and_in_one_test_part_a_repeat(stratify: Sequence[str], seed: int) -> None:
    table = cohort(seed=seed)
    folds = make_folds(table, FoldPlan(5, 2, tuple(stratify), seed=seed))
    assert len(folds) == 10
    for fold in folds:
        train, validation, test = groups(fold)
        assert min(len(train), len(validation), len(test)) > 0
        assert not train & validation | train & test | validation & test
        assert sum(len(getattr(fold, part)) for part in PARTS) == len(table)
    for repeat in (folds[:5], folds[5:]):
        assert Counter(key for fold in repeat for key in fold.test) == Counter(study.key for study in table)
    assert folds[0] != folds[5]


@pytest.mark.parametrize("column", ["subtype", "event"])
def test_classes_are_spread_evenly(column: str) -> None:
    table = cohort(60)
    value = {s.key: s.event if column == "event" else s.values[column] for s in table}
    total = Counter(value.values())
    for fold in make_folds(table, FoldPlan(3, stratify=(column,))):
        for name, count in Counter(value[key] for key in fold.test).items():
            assert abs(count - total[name] / 3) <= 2


def test_folds_depend_on_the_seed_and_not_on_the_tables_order() -> None:
    table, plan = cohort(), FoldPlan(3, stratify=("subtype",))
    assert make_folds(table, plan) == make_folds(Cohort(table.studies[::-1]), plan)
    assert make_folds(table, plan) != make_folds(table, replace(plan, seed=1))


@pytest.mark.parametrize("patients", [4, 5, 7, 11])
def test_few_patients_leave_no_part_empty(patients: int) -> None:
    for seed in range(5):
        for fold in make_folds(cohort(patients), FoldPlan(3, stratify=("subtype", "event"), seed=seed)):
            assert all(groups(fold))


def test_test_studies_of_the_table_are_in_no_fold() -> None:
    table = Cohort(tuple(replace(s, split="test" if s.subject < "p05" else None) for s in cohort()))
    used = {key for fold in make_folds(table, FoldPlan(3)) for part in PARTS for key in getattr(fold, part)}
    assert {subject for subject, _ in used} == {f"p{p:02}" for p in range(5, 30)}


def test_no_visit_of_a_test_patient_is_in_a_fold(tmp_path: Path) -> None:
    table = Cohort(tuple(replace(s, split="test" if s.key == ("p03", "0") else None) for s in cohort()))
    folds = make_folds(table, FoldPlan(3))
    assert "p03" not in {subject for fold in folds for part in PARTS for subject, _ in getattr(fold, part)}
    before = make_folds(cohort(), FoldPlan(3))  # of a table that marked nobody
    without = [
        replace(fold, **{part: tuple(k for k in getattr(fold, part) if k != ("p03", "0")) for part in PARTS})
        for fold in before
    ]
    with pytest.raises(CohortError, match="holds visits of 'p03', of whom the table marks another visit as test"):
        write_folds(tmp_path / "folds.json", table, without, FoldPlan(3))


def test_the_table_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = written(tmp_path).write(tmp_path / "cohort.csv")
    before = table.read_bytes()
    for words in (["split", str(table), "--out", str(table)], ["check", str(table), "--html", str(table)]):
        assert main(words) == 2
        assert "would be written over" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_a_file_gives_back_what_was_written_and_feeds_training(tmp_path: Path) -> None:
    table, plan = written(tmp_path), FoldPlan(3)
    folds = make_folds(table, plan)
    path = write_folds(tmp_path / "new" / "folds.json", table, folds, plan)
    for number, fold in enumerate(folds):
        parts = read_fold(path, table, number)
        assert [tuple(s.key for s in parts[part]) for part in PARTS] == [fold.train, fold.validation, fold.test]
    assert train_and_validation(table, splits=path, fold=1) == (parts_of(path, table, 1))
    assert [s.key for s in read_fold(path, Cohort(table.studies[::-1]), 0)["test"]] == list(folds[0].test)


def test_an_empty_part_of_a_fold_is_told_with_the_fold(tmp_path: Path) -> None:
    table, plan = written(tmp_path), FoldPlan(3)
    none_to_train = [replace(fold, train=()) for fold in make_folds(table, plan)]
    path = write_folds(tmp_path / "folds.json", table, none_to_train, plan)
    with pytest.raises(CohortError, match=r"no training studies among \d+: fold 1 of .*folds.json has none"):
        train_and_validation(table, splits=path, fold=1)


def parts_of(path: Path, table: Cohort, number: int) -> tuple[list[Study], list[Study]]:
    parts = read_fold(path, table, number)
    return parts["train"], parts["validation"]


def test_the_file_fits_no_other_cohort(tmp_path: Path) -> None:
    table, plan = written(tmp_path), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    fewer = Cohort(table.studies[1:])
    with pytest.raises(CohortError, match=r"another cohort than this one: 1 of its studies are missing \('p0'\); name"):
        read_fold(path, fewer, 0)
    more = Cohort((*table.studies, replace(table[0], subject="p9")))
    with pytest.raises(CohortError, match=r"1 are new \('p9'\)"):
        read_fold(path, more, 0)
    save(table[2].images["t1"], picture(seed=99, shape=(8, 8, 8)))
    with pytest.raises(CohortError, match=r"the images of 1 studies have changed since .* \('p2'\)"):
        read_fold(path, table, 0)


def of_modalities(table: Cohort, names: tuple[str, ...]) -> Cohort:
    """The same cohort as it is read with other modalities."""
    return Cohort(
        tuple(replace(s, images={name: s.images[name] for name in names if name in s.images}) for s in table), names
    )


def test_a_file_serves_models_of_other_modalities(tmp_path: Path) -> None:
    every = ("t1", "t1ce", "flair", "dwi")
    studies = tuple(write_study(tmp_path / f"p{n}", every, shape=(8, 8, 8), seed=n) for n in range(6))
    table, plan = of_modalities(Cohort(studies), STANDARD), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    for names in (("t1ce", "flair"), ("dwi",), every):
        parts = read_fold(path, of_modalities(Cohort(studies), names), 0)
        assert sum(map(len, parts.values())) == 6
    added = replace(studies[1], images=dict(studies[1].images) | {"t2": studies[1].images["dwi"]})
    save(studies[2].images["flair"], picture(seed=99, shape=(8, 8, 8)))
    changed = Cohort((studies[0], added, *studies[2:]))
    with pytest.raises(CohortError, match=r"the images of 2 studies have changed since .* \('p1', 'p2'\)"):
        read_fold(path, of_modalities(changed, (*every, "t2")), 0)
    with pytest.raises(CohortError, match=r"the images of 1 studies have changed since .* \('p2'\)"):
        read_fold(path, of_modalities(changed, ("t1ce", "flair")), 0)
    assert read_fold(path, of_modalities(changed, ("t1", "t1ce")), 0)


def of_flair(table: Cohort) -> Cohort:
    """The same cohort as a model of FLAIR alone reads it: those without it apart."""
    seen = [replace(s, images={n: f for n, f in s.images.items() if n == "flair"}) for s in table]
    return Cohort(tuple(s for s in seen if s.images), ("flair",), bare=tuple(s for s in seen if not s.images))


def test_studies_without_a_models_modalities_leave_the_others_in_their_folds(tmp_path: Path) -> None:
    names = (("t1", "flair"), ("t1",))
    studies = tuple(write_study(tmp_path / f"p{n}", names[n % 3 == 0], shape=(8, 8, 8), seed=n) for n in range(9))
    table, plan = Cohort(studies), FoldPlan(3)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    assert [s.subject for s in of_flair(table).bare] == ["p0", "p3", "p6"]
    for number, fold in enumerate(make_folds(table, plan)):
        with pytest.warns(
            UserWarning, match="3 of the 9 studies of .* have none of the modalities flair and are left o"
        ):
            parts = read_fold(path, of_flair(table), number)
        for part in PARTS:
            kept = [key for key in getattr(fold, part) if key[0] not in {"p0", "p3", "p6"}]
            assert [study.key for study in parts[part]] == kept
    gone = Cohort(tuple(replace(s, images={"t1": s.images["t1"]}) if s.subject == "p1" else s for s in studies))
    with (
        pytest.warns(UserWarning, match="4 of the 9 studies"),
        pytest.raises(CohortError, match=r"the images of 1 studies have changed since .* \('p1'\)"),
    ):
        read_fold(path, of_flair(gone), 0)
    with pytest.raises(CohortError, match=r"1 of its studies are missing \('p0'\)"):
        read_fold(path, of_flair(Cohort(studies[1:])), 0)


def test_a_study_set_apart_still_tells_whose_it_is(tmp_path: Path) -> None:
    studies = tuple(write_study(tmp_path / f"p{n}", ("t1", "flair"), shape=(8, 8, 8), seed=n) for n in range(6))
    table, plan = Cohort(studies), FoldPlan(2)
    folds = make_folds(table, plan)
    path = write_folds(tmp_path / "folds.json", table, folds, plan)
    train, test = folds[0].train[0], folds[0].test[0]
    patients = {train: "one", test: "one"}
    bare = {test: {"t1": studies[0].images["t1"]}}
    same = (replace(s, group=patients.get(s.key, ""), images=bare.get(s.key, s.images)) for s in studies)
    with pytest.raises(CohortError, match="puts 'one' into train and into test"):
        read_fold(path, of_flair(Cohort(tuple(same))), 0)
    later = replace(studies[1], session="later", images={"t1": studies[1].images["t1"]}, split="test")
    with pytest.raises(CohortError, match="holds visits of 'p1', of whom the table marks another visit as test"):
        read_fold(path, of_flair(Cohort((*studies, later))), 0)


def test_files_of_earlier_versions_are_still_read(tmp_path: Path) -> None:
    table, plan = written(tmp_path), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    content = json.loads(path.read_text())
    del content["modalities"]
    for row in content["studies"]:
        images = json.dumps(row.pop("images"))
        row["content"] = hashlib.sha256(images.encode()).hexdigest()
    path.write_text(json.dumps(content))
    assert read_fold(path, table, 0)
    save(table[2].images["t1"], picture(seed=99, shape=(8, 8, 8)))
    with pytest.raises(CohortError, match=r"the images of 1 studies have changed since .* \('p2'\)"):
        read_fold(path, table, 0)


def test_a_patient_in_two_parts_is_refused_when_written_and_when_read(tmp_path: Path) -> None:
    table, plan = written(tmp_path), FoldPlan(2)
    folds = make_folds(table, plan)
    path = write_folds(tmp_path / "folds.json", table, folds, plan)
    same = {folds[0].train[0][0], folds[0].test[0][0]}
    merged = Cohort(tuple(replace(s, group="one") if s.subject in same else s for s in table))
    with pytest.raises(CohortError, match=r"puts 'one' into train and into test: expected all studies of a patient"):
        read_fold(path, merged, 0)
    with pytest.raises(CohortError, match="puts 'one' into train and into test"):
        write_folds(path, merged, folds, plan)


def with_copy(folder: Path, group: str = "") -> Cohort:
    """Six patients, and the scan of one of them under another name."""
    table = written(folder)
    copy = Study("copy", {"t1": save(folder / "copy.nii", picture(seed=1, shape=(8, 8, 8)))}, group=group)
    return Cohort((*table.studies, copy))


def test_the_same_voxels_under_two_names_are_refused_when_written(tmp_path: Path) -> None:
    table, plan = with_copy(tmp_path), FoldPlan(2)
    with pytest.raises(
        CohortError, match=r"^p1 and copy hold the same voxels \(t1\): delete one, or give both the same `group`$"
    ):
        write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    apart = Cohort((*table.studies[:6], replace(table[6], split="test")))  # in no fold, but trained on as p1
    with pytest.raises(CohortError, match="p1 and copy hold the same voxels"):
        write_folds(tmp_path / "folds.json", apart, make_folds(apart, plan), plan)
    assert not (tmp_path / "folds.json").exists()


def test_one_patients_studies_may_share_an_image(tmp_path: Path) -> None:
    table, plan = with_copy(tmp_path, group="p1"), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    assert sum(map(len, read_fold(path, table, 0).values())) == 7


@pytest.mark.parametrize("earlier", [False, True], ids=["hashes", "one hash a study"])
def test_a_fold_of_an_earlier_file_with_the_same_voxels_in_two_parts_is_refused(tmp_path: Path, earlier: bool) -> None:
    joined, plan = with_copy(tmp_path, group="p1"), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", joined, make_folds(joined, plan), plan)
    content = json.loads(path.read_text())
    names = [[f"p{number}", ""] for number in range(6)] + [["copy", ""]]
    content["folds"] = [
        {"train": names[:2], "validation": names[2:4], "test": names[4:]},
        {"train": [*names[:2], names[6]], "validation": names[2:4], "test": names[4:6]},
    ]
    for row in content["studies"] if earlier else []:
        row["content"] = hashlib.sha256(json.dumps(row.pop("images")).encode()).hexdigest()
    path.write_text(json.dumps(content))
    table = Cohort(tuple(replace(study, group=study.subject) for study in joined))
    with pytest.raises(CohortError, match=r"fold 0 of .*folds.json has p1 in train and copy in test, which hold the"):
        read_fold(path, table, 0)
    assert len(read_fold(path, table, 1)["train"]) == 3


def test_visits_written_as_subjects_are_warned_of() -> None:
    names = ("p01_v1", "p01_v2", "p02", "p03", "p04", "p05")
    table = Cohort(tuple(Study(name, {"t1": Path(f"{name}.nii")}) for name in names))
    with pytest.warns(UserWarning, match="^p01_v1 and p01_v2 look like visits of one patient: fill in `group`"):
        make_folds(table, FoldPlan(2))
    make_folds(Cohort(tuple(replace(study, group=study.subject[:3]) for study in table)), FoldPlan(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the folds"),
        ("subject,fold", "no file of folds: expected what `bmmae split` writes"),
        ("[]", "no file of folds of format 1"),
        ('{"format": 2}', "no file of folds of format 1"),
        ('{"format": 1, "studies": [{}], "folds": []}', "is damaged: make it again"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "folds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CohortError, match=message):
        read_fold(path, cohort(), 0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.3, 0.4, 0.45])
def test_the_share_that_validates_is_the_one_asked_for(share: float) -> None:
    table = Cohort(tuple(Study(f"p{i}", {"t1": Path(f"p{i}.nii.gz")}) for i in range(50)))
    folds = make_folds(table, FoldPlan(5, validation_share=share))
    assert all(abs(len(fold.validation) - 40 * share) <= 1 for fold in folds)


def test_impossible_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="5 folds need 6 patients or more, got 4"):
        make_folds(cohort(4), FoldPlan())
    with pytest.raises(CohortError, match="no column 'grade' to stratify by: the table has event, site, subtype, time"):
        make_folds(cohort(), FoldPlan(stratify=("grade",)))
    with pytest.raises(CohortError, match="2 folds or more"):
        FoldPlan(folds=1)
    with pytest.raises(CohortError, match="validation share"):
        FoldPlan(validation_share=0.0)
    table, plan = written(tmp_path), FoldPlan(2)
    path = write_folds(tmp_path / "folds.json", table, make_folds(table, plan), plan)
    with pytest.raises(CohortError, match=re.escape("has folds 0 to 1, got 2")):
        read_fold(path, table, 2)


def test_the_command_writes_what_scripts_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Cohort(tuple(replace(s, values={"subtype": "AB"[i % 2]}) for i, s in enumerate(written(tmp_path))))
    path = table.write(tmp_path / "cohort.csv")
    out = tmp_path / "folds.json"
    assert main(["split", str(path), "--folds", "2", "--repeats", "2", "--stratify", "subtype", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "subtype A: " in printed
    assert f"4 folds in {out}; train with --data.splits {out} --data.fold 0" in printed
    assert json.loads(out.read_text())["plan"]["stratify"] == ["subtype"]
    given = ["--data.cohort", str(path), "--data.splits", str(out), "--data.fold", "3", "--train.steps", "1"]
    data = parse(PretrainConfig, given).data
    assert (data.splits, data.fold) == (out, 3)


def test_a_broken_image_sends_to_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = written(tmp_path)
    path = table.write(tmp_path / "cohort.csv")
    broken = table[1].images["t1"]
    assert isinstance(broken, Path)
    broken.write_bytes(broken.read_bytes()[:100])
    assert main(["split", str(path), "--folds", "2", "--out", str(tmp_path / "folds.json")]) == 2
    assert f"{broken.name} cannot be read as an image" in (said := capsys.readouterr().err)
    assert f"Run `bmmae check {path}` to see all that is broken" in said


def test_the_printed_strata_count_patients() -> None:
    table, plan = cohort(), FoldPlan(3, stratify=("subtype",))
    for line, fold in zip(
        format_folds(table, folds := make_folds(table, plan), plan).splitlines()[1:], folds, strict=True
    ):
        counted = [int(count) for count in re.findall(r"subtype \w+: (\d+)", line)]
        assert sum(counted) == len({subject for subject, _ in fold.test}) < len(fold.test)


def test_a_patient_of_many_visits_who_leaves_nobody_else_is_refused() -> None:
    visits = (("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1"))
    few = Cohort(tuple(Study(who, {"t1": Path(f"{who}{when}.nii")}, session=when) for who, when in visits))
    with pytest.raises(CohortError, match="of 2 would leave 1 patient to train and to validate on"):
        make_folds(few, FoldPlan(2))


def test_decimal_commas_are_no_classes_to_stratify_by() -> None:
    studies = tuple(replace(s, values={"age": f"{i},5"}) for i, s in enumerate(cohort().studies))
    with pytest.raises(CohortError, match=r"'age' to stratify by holds '0,5', '1,5', .* with a decimal point"):
        make_folds(Cohort(studies), FoldPlan(folds=3, stratify=("age",)))

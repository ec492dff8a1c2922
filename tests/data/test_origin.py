"""What a model remembers of its training: that it was synthetic, whose terms hold, and nobody's name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import pytest
from tiny_studies import write_study

from bmmae.data.cohort import Cohort, Study, read_cohort
from bmmae.data.index import index_folder
from bmmae.data.origin import GENERATOR_FILE, LIMITS, generator_of, training_provenance
from bmmae.provenance import Provenance

PARENT = Provenance(licence="CC-BY-4.0", synthetic=True, generator="2", limits=(*LIMITS, "Adults only."))


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    return [write_study(tmp_path / "in" / "c" / f"p{seed}", ("t1",), seed=seed, shape=(8, 8, 8)) for seed in range(2)]


def mark(folder: Path) -> None:
    (folder / GENERATOR_FILE).write_text(json.dumps({"generator_version": "7"}))


def made(studies: list[Study], parent: str | None = None, inherited: Provenance | None = None) -> Provenance:
    return training_provenance(Cohort(tuple(studies)), studies, parent, inherited=inherited)


# ---- what the weights before it leave to a model


def test_licence_limits_and_synthetic_origin_of_the_parent_are_kept_apart(studies: list[Study]) -> None:
    child = made(studies, "tiny", PARENT)
    assert (child.licence, child.synthetic, child.limits) == (None, False, LIMITS)
    assert (child.parent_licences, child.parent_synthetic) == (("CC-BY-4.0",), True)
    assert child.parent_limits == ("Adults only.",)


def test_they_reach_grandchildren(studies: list[Study]) -> None:
    child = replace(made(studies, "tiny", PARENT), licence="MIT")
    grandchild = made(studies, "child", child)
    assert grandchild.parent_licences == ("MIT", "CC-BY-4.0")
    assert grandchild.parent_limits == ("Adults only.",)
    assert grandchild.parent_synthetic


# ---- images that a model has synthesised


def test_synthesised_training_images_are_told_by_header_or_table(studies: list[Study], tmp_path: Path) -> None:
    header = nib.load(str(studies[0].images["t1"]))
    header.header["descrip"] = b"bmmae SYNTHETIC T1, not acquired"
    nib.save(header, tmp_path / "t1.nii.gz")
    guessed = [
        replace(studies[0], images={"t1": tmp_path / "t1.nii.gz"}),
        replace(studies[1], values={"synthetic": "t1+dwi"}),
    ]
    for each in guessed:
        with pytest.warns(UserWarning, match="1 of 2 training images were synthesised"):
            assert "1 of its 2 training images" in made([each, studies[1 - guessed.index(each)]]).limits[-1]
    assert made(studies).limits == LIMITS


# ---- synthetic cohorts


@pytest.mark.parametrize("place", ["in/c/p0", "in/c", "in"])
def test_a_synthetic_cohort_is_known_by_its_images_wherever_the_table_is(
    studies: list[Study], tmp_path: Path, place: str
) -> None:
    mark(tmp_path / place)
    found = made(studies)
    assert (found.synthetic, found.generator) == (True, "7")
    assert found.data == "2 synthetic studies of 2 patients"


def test_a_mark_further_up_is_none_of_theirs(studies: list[Study], tmp_path: Path) -> None:
    mark(tmp_path)
    assert not made(studies).synthetic


def test_an_indexed_table_elsewhere_is_still_synthetic(studies: list[Study], tmp_path: Path) -> None:
    mark(tmp_path / "in" / "c")
    table = index_folder(tmp_path / "in" / "c").cohort.write(tmp_path / "tables" / "cohort.csv")
    assert made(list(read_cohort(table).studies)).synthetic


# ---- what a shared model must not tell


def test_a_command_names_no_folders(studies: list[Study], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        [
            "/home/jane doe/bin/train.py",
            "--data.cohort",
            "/mnt/St Mary/smith, john/cohort.csv",
            "--data.cache=/scratch/jane/cache/",
            "--data.splits",
            "C:\\Users\\jane\\folds.json",
            "s3://key@ward/a=b/t.csv?token=secret",
            "--preprocess.spacing",
            "[3, 3, 3]",
            "--optim.lr=3e-4",
        ],
    )
    assert made(studies).command == (
        "train.py --data.cohort cohort.csv --data.cache=cache --data.splits folds.json t.csv "
        "--preprocess.spacing '[3, 3, 3]' --optim.lr=3e-4"
    )


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("org/name", "org/name"),
        ("org/name@v1", "org/name@v1"),
        ("jane/run", "run"),
        ("jane/run@last", "run@last"),
        ("/mnt/jane/other/", "other"),
        ("bmmae.pth", "bmmae.pth"),
    ],
)
def test_a_parent_is_a_hub_name_or_the_last_part_of_a_path(
    studies: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str, name: str
) -> None:
    (tmp_path / "jane" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "--model", parent, f"--model={parent}"])
    found = made(studies, parent)
    assert found.parent == name
    assert found.command == f"train.py --model {name} --model={name}"


def test_a_locked_folder_marks_nothing(studies: list[Study], monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", locked)  # root may look into all
    assert generator_of(Cohort(tuple(studies)), studies) is None

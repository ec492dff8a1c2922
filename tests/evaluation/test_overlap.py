"""A model that has seen its test studies is named, whatever the studies are called now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import tiny_mae
from tiny_studies import write_study

from bmmae.checkpoint import describe
from bmmae.data.cohort import Cohort, Study
from bmmae.data.origin import training_provenance
from bmmae.evaluation.overlap import overlap, warn_of_overlap
from bmmae.evaluation.segmentation import SubsetScore, format_subsets
from bmmae.evaluation.synthesis import METHODS, SynthesisScore, format_synthesis
from bmmae.model.mae import MAE
from bmmae.provenance import Provenance


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    return [write_study(tmp_path / f"p{seed}", ("t1", "flair"), seed=seed, shape=(8, 8, 8)) for seed in range(3)]


def trained_on(studies: list[Study], parent: str | None = None, inherited: Provenance | None = None) -> MAE:
    describe(
        model := tiny_mae(),
        provenance=training_provenance(Cohort(tuple(studies)), studies, parent, inherited=inherited),
    )
    return model


def test_new_studies_are_no_overlap(studies: list[Study]) -> None:
    found = overlap(trained_on(studies[:2]), studies[2:])
    assert (found.studies, found.tested, found.images, found.known) == ((), 1, 0, True)
    assert str(found).startswith("None of the 1 test studies was in the model's training or pretraining")


def test_a_training_image_is_found_under_another_name(studies: list[Study], tmp_path: Path) -> None:
    copy = Path(shutil.copy(studies[0].images["t1"], tmp_path / "new.nii.gz"))
    renamed = replace(studies[2], subject="new", images={**studies[2].images, "t1": copy})
    found = overlap(trained_on(studies[:2]), [renamed, studies[2]])
    assert (found.studies, found.images) == (("new",), 1)
    assert "WARNING: THE MODEL WAS TRAINED ON 1 OF THESE 2 TEST STUDIES (1 images with the same voxels: new)" in str(
        found
    )


def test_what_pretraining_saw_is_inherited(studies: list[Study]) -> None:
    first = Provenance.of(trained_on(studies[:1]).metadata.provenance)
    second = Provenance.of(trained_on(studies[1:2], "first", first).metadata.provenance)
    third = trained_on(studies[2:], "second", second)
    assert overlap(third, studies).studies == ("p0", "p1", "p2")
    assert overlap(third, studies).images == 6


def test_what_a_model_does_not_say_is_not_known(studies: list[Study]) -> None:
    assert not overlap(tiny_mae(), studies).known
    assert str(overlap(tiny_mae(), studies)).startswith("NOT KNOWN whether the model was trained on these test studies")
    assert str(overlap(trained_on(studies[:1], "bmmae.pth"), studies[1:])).startswith("NOT KNOWN whether the weights")


def test_a_training_that_left_no_hashes_is_not_known_whatever_its_weights_had_seen(studies: list[Study]) -> None:
    before = Provenance.of(trained_on(studies[:1]).metadata.provenance)
    describe(model := tiny_mae(), provenance=replace(Provenance().inherit(before), parent="first"))
    assert str(overlap(model, studies[1:])).startswith("NOT KNOWN whether the model was trained on these test studies")
    assert overlap(model, studies).studies == ("p0",)


def test_a_warning_is_given_only_where_there_is_an_overlap(studies: list[Study]) -> None:
    warn_of_overlap(trained_on(studies[:2]), studies[2:])
    with pytest.warns(UserWarning, match="^THE MODEL WAS TRAINED ON 1 OF THESE 2 TEST STUDIES"):
        warn_of_overlap(trained_on(studies[:2]), studies[1:])


def test_studies_that_chose_the_weights_are_told_but_are_no_training_studies(studies: list[Study]) -> None:
    made = training_provenance(Cohort(tuple(studies)), studies[:1], validation=studies[1:2])
    describe(model := tiny_mae(), provenance=made)
    found = overlap(model, studies)
    assert (found.studies, found.chosen) == (("p0",), ("p1",))
    alone = overlap(model, studies[1:])
    assert (alone.chosen, alone.nothing_found, alone.warning) == (("p1",), False, "")
    assert str(alone).startswith("WARNING: 1 of these 2 test studies chose among the model's weights")
    assert overlap(model, studies[2:]).nothing_found
    warn_of_overlap(model, studies[1:2])  # a training that validates on them is what is meant to be


def test_every_table_of_metrics_begins_with_it(studies: list[Study]) -> None:
    seen = overlap(trained_on(studies[:2]), studies)
    tables = (
        format_subsets([SubsetScore("T1", "WT", 0.5, 3)], seen),
        format_synthesis([SynthesisScore("t1", method, 20.0, 21.0, 3) for method in METHODS], seen),
    )
    for table in tables:
        assert table.splitlines()[0] == str(seen)

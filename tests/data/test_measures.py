"""Measures are what one would count by hand, whatever the scanner's scale, and hidden with their modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_config
from tiny_patients import TARGETS, row, write_table

from bmmae.arrays import Array
from bmmae.cli import main
from bmmae.data.cohort import Study
from bmmae.data.labels import BINARY, BRATS2017
from bmmae.data.loaders import Batch, collate
from bmmae.data.measures import Measures, measure, measure_columns, modality_of
from bmmae.data.packing import PackedStudy, pack_flags
from bmmae.data.patient_columns import BesideConfig, fit_columns
from bmmae.errors import CohortError
from bmmae.modalities import STANDARD
from bmmae.model.patient import PatientModel, PatientModelConfig
from bmmae.tasks.patient import run_model

SHAPE = (16, 16, 16)


def packed(label: Array | None, gain: float = 1.0, seed: int = 0) -> PackedStudy:
    """A brain of twelve voxels a side with noise, in two modalities; lesions are two deviations brighter."""
    brain = np.zeros(SHAPE, bool)
    brain[2:14, 2:14, 2:14] = True
    images = np.random.default_rng(seed).normal(size=(2, *SHAPE)) * brain
    if label is not None:
        images[1] += 2 * (label > 0)
    valid = np.ones((2, *SHAPE), bool)
    empty = np.zeros((0, 3), np.int16)
    return PackedStudy(("t1", "flair"), (images * gain).astype(np.float16), pack_flags(valid, brain), label, empty)


def two_lesions() -> Array:
    label = np.zeros(SHAPE, np.int16)
    label[3:6, 3:6, 3:6] = 2
    label[4, 4, 4] = 4
    label[10:12, 10:12, 10:12] = 1
    return label


def test_regions_are_counted_and_placed() -> None:
    found = measure(packed(two_lesions()), (2.0, 2.0, 2.0), BRATS2017)
    assert found["lesion_WT_volume"] == pytest.approx(np.log1p((27 + 8) * 8))
    assert found["lesion_TC_volume"] == pytest.approx(np.log1p(9 * 8))
    assert found["lesion_TC_share"] == pytest.approx(9 / 35)
    assert (found["lesion_WT_pieces"], found["lesion_ET_pieces"]) == (2, 1)
    # The brain reaches from voxel 2 to 13; the enhancing voxel is at 4, the lowest piece of the core as well.
    assert found["lesion_ET_right"] == pytest.approx(2 / 11)
    assert found["lesion_TC_lowest"] == pytest.approx(2 / 11)
    assert found["lesion_TC_superior"] == pytest.approx(((4 + 8 * 10.5) / 9 - 2) / 11)


def test_brightness_is_measured_against_the_rest_of_the_brain() -> None:
    label = two_lesions()
    found = measure(packed(label), (1.0, 1.0, 1.0), BRATS2017)
    assert found["flair_WT_mean"] == pytest.approx(2, abs=0.5)
    assert found["t1_WT_mean"] == pytest.approx(0, abs=0.5)
    assert found["flair_WT_deviation"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("gain", [0.2, 3.0])
def test_a_scanners_scale_changes_nothing(gain: float) -> None:
    one, two = (measure(packed(two_lesions(), scale), (1.0, 1.0, 1.0), BRATS2017) for scale in (1.0, gain))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(one.values()), list(two.values()), atol=0.02)


def test_bright_foci_outside_lesions_are_counted_and_single_voxels_are_not() -> None:
    study = packed(two_lesions())
    images = study.images.copy()
    images[1, 8:10, 4, 4] = 9
    images[1, 4, 10, 10:12] = 9
    images[1, 12, 12, 4] = 9
    images[1, 4, 4, 4] = 90
    plain, spotted = (measure(each, (1.0, 1.0, 1.0), BRATS2017) for each in (study, replace(study, images=images)))
    assert (plain["flair_foci"], spotted["flair_foci"]) == (0, 2)
    assert spotted["t1_foci"] == plain["t1_foci"]


def test_without_lesions_or_segmentation_there_is_less_to_measure() -> None:
    empty = measure(packed(np.zeros(SHAPE, np.int16)), (1.0, 1.0, 1.0), BINARY)
    assert set(empty) == {"lesion_lesion_volume", "lesion_lesion_pieces", "t1_foci", "flair_foci"}
    assert empty["lesion_lesion_pieces"] == 0
    assert set(measure(packed(None), (1.0, 1.0, 1.0), None)) == {"t1_foci", "flair_foci"}


def test_a_measure_belongs_to_its_modality() -> None:
    names = ("t1", "t1ce", "t1ce_late")
    assert modality_of("measure_lesion_ET_volume", names) == ""
    assert modality_of("measure_t1ce_ET_mean", names) == "t1ce"
    assert modality_of("measure_t1ce_late_foci", names) == "t1ce_late"
    assert modality_of("measure_flair_foci", names) is None


def people(count: int) -> list[Study]:
    rng = np.random.default_rng(0)
    images = {name: Path(f"{name}.nii.gz") for name in STANDARD}
    names = ("lesion_WT_volume", "t1ce_WT_mean", "flair_foci")
    found: list[Measures] = [{name: float(rng.normal()) for name in names} for _ in range(count)]
    studies = [Study(f"p{number}", images, **row(number)) for number in range(count)]
    return [
        replace(study, values={**study.values, **{f"measure_{name}": value for name, value in own.items()}})
        for study, own in zip(studies, found, strict=True)
    ]


@pytest.mark.parametrize("impute", [False, True])
@pytest.mark.parametrize("fusion", [False, True])
def test_measures_of_hidden_modalities_are_never_seen(fusion: bool, impute: bool) -> None:
    studies = people(12)
    columns = fit_columns(studies, TARGETS, BesideConfig(measures=True, impute=impute))
    assert [variable.modality for variable in columns.clinical] == ["", "t1ce", "flair"]
    torch.manual_seed(0)
    model = PatientModel(PatientModelConfig(tiny_config(), columns.targets, columns.clinical, fusion=fusion)).eval()
    for layer in (*model.heads, *model.direct):
        torch.nn.init.normal_(layer.weight)

    def logits(changed: str, shown: bool) -> torch.Tensor:
        given = [
            replace(study, values={**study.values, changed: 50.0 + number}) for number, study in enumerate(studies)
        ]
        batch: Batch = dict(collate([columns.encode(study) for study in given]))
        volume = torch.randn(12, 4, 16, 16, 16, generator=torch.Generator().manual_seed(1))
        available = torch.ones(12, 4, dtype=torch.bool)
        available[:, STANDARD.index("flair")] = shown
        batch |= {"images": volume, "available": available, "brain": torch.ones(12, 16, 16, 16, dtype=torch.bool)}
        batch["valid"] = available[:, :, None, None, None].expand_as(volume)
        with torch.no_grad():
            return torch.cat(list(run_model(model, batch, model.config).values()), dim=1)

    plain = logits("nothing", False)
    assert torch.equal(plain, logits("measure_flair_foci", False))
    assert not torch.equal(plain, logits("measure_t1ce_WT_mean", False))
    assert not torch.equal(plain, logits("measure_lesion_WT_volume", False))
    assert not torch.equal(logits("nothing", True), logits("measure_flair_foci", True))


def test_measures_that_are_wanted_must_be_there() -> None:
    bare = [replace(study, values=row(number)["values"]) for number, study in enumerate(people(12))]
    with pytest.raises(CohortError, match="write them into the table with `bmmae measure`"):
        measure_columns(bare)
    one = [replace(study, images={"t1ce": Path("t1ce.nii.gz")}) for study in people(12)]
    assert list(measure_columns(one)) == ["measure_lesion_WT_volume", "measure_t1ce_WT_mean"]


def test_the_command_adds_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path, 4)
    out = tmp_path / "measured.csv"
    assert main(["measure", str(table), "--out", str(out), "--spacing", "1.5", "1.5", "1.5"]) == 2
    assert "the label coding is open" in capsys.readouterr().err
    words = ["measure", str(table), "--out", str(out), "--spacing", "1.5", "1.5", "1.5", "--labels", "brats2017"]
    assert main(words) == 0
    assert f"measures of 4 studies in {out}" in capsys.readouterr().out
    found, before = pd.read_csv(out), pd.read_csv(table)
    assert list(found.columns[: len(before.columns)]) == list(before.columns)
    assert found.loc[1, "measure_lesion_ET_pieces"] >= 1
    assert np.isnan(found.loc[0, "measure_lesion_ET_pieces"])  # without a segmentation
    assert np.isnan(found.loc[0, "measure_flair_foci"])  # without FLAIR
    assert found.loc[0, "measure_t1_foci"] >= 0


def test_lesions_of_a_study_without_a_segmentation_are_not_counted_as_foci_beside_others() -> None:
    assert measure(packed(None), (1.0, 1.0, 1.0), BRATS2017) == {}


@pytest.mark.filterwarnings("default:.*they are left out")
def test_broken_studies_are_all_named_at_once_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = write_table(tmp_path, 4), tmp_path / "measured.csv"
    rows = pd.read_csv(table, dtype=str)
    for number in (1, 3):
        (tmp_path / rows.loc[number, "t1"]).write_bytes(b"")
    words = ["measure", str(table), "--out", str(out), "--spacing", "1.5", "1.5", "1.5", "--labels", "brats2017"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "2 of 4 studies cannot be read" in told
    assert all(rows.loc[number, "subject"] in told for number in (1, 3))
    assert "leave them out with --skip-broken" in told
    assert not out.exists()
    assert main([*words, "--skip-broken"]) == 0
    told = capsys.readouterr()
    assert "warning: 2 of 4 studies cannot be read" in told.err
    assert "measures of 2 studies in" in told.out
    assert list(pd.read_csv(out, dtype=str)["subject"]) == list(rows.loc[[0, 2], "subject"])

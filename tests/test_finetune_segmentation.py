"""finetune/segmentation.py on a few phantoms: starts, labels, freezing, resuming, and refusing."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config, tiny_mae
from tiny_studies import SHAPE, lesion, save, write_study

from bmmae.checkpoint import SyntheticWeightsWarning, load_model, preprocessing_of, save_model
from bmmae.cli import main
from bmmae.config import SegmentConfig, parse
from bmmae.data.cache import StudyCache
from bmmae.data.coding import PREDICTED, SEG_ORIGIN
from bmmae.data.cohort import Cohort, read_cohort
from bmmae.data.labels import BRATS2023
from bmmae.data.preprocess import PreprocessConfig
from bmmae.errors import BmmaeError, ConfigError, LabelError, TrainingError
from bmmae.modalities import STANDARD
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
from bmmae.training.checkpointing import read_index

SCRIPT = Path(__file__).parents[1] / "finetune" / "segmentation.py"
OWN = ("--classes", "{core: 1, oedema: 2, rim: 4}", "--regions", "{all: [1, 2, 4], inner: [1, 4], rim: [4]}")
OTHER = ("train", "train", "validation", "train")
SHORT = ("--train.workers", 0, "--train.batch_size", 2, "--train.progress", "false", "--train.precision", "no")


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A pretrained model and a cohort of four, one of which validates."""
    save_model(tiny_mae((16, 16, 16)), tmp_path / "mae", preprocessing=PreprocessConfig())
    subsets = (("t1", "flair"), ("t1ce",), ("t1", "t1ce", "t2", "flair"), ("t2", "flair"))
    studies = [write_study(tmp_path / "in" / f"p{i}", names, seed=i) for i, names in enumerate(subsets)]
    parts = ("train", "train", "train", "validation")
    table = tuple(replace(study, split=part) for study, part in zip(studies, parts, strict=True))
    Cohort(table).write(tmp_path / "cohort.csv")
    return tmp_path


def finetune(world: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object, model: str = "mae") -> SegmentationModel:
    fixed = ("--model", world / model, "--data.cohort", world / "cohort.csv", "--out", world / "run", "--width", 4)
    words = [str(word) for word in (SCRIPT, *fixed, *SHORT, *arguments)]
    monkeypatch.setattr(sys, "argv", words)
    assert runpy.run_path(str(SCRIPT))["main"]() == 0
    made = load_model(world / "run@last")
    assert isinstance(made, SegmentationModel)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("from_file", [False, True])
def test_a_frozen_encoder_stays_and_own_labels_travel(
    world: Path, monkeypatch: pytest.MonkeyPatch, from_file: bool
) -> None:
    file = world / "coding.yaml"
    file.write_text(f"classes: {OWN[1]}\nregions: {OWN[3]}\n")
    labels = ("--data.labels", file) if from_file else OWN
    teach = ("--distill.weight", 1, "--augment.modality_dropout", 0, "--supervision", 1, "--frozen", "true")
    made = finetune(world, monkeypatch, *labels, *teach, "--train.steps", 2)
    before = load_model(world / "mae").encoder.state_dict()  # type: ignore[union-attr,operator]
    assert all(torch.equal(value, before[name]) for name, value in made.encoder.state_dict().items())
    assert (made.config.regions, made.config.supervision) == (("all", "inner", "rim"), 1)
    assert made.config.classes == {"core": 1, "oedema": 2, "rim": 4}
    assert made.config.united == {"all": (1, 2, 4), "inner": (1, 4), "rim": (4,)}


@pytest.mark.slow
def test_a_run_is_resumed_and_its_model_a_start(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ("--data.labels", "brats2017", "--optim.schedule_steps", 9)
    finetune(world, monkeypatch, *labels, "--train.steps", 1)
    with pytest.warns(UserWarning, match=r"train\.steps: 1 -> 2"):
        finetune(world, monkeypatch, *labels, "--train.steps", 2, "--train.resume", "true")
    assert (world / "run" / "checkpoints" / "step-00000002").is_dir()
    other = [replace(study, split=part) for study, part in zip(read_cohort(world / "cohort.csv"), OTHER, strict=True)]
    before = (world / "cohort.csv").read_text()
    Cohort(tuple(other)).write(world / "cohort.csv")
    with pytest.raises(TrainingError, match=r"training samples \(data.cohort, data.splits, data.fold ...\) was"):
        finetune(world, monkeypatch, *labels, "--train.steps", 2, "--train.resume", "true")
    (world / "cohort.csv").write_text(before)
    (world / "run").rename(world / "first")
    again = finetune(world, monkeypatch, *labels, "--train.steps", 1, model="first")
    assert again.metadata.provenance["parent"] == "first"


@pytest.mark.slow
def test_without_validation_everybody_trains_and_the_last_step_is_the_model(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ("--data.labels", "brats2017", "--data.validation_share", 0, "--train.steps", 2)
    with pytest.raises(ConfigError, match=r"train\.patience waits for evaluations, and nobody validates"):
        finetune(world, monkeypatch, *alone, "--train.patience", 3)
    made = finetune(world, monkeypatch, *alone, "--train.evaluate_every", 1)
    index = read_index(world / "run")
    assert (index["status"], index["step"], index["best"]) == ("finished", 2, None)
    assert (made.metadata.provenance["subjects"], made.metadata.provenance["selection_hashes"]) == (4, [])
    assert not any("val/loss" in line for line in (world / "run" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("--data.labels", "brats2023"), r"has label values \[4\]: coding 'brats2023' knows only"),
        (("--classes", "{core: 1}"), r"has label values \[2, 4\]: coding 'own' knows only"),
        ((*OWN[:2], "--regions", "{a: [1, 2], b: [2, 4]}"), "regions must nest so that each adds one value"),
        ((), "the label coding is open"),
    ],
)
def test_labels_that_do_not_fit_end_before_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        finetune(world, monkeypatch, *labels, "--train.steps", 1)
    assert not (world / "run").exists()


def test_a_segmentation_on_another_grid_ends_before_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(world / "in" / "p0" / "seg.nii.gz", lesion((*SHAPE[:2], SHAPE[2] - 1)))
    with pytest.raises(BmmaeError, match=r"seg\.nii\.gz .* is not on the grid of"):
        finetune(world, monkeypatch, "--data.labels", "brats2017", "--train.steps", 1)


def test_the_shipped_start_gives_the_default_configuration_its_decoder() -> None:
    root = SCRIPT.parents[1]
    asked = ["--config", str(root / "configs" / "finetune" / "segmentation.yaml"), "--model", "x", "--data.cohort", "y"]
    config = parse(SegmentConfig, asked)
    with pytest.warns(SyntheticWeightsWarning):
        donor = load_model(root / "checkpoints" / "tiny-segmentation")
    assert isinstance(donor, SegmentationModel)
    shape = (config.width, config.decoder, config.fusion, config.supervision)
    model = SegmentationModel(SegmentationConfig(donor.model_config, tuple(BRATS2023.regions), "brats2023", *shape))
    assert model.take_decoder(donor)
    own, given = model.state_dict(), donor.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in own.items() if not name.startswith("encoder."))


def test_a_start_of_another_shape_gives_its_encoder_and_says_so(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = SegmentationModel(SegmentationConfig(tiny_mae((16, 16, 16)).config, width=8))
    save_model(donor, world / "segmenter", preprocessing=PreprocessConfig())
    asked = ("--data.labels", "brats2017", "--train.steps", 1)
    with pytest.warns(UserWarning, match=r"the decoder of .* has another shape \(width 8, .* random weights"):
        finetune(world, monkeypatch, *asked, model="segmenter")


def test_weights_keep_the_grid_that_they_know_unless_told_otherwise(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--data.labels", "brats2017", "--train.steps", 1)
    assert preprocessing_of(finetune(world, monkeypatch, *asked)).spacing == (1, 1, 1)
    told = ("--preprocess.spacing", "[2, 2, 2]", "--out", world / "coarse")
    with pytest.warns(UserWarning, match="know images of 1 x 1 x 1 mm, .* go on with images of 2 x 2 x 2 mm"):
        finetune(world, monkeypatch, *asked, *told)
    assert preprocessing_of(load_model(world / "coarse@last")).spacing == (2, 2, 2)


def test_segmentations_that_a_model_made_are_said_to_be(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = read_cohort(world / "cohort.csv").studies
    made = tuple(replace(study, values={SEG_ORIGIN: PREDICTED}) for study in studies[:2])
    Cohort((*made, *studies[2:])).write(world / "cohort.csv")
    with pytest.warns(UserWarning, match="2 of 4 segmentations are predictions, as the column 'seg_origin' says"):
        finetune(world, monkeypatch, "--data.labels", "brats2017", "--train.steps", 1)


@pytest.mark.parametrize(("emptied", "part"), [((0, 1, 2, 3), "training"), ((3,), "validation")])
def test_segmentations_that_are_all_empty_end_before_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch, emptied: tuple[int, ...], part: str
) -> None:
    for number in emptied:
        save(world / "in" / f"p{number}" / "seg.nii.gz", lesion() * 0)
    with pytest.raises(LabelError, match=rf"no {part} study has a labelled voxel \(\d of \d have a segmentation\)"):
        finetune(world, monkeypatch, "--data.labels", "brats2017", "--train.steps", 1)
    assert not (world / "run").exists()


def test_a_validation_lesion_that_is_too_small_for_the_grid_ends_before_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = lesion() * 0
    label[11, 9, 10] = 1  # between the centres of voxels of 3 mm
    save(world / "in" / "p3" / "seg.nii.gz", label)
    asked = ("--data.labels", "brats2017", "--train.steps", 1)
    told = r"no validation study has a labelled voxel \(1 of 1 .* on the model's grid of 3 x 3 x 3 mm"
    with pytest.warns(UserWarning, match="go on with images of 3 x 3 x 3 mm"), pytest.raises(LabelError, match=told):
        finetune(world, monkeypatch, *asked, "--preprocess.spacing", "[3, 3, 3]")
    assert not (world / "run").exists()


@pytest.mark.parametrize("seed", range(4))
def test_chance_divides_the_studies_with_a_segmentation(world: Path, seed: int) -> None:
    studies = read_cohort(world / "cohort.csv").studies
    kept = (*(study.seg for study in studies[:2]), None, None)
    some = tuple(replace(study, split=None, seg=seg) for study, seg in zip(studies, kept, strict=True))
    told = ("--model", "x", "--data.cohort", world / "cohort.csv", "--train.steps", 1, "--train.seed", seed)
    config, cache = parse(SegmentConfig, list(map(str, told))), StudyCache(None, PreprocessConfig(), STANDARD)
    with (
        pytest.warns(UserWarning, match="^2 studies without a segmentation left out$"),
        pytest.warns(UserWarning, match="no training study has"),  # a sequence that the other one has
    ):
        parts = runpy.run_path(str(SCRIPT))["labelled_parts"](config, Cohort(some), cache)
    assert sorted(study.subject for part in parts for study in part) == ["p0", "p1"]
    assert all(parts)


def test_one_study_with_a_segmentation_is_too_few_and_said_to_be_so(world: Path) -> None:
    studies = read_cohort(world / "cohort.csv").studies
    one = tuple(replace(study, split=None, seg=None if place else study.seg) for place, study in enumerate(studies))
    told = ("--model", "x", "--data.cohort", world / "cohort.csv", "--train.steps", 1)
    config, cache = parse(SegmentConfig, list(map(str, told))), StudyCache(None, PreprocessConfig(), STANDARD)
    with (
        pytest.warns(UserWarning, match="^3 studies without a segmentation left out$"),
        pytest.raises(LabelError, match=r"no \w+ study has a labelled voxel \(0 of \d have a segmentation\)"),
    ):
        runpy.run_path(str(SCRIPT))["labelled_parts"](config, Cohort(one), cache)


def test_what_no_training_study_has_is_said(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies = read_cohort(world / "cohort.csv").studies
    for study in studies[:3]:
        assert isinstance(study.seg, Path)
        save(study.seg, lesion() // 4 * 2)
    flair = tuple(replace(study, images={"flair": study.images["flair"]}) for study in studies if study.name != "p1")
    Cohort(flair).write(world / "cohort.csv")
    with (
        pytest.warns(UserWarning, match=r"no training study has a voxel of ET \(4\); TC \(1 or 4\): the model learns"),
        pytest.warns(UserWarning, match="no training study has t1, t1ce, t2, and nothing will be learned of it"),
    ):
        finetune(world, monkeypatch, "--data.labels", "brats2017", "--train.steps", 1)


def test_waiting_has_no_effect_on_a_frozen_encoder(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"optim\.frozen_steps has no effect with frozen"):
        finetune(world, monkeypatch, "--train.steps", 1, "--frozen", "true", "--optim.frozen_steps", 3)


def test_studies_without_the_models_modalities_leave_folds_as_they_are(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = world / "folds.json"
    assert main(["split", str(world / "cohort.csv"), "--folds", "2", "--out", str(folds)]) == 0
    shape = replace(tiny_config((16, 16, 16)), modalities=("t1", "t2", "flair"))  # p1 has T1ce alone
    save_model(MAE(shape), world / "fewer", preprocessing=PreprocessConfig())
    tested = [["p1", ""] in fold["test"] for fold in json.loads(folds.read_text())["folds"]]
    asked = (
        "--data.labels",
        "brats2017",
        "--train.steps",
        1,
        "--data.splits",
        folds,
        "--data.fold",
        tested.index(True),
    )
    with (
        pytest.warns(UserWarning, match="1 of the 4 studies of .* have none of the modalities t1, t2, flair"),
        pytest.warns(UserWarning, match="no training study has t2, and nothing will be learned of it"),
    ):
        made = finetune(world, monkeypatch, *asked, model="fewer")
    assert made.metadata.provenance["subjects"] == 1

"""The whole way on a synthetic cohort: the commands that a user would type for data of their own, one after another."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from bmmae.checkpoint import SyntheticWeightsWarning, load_model, preprocessing_of
from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Study, read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.labels import find_coding
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.errors import BmmaeError
from bmmae.evaluation.overlap import overlap
from bmmae.evaluation.segmentation import format_subsets, score_subsets
from bmmae.evaluation.synthesis import compare_synthesis, format_synthesis, verdict
from bmmae.masking import MaskingConfig
from bmmae.modalities import STANDARD, title
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationModel
from bmmae.notice import NOTICE
from bmmae.report import picture_reconstruction, predict_regions, regions_caption, save_report
from bmmae.starter import starter_root


@dataclass(frozen=True)
class Lengths:
    """How much the demo does.

    Attributes:
        subjects: Synthetic subjects.
        pretrain: Optimiser steps of pretraining.
        finetune: Optimiser steps of fine-tuning.
    """

    subjects: int
    pretrain: int
    finetune: int


FULL = Lengths(subjects=64, pretrain=1200, finetune=100)
QUICK = Lengths(subjects=12, pretrain=4, finetune=4)
SPACING = "3"
"""Millimetres: the synthetic cohort's own, so that one window holds a whole brain."""
CODING = "brats2017"
"""The synthetic cohort's label coding; its file names do not tell."""
T1, T1CE, T2, FLAIR = STANDARD
ABSENT = T1CE
"""The sequence that most often is missing: not every patient may have contrast."""
FEW = (T1, T2)
SUBSETS = (STANDARD, (T1CE,), (FLAIR,), FEW)


class StepFailedError(BmmaeError):
    """A step of the demo ended with an error of its own."""


def run_demo(out: Path, *, quick: bool = False) -> int:
    """Run all steps, print each before it runs, and leave a picture and a table in `out`.

    Raises:
        BmmaeError: If a step fails.
    """
    started = time.monotonic()
    lengths = QUICK if quick else FULL
    steps = _Steps(out, lengths)
    steps.prepare()
    steps.pretrain()
    steps.reconstruct()
    steps.finetune()
    summary = summarise(out)
    (out / "results.txt").write_text(summary + "\n")
    print(f"\n{summary}\n")
    print(_where_next(out, time.monotonic() - started))
    return 0


@dataclass(frozen=True)
class _Steps:
    """The commands, and the folder they work in."""

    out: Path
    lengths: Lengths

    @property
    def table(self) -> Path:
        return self.out / "cohort.csv"

    def prepare(self) -> None:
        data = self.out / "data"
        if not (data / "cohort.csv").exists():
            self._bmmae("synth", "--out", data, "--subjects", self.lengths.subjects, "--seed", 0)
        self._bmmae("index", data, "--out", self.out / "found.csv")
        self._bmmae("check", data / "cohort.csv", "--labels", CODING)
        self._bmmae("cache", data / "cohort.csv", "--out", self.out / "cache", "--spacing", SPACING)

    def pretrain(self) -> None:
        config = ("--config", "configs/pretrain/tiny.yaml")
        self._train("pretrain/train.py", *config, *self._common("pretrain", self.lengths.pretrain), *self._spacing())

    def reconstruct(self) -> None:
        study = test_studies(self.out)[0]
        given = [part for name, path in study.images.items() if name != ABSENT for part in (f"--{name}", path)]
        self._bmmae("reconstruct", "--model", self.out / "pretrain", *given, "--out", self.out / "reconstructed")

    def finetune(self) -> None:
        config = (
            "--config",
            "configs/finetune/segmentation.yaml",
            "--model",
            self.out / "pretrain",
            "--data.labels",
            CODING,
        )
        small = ("--width", 4, "--train.batch_size", 2)  # a step of the full decoder takes seconds on two cores
        self._train("finetune/segmentation.py", *config, *self._common("segmentation", self.lengths.finetune), *small)

    def _common(self, run: str, steps: int) -> tuple[object, ...]:
        data = ("--data.cohort", self.out / "data" / "cohort.csv", "--data.cache", self.out / "cache")
        train = ("--train.steps", steps, "--train.evaluate_every", max(1, steps // 4))
        resume = ("--train.checkpoint_every", max(1, steps // 4), "--train.resume", "auto")
        warmup = ("--optim.warmup_steps", min(20, steps // 2))
        return (*data, "--out", self.out / run, *train, *resume, *warmup)

    @staticmethod
    def _spacing() -> tuple[str, ...]:
        return ("--preprocess.spacing", f"[{SPACING}, {SPACING}, {SPACING}]")

    def _bmmae(self, *arguments: object) -> None:
        run_command("bmmae", arguments, [sys.executable, "-m", "bmmae"])

    @staticmethod
    def _train(script: str, *arguments: object) -> None:
        run_command(f"python {script}", arguments, [sys.executable, str(starter_root() / script)])


def run_command(shown: str, arguments: tuple[object, ...], program: list[str]) -> None:
    """Print a command as a user would type it, then run it.

    Raises:
        StepFailedError: If it ends with an error; what it printed stands above.
    """
    words = [str(argument) for argument in arguments]
    print(f"\n$ {shown} {shlex.join(words)}", flush=True)
    root = starter_root()
    at_root = [str(root / word) if word.startswith("configs/") else word for word in words]
    ended = subprocess.run([*program, *at_root], check=False)  # noqa: S603
    if ended.returncode:
        raise StepFailedError(f"the step above ended with exit code {ended.returncode}: see its message")


def test_studies(out: Path) -> tuple[Study, ...]:
    """Return the demo's test studies that have all four sequences."""
    cohort = read_cohort(out / "data" / "cohort.csv")
    return tuple(study for study in cohort if study.split == "test" and set(STANDARD) <= set(study.images))


def summarise(out: Path) -> str:
    """Score the demo's models on its test studies, draw the picture, and return the table."""
    with warnings.catch_warnings():  # the demo says so itself
        warnings.simplefilter("ignore", SyntheticWeightsWarning)
        mae, segmenter = load_model(out / "pretrain"), load_model(out / "segmentation")
    if not isinstance(mae, MAE) or not isinstance(segmenter, SegmentationModel):
        raise StepFailedError(f"{out} holds other models than the demo's: remove it and start again")
    cohort = read_cohort(out / "data" / "cohort.csv")
    cache = StudyCache(out / "cache", preprocessing_of(mae), mae.config.modalities)

    def dataset(split: str) -> StudyDataset:
        studies = [study for study in cohort if study.split == split]
        return StudyDataset(studies, View.of(mae.config), cache, masking=MaskingConfig(), coding=find_coding(CODING))

    train, test = dataset("train"), dataset("test")
    synthesis = compare_synthesis(mae, train, test)
    segmentation = score_subsets(segmenter, test, SUBSETS)
    _draw(out, mae, segmenter, test)
    parts = (
        f"Test studies: {len(test)} synthetic subjects",
        format_synthesis(synthesis, overlap(mae, test.studies, cache)),
        verdict(synthesis),
        format_subsets(segmentation, overlap(segmenter, test.studies, cache)),
    )
    return "\n\n".join(parts)


def _draw(out: Path, mae: MAE, segmenter: SegmentationModel, test: StudyDataset) -> None:
    sample = test[(EVALUATION_EPOCH, 0)]
    segmentations = [
        ("from all", predict_regions(segmenter, sample, STANDARD)),
        (f"from {' and '.join(map(title, FEW))}", predict_regions(segmenter, sample, FEW)),
    ]
    save_report(
        out / "report.png",
        mae.config.modalities,
        picture_reconstruction(mae, sample),
        label=sample["label"].numpy(),
        segmentations=segmentations,
        caption=f"Synthetic test subject {sample['subject']}; " + regions_caption(segmenter.config.regions, FEW),
    )


def _where_next(out: Path, seconds: float) -> str:
    return "\n".join(
        (
            f"Done in {seconds / 60:.1f} minutes.",
            f"  picture          {out / 'report.png'}",
            f"  table            {out / 'results.txt'}",
            f"  synthesised      {out / 'reconstructed'}",
            f"  models           {out / 'pretrain'}, {out / 'segmentation'} (`bmmae info` shows what they are)",
            "Next, with data of your own:",
            "  bmmae index FOLDER --out cohort.csv && bmmae check cohort.csv",
            "  accelerate launch pretrain/train.py --config configs/pretrain/tiny.yaml --data.cohort cohort.csv",
            "  (pretrain/README.md and finetune/README.md go on from here)",
            NOTICE,
        )
    )

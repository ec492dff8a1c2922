"""What one sees of a run: pictures that cannot hurt it, speed in its journal, curves drawn from that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from toy_training import ToyDataset, ToyModel, ToyTask, rows, same_weights, save_toy, settings, train_toy

from bmmae.data.loaders import Batch
from bmmae.errors import OutputError
from bmmae.report import READING, Pictures, save_curves, save_report
from bmmae.tasks.task import StepOutput
from bmmae.training import OptimConfig, fit
from bmmae.training.run import Picture
from bmmae.training.throughput import matrix_rate


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def train_with(picture: Picture, folder: Path) -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel()
    fit(
        model,
        ToyTask(),
        ToyDataset(),
        ToyDataset(length=7, seed=9),
        train=settings(),
        optim=OptimConfig(lr=1e-2, warmup_steps=1),
        run_dir=folder,
        save_model=save_toy,
        picture=picture,
    )
    return model


def test_a_picture_is_drawn_after_each_evaluation_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def draw(model: torch.nn.Module, step: int) -> None:
        seen.append((step, model.training))
        torch.rand(3)

    drawn = train_with(draw, tmp_path / "drawn")
    assert seen == [(4, False), (8, False), (12, False)]
    assert same_weights(drawn, train_toy(tmp_path / "plain")[0])


def test_a_picture_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    def draw(model: torch.nn.Module, step: int) -> None:
        raise OSError("disk full")

    with pytest.warns(UserWarning, match=r"No picture at step \d+: OSError: disk full"):
        train_with(draw, tmp_path)
    assert rows(tmp_path)[-1][0] == 12


class Counts(ToyTask):
    """Says how many operations it takes."""

    def step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        output = super().step(model, batch)
        return StepOutput(output.loss_sum, output.loss_count, output.metrics, operations=1e6)


def test_mfu_is_reported_where_operations_are_counted(tmp_path: Path) -> None:
    train_toy(tmp_path / "counted", task=Counts(), validate=False)
    assert all(value > 0 for _, value in rows(tmp_path / "counted", "mfu"))
    assert len(rows(tmp_path / "counted", "mfu")) == 12
    train_toy(tmp_path / "plain", validate=False)
    assert not rows(tmp_path / "plain", "mfu")


def test_the_peak_is_measured() -> None:
    assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32, seconds=0.01) < 1e15


def test_curves_are_drawn_from_the_journal(tmp_path: Path) -> None:
    train_toy(tmp_path)
    assert save_curves(tmp_path) == tmp_path / "curves.png"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no metrics"):
        save_curves(tmp_path)


def test_a_report_is_in_radiological_convention_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, texts, aspects = [], [], []
    draw, write = Axes.imshow, Axes.text
    monkeypatch.setattr(
        Axes,
        "imshow",
        lambda self, plane, **more: (shown.append(plane), aspects.append(more["aspect"]), draw(self, plane, **more))[2],
    )
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **more: (texts.append(s), write(self, x, y, s, **more))[1])
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **_: texts.append(text))
    image = np.zeros((2, 8, 10, 4), np.float32)
    image[0, 6:, 8:] = 2  # axes run to the right and front: the front right corner
    pictures = Pictures(image, np.array([True, False]), np.ones(image.shape[1:], bool), image, image, image, aspect=1.5)
    save_report(tmp_path / "report.png", ("t1", "t2"), pictures, caption="after 2 steps")
    assert shown[0].shape == (10, 8)
    assert (shown[0][:2, :2] == 2).all()
    assert shown[0].sum() == 8
    assert set(aspects) == {1.5}
    assert texts.count("absent") == 1
    assert f"after 2 steps\n{READING}" in texts
    assert "patient's right is on the left" in READING


def test_the_outlines_of_a_report_lie_on_the_lesion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outlined, titles = [], []
    monkeypatch.setattr(Axes, "contour", lambda self, plane, **_: outlined.append(plane))
    monkeypatch.setattr(Axes, "set_title", lambda self, text: titles.append(text))
    image = np.zeros((1, 8, 10, 4), np.float32)
    label = np.zeros((1, 8, 10, 4), bool)
    label[0, 6:, 8:] = True
    pictures = Pictures(image, np.array([True]), np.ones(label.shape[1:], bool), image, image, image)
    save_report(tmp_path / "report.png", ("flair",), pictures, label=label)
    assert outlined[0][:2, :2].all()
    assert outlined[0].sum() == 4
    assert "FLAIR" in titles

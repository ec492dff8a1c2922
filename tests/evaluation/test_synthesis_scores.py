"""Synthesis is judged in the studies where there is something to judge, and a prediction of NaN is not hidden."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from tiny_models import tiny_mae

from bmmae.data.dataset import StudyDataset
from bmmae.evaluation import synthesis
from bmmae.evaluation.synthesis import METHODS, CentralWindow, SynthesisScore, compare_synthesis
from bmmae.modalities import STANDARD

SHAPE = (4, 16, 16, 16)
FLAIR = STANDARD.index("flair")


def window(*, scanned: bool = True, seed: int = 0) -> CentralWindow:
    """Noise in all four modalities; FLAIR may end before the window."""
    images, valid = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32), np.ones(SHAPE, bool)
    if not scanned:
        images[FLAIR], valid[FLAIR] = 0, False
    return CentralWindow(images, np.ones(4, bool), valid, np.ones(SHAPE[1:], bool))


def scores_of(monkeypatch: pytest.MonkeyPatch, *test: CentralWindow) -> dict[tuple[str, str], SynthesisScore]:
    parts = [Mock(spec=StudyDataset, held=held) for held in ((window(seed=1),), test)]
    monkeypatch.setattr(synthesis, "windows", lambda dataset: iter(dataset.held))
    return {(score.modality, score.method): score for score in compare_synthesis(tiny_mae(), *parts)}


def test_a_modality_that_was_not_scanned_in_the_window_is_not_judged_there(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = scores_of(monkeypatch, window())
    both = scores_of(monkeypatch, window(), window(scanned=False))
    for method in METHODS:
        assert both["flair", method] == alone["flair", method]
        assert both["t1", method].studies == 2
        assert math.isfinite(both["t1", method].psnr)
    assert ("flair", METHODS[0]) not in scores_of(monkeypatch, window(scanned=False))


def test_a_prediction_of_nan_leaves_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = window()
    monkeypatch.setattr(synthesis, "predict_absent", lambda *_: np.full(SHAPE[1:], np.nan, np.float32))
    assert math.isnan(scores_of(monkeypatch, broken, replace(broken))["flair", METHODS[0]].psnr)

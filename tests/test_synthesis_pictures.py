"""The page of pictures shows the worst, the median and the best, whatever they look like."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from synthesis_pictures import Case, by_rank, draw, scores_of

from bmmae.evaluation.native_synthesis import Truth
from bmmae.modalities import STANDARD


def test_cases_are_chosen_by_rank() -> None:
    scores = {("a", "t1"): 20.0, ("a", "t2"): 17.0, ("b", "t1"): 15.0, ("b", "t2"): 19.0}
    found = [(case.rank, case.patient, case.modality, case.psnr) for case in by_rank(scores)]
    assert found == [("worst", "b", "t1", 15.0), ("median", "a", "t2", 17.0), ("best", "a", "t1", 20.0)]


def test_only_the_models_own_cells_on_the_fixed_split_count() -> None:
    score = {"t1+t1ce+t2>flair": {"psnr": {"a": 18.0}}, "t1>flair": {"psnr": {"a": 12.0}}}
    mine = {"part": "score", "method": "saved", "fold": "fixed", "weights": "w"}
    others = [mine | {"weights": "v"}, mine | {"fold": "0"}, mine | {"part": "use"}]
    cells = [{"cell": mine, "scores": score}, *({"cell": other, "scores": {}} for other in others)]
    assert scores_of(cells, "w") == {("a", "flair"): 18.0}
    assert scores_of(cells, "u") == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_is_drawn_although_brains_lie_in_different_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truths = {}
    for shift, name in enumerate(STANDARD):
        image = np.zeros((40, 40, 40), np.float32)
        image[10 + shift : 30 + shift, 10:30, 12:28] = rng.uniform(1, 2, (20, 20, 16))
        truths[name] = Truth.of(image, image > 1.9)
    made = np.where(truths["t2"].inside, 1.5, 0)
    turn = np.array([[1, -1], [0, 1], [2, 1]])
    path = draw([(Case("worst", "a", "t2", 15.0), turn, truths, made)], 16, tmp_path / "page.png")
    assert path.read_bytes()[:4] == b"\x89PNG"

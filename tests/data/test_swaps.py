"""Swapped modalities are found by their contrast, whatever their scale, and nothing else is taken for a swap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import brain, positions, save

from bmmae.arrays import Array
from bmmae.data.check import check_study
from bmmae.data.cohort import Study
from bmmae.data.index import index_folder
from bmmae.data.scans import Scan, read_scan
from bmmae.data.swaps import FLAIR, T1, T1CE, T2, bright_tail, brightness_in, likely_swaps
from bmmae.modalities import STANDARD

SHAPE = (40, 44, 36)
PAIRS = ((T1, T1CE), (T2, FLAIR))
NO_MASKS: dict[str, Array] = {}


def phantom(folder: Path, scale: float = 1.0) -> dict[str, Path]:
    """Tissue, a fluid-filled centre, an oedema, and a few enhancing vessels."""
    x, y, z = positions(SHAPE)
    noise = np.random.default_rng(0).normal(size=(4, *SHAPE))
    fluid = x**2 + y**2 + z**2 < 0.3**2
    oedema = (x - 0.4) ** 2 + y**2 + z**2 < 0.25**2
    vessels = (np.abs(y + 0.5) < 0.04) & (np.abs(z) < 0.1)
    contrast = {T1: (-40, -10, 0), T1CE: (-40, -10, 150), T2: (80, 50, -20), FLAIR: (-60, 60, -20)}
    paths = {}
    for rank, (name, levels) in enumerate(contrast.items()):
        image = 100 + 8 * noise[rank] + 5 * z
        for level, region in zip(levels, (fluid, oedema, vessels), strict=True):
            image = image + level * region
        paths[name] = save(folder / f"{name}.nii", np.where(brain(SHAPE), scale * image, 0).astype(np.float32))
    return paths


def exchanged(scans: dict[str, Scan], pair: tuple[str, str]) -> dict[str, Scan]:
    one, two = pair
    return {**scans, one: scans[two], two: scans[one]} if {one, two} <= set(scans) else scans


def pairs(swaps: Iterable[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(one, two) for one, two, _ in swaps]


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_each_swap_is_found_and_only_that(tmp_path: Path, scale: float) -> None:
    scans = {name: read_scan(path) for name, path in phantom(tmp_path, scale).items()}
    assert pairs(likely_swaps(scans, NO_MASKS)) == []
    for pair in PAIRS:
        assert pairs(likely_swaps(exchanged(scans, pair), NO_MASKS)) == [pair]


def test_a_swap_is_a_warning_with_its_reason(tmp_path: Path) -> None:
    paths = phantom(tmp_path)
    assert check_study(Study("p", paths)) == []
    (finding,) = check_study(Study("p", {**paths, T1: paths[T1CE], T1CE: paths[T1]}))
    assert (finding.severity, finding.code) == ("warning", "swapped")
    assert "t1ce.nii (T1) and t1.nii (T1ce) may be swapped: its brightest voxels lie" in finding.message


def test_nothing_is_said_of_subsets_other_grids_heads_and_small_images(tmp_path: Path) -> None:
    scans = exchanged({name: read_scan(path) for name, path in phantom(tmp_path).items()}, PAIRS[0])
    assert pairs(likely_swaps({T1: scans[T1], T2: scans[T2]}, NO_MASKS)) == []
    moved = replace(scans[T1], grid=replace(scans[T1].grid, affine=np.diag([1.0, 1, 2, 1])))
    assert pairs(likely_swaps({**scans, T1: moved}, NO_MASKS)) == []
    head = replace(scans[T1], stripped=False)
    assert pairs(likely_swaps({**scans, T1: head}, NO_MASKS)) == []
    assert pairs(likely_swaps({**scans, T1: head}, {T1: brain(SHAPE)})) == [PAIRS[0]]
    few = brain(SHAPE) & (np.cumsum(brain(SHAPE)).reshape(SHAPE) < 1000)
    assert pairs(likely_swaps(scans, {T1: few})) == []


def test_the_figures_are_those_of_the_rule() -> None:
    values = np.arange(1001, dtype=np.float32)
    assert bright_tail(values) == pytest.approx((999 - 500) / 500)
    assert brightness_in(values, values) == pytest.approx(0.985, abs=1e-3)
    assert brightness_in(values, -values) == pytest.approx(0.015, abs=1e-3)
    assert bright_tail(np.ones(10, np.float32)) == 0


@pytest.mark.real
@pytest.mark.slow
def test_real_studies_raise_no_false_alarm_and_their_swaps_are_found(real: Path) -> None:
    caught = {pair: [0, 0] for pair in PAIRS}
    for study in index_folder(real).cohort:
        if study.brain_mask or study.brain_masks:
            continue
        scans = {name: read_scan(study.images[name]) for name in STANDARD if name in study.images}
        assert pairs(likely_swaps(scans, NO_MASKS)) == [], study.name
        for pair in PAIRS:
            if set(pair) <= set(scans):
                caught[pair][0] += pair in pairs(likely_swaps(exchanged(scans, pair), NO_MASKS))
                caught[pair][1] += 1
    assert caught == {(T1, T1CE): [16, 16], (T2, FLAIR): [17, 17]}

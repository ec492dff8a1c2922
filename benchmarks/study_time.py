"""How long one study takes from files to a segmentation file, and how much memory.

python benchmarks/study_time.py [--quick] [--runs N]

A real study of 240x240x155 voxels is segmented with random weights of the recipe `small`, in a process of its own each
time. `--quick` takes a synthetic study of 32 voxels a side and the recipe `tiny`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Figure, arguments, figure, parse, write_result
from real import REAL

MARK = "RESULT "
STUDY = REAL / "brats21"
THREADS = 2


def main() -> None:
    """Run, or with `--once` be the process that is measured."""
    parser = arguments(__doc__)
    parser.set_defaults(threads=THREADS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parse(parser)
    if given.once:
        be_timed(quick=given.quick)
        return
    if not given.quick:
        real_images()  # stops here where they are absent
    took = time_study(given.runs, quick=given.quick, threads=given.threads)
    rows = [dict(zip(took, run, strict=True)) for run in zip(*took.values(), strict=True)]
    write_result("study_time", quick=given.quick, runs=given.runs, headline=headline_figures(took), rows=rows)


def headline_figures(took: Mapping[str, list[float]]) -> dict[str, Figure]:
    """Return the figures of what `time_study` returns."""
    return {
        "seconds_a_study": figure(took["wall_seconds"], asked=30.0, unit="seconds, lower is better"),
        "memory_a_study": figure(took["memory_gb"], asked=4.0, unit="GB at the peak, lower is better"),
    }


def time_study(runs: int, *, quick: bool = False, threads: int = THREADS) -> dict[str, Any]:
    """Segment a study in fresh processes, one after the other.

    Returns:
        `wall_seconds` of each run, from before the first file is read until the last is written, and its `memory_gb`.
    """
    words = [sys.executable, __file__, "--once", "--threads", str(threads), *(["--quick"] if quick else [])]
    found = []
    for _ in range(runs):
        ended = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found += [json.loads(line.removeprefix(MARK)) for line in ended.stdout.splitlines() if line.startswith(MARK)]
    return {key: [run[key] for run in found] for key in ("wall_seconds", "memory_gb")}


def be_timed(*, quick: bool) -> None:
    """Segment once and print what it took."""
    import torch

    from bmmae.checkpoint import describe
    from bmmae.data.preprocess import PreprocessConfig
    from bmmae.inference import segment
    from bmmae.model.config import recipe
    from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
    from bmmae.provenance import Provenance

    torch.manual_seed(0)
    model = SegmentationModel(SegmentationConfig(recipe("tiny" if quick else "small"))).eval()
    describe(model, PreprocessConfig(spacing=(6.0, 6.0, 6.0)) if quick else PreprocessConfig(), Provenance())
    with tempfile.TemporaryDirectory() as folder:
        images = synthetic_images(Path(folder) / "cohort") if quick else real_images()
        started = time.perf_counter()
        image = segment(model, images)
        image.to_filename(Path(folder) / "seg.nii.gz")
        took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(MARK + json.dumps({"wall_seconds": round(took, 2), "memory_gb": round(peak, 2)}))


def real_images() -> dict[str, Path]:
    """Return the files of a real study by modality.

    Raises:
        SystemExit: If they are not there.
    """
    from bmmae.data.index import index_folder

    if not STUDY.is_dir():
        sys.exit(f"error: the real studies are not at {REAL.name}/ beside the checkout: try --quick")
    (study, *_) = index_folder(STUDY).cohort
    return {name: Path(str(path)) for name, path in study.images.items()}


def synthetic_images(folder: Path) -> dict[str, Path]:
    """Write a study of 6 mm voxels and return its files by modality."""
    from bmmae.data.cohort import read_cohort
    from bmmae.data.synthetic import SyntheticConfig, make_cohort

    (study,) = read_cohort(make_cohort(folder, SyntheticConfig(subjects=1, size=32), progress=False, workers=1))
    return {name: Path(str(path)) for name, path in study.images.items()}


if __name__ == "__main__":
    main()

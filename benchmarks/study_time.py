"""How long one study takes from files to a segmentation file, and how much memory: in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from real import REAL

MARK = "RESULT "
STUDY = REAL / "brats21"
THREADS = 2


def time_study(runs: int) -> dict[str, Any]:
    """Segment a real study of 240x240x155 voxels with random weights of the recipe `small`, in fresh processes.

    Returns:
        `wall_seconds` of each run, from before the first file is read until the last is written, and its `memory_gb`.
    """
    found = []
    for _ in range(runs):
        ended = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
        found += [json.loads(line.removeprefix(MARK)) for line in ended.stdout.splitlines() if line.startswith(MARK)]
    return {key: [run[key] for run in found] for key in ("wall_seconds", "memory_gb")}


def be_timed() -> None:
    """Segment once and print what it took."""
    import torch

    from bmmae.checkpoint import describe
    from bmmae.data.index import index_folder
    from bmmae.data.preprocess import PreprocessConfig
    from bmmae.inference import segment
    from bmmae.model.config import recipe
    from bmmae.model.segmentation import SegmentationConfig, SegmentationModel
    from bmmae.provenance import Provenance

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = SegmentationModel(SegmentationConfig(recipe("small"))).eval()
    describe(model, PreprocessConfig(), Provenance())
    (study, *_) = index_folder(STUDY).cohort
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        image = segment(model, {name: Path(str(path)) for name, path in study.images.items()})
        image.to_filename(Path(folder) / "seg.nii.gz")
        took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(MARK + json.dumps({"wall_seconds": round(took, 2), "memory_gb": round(peak, 2)}))


if __name__ == "__main__":
    be_timed()

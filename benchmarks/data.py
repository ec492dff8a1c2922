"""How fast samples come: cached against decoded from NIfTI, a worker against one that only copies, and what it costs.

The base recipe's sample: four modalities, a random window of 128^3 voxels of 1 mm. MONAI's `LoadImaged` and transforms
read real studies where ../shared/real holds some, else phantoms of the same size and type.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import nibabel as nib
import numpy as np
import torch
from torch.utils.data import DataLoader

from bmmae.data.cache import StudyCache
from bmmae.data.cohort import Cohort, Study
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.index import index_folder
from bmmae.data.loaders import Address, Batches, Sample, SampleStream, training_batches
from bmmae.data.packing import unpack
from bmmae.data.preprocess import PreprocessConfig
from bmmae.masking import MaskingConfig
from bmmae.modalities import STANDARD

REAL = harness.ROOT.parent / "shared" / "real" / "brats18"
PATCH = (16, 16, 16)
BATCH = 2


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    studies: int
    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    samples: int
    batches: int
    indexed: int


FULL = Scale(studies=8, grid=(240, 240, 155), window=(128, 128, 128), samples=8, batches=40, indexed=10_000)
QUICK = Scale(studies=2, grid=(96, 96, 80), window=(64, 64, 64), samples=2, batches=8, indexed=200)


def studies_of(folder: Path, scale: Scale) -> tuple[list[Study], str]:
    """Return studies to read, and what they are."""
    if REAL.is_dir() and scale is FULL:
        cohort = index_folder(REAL).cohort
        return list(cohort)[: scale.studies], "BraTS 2018, 240x240x155, int16"
    return [
        phantom(folder / f"p{i}", scale.grid, seed=i) for i in range(scale.studies)
    ], f"phantoms, {scale.grid}, int16"


def phantom(folder: Path, shape: tuple[int, int, int], seed: int) -> Study:
    """Write a noisy ellipsoid in four modalities, compressed as usual."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    inside = (x[:, None, None] / 0.6) ** 2 + (y[:, None] / 0.75) ** 2 + (z / 0.9) ** 2 < 1
    files = {}
    for name in STANDARD:
        voxels = np.where(inside, rng.normal(500, 80, shape), 0).astype(np.int16)
        files[name] = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), files[name])
    return Study(folder.name, files)


def monai_pipeline(window: tuple[int, int, int]) -> Callable[[dict[str, str]], dict[str, torch.Tensor]]:
    """Return what a user of MONAI would write for the same sample."""
    from monai import transforms as mt

    keys = list(STANDARD)
    steps = [
        mt.LoadImaged(keys),
        mt.EnsureChannelFirstd(keys),
        mt.ConcatItemsd(keys, name="images"),
        mt.DeleteItemsd(keys),
        mt.Orientationd("images", axcodes="RAS", labels=None),
        mt.Spacingd("images", pixdim=(1.0, 1.0, 1.0)),
        mt.CropForegroundd("images", source_key="images", allow_smaller=True),
        mt.NormalizeIntensityd("images", nonzero=True, channel_wise=True),
        mt.SpatialPadd("images", spatial_size=window),
        mt.RandSpatialCropd("images", roi_size=window, random_size=False),
        mt.ToTensord("images"),
    ]
    pipeline: Callable[[dict[str, str]], dict[str, torch.Tensor]] = mt.Compose(steps)
    return pipeline


class PlainCopies:
    """What no loader can beat: the same bytes of the same windows, copied out of the same memory maps."""

    def __init__(self, cache: StudyCache, studies: Sequence[Study], window: tuple[int, int, int]) -> None:
        self.folders = [cache.store(study).folder for study in studies]
        self.window = window

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        folder = self.folders[index % len(self.folders)]
        rng = np.random.default_rng(index)
        flags = np.load(folder / "flags.npy", mmap_mode="r")
        starts = [int(rng.integers(0, max(0, n - w) + 1)) for n, w in zip(flags.shape, self.window, strict=True)]
        part = tuple(slice(start, start + w) for start, w in zip(starts, self.window, strict=True))
        images = np.load(folder / "images.npy", mmap_mode="r")
        return {
            "images": torch.from_numpy(np.array(images[(..., *part)])),
            "flags": torch.from_numpy(np.array(flags[part])),
        }


def rate(batches: Iterator[Any], count: int) -> float:
    """Return seconds a batch, from the second on: the first one waits for the worker to start."""
    next(batches)
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - started) / count


class Probe:
    """A dataset whose samples say how much memory their process holds for itself, after really loading them."""

    def __init__(self, dataset: StudyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: Address) -> Sample:
        unpack(self.dataset.packed(address))
        return {"megabytes": private_megabytes()}


def private_megabytes() -> float:
    """Return what this process alone holds, MB: the page cache behind a memory map is not counted."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Hugetlb"))) / 1024


def worker_memory(dataset: StudyDataset, studies: Sequence[Study], count: int) -> float:
    """Return the memory of a worker over a table of `count` rows, after 24 samples, MB."""
    rows = [replace(studies[index % len(studies)], subject=f"patient-{index:06d}") for index in range(count)]
    table = StudyDataset(rows, dataset.view, dataset.cache, masking=MaskingConfig())
    stream = SampleStream(length=count, batch_size=1)
    found = training_batches(Probe(table), stream, rank=0, first=0, stop=24, workers=1)
    return float([batch["megabytes"] for batch in found][-1])  # type: ignore[arg-type]


def index_seconds(folder: Path, count: int) -> float:
    """Return the seconds to index `count` studies of four images and a segmentation, in BraTS names."""
    for number in range(count):
        name = f"BraTS2021_{number:05d}"
        (folder / name).mkdir(parents=True)
        for part in ("t1", "t1ce", "t2", "flair", "seg"):
            (folder / name / f"{name}_{part}.nii.gz").touch()
    return harness.seconds(lambda: _require(index_folder(folder).cohort, count))


def _require(cohort: Cohort, count: int) -> None:
    if len(cohort) != count:
        raise AssertionError(f"{len(cohort)} of {count} studies were found")


def measure(folder: Path, scale: Scale, runs: int) -> tuple[dict[str, harness.Figure], list[dict[str, Any]]]:
    """Measure everything; return the headline and the rows."""
    torch.set_num_threads(1)
    studies, kind = studies_of(folder / "studies", scale)
    cache = StudyCache(folder / "cache", PreprocessConfig(), STANDARD)
    plain = PlainCopies(cache, studies, scale.window)
    view = View(STANDARD, scale.window, PATCH)
    dataset = StudyDataset(studies, view, cache, masking=MaskingConfig())
    pipeline = monai_pipeline(scale.window)
    rng = np.random.default_rng(0)

    def draw() -> int:
        return int(rng.integers(len(studies)))

    def from_nifti() -> object:
        return pipeline({name: str(file) for name, file in studies[draw()].images.items()})

    def cached() -> object:
        return dataset[int(rng.integers(10**6)), draw()]

    def packed() -> object:
        return dataset.packed((int(rng.integers(10**6)), draw()))

    one = harness.alternate(
        {
            "nifti": lambda: harness.seconds(from_nifti, max(1, scale.samples // 2)),
            "cached": lambda: harness.seconds(cached, 4 * scale.samples),
            "packed": lambda: harness.seconds(packed, 4 * scale.samples),
        },
        runs,
    )

    def ours() -> float:
        stream = SampleStream(length=len(dataset), batch_size=BATCH)
        return rate(
            iter(training_batches(dataset, stream, rank=0, first=0, stop=scale.batches + 1, workers=1)), scale.batches
        )

    def bare() -> float:
        order = [[BATCH * step + i for i in range(BATCH)] for step in range(scale.batches + 1)]
        context = Batches(dataset, [], workers=1).loader.multiprocessing_context
        loader: DataLoader[Any] = DataLoader(plain, batch_sampler=order, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type]
        return rate(iter(loader), scale.batches)

    two = harness.alternate({"plain worker": bare, "worker": ours}, runs)
    memory = {count: worker_memory(dataset, studies, count) for count in (10, 1000)}
    indexing = index_seconds(folder / "names", scale.indexed)

    headline = {
        "cached_vs_nifti": harness.figure(harness.ratios(one["nifti"], one["cached"]), asked=30),
        "worker_vs_plain_worker": harness.figure(
            harness.ratios(two["plain worker"], two["worker"]), asked=0.8, floor=1
        ),
        "loader_memory_growth": harness.figure(
            [memory[1000] / memory[10]], floor=1, unit="1,000 over 10 studies, lower is better"
        ),
        "index_seconds": harness.figure(
            [indexing], asked=20, unit=f"seconds for {scale.indexed:,} studies, lower is better"
        ),
    }
    rows: list[dict[str, Any]] = [
        {"what": f"{name}, one process", "data": kind, "milliseconds": _milliseconds(runs_)}
        for name, runs_ in one.items()
    ]
    rows += [
        {"what": f"{name}, a sample", "batch": BATCH, "milliseconds": _milliseconds([s / BATCH for s in runs_])}
        for name, runs_ in two.items()
    ]
    rows += [
        {"what": "memory of a worker", "studies": count, "megabytes": round(mb, 1)} for count, mb in memory.items()
    ]
    size = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
    rows.append(
        {"what": "cache on disk", "studies": len(studies), "megabytes_a_study": round(size / len(studies) / 1e6, 1)}
    )
    return headline, rows


def _milliseconds(runs: Sequence[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(1e3 * value, 2) for value in (statistics.median(runs), min(runs), max(runs))]


def main() -> None:
    """Measure and write the result."""
    given = harness.parse(harness.arguments(__doc__))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        headline, rows = measure(Path(folder), QUICK if given.quick else FULL, given.runs)
    harness.write_result("data", quick=given.quick, runs=given.runs, headline=headline, rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()

"""A page of pictures of real test cases: the worst, the median and the best reconstruction, by rank and not by eye.

python benchmarks/synthesis_pictures.py [--model checkpoints/glioma]

Ranks are those of the finished cells of `synthesis.py` on the fixed split: PSNR of each absent modality of each test
patient, from the three others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from cells import CellStore
from harness import RESULTS, ROOT
from real import fixed_split, real_cohort
from segmentation_contestants import digest
from synthesis_figures import FIXED, full_pairs, gather
from synthesis_methods import ONE_MILLIMETRE, Reconstruction
from synthesis_scores import truths_of

from bmmae.arrays import Array
from bmmae.baselines.comparator import restricted
from bmmae.checkpoint import load_model
from bmmae.data.cohort import Study
from bmmae.data.preprocess import PreprocessConfig, prepare_study
from bmmae.data.reading import read_header
from bmmae.evaluation.native_synthesis import Truth
from bmmae.inference import to_native
from bmmae.metrics import affine_fit
from bmmae.modalities import STANDARD, title
from bmmae.model.mae import MAE
from bmmae.report import best_slice, upright

PICTURE = RESULTS / "synthesis_cases.png"
RANKS = {"worst": 0.0, "median": 0.5, "best": 1.0}
SOURCE = "Images: BraTS 2018 and 2021 (RSNA-ASNR-MICCAI-BraTS-2021, The Cancer Imaging Archive, CC BY 4.0)."
LIMIT = 0.5
"""Of a difference, as a share of the truth's range, at which its colours end."""


@dataclass(frozen=True)
class Case:
    """One reconstruction: whose, what, and how good it is."""

    rank: str
    patient: str
    modality: str
    psnr: float


def by_rank(scores: Mapping[tuple[str, str], float]) -> list[Case]:
    """Return the worst, the median (of an even number the lower one) and the best of (patient, modality)."""
    order = sorted(scores.items(), key=lambda item: (item[1], item[0]))
    places = {rank: int(share * (len(order) - 1)) for rank, share in RANKS.items()}
    return [Case(rank, *order[place][0], order[place][1]) for rank, place in places.items()]


def scores_of(cells: Iterable[Mapping[str, Any]], weights: str) -> dict[tuple[str, str], float]:
    """Return the PSNR of each test patient's modalities from the three others, by a saved model."""
    chosen = [row for row in cells if row["cell"].get("weights") == weights and row["cell"]["fold"] == FIXED]
    values = gather(chosen, "score", fixed=True).get("saved", {})
    return {
        (patient, modality): value
        for modality, labels in full_pairs(values).items()
        for label in labels
        for patient, value in values[label]["psnr"].items()
    }


def main() -> None:
    """Draw the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "glioma")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    scores = scores_of(CellStore("synthesis"), digest(given.model))
    if not scores:
        sys.exit(
            f"error: {given.model} was not scored: run `python benchmarks/synthesis.py --methods saved --folds fixed "
            f"--parts score --model {given.model}` first"
        )
    studies = {study.group: study for study in fixed_split(real_cohort()).test}
    rows = [(case, *_volumes(given.model, studies[case.patient], case.modality)) for case in by_rank(scores)]
    print(f"written: {draw(rows, len(scores), PICTURE).relative_to(ROOT)}")


def _volumes(model: Path, study: Study, modality: str) -> tuple[Array, dict[str, Truth], np.ndarray]:
    """Return a study's real images, and one of them as reconstructed from the others, in its own intensities.

    Before them: what turns the study's arrays to the right, front and top.
    """
    autoencoder = load_model(model)
    if not isinstance(autoencoder, MAE):
        sys.exit(f"error: {model} holds a model of kind '{autoencoder.kind}', expected 'mae'")
    method = Reconstruction(autoencoder.eval(), PreprocessConfig(spacing=(ONE_MILLIMETRE,) * 3))
    truths, whole = truths_of(study), prepare_study(study, method.preprocess, STANDARD)
    shown = restricted(whole, [name for name in whole.names if name != modality])
    truth = truths[modality]
    made = to_native(shown, method.predict_all(shown, [modality])[modality])[truth.box].astype(np.float64)
    slope, offset = affine_fit(made[truth.inside], truth.image[truth.inside])
    turn = nib.orientations.io_orientation(read_header(study.images[modality]).affine)
    return turn, truths, np.where(truth.inside, slope * made + offset, 0)


def draw(rows: Sequence[tuple[Case, Array, dict[str, Truth], np.ndarray]], count: int, path: Path) -> Path:
    """Draw a row a case: what was given, the synthetic image, the real one, and their difference.

    The patient's right is on the left. Each row has what turns its arrays, as `io_orientation` gives it.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 2.5 * len(rows) + 0.6), layout="constrained")
    grid = canvas.subplots(len(rows), len(STANDARD) + 2, squeeze=False)
    for axes, (case, turn, truths, made) in zip(grid, rows, strict=True):
        truth = truths[case.modality]
        level = best_slice(_turned(truth.inside, turn), _turned(truth.lesion, turn))
        window = (0, np.percentile(truth.image[truth.inside], 99.5))
        for axis, name in zip(axes, (n for n in STANDARD if n != case.modality), strict=False):
            given = _in_box(truths[name], truth)
            own = (0, np.percentile(given[given > 0], 99.5))
            _show(axis, _turned(given, turn)[:, :, level], f"given: {title(name)}", own)
        real = np.where(truth.inside, truth.image, 0)
        _show(axes[-3], _turned(made, turn)[:, :, level], f"synthetic {title(case.modality)}", window)
        _show(axes[-2], _turned(real, turn)[:, :, level], f"real {title(case.modality)}", window)
        difference = np.where(truth.inside, made - truth.image, 0) / truth.span
        _show(axes[-1], _turned(difference, turn)[:, :, level], "synthetic - real", (-LIMIT, LIMIT), "RdBu_r")
        axes[0].set_ylabel(f"{case.rank} of {count}: {case.psnr:.1f} dB\n{case.patient}", fontsize=8)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    canvas.supxlabel(
        f"{SOURCE} Slice with most lesion, the patient's right on the left; difference in shares of the real image's "
        f"range, red and blue end at {LIMIT:g}.",
        fontsize=7,
    )
    canvas.savefig(path, dpi=75)
    return path


def _in_box(image: Truth, other: Truth) -> np.ndarray:
    """Lay a real image out in the box of another one of the same study."""
    own, wanted = (
        tuple(slice(part.start, part.start + length) for part, length in zip(each.box, each.image.shape, strict=True))
        for each in (image, other)
    )
    whole = np.zeros([max(one.stop, two.stop) for one, two in zip(own, wanted, strict=True)], np.float32)
    whole[own] = np.where(image.inside, image.image, 0)
    return whole[wanted]


def _turned(volume: Array, turn: Array) -> Array:
    return np.asarray(nib.orientations.apply_orientation(volume, turn))


def _show(axis: Any, plane: Array, label: str, window: tuple[float, float], colours: str = "gray") -> None:
    """Show an axial plane between two intensities."""
    axis.imshow(upright(plane), cmap=colours, vmin=window[0], vmax=window[1])
    axis.set_title(label, fontsize=8)


if __name__ == "__main__":
    main()

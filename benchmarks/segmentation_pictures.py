"""Pictures of real test cases that the benchmark segmented, each from three subsets of its modalities.

python benchmarks/segmentation_pictures.py [--fold 0]

Draws every test patient of one fold, in alphabetical order, with the weights that the finished cell `ours` of that
fold left: a row a patient, the true regions, then what the model finds from all modalities, T1ce alone, and T1 with T2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from full_volumes import predict_volume, whole_study
from harness import RESULTS
from learning_data import Source, real_source
from segmentation_contestants import kept_model

from bmmae.arrays import Array
from bmmae.data.cohort import Study
from bmmae.data.loaders import Sample
from bmmae.metrics import dice
from bmmae.modalities import STANDARD, title
from bmmae.model.segmentation import SegmentationModel
from bmmae.report import REGION_COLOURS, best_slice, upright

T1, T1CE, T2, FLAIR = STANDARD
SUBSETS = (STANDARD, (T1CE,), (T1, T2))
UNDER = (FLAIR, T1CE, T2)
"""What each subset's outlines are drawn over; the truth's are over FLAIR."""
PICTURE = RESULTS / "segmentation_cases.png"
SOURCE = "Images: BraTS 2018 to 2023 (RSNA-ASNR-MICCAI BraTS, CC BY 4.0)."
CONTRAST = (-2.5, 2.5)
"""Z-scores that are shown as black and white."""


@dataclass(frozen=True)
class Drawn:
    """One patient: the images, the truth, and a prediction for each of `SUBSETS`.

    Attributes:
        name: What the row is called.
        sample: The whole study.
        predicted: Region flags Bool[R, H, W, D].
    """

    name: str
    sample: Sample
    predicted: tuple[Array, ...]


def main() -> None:
    """Draw one fold's test patients."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = real_source()
    model = kept_model(source, given.fold)
    studies = sorted(source.parts[given.fold].test, key=lambda study: study.subject)
    draw([predict(model, source, study) for study in studies], model.config.regions)
    print(PICTURE)


def predict(model: SegmentationModel, source: Source, study: Study) -> Drawn:
    """Segment a study from each of the subsets."""
    shape = model.config.model
    sample = whole_study(source, study, shape)
    found = []
    for subset in SUBSETS:
        given = torch.tensor([name in subset for name in shape.modalities]) & sample["available"]
        found.append(predict_volume(model, sample, given, shape, source.window).numpy())
    return Drawn(study.subject, sample, tuple(found))


def draw(rows: Sequence[Drawn], regions: Sequence[str]) -> None:
    """Write the picture: the axial slice that holds most tumour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * (1 + len(SUBSETS)), 2.3 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), 1 + len(SUBSETS), squeeze=False)
    for row, places in zip(rows, axes, strict=True):
        truth = row.sample["label"].numpy()
        brain = row.sample["brain"].numpy()
        level = best_slice(brain, truth)
        for axis, name, masks in zip(places, (FLAIR, *UNDER), (truth, *row.predicted), strict=True):
            image = np.where(brain, row.sample["images"][STANDARD.index(name)].numpy(), CONTRAST[0])
            axis.imshow(upright(image[:, :, level]), cmap="gray", vmin=CONTRAST[0], vmax=CONTRAST[1])
            for mask, colour in zip(masks, REGION_COLOURS.values(), strict=False):
                if mask[:, :, level].any():
                    outline = upright(mask[:, :, level].astype(float))
                    axis.contour(outline, levels=[0.5], colors=[colour], linewidths=0.8)
            axis.set(xticks=[], yticks=[])
            if masks is not truth:
                scores = (dice(mask, true) for mask, true in zip(masks, truth, strict=True))
                axis.set_xlabel(" ".join(f"{r} {s:.2f}" for r, s in zip(regions, scores, strict=True)), fontsize=6)
        places[0].set_ylabel(row.name, fontsize=6)
    heads = ("truth", *("all four" if subset == STANDARD else " + ".join(map(title, subset)) for subset in SUBSETS))
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=8)
    legend = ", ".join(f"{region} {colour}" for region, colour in zip(regions, REGION_COLOURS, strict=False))
    figure.supxlabel(
        f"{legend}; Dice of the whole volume at 2 mm; the patient's right is on the left. {SOURCE}", fontsize=6
    )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()

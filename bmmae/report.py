"""Pictures of what a model does, for the eye: one PNG a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bmmae.arrays import Array
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.data.planes import COLOURS
from bmmae.errors import OutputError
from bmmae.modalities import subset_label, title
from bmmae.model.mae import MAE
from bmmae.model.segmentation import SegmentationModel
from bmmae.patches import patch_grid, spread
from bmmae.training.journal import NAME as JOURNAL
from bmmae.training.journal import read_journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bmmae.data.loaders import AddressedDataset, Sample

COLUMNS = ("input", "hidden", "reconstructed", "difference", "absent: from the others", "difference")
CONTRAST = (-2.5, 2.5)
"""Z-scores that are shown as black and white."""
READING = (
    "The patient's right is on the left. Images: z-scores, black at -2.5, white at 2.5; dark blue: hidden from the "
    "model.\nDifferences: red too bright, blue too dark, full colour from 2.5 on."
)
"""How to read the panels; under every report."""
_NAMES = ("red", "yellow", "cyan", "purple")
REGION_COLOURS = {name: f"#{bytes(colour).hex()}" for name, colour in zip(_NAMES, COLOURS, strict=False)}
"""Of outlines, by name."""


@dataclass(frozen=True)
class Pictures:
    """What a report shows of one study, on the model's grid.

    Attributes:
        images: Float[M, H, W, D], the truth.
        available: Bool[M].
        brain: Bool[H, W, D].
        shown: Float[M, H, W, D], the visible patches only; NaN where hidden.
        filled: Float[M, H, W, D], visible patches and predictions of the hidden ones.
        absent: Float[M, H, W, D], each modality predicted from all the others.
        aspect: Height of a voxel of an axial plane, in its widths.
    """

    images: Array
    available: Array
    brain: Array
    shown: Array
    filled: Array
    absent: Array
    aspect: float = 1.0


@torch.inference_mode()
def picture_reconstruction(model: MAE, sample: Sample) -> Pictures:
    """Reconstruct one evaluation sample, from its mask and with each modality left out in turn."""
    device = next(model.parameters()).device
    names = ("images", "valid", "brain", "available", "mask")
    images, valid, brain, available, mask = (sample[name][None].to(device) for name in names)
    brain = brain[:, None]
    exists = model.tokens(images, available, valid & brain)
    asked = exists & mask
    guess = model.predict(images, exists & ~mask, asked, valid)
    patch = model.config.patch
    hidden = spread(asked, patch_grid(images.shape[-3:], patch), patch)
    absent = torch.zeros_like(images)
    for index in range(len(available[0])):
        others = exists.clone()
        others[:, index] = False
        if bool(others.any()):
            wanted = torch.zeros_like(exists)
            wanted[:, index] = model.tokens(images, torch.ones_like(available), brain)[:, index]
            absent[:, index] = model.predict(images, others, wanted, valid)[:, index]
    right, front, _ = model.spacing
    return Pictures(
        images=images[0].cpu().numpy(),
        available=available[0].cpu().numpy(),
        brain=brain[0, 0].cpu().numpy(),
        shown=torch.where(hidden, torch.nan, images)[0].cpu().numpy(),
        filled=torch.where(hidden, guess, images)[0].cpu().numpy(),
        absent=absent[0].cpu().numpy(),
        aspect=front / right,
    )


@torch.inference_mode()
def predict_regions(model: SegmentationModel, sample: Sample, subset: Sequence[str]) -> Array:
    """Return region masks Bool[R, H, W, D] of one sample from a subset of its modalities."""
    given = torch.tensor([[name in subset for name in model.config.model.modalities]])
    available = given & sample["available"][None]
    tissue = sample["brain"][None, None] if model.config.model.tissue_only else None
    logits = model(sample["images"][None], available, tissue, sample["valid"][None])
    return np.asarray((logits[0] > 0).numpy())


def best_slice(brain: Array, label: Array | None = None) -> int:
    """Return the axial slice that shows most of the lesion, or of the brain where there is none."""
    flags = label if label is not None and label.any() else brain
    return int(flags.reshape(-1, *flags.shape[-3:]).any(axis=0).sum(axis=(0, 1)).argmax())


def save_report(
    path: Path,
    names: Sequence[str],
    pictures: Pictures,
    *,
    label: Array | None = None,
    segmentations: Sequence[tuple[str, Array]] = (),
    caption: str = "",
) -> Path:
    """Draw one study: a row a modality, and under them the segmentation over the last available modality.

    Axial planes, the patient's right on the left.

    Args:
        path: The PNG to write.
        names: Modality names, in the order of the arrays.
        pictures: What to show.
        label: True region masks, Bool[R, H, W, D].
        segmentations: A title and predicted region masks each.
        caption: Text under the picture, before how to read it.

    Raises:
        OutputError: If the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    level = best_slice(pictures.brain, label)
    rows = len(names) + (1 if label is not None else 0)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(2 * len(COLUMNS), 2.1 * rows), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, len(COLUMNS), squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for row, name in enumerate(names):
            _draw_modality(axes[row], pictures, row, title(name), level)
        if label is not None:
            _draw_segmentations(axes[-1], names, pictures, label, segmentations, level=level)
        for column, text in enumerate(COLUMNS):
            axes[0, column].set_title(text)
        figure.supxlabel("\n".join(filter(None, (caption, READING))), fontsize=8)
        return _write_png(figure, path, dpi=110)


def _draw_modality(axes: Sequence[Axes], pictures: Pictures, row: int, name: str, level: int) -> None:
    truth = pictures.images[row]
    outside = ~pictures.brain
    columns = (
        (truth, False),
        (pictures.shown[row], False),
        (pictures.filled[row], False),
        (pictures.filled[row] - truth, True),
        (pictures.absent[row], False),
        (pictures.absent[row] - truth, True),
    )
    for axis, (volume, difference) in zip(axes, columns, strict=True):
        if not pictures.available[row] and volume is not pictures.absent[row]:
            continue
        _show(axis, volume, outside, level, aspect=pictures.aspect, difference=difference)
    if not pictures.available[row]:
        axes[0].text(0.5, 0.5, "absent", transform=axes[0].transAxes, va="center", ha="center")
    axes[0].text(-0.08, 0.5, name, transform=axes[0].transAxes, rotation=90, va="center", ha="center", fontsize=10)


def _draw_segmentations(
    axes: Sequence[Axes],
    names: Sequence[str],
    pictures: Pictures,
    label: Array,
    segmentations: Sequence[tuple[str, Array]],
    *,
    level: int,
) -> None:
    under = int(np.flatnonzero(pictures.available)[-1])
    panels = [(title(names[under]), None), ("truth", label), *segmentations]
    for axis, (text, masks) in zip(axes, panels, strict=False):
        _show(axis, pictures.images[under], ~pictures.brain, level, aspect=pictures.aspect)
        axis.set_title(text)
        for mask, colour in zip(() if masks is None else masks, REGION_COLOURS.values(), strict=False):
            if mask[:, :, level].any():
                axis.contour(upright(mask[:, :, level].astype(float)), levels=[0.5], colors=[colour], linewidths=1)


def upright(plane: Array) -> Array:
    """Rows and columns of an axial plane whose axes run to the right and front: right on the left, front on top."""
    return plane.T[::-1, ::-1]


def _show(
    axis: Axes, volume: Array, outside: Array, level: int, *, aspect: float = 1.0, difference: bool = False
) -> None:
    import matplotlib as mpl

    colours = mpl.colormaps["RdBu_r" if difference else "gray"].with_extremes(bad="#3b4a6b")
    plane = np.where(outside, 0 if difference else CONTRAST[0], volume)[:, :, level]
    low, high = CONTRAST
    axis.imshow(upright(plane), cmap=colours, vmin=low, vmax=high, interpolation="nearest", aspect=aspect)


def regions_caption(regions: Sequence[str], given: Sequence[str]) -> str:
    """Return a legend of the region outlines, for a caption."""
    named = ", ".join(f"{region} {colour}" for region, colour in zip(regions, REGION_COLOURS, strict=False))
    return f"outlines: {named}; given for the last segmentation: {subset_label(given)}"


def save_progress(model: MAE, step: int, *, data: AddressedDataset, folder: Path, count: int = 2) -> list[Path]:
    """Draw the first validation studies as the model sees them after `step` steps: always the same ones and masks.

    Args:
        model: In eval mode.
        step: Optimiser steps done; part of the file names.
        data: Validation samples.
        folder: Where the PNG files go.
        count: How many studies.
    """
    written = []
    for index in range(min(count, len(data))):
        sample = data[EVALUATION_EPOCH, index]
        pictures = picture_reconstruction(model, sample)
        path = folder / f"step-{step:08d}-{index}.png"
        written.append(save_report(path, model.config.modalities, pictures, caption=f"after {step} steps"))
    return written


PANELS = (
    ("loss", ("train/loss", "val/loss")),
    ("validation error by modality", "val/mse_"),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("lr",)),
    ("samples a second", ("samples_per_s",)),
    ("shares", ("data_wait_share", "mfu", "train/padding_share")),
)
"""Panels of the curves: a title, and the names drawn in it or how they begin."""


def save_curves(run_dir: Path, path: Path | None = None) -> Path:
    """Draw a run's metrics over its steps.

    Args:
        run_dir: A run folder, of a finished or a running training.
        path: The PNG to write; by default `curves.png` in the run folder.

    Raises:
        OutputError: If the run has no metrics, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = read_journal(run_dir / JOURNAL)
    if not rows:
        raise OutputError(f"{run_dir / JOURNAL} holds no metrics: has the run logged anything yet?")
    names = sorted({name for row in rows for name in row})
    figure = Figure(figsize=(12, 6.5), layout="constrained", facecolor="white")
    for axis, (text, wanted) in zip(figure.subplots(2, 3).ravel(), PANELS, strict=True):
        for name in (n for n in names if (n.startswith(wanted) if isinstance(wanted, str) else n in wanted)):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        axis.set_title(text)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.supxlabel("optimiser steps")
    return _write_png(figure, path or run_dir / "curves.png", dpi=110)


def _write_png(figure: Figure, path: Path, dpi: int) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise OutputError(f"cannot write the picture {path}: {error.strerror or error}") from error
    return path

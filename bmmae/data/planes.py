"""Three planes through an image, as a small picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

from bmmae.arrays import Array, Float, Int
from bmmae.data.brain import box_of
from bmmae.data.scans import Grid

COLOURS = ((230, 25, 75), (255, 225, 25), (66, 212, 244), (176, 79, 216), (245, 130, 49), (67, 99, 216))
"""Outlines of label values, from the smallest on, told apart by the colour-blind too; more values begin anew."""
PANEL = 180
"""Pixels of the image's longest extent."""


def draw_planes(
    thin: Float[np.ndarray, "h w d"],
    grid: Grid,
    window: tuple[float, float],
    label: Int[np.ndarray, "h w d"] | None = None,
    values: Sequence[int] = (),
) -> bytes:
    """Draw an axial, a coronal and a sagittal plane side by side; the patient's right is on the left.

    They go through the middle of the lesion, else of the image.

    Args:
        thin: Voxels thinned as the grid says.
        grid: The file's grid.
        window: Intensities shown as black and white.
        label: Label values on the same voxels, to outline.
        values: The label values that occur in the study, sorted: they choose the colours.

    Returns:
        A PNG file.
    """
    from matplotlib.image import imsave

    to_ras = nib.orientations.io_orientation(grid.affine)
    turned = nib.orientations.apply_orientation(thin, to_ras)
    labels = np.zeros(turned.shape, np.int16) if label is None else nib.orientations.apply_orientation(label, to_ras)
    if turned.any():  # a stripped brain fills the picture
        box = box_of(turned != 0)
        turned, labels = turned[box], labels[box]
    sizes = np.empty(3)
    sizes[to_ras[:, 0].astype(int)] = [s * part.step for s, part in zip(grid.spacing, grid.thinned, strict=True)]
    zoom = sizes * PANEL / max(sizes * turned.shape)
    panels = []
    for axis, level in zip((2, 1, 0), _centre(labels, turned)[::-1], strict=True):
        flat, marks = (np.take(volume, level, axis) for volume in (turned, labels))
        panels.append(_panel(flat, marks, np.delete(zoom, axis), window, values))
    height = max(len(panel) for panel in panels)
    rows = [np.pad(p, [((height - len(p)) // 2, (height - len(p) + 1) // 2), (4, 4), (0, 0)]) for p in panels]
    out = io.BytesIO()
    imsave(out, np.concatenate(rows, axis=1), format="png")
    return out.getvalue()


def _centre(labels: Array, image: Array) -> list[int]:
    """The slice through each axis with most of the lesion; without one, the middle."""
    if labels.any():
        return [int(np.count_nonzero(labels, axis=_others(axis)).argmax()) for axis in range(3)]
    return [length // 2 for length in image.shape]


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _panel(flat: Array, marks: Array, zoom: Array, window: tuple[float, float], values: Sequence[int]) -> Array:
    """One plane as RGB, upright; `zoom` is pixels a voxel along its two axes."""
    low, high = window
    grey = np.clip((flat.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    index = np.ix_(
        *(np.minimum((np.arange(round(n * z)) / z).astype(int), n - 1) for n, z in zip(flat.shape, zoom, strict=True))
    )
    colours = np.repeat((255 * grey[index]).astype(np.uint8)[..., None], 3, axis=-1)
    large = marks[index]
    for value in filter(None, values):
        region = large == value
        colours[region & ~ndimage.binary_erosion(region)] = colour_of(value, values)
    # Right is drawn on the left, up and front on top.
    return np.asarray(np.transpose(colours, (1, 0, 2))[::-1, ::-1])


def colour_of(value: int, values: Sequence[int]) -> tuple[int, int, int]:
    """Return the colour of a label value's outline, by its rank among all of the study's values but 0."""
    ranks = sorted(set(values) - {0})
    return COLOURS[ranks.index(value) % len(COLOURS)]

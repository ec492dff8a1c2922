"""The report on one study's synthesised modalities: what was given, what was made, and the truth where it is known."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.inference.agreement import Agreement, fitted
from bmmae.inference.reconstruction import Reconstruction
from bmmae.inference.scale import DESCRIPTIONS
from bmmae.modalities import in_table_order, title
from bmmae.notice import NOTICE
from bmmae.page import document, figure, table

STYLE = """
body { max-width: 1500px } td { padding-right: .4em } .notice { background: #fff3d6; padding: .5em .8em }
"""
LONGEST = 120
"""Pixels of the brain's longest extent."""
Look = Literal["image", "difference", "deviation"]
COLOURS: dict[Look, str] = {"image": "gray", "difference": "RdBu_r", "deviation": "magma"}


@dataclass(frozen=True)
class _Panel:
    """One cell of the page.

    Attributes:
        column: Its heading.
        volume: On the grid of the study's images.
        look: How it is coloured.
        limits: Values at both ends of the colours.
        caption: What is written under it.
    """

    column: str
    volume: Float[np.ndarray, "X Y Z"]
    look: Look
    limits: tuple[float, float]
    caption: str


GIVEN, MADE, REAL, DIFFERENCE, DEVIATION = ("given", "SYNTHETIC", "real, hidden", "difference", "standard deviation")

BRIGHT = 95
"""Percentile of the deviations that is drawn brightest: the brain's edge would leave nothing to see inside it."""
PLANES = (
    "Axial, coronal and sagittal planes; the patient's right (sagittal: the front) is on the left. Each image is black "
    "and white at the 1 % and 99 % of its own intensities in the brain."
)
READING = {
    DIFFERENCE: "The difference, synthetic minus real, is that after the affine map, in the real image's units.",
    DEVIATION: "The standard deviation is in the synthetic image's units.",
}
"""How to read a column, where it needs telling."""


def study_page(name: str, made: Reconstruction) -> str:
    """Return the report as one HTML page that needs nothing else.

    A row a modality; three planes through the middle of the brain, the patient's right on the left. Differences are
    those after the least-squares map of intensities onto the real image, as MR has no scale.

    Args:
        name: What the study is called.
        made: Its reconstruction.
    """
    modalities = in_table_order([*made.study.images, *made.volumes])
    rows = {modality: _panels(modality, made) for modality in modalities}
    used = {panel.column for panels in rows.values() for panel in panels}
    columns = [column for column in (GIVEN, MADE, REAL, DIFFERENCE, DEVIATION) if column in used]
    planes = _Planes.through(made)
    pictures = [
        [f"<b>{escape(title(modality))}</b>", *_cells(panels, columns, planes)] for modality, panels in rows.items()
    ]
    body = [
        f"<h1>Reconstruction of {escape(name)}</h1>",
        f"<p class=notice><b>{', '.join(title(n) for n in made.volumes)}: synthetic, not acquired.</b> {NOTICE}</p>",
        *(f"<p class=warning>{escape(remark)}</p>" for remark in (made.weights, *made.remarks) if remark),
        _figures(made),
        f"<p>{' '.join([PLANES, *(READING[column] for column in columns if column in READING)])}</p>",
        table(["", *columns], pictures),
        *_scales(made),
    ]
    return document(f"Reconstruction of {name}", body, STYLE)


def _panels(modality: str, made: Reconstruction) -> list[_Panel]:
    brain = made.study.brain
    if modality in made.study.images:
        image = made.study.images[modality]
        return [_Panel(GIVEN, image.array, "image", _window(image.array, brain), image.path.name)]
    volume = made.volumes[modality]
    panels = [_Panel(MADE, volume, "image", _window(volume, brain), f"synthetic {title(modality)}")]
    if modality in made.truth:
        truth = made.truth[modality]
        low, high = _window(truth, brain)
        half = (high - low) / 2
        mapped, inside = fitted(volume, truth, brain)
        off = np.where(inside, mapped - truth, 0)
        panels.append(_Panel(REAL, truth, "image", (low, high), f"real {title(modality)}"))
        caption = f"red: too bright, blue: too dark; ends at {half:.3g}"
        panels.append(_Panel(DIFFERENCE, off, "difference", (-half, half), caption))
    if modality in made.deviations:
        deviation = made.deviations[modality]
        typical, high = (float(value) for value in np.percentile(deviation[brain], (50, BRIGHT)))
        most = max(high, 1e-6)
        caption = f"median {typical:.3g}, brightest at {most:.3g}"
        panels.append(_Panel(DEVIATION, deviation, "deviation", (0.0, most), caption))
    return panels


def _window(volume: Array, brain: Bool[np.ndarray, "X Y Z"]) -> tuple[float, float]:
    """Intensities shown as black and white."""
    low, high = (float(value) for value in np.percentile(volume[brain], (1, 99)))
    return low, max(high, low + 1e-6 * max(1.0, abs(low)))


def _cells(panels: Sequence[_Panel], columns: Sequence[str], planes: _Planes) -> list[str]:
    by_column = {panel.column: panel for panel in panels}
    cells = []
    for column in columns:
        panel = by_column.get(column)
        if panel is None:
            cells.append("")
            continue
        alt = f"{panel.caption}: axial, coronal, sagittal"
        cells.append(figure(planes.draw(panel), alt, panel.caption))
    return cells


@dataclass(frozen=True)
class _Planes:
    """Three planes through a study, the same for each of its volumes.

    Attributes:
        made: The study.
        box: The brain's extent on the canonical grid (right, anterior, superior).
        levels: Slice through each axis, counted in the box: where most brain is.
        zoom: Pixels a voxel along each axis.
    """

    made: Reconstruction
    box: tuple[slice, slice, slice]
    levels: tuple[int, int, int]
    zoom: Float[np.ndarray, " 3"]

    @classmethod
    def through(cls, made: Reconstruction) -> _Planes:
        """Choose the planes."""
        geometry = made.study.prepared.geometry
        brain = geometry.to_canonical(made.study.brain.astype(np.uint8)) > 0
        areas = [brain.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
        spans = [np.flatnonzero(area) for area in areas]
        x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
        i, j, k = (int(area.argmax()) - int(span[0]) for area, span in zip(areas, spans, strict=True))
        sizes = np.asarray(geometry.canonical_spacing)
        extent = sizes * [len(range(part.start, part.stop)) for part in (x, y, z)]
        return cls(made, (x, y, z), (i, j, k), sizes * LONGEST / float(extent.max()))

    def draw(self, panel: _Panel) -> bytes:
        """Return the planes of a volume side by side, as a PNG file; what is not brain is black or grey."""
        from matplotlib import colormaps
        from matplotlib.image import imsave

        geometry = self.made.study.prepared.geometry
        volume = geometry.to_canonical(panel.volume)[self.box]
        low, high = panel.limits
        parts = [self._plane((volume - low) / (high - low), axis) for axis in (2, 1, 0)]
        outside = 0.5 if panel.look == "difference" else 0.0
        height = max(len(part) for part in parts)
        padded = [
            np.pad(part, [((height - len(part)) // 2, (height - len(part) + 1) // 2), (2, 2)], constant_values=outside)
            for part in parts
        ]
        out = io.BytesIO()
        colours = colormaps[COLOURS[panel.look]](np.clip(np.concatenate(padded, axis=1), 0, 1))[..., :3]
        imsave(out, (255 * colours).round().astype(np.uint8), format="png")
        return out.getvalue()

    def _plane(self, volume: Array, axis: int) -> Array:
        """One plane, right drawn on the left, up and front on top."""
        flat = np.take(volume, self.levels[axis], axis)
        zoom = np.delete(self.zoom, axis)
        places = (
            np.minimum((np.arange(max(1, round(length * z))) / z).astype(int), length - 1)
            for length, z in zip(flat.shape, zoom, strict=True)
        )
        return np.asarray(flat[np.ix_(*places)].T[::-1, ::-1])


def _figures(made: Reconstruction) -> str:
    """How close each synthesised modality is to the real one."""
    if not made.agreement:
        return "<p>The real images of the synthetic ones are not known: nothing can be said of how close they are.</p>"
    rows = [(title(name), *_row(found)) for name, found in made.agreement.items()]
    head = ("", "PSNR after affine map, dB", "PSNR as written, dB", "SSIM after affine map", "share compared")
    told = (
        "<p>Over the given images' brain on their own grid; higher is closer. The share compared is that of the real "
        "image's voxels: what the given images do not cover is not made, and counts for nothing.</p>"
    )
    return table(head, rows) + told


def _row(found: Agreement) -> tuple[str, ...]:
    return f"{found.psnr_fitted:.2f}", f"{found.psnr:.2f}", f"{found.ssim:.3f}", f"{found.covered:.1%}"


def _scales(made: Reconstruction) -> list[str]:
    """Which scale the intensities are on."""
    kinds = {kind: [title(n) for n, k in made.intensities.items() if k == kind] for kind in made.intensities.values()}
    return [f"<p>Intensities of {', '.join(names)}: {DESCRIPTIONS[kind]}.</p>" for kind, names in kinds.items()]

"""RTSTRUCT contours and SEG frames to masks on the grid of the series that they refer to."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bmmae.arrays import Array, Bool, Float, Int, Shaped
from bmmae.data.raw.dicom_files import Series
from bmmae.data.raw.extras import require
from bmmae.data.raw.polygons import fill_contours
from bmmae.errors import ConfigError, ImageError, LabelError
from bmmae.patches import Triple

CLOSED = frozenset(("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"))
OFF_GRID = 0.25
"""Voxels between the centres of a SEG's pixels and the image's: more is another grid."""

TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's millimetres run left, posterior, superior."""

Draw = Callable[[Triple, Float[Array, "4 4"]], Bool[np.ndarray, "H W D"]]


@dataclass(frozen=True)
class Structure:
    """One named region.

    Attributes:
        name: As whoever drew it wrote it.
        draw: Image shape and affine (RAS) to the mask on that grid.
    """

    name: str
    draw: Draw


@dataclass(frozen=True)
class StructureSet:
    """What one RTSTRUCT or SEG file holds, and the SeriesInstanceUIDs of the images that it refers to."""

    structures: tuple[Structure, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Which structures to keep: a name or pattern (`GTV*`), case ignored, and the label it becomes."""

    pattern: str
    label: int = 1

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read `NAME` or `NAME=LABEL`.

        Raises:
            ConfigError: If the label is not a whole number from 1 to 255.
        """
        name, sign, label = text.rpartition("=")
        if not sign:
            return cls(text)
        if not label.isdigit() or not 1 <= int(label) <= 255:
            raise ConfigError(f"--structure {text}: expected NAME or NAME=LABEL with a label from 1 to 255")
        return cls(name, int(label))


def read_structures(series: Series) -> StructureSet:
    """Read the structures of an RTSTRUCT or SEG series.

    Raises:
        ImageError: If it has several files, cannot be read, or holds no structure.
        ConfigError: If pydicom is not installed.
    """
    pydicom = require("pydicom", "Reading structures")
    if len(series.files) != 1:
        raise ImageError(f"a series of structures has {len(series.files)} files: expected one; leave others out")
    try:
        dataset = pydicom.dcmread(series.files[0], force=True)
        parse = _contours if series.acquisition.kind == "RTSTRUCT" else _segments
        found = parse(dataset)
    except ImageError:
        raise
    except Exception as error:  # a parser's own exceptions
        raise ImageError(
            f"{series.files[0]} cannot be read as {series.acquisition.kind}: {type(error).__name__}; export it again"
        ) from error
    if not found.structures:
        raise ImageError("a structure set holds no closed contours and no segments: leave it out of the table")
    return found


def choose(structures: Sequence[Structure], choices: Sequence[Choice]) -> list[tuple[Structure, int]]:
    """Return the structures to draw and their labels; without a choice there must be just one.

    Raises:
        LabelError: If several are there and none was chosen, or none of the choices fits.
    """
    listed = ", ".join(f"'{structure.name}'" for structure in structures)
    if not choices:
        if len(structures) > 1:
            raise LabelError(
                f"{len(structures)} structures: {listed}; choose with --structure NAME (or 'GTV*', NAME=2)"
            )
        return [(structures[0], 1)]
    chosen = [(structure, choice.label) for choice in choices for structure in _fitting(structures, choice)]
    if not chosen:
        wanted = ", ".join(f"'{choice.pattern}'" for choice in choices)
        raise LabelError(f"no structure is called {wanted}: there are {listed}")
    return chosen


def unmatched(structures: Sequence[Structure], choices: Sequence[Choice]) -> list[str]:
    """Return the patterns that no structure is called by."""
    return [choice.pattern for choice in choices if not _fitting(structures, choice)]


def _fitting(structures: Sequence[Structure], choice: Choice) -> list[Structure]:
    return [each for each in structures if fnmatch.fnmatchcase(each.name.lower(), choice.pattern.lower())]


def draw_labels(
    chosen: Iterable[tuple[Structure, int]], shape: Triple, affine: Float[Array, "4 4"]
) -> Shaped[np.ndarray, "H W D"]:
    """Return uint8 labels on the image's grid; where structures overlap, the later one wins.

    Raises:
        ImageError: If a structure lies in no slice of the image or on another grid.
        LabelError: If no voxel is inside any.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    for structure, label in chosen:
        labels[structure.draw(shape, affine)] = label
    if not labels.any():
        raise LabelError(
            "the chosen structures contain no voxel of the series they refer to: were they drawn on another?"
        )
    return labels


def _contours(dataset: Any) -> StructureSet:
    names = {int(roi.ROINumber): str(roi.get("ROIName") or roi.ROINumber) for roi in dataset.StructureSetROISequence}
    structures = []
    for item in dataset.get("ROIContourSequence") or ():
        contours = [
            np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3) * TO_RAS
            for contour in item.get("ContourSequence") or ()
            if contour.get("ContourGeometricType") in CLOSED
        ]
        if contours:
            structures.append(Structure(names[int(item.ReferencedROINumber)], _filler(contours)))
    references = [
        str(series.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    ]
    return StructureSet(tuple(structures), tuple(dict.fromkeys(references)))


def _filler(contours: list[Float[np.ndarray, "P 3"]]) -> Draw:
    return lambda shape, affine: fill_contours(contours, shape, affine)


def _segments(dataset: Any) -> StructureSet:
    frames = np.asarray(dataset.pixel_array)
    frames = frames if frames.ndim == 3 else frames[None]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    if str(dataset.get("SegmentationType", "BINARY")) == "FRACTIONAL":
        frames = frames >= int(dataset.MaximumFractionalValue) / 2
    elif str(dataset.get("SegmentationType")) == "LABELMAP":
        raise ImageError("a SEG of type LABELMAP is not read yet: export it as BINARY")
    placed: dict[int, list[_Frame]] = {}
    for pixels, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        segment = _group(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber
        placed.setdefault(int(segment), []).append(_Frame(pixels > 0, _frame_affine(group, shared)))
    structures = [
        Structure(str(item.get("SegmentLabel") or item.SegmentNumber), _placer(placed[int(item.SegmentNumber)]))
        for item in dataset.SegmentSequence
        if int(item.SegmentNumber) in placed
    ]
    references = [str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or ()]
    return StructureSet(tuple(structures), tuple(references))


@dataclass(frozen=True)
class _Frame:
    """One slice of a segment; `affine` takes (row, column, 0, 1) to millimetres (RAS)."""

    pixels: Bool[np.ndarray, "R C"]
    affine: Float[Array, "4 4"]


def _group(frame: Any, shared: Any, name: str) -> Any:
    """Return an item of a frame's functional groups, else of those that all frames share."""
    items = frame.get(name) or (shared.get(name) if shared is not None else None)
    if not items:
        raise ImageError(f"a SEG frame has no {name}: expected one in its own or the shared functional groups")
    return items[0]


def _frame_affine(frame: Any, shared: Any) -> Float[Array, "4 4"]:
    position = np.asarray(_group(frame, shared, "PlanePositionSequence").ImagePositionPatient, dtype=float)
    orientation = _group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient
    along_row, along_column = np.asarray(orientation, dtype=float).reshape(2, 3)
    # PixelSpacing: first between rows, then between columns.
    between_rows, between_columns = map(float, _group(frame, shared, "PixelMeasuresSequence").PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = along_column * between_rows * TO_RAS
    affine[:3, 1] = along_row * between_columns * TO_RAS
    affine[:3, 3] = position * TO_RAS
    return affine


def _placer(frames: list[_Frame]) -> Draw:
    def draw(shape: Triple, affine: Float[Array, "4 4"]) -> Bool[np.ndarray, "H W D"]:
        mask = np.zeros(shape, dtype=bool)
        for frame in frames:
            places = _placed(frame, affine)
            inside = np.all((places >= 0) & (places < shape), axis=1)
            mask[tuple(places[inside].T)] = True
        return mask

    return draw


def _placed(frame: _Frame, affine: Float[Array, "4 4"]) -> Int[np.ndarray, "K 3"]:
    """Return the image's voxel for each true pixel of a frame."""
    to_voxel = np.linalg.inv(affine) @ frame.affine
    sizes = np.linalg.norm(to_voxel[:3, :2], axis=0)
    pixels = np.argwhere(frame.pixels)
    places = pixels @ to_voxel[:3, :2].T + to_voxel[:3, 3]
    whole = np.rint(places)
    if np.abs(sizes - 1).max() > 0.01 or (len(places) and np.abs(places - whole).max() > OFF_GRID):
        raise ImageError(
            "a segmentation lies on another grid than the series it refers to: expected the same pixels and slices; "
            "export it on that series"
        )
    return whole.astype(np.intp)

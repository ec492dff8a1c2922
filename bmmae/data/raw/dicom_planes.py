"""Where the slices of a DICOM series lie, and what is wrong with that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bmmae.arrays import Float
from bmmae.data.raw.dicom_elements import numbers_of, within

STRUCTURE_KINDS = ("RTSTRUCT", "SEG")
"""Kinds of series that outline another one, and are no slices of their own."""

GAP_TOLERANCE = 0.2
"""Slices whose distance differs from the usual one by more than this share leave a gap."""

SAME_PLACE = 0.01
"""Millimetres between slices that lie in one place: headers' rounding, as slices are thicker."""

SLANT = 1.0
"""Millimetres by which slices may lie beside the first one's normal; more is a tilted gantry."""

PARALLEL = 0.999
"""Slices whose normals' product is less, at about 2.5 degrees, are not of one volume."""


@dataclass(frozen=True)
class Plane:
    """Where a slice lies: its normal, and its first pixel, mm."""

    normal: Float[np.ndarray, " 3"]
    corner: Float[np.ndarray, " 3"]


def planes_of(header: Any) -> list[Plane]:
    """Return where each slice lies; one for each frame of a multi-frame file, none of outlines.

    Raises:
        MalformedError: If its position or orientation is no such numbers.
    """
    if header.get("Modality") in STRUCTURE_KINDS:
        return []
    frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
    shared = header.get("SharedFunctionalGroupsSequence") or [header]
    found = []
    for frame in frames:
        position = numbers_of(within(frame, "PlanePositionSequence"), "ImagePositionPatient", 3)
        planes = (within(group, "PlaneOrientationSequence") for group in (frame, shared[0]))
        orientation = next((o for plane in planes if (o := numbers_of(plane, "ImageOrientationPatient", 6))), None)
        if position and orientation:
            normal = np.cross(*np.asarray(orientation).reshape(2, 3))
            found.append(Plane(normal, np.asarray(position)))
    return found


def plane_problems(planes: list[Plane]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with where they lie, gaps apart."""
    turned = [plane for plane in planes if _is_turned(plane, planes[0])]
    if not turned:
        return _spacing_problems(planes)
    return len(planes), (f"{len(turned)} of {len(planes)} slices in another orientation than the first",)


def misplaced(planes: list[Plane]) -> tuple[str, ...]:
    """Return why no volume may be made of parallel slices: it would invent what is missing, and straighten a slant."""
    if any(_is_turned(plane, planes[0]) for plane in planes):
        return ()
    apart = [plane.corner - planes[0].corner for plane in planes]
    beside = [np.linalg.norm(shift - shift @ planes[0].normal * planes[0].normal) for shift in apart]
    slant = float(max(beside, default=0.0))
    places = _places(planes)
    missing = _missing(np.diff(places))
    return (
        *([f"slices up to {slant:.3g} mm beside each other, as of a tilted gantry"] if slant > SLANT else []),
        *([f"{missing} of {len(places) + missing} slices missing"] if missing else []),
    )


def _is_turned(plane: Plane, first: Plane) -> bool:
    return bool(plane.normal @ first.normal < PARALLEL)


def _places(planes: list[Plane]) -> Float[np.ndarray, " P"]:
    """Return the different places of slices along the first one's normal, mm, sorted."""
    along = np.sort([float(plane.corner @ planes[0].normal) for plane in planes])
    return along[np.diff(along, prepend=-np.inf) > SAME_PLACE]


def _missing(gaps: Float[np.ndarray, " G"]) -> int:
    """Return how many slices would fill the gaps that are wider than the usual one."""
    return int(np.rint(gaps / np.median(gaps) - 1).clip(min=0).sum()) if len(gaps) > 1 else 0


def _spacing_problems(planes: list[Plane]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with their spacing."""
    places = _places(planes)
    problems: list[str] = []
    if len(places) > 1 and len(planes) != len(places):
        volumes = len(planes) / len(places)
        problems.append(
            f"{volumes:g} volumes in one series"
            if volumes.is_integer()
            else "slices repeated or missing in one of several volumes"
        )
    gaps = np.diff(places)
    if len(gaps) > 1 and not _missing(gaps):
        usual = float(np.median(gaps))
        if np.any(np.abs(gaps - usual) > GAP_TOLERANCE * usual):
            problems.append(f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart")
    return len(places), tuple(problems)

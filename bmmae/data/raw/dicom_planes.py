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

PARALLEL = 0.999
"""Slices whose normals' product is less, at about 2.5 degrees, are not of one volume."""


@dataclass(frozen=True)
class Plane:
    """Where a slice lies: along its own normal, mm."""

    normal: Float[np.ndarray, " 3"]
    place: float


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
            found.append(Plane(normal, float(normal @ np.asarray(position))))
    return found


def plane_problems(planes: list[Plane]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with where they lie."""
    turned = [plane for plane in planes if plane.normal @ planes[0].normal < PARALLEL]
    if not turned:
        return _spacing_problems([plane.place for plane in planes])
    return len(planes), (f"{len(turned)} of {len(planes)} slices in another orientation than the first",)


def _spacing_problems(positions: list[float]) -> tuple[int, tuple[str, ...]]:
    """Return how many different slices there are, and what is wrong with their spacing."""
    places = sorted({round(place, 2) for place in positions})
    problems: list[str] = []
    if len(places) > 1 and len(positions) != len(places):
        volumes = len(positions) / len(places)
        problems.append(
            f"{volumes:g} volumes in one series"
            if volumes.is_integer()
            else "slices repeated or missing in one of several volumes"
        )
    gaps = np.diff(places)
    if len(gaps) > 1:
        usual = float(np.median(gaps))
        missing = int(np.rint(gaps / usual - 1).clip(min=0).sum())
        if missing:
            problems.append(f"{missing} of {len(places) + missing} slices missing")
        elif np.any(np.abs(gaps - usual) > GAP_TOLERANCE * usual):
            problems.append(f"slices {gaps.min():.3g} to {gaps.max():.3g} mm apart")
    return len(places), tuple(problems)

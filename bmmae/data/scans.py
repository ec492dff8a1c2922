"""What a check keeps of an image once it was read: its grid, its range, and a thinned copy of its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bmmae.arrays import Array, Bool, Float
from bmmae.data.brain import is_stripped
from bmmae.data.geometry import axes_of, grid_difference, same_grid, turned_like
from bmmae.data.location import File
from bmmae.data.millimetres import spacing_of
from bmmae.data.reading import array_hash, read_image

KEPT_VOXELS = 96
"""An axis is thinned by whole steps as long as more voxels than this stay."""

Slices: TypeAlias = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file are.

    Attributes:
        shape: Voxels along each axis.
        affine: Voxel indices to world coordinates (mm).
    """

    shape: tuple[int, ...]
    affine: Float[Array, "4 4"]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each axis, mm."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Where each axis points, such as `LPS`."""
        return axes_of(self.affine)

    @property
    def thinned(self) -> Slices:
        """Which voxels a thinned copy keeps."""
        steps = [slice(None, None, max(1, length // KEPT_VOXELS)) for length in self.shape]
        return (steps[0], steps[1], steps[2])

    def same(self, other: Grid) -> bool:
        """Tell whether two files have their voxels in the same places."""
        return same_grid(self.shape, self.affine, other.shape, other.affine)

    def turned_like(self, array: Array, other: Grid) -> tuple[Array, Grid]:
        """Return voxels on this grid, and the grid, with their axes as another's, as nearly as they can."""
        turned, affine = turned_like(array, self.affine, other.affine)
        return turned, Grid(turned.shape, affine)

    def difference(self, other: Grid) -> str:
        """Say in brackets what is different beside the number of voxels."""
        return grid_difference(self.shape, self.affine, other.shape, other.affine)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} voxels of {'x'.join(f'{size:.3g}' for size in self.spacing)} mm"


@dataclass(frozen=True)
class Scan:
    """What is kept of an image: about a third of its memory, for as long as its study is looked at.

    Attributes:
        path: The file.
        grid: Its grid.
        nonzero: Bool[H, W, D].
        stripped: Whether it looks skull-stripped.
        synthetic: Whether its header says that it was synthesised.
        open_axes: As of an `Image`: which way its axes point, if its header leaves that open.
        digest: Hash of its voxels.
        thin: Float[h, w, d], the voxels that `Grid.thinned` keeps.
        extremes: Smallest and largest intensity.
        percentiles: 1st and 99th percentile of the non-zero voxels.
    """

    path: File
    grid: Grid
    nonzero: Bool[Array, "H W D"]
    stripped: bool
    synthetic: bool
    open_axes: str
    digest: str
    thin: Float[Array, "h w d"]
    extremes: tuple[float, float]
    percentiles: tuple[float, float]

    @property
    def millilitres(self) -> float:
        """How much of it is not 0."""
        return int(np.count_nonzero(self.nonzero)) * abs(float(np.linalg.det(self.grid.affine[:3, :3]))) / 1000


def read_scan(path: File) -> Scan:
    """Read an image and keep what a check needs.

    Raises:
        ImageError: If it cannot be used.
    """
    image = read_image(path)
    array, grid = image.array, Grid(image.shape, image.affine)
    thin = array[grid.thinned].copy()
    tissue = thin[thin != 0]
    low, high = np.percentile(tissue, (1, 99)) if len(tissue) else (0.0, 0.0)
    return Scan(
        path=path,
        grid=grid,
        nonzero=np.asarray(array != 0),
        stripped=is_stripped(array),
        synthetic=image.synthetic,
        open_axes=image.open_axes,
        digest=array_hash(array),
        thin=thin,
        extremes=(float(array.min()), float(array.max())),
        percentiles=(float(low), float(high)),
    )


def on_one_grid(grids: dict[str, Grid]) -> list[list[str]]:
    """Gather the names whose grids are the same."""
    gathered: list[list[str]] = []
    for name, grid in grids.items():
        home = next((names for names in gathered if grids[names[0]].same(grid)), None)
        if home is None:
            gathered.append([name])
        else:
            home.append(name)
    return gathered

"""One synthetic brain, made in a process of its own: the generator is tested elsewhere, and not at run time here."""

import io
import subprocess
import sys
from functools import cache

import numpy as np

MAKE = """
import sys, numpy as np
from bmmae.data.synthetic import SyntheticConfig, make_study
study = make_study(SyntheticConfig(subjects=1, size=48), 0)
np.savez(sys.stdout.buffer, affine=study.affine, seg=study.seg, **study.images)
"""


@cache
def synthetic_brain() -> dict[str, np.ndarray]:
    """Affine, segmentation and the four modalities, 48 voxels of 4 mm along each axis."""
    made = subprocess.run([sys.executable, "-c", MAKE], capture_output=True, check=True)
    return dict(np.load(io.BytesIO(made.stdout)))


def rigid(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """A turn about the three axes and a shift, millimetres."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(4)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    matrix[:3, 3] = shift
    return matrix


def errors(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Displacement of the brain's centre (mm), and the angle between two rigid transforms (degrees)."""
    rest = np.linalg.inv(truth) @ found
    angle = np.degrees(np.arccos(np.clip((np.trace(rest[:3, :3]) - 1) / 2, -1, 1)))
    return float(np.linalg.norm(rest[:3, 3])), float(angle)

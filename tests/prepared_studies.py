"""Prepared studies in memory: four related modalities of a smooth asymmetric brain, without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bmmae.data.geometry import Geometry
from bmmae.data.preprocess import PreparedStudy
from bmmae.modalities import STANDARD
from bmmae.patches import Triple


def prepared(seed: int = 0, names: Sequence[str] = STANDARD, shape: Triple = (20, 22, 18)) -> PreparedStudy:
    """A study whose T1ce is its T1 with a bright spot, and whose T2 and FLAIR follow from T1."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    brain = (grid**2).sum(0) < 0.9
    t1 = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 6
    spot = ((grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(0) < 0.08
    every = {"t1": t1, "t1ce": t1 + 2 * spot, "t2": -t1 + 0.2 * t1**2, "flair": 0.5 * t1**2 - 0.5 + spot}
    images = np.stack([np.where(brain, every[name], 0) for name in names]).astype(np.float32)
    geometry = Geometry.of(shape, np.eye(4), (1.0, 1.0, 1.0))
    scales = ((0.0, 1.0),) * len(names)
    return PreparedStudy(tuple(names), images, np.ones(images.shape, bool), brain, None, geometry, scales, "nonzero")

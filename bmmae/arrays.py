"""Axis legend and array aliases, shared by all signatures.

B batch, M modality, H W D voxels in array order, L patches of one modality, N tokens, P voxels of one patch,
E embedding, C channels or classes. `mask` is True where something is hidden; `available` and `valid` are True
where something is present.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "Bool", "Float", "Int", "Shaped", "Tensor"]

Array: TypeAlias = NDArray[Any]
Volume: TypeAlias = NDArray[np.float32]

"""What metrics take: flags are arrays of bools, and what is compared has one shape.

NumPy reads 0 and 1 as places where flags are meant, and stretches shapes that differ: both give a number, a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def require_flags(*flags: object) -> None:
    """Refuse masks, labels and events that are no arrays of bools of one shape.

    Raises:
        ValueError: If one is of another type, or shapes differ.
    """
    for each in flags:
        if not isinstance(each, np.ndarray) or each.dtype != np.bool_:
            kind = f"an array of {each.dtype}" if isinstance(each, np.ndarray) else type(each).__name__
            raise ValueError(
                f"expected a NumPy array of bools, got {kind}: make one, for example with `np.asarray(labels) == 1`"
            )
    require_one_shape(*flags)


def require_one_shape(*arrays: Any) -> None:
    """Refuse arrays whose shapes differ.

    Raises:
        ValueError: If they do.
    """
    shapes = [np.shape(each) for each in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected arrays of one shape, got {' and '.join(str(shape) for shape in shapes)}")


def require_spacing(spacing: Sequence[float], mask: np.ndarray) -> None:
    """Refuse spacings that are not one an axis of a mask.

    Raises:
        ValueError: If they are not.
    """
    if len(spacing) != mask.ndim:
        raise ValueError(f"expected {mask.ndim} spacings, one an axis, got {tuple(spacing)}")

"""Arrays that Python users hand over."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain_array(array: Any, name: str) -> np.ndarray:
    """A numpy array of anything that is one.

    Raises:
        ValueError: a masked array (`numpy.ma`) that hides some of its values, which would count with what lies beneath.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            f"{name} is a masked array with {int(np.ma.getmaskarray(array).sum())} hidden values; say what stands "
            f"there with array.filled(VALUE)"
        )
    return np.asarray(array)

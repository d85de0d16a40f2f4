"""The one place where x, y, z of the outside turns into z, y, x of clemreg, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def flip(values: ArrayLike) -> FloatArray:
    """Reverse the last axis: points or vectors (..., 3) from xyz to zyx, and from zyx to xyz.

    Examples
    --------
    >>> flip([[1.0, 2.0, 3.0]]).tolist()
    [[3.0, 2.0, 1.0]]
    """
    return np.ascontiguousarray(np.asarray(values, dtype=np.float64)[..., ::-1])


def flip_matrix(matrix: ArrayLike) -> FloatArray:
    """Reorder a 3 x 3, or homogeneous 4 x 4, matrix from xyz to zyx, and from zyx to xyz.

    Examples
    --------
    >>> flip_matrix([[1, 2, 3], [4, 5, 6], [7, 8, 9]]).tolist()
    [[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [3.0, 2.0, 1.0]]
    """
    given = np.asarray(matrix, dtype=np.float64)
    order = [2, 1, 0, 3][: given.shape[-1]]
    return np.ascontiguousarray(given[np.ix_(order, order)])

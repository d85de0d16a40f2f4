"""Voxels on the straight line between two voxels, and in a ball around one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.intp]


def ball_offsets(radius_nm: float, spacing_nm: Sequence[float]) -> IntArray:
    """Voxel offsets (K, 3) zyx whose centres are within `radius_nm`, in scan order."""
    reach = [int(radius_nm / s + 1e-9) for s in spacing_nm]
    axes = [np.arange(-r, r + 1) for r in reach]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    near = np.linalg.norm(offsets * np.asarray(spacing_nm), axis=1) <= radius_nm * (1 + 1e-9)
    return np.asarray(offsets[near], dtype=np.intp)


def line_offsets(end: ArrayLike) -> IntArray:
    """Voxels (K, 3) strictly between the origin and the offset `end`: the 3D Bresenham line.

    One voxel for each step along the longest axis; halves round away from the origin, so that the
    line to ``-end`` is the mirror image: what is seen from a point prefers no direction.
    """
    step = np.asarray(end, dtype=np.intp)
    return np.asarray(np.sign(step) * _rounded(np.abs(step)))


def line_between(end: ArrayLike) -> IntArray:
    """As `line_offsets`, but the same voxels when walked from the other end.

    Halves round upwards from the end that comes first in scan order: what lies between two voxels
    does not depend on which of them is asked. No line has both symmetries where it meets a half.
    """
    step = np.asarray(end, dtype=np.intp)
    if tuple(step) < (0, 0, 0):
        return np.asarray(_rounded(-step)[::-1] + step)
    return _rounded(step)


def _rounded(step: IntArray) -> IntArray:
    """Voxels (K, 3) on the way to `step`, halves upwards, in whole numbers."""
    n = int(np.abs(step).max())
    i = np.arange(1, n)[:, None]
    return np.asarray((2 * i * step + n) // max(2 * n, 1), dtype=np.intp)

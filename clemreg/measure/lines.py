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
    line to ``-end`` is the mirror image.
    """
    last = np.asarray(end, dtype=np.float64)
    steps = int(np.abs(last).max())
    exact = np.arange(1, steps)[:, None] / max(steps, 1) * last
    return np.asarray(np.sign(exact) * np.floor(np.abs(exact) + 0.5), dtype=np.intp)

"""Values of an image between its voxels, a plane of places at a time.

Compiled with numba: numpy needs forty passes for a plane, and between any two of them its threads
wait for each other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.register.compiled import compiled

Array = NDArray[Any]


@compiled
def _is_inside(c: float, last: float) -> bool:
    """Tell whether a coordinate is within half a voxel of 0 to `last`; NaN is not."""
    return -0.5 <= c <= last + 0.5


@compiled
def _corners(c: float, n: int) -> tuple[int, int, float]:
    """Voxels before and after a coordinate on an axis of `n`, and how far it is between them."""
    c = max(c, 0.0)
    low: Any = min(np.uint32(c), n - 1)  # unsigned: no index that counts from the end
    return low, min(low + 1, n - 1), c - low


@compiled
def _between(pixels: Array, z: float, y: float, x: float) -> float:
    """Interpolate along z, then y, then x; beyond the edge the edge goes on."""
    k, k1, dz = _corners(z, pixels.shape[0])
    j, j1, dy = _corners(y, pixels.shape[1])
    i, i1, dx = _corners(x, pixels.shape[2])
    a, b = float(pixels[k, j, i]), float(pixels[k, j1, i])
    c, d = float(pixels[k, j, i1]), float(pixels[k, j1, i1])
    a += (float(pixels[k1, j, i]) - a) * dz
    b += (float(pixels[k1, j1, i]) - b) * dz
    c += (float(pixels[k1, j, i1]) - c) * dz
    d += (float(pixels[k1, j1, i1]) - d) * dz
    a += (b - a) * dy
    c += (d - c) * dy
    return a + (c - a) * dx


@compiled
def linear(pixels: Array, first: Array, index: Array, shape: Array, out: Array) -> None:
    """Interpolate linearly; 0 more than half a voxel outside the image.

    Parameters
    ----------
    pixels
        A part of the image (z, y, x), with all voxels that are needed.
    first
        (3,) index of its first voxel, zyx.
    index
        (3, y, x) fractional indices in the image, zyx.
    shape
        (3,) of the image, zyx.
    out
        (y, x), float64; what it holds is replaced.
    """
    # Out of the loop: for all that the compiler knows, `out` may lie upon these arrays.
    z0, y0, x0 = float(first[0]), float(first[1]), float(first[2])
    z1, y1, x1 = shape[0] - 1.0, shape[1] - 1.0, shape[2] - 1.0
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            z, y, x = index[0, row, column], index[1, row, column], index[2, row, column]
            if _is_inside(z, z1) and _is_inside(y, y1) and _is_inside(x, x1):
                out[row, column] = _between(pixels, z - z0, y - y0, x - x0)
            else:
                out[row, column] = 0


@compiled
def _nearest_voxel(c: float, n: int) -> int:
    """Of two voxels that are as near, the upper one."""
    return min(max(math.floor(c + 0.5), 0), n - 1)


@compiled
def nearest(pixels: Array, first: Array, index: Array, shape: Array, out: Array) -> None:
    """As `linear`, but take the nearest voxel, for ids; `out` has the type of `pixels`."""
    # Out of the loop: for all that the compiler knows, `out` may lie upon these arrays.
    z0, y0, x0 = float(first[0]), float(first[1]), float(first[2])
    z1, y1, x1 = shape[0] - 1.0, shape[1] - 1.0, shape[2] - 1.0
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            z, y, x = index[0, row, column], index[1, row, column], index[2, row, column]
            if _is_inside(z, z1) and _is_inside(y, y1) and _is_inside(x, x1):
                k = _nearest_voxel(z - z0, pixels.shape[0])
                j = _nearest_voxel(y - y0, pixels.shape[1])
                i = _nearest_voxel(x - x0, pixels.shape[2])
                out[row, column] = pixels[k, j, i]
            else:
                out[row, column] = 0

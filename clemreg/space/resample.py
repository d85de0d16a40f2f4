"""Values of an array between its voxels, and its pooled versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import GridError
from clemreg.space.grid import Grid
from clemreg.space.transform import as_points


def sample_array(
    array: NDArray[Any], grid: Grid, points_nm: ArrayLike, *, order: int = 1, fill: float = 0.0
) -> NDArray[Any]:
    """Interpolate an array (z, y, x) at world points.

    Parameters
    ----------
    array
        Values on `grid`.
    points_nm
        (N, 3) zyx nm in the grid's frame.
    order
        0 nearest (labels), 1 linear, 3 cubic.
    fill
        Value outside; a point within half a voxel of the outer centres is still inside.

    Returns
    -------
    ndarray
        (N,), the array's dtype for order 0, else float32 or float64.
    """
    from scipy.ndimage import map_coordinates

    if array.shape != grid.shape:
        raise GridError(f"array {array.shape} does not fit grid {grid.shape}")
    index = grid.to_index(as_points(points_nm))
    inside = grid.contains(points_nm)
    if order == 0:
        nearest = np.clip(np.floor(index + 0.5), 0, np.asarray(grid.shape) - 1).astype(np.intp)
        values = np.asarray(array[tuple(nearest.T)])
        return np.where(inside, values, np.asarray(fill, dtype=array.dtype))
    work = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    result = map_coordinates(work, index.T, order=order, mode="nearest")
    result[~inside] = fill
    return np.asarray(result)


def pool_mean(array: NDArray[Any], factor: Sequence[int]) -> NDArray[np.float32]:
    """Mean of blocks (zyx factors); a partial last block is the mean of what is there."""
    # Sums of 8 and 16 bits are exact in 32, and twice as fast there.
    small = array.dtype in (np.uint8, np.uint16) and np.prod(factor) <= 1 << 16
    total: NDArray[Any] = np.asarray(array, dtype=np.uint32 if small else np.float64)
    for axis, f in enumerate(factor):
        total = _add_runs(total, axis, int(f))
    return (total / _block_sizes(array.shape, factor)).astype(np.float32)


def _add_runs(total: NDArray[Any], axis: int, f: int) -> NDArray[Any]:
    """Sum runs of `f` along an axis; where all are whole, adding slices is several times faster."""
    if total.shape[axis] % f:
        return np.asarray(np.add.reduceat(total, np.arange(0, total.shape[axis], f), axis=axis))
    before = (slice(None),) * axis
    result = total[(*before, slice(0, None, f))]
    for k in range(1, f):
        result = result + total[(*before, slice(k, None, f))]
    return result


def pool_max(array: NDArray[Any], factor: Sequence[int]) -> NDArray[Any]:
    """Maximum of blocks (zyx factors)."""
    result = np.asarray(array)
    for axis, f in enumerate(factor):
        result = np.maximum.reduceat(result, np.arange(0, result.shape[axis], int(f)), axis=axis)
    return result


def pool_mode(array: NDArray[Any], factor: Sequence[int]) -> NDArray[Any]:
    """Most frequent value of blocks (zyx factors); the smallest of those that tie."""
    fz, fy, fx = (int(f) for f in factor)
    pad = [(0, -n % f) for n, f in zip(array.shape, (fz, fy, fx), strict=True)]
    padded = np.pad(np.asarray(array), pad, mode="edge")
    z, y, x = (n // f for n, f in zip(padded.shape, (fz, fy, fx), strict=True))
    blocks = (
        padded.reshape(z, fz, y, fy, x, fx).transpose(0, 2, 4, 1, 3, 5).reshape(-1, fz * fy * fx)
    )
    ordered = np.sort(blocks, axis=1)
    best, best_run = ordered[:, 0].copy(), np.ones(len(ordered), dtype=np.intp)
    run = np.ones(len(ordered), dtype=np.intp)
    for k in range(1, ordered.shape[1]):
        run = np.where(ordered[:, k] == ordered[:, k - 1], run + 1, 1)
        longer = run > best_run
        best[longer], best_run[longer] = ordered[longer, k], run[longer]
    return best.reshape(z, y, x)


def _block_sizes(shape: Sequence[int], factor: Sequence[int]) -> NDArray[np.float64]:
    sizes = [
        np.diff(np.append(np.arange(0, n, int(f)), n)).astype(np.float64)
        for n, f in zip(shape, factor, strict=True)
    ]
    return sizes[0][:, None, None] * sizes[1][None, :, None] * sizes[2][None, None, :]

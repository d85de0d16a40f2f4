"""Values of an array between its voxels, and its pooled versions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
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
    total: NDArray[Any] = np.asarray(array, dtype=_sum_type(array.dtype, int(np.prod(factor))))
    for axis, f in enumerate(factor):
        total = _add_runs(total, axis, int(f))
    return (total / _block_sizes(array.shape, factor)).astype(np.float32)


def _sum_type(dtype: np.dtype[Any], terms: int) -> type[np.generic]:
    """Smallest type in which sums are exact: the smaller, the faster."""
    if dtype == np.uint8 and terms <= 1 << 8:
        return np.uint16
    small = dtype in (np.uint8, np.uint16) and terms <= 1 << 16
    return np.uint32 if small else np.float64


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
    steps = tuple(int(f) for f in factor)
    pad = [(0, -n % f) for n, f in zip(array.shape, steps, strict=True)]
    whole = np.pad(np.asarray(array), pad, mode="edge") if np.any(pad) else np.asarray(array)
    result, mixed = _first_and_mixed(whole, steps)
    places = [tuple(map(slice, place, (None,) * 3, steps)) for place in np.ndindex(steps)]
    result[mixed] = _mode([whole[place][mixed] for place in places])
    return result


def _first_and_mixed(
    array: NDArray[Any], steps: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """First value of each block, and whether there are others: inside objects there are none."""
    mixed = np.zeros(array.shape, dtype=bool)
    for axis, f in enumerate(steps):
        before = (slice(None),) * axis
        runs = [(*before, slice(k, None, f)) for k in range(f)]
        found = mixed[runs[0]].copy()
        for run in runs[1:]:
            found |= mixed[run]
            found |= array[run] != array[runs[0]]
        array, mixed = array[runs[0]], found
    return array.copy(), mixed


_MOST_COMPARED = 8


def _mode(values: list[NDArray[Any]]) -> NDArray[Any]:
    """Most frequent value at each place of arrays (N,); the smallest of those that tie."""
    if len(values) > _MOST_COMPARED:
        return _mode_of_rows(np.stack(values, axis=1))
    counts = [np.ones(value.shape, dtype=np.uint8) for value in values]
    for i, j in combinations(range(len(values)), 2):
        same = values[i] == values[j]
        counts[i] += same
        counts[j] += same
    best, most = values[0], counts[0]
    for value, count in zip(values[1:], counts[1:], strict=True):
        better = (count > most) | ((count == most) & (value < best))
        best, most = np.where(better, value, best), np.where(better, count, most)
    return best


def _mode_of_rows(rows: NDArray[Any]) -> NDArray[Any]:
    ordered = np.sort(rows, axis=1)
    best, best_run = ordered[:, 0].copy(), np.ones(len(ordered), dtype=np.intp)
    run = np.ones(len(ordered), dtype=np.intp)
    for k in range(1, ordered.shape[1]):
        run = np.where(ordered[:, k] == ordered[:, k - 1], run + 1, 1)
        longer = run > best_run
        best[longer], best_run[longer] = ordered[longer, k], run[longer]
    return best


def _block_sizes(shape: Sequence[int], factor: Sequence[int]) -> NDArray[np.float64]:
    sizes = [
        np.diff(np.append(np.arange(0, n, int(f)), n)).astype(np.float64)
        for n, f in zip(shape, factor, strict=True)
    ]
    return sizes[0][:, None, None] * sizes[1][None, :, None] * sizes[2][None, None, :]

"""Where the voxels of one grid lie in an image: exact at lattice nodes, cubic between them.

A transform is smooth at the scale of a voxel, so evaluating it at every voxel is waste. It is
evaluated at every `step`-th voxel and interpolated with cubic polynomials. The fourth differences
of the nodes bound the error; where that is above the tolerance, every voxel is evaluated. Nodes
are counted from voxel 0 of the whole grid, so the result does not depend on the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clemreg.errors import ConvergenceError
from clemreg.register.compiled import compiled
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import FloatArray, Transform

TOLERANCE_VOXELS = 1e-3
STEPS = (32, 16, 8, 4)
_EXACT_BELOW = 64**3
_PROBES = 64
_LEAF = 216
_MARGIN = 2
# Added and taken away again, it leaves multiples of 2^-30 of numbers below 2^21.
_QUANTISER = 1.5 * 2.0**22


class Planes(Protocol):
    """Image indices of the voxels of a box, made plane by plane so that they stay in the cache.

    No index is below `low` or above `high`, (3,) zyx; they need not be reached.
    """

    @property
    def low(self) -> FloatArray:
        """Lower bounds."""

    @property
    def high(self) -> FloatArray:
        """Upper bounds."""

    def __len__(self) -> int:
        """Count the planes along z."""

    def __getitem__(self, z: int, /) -> FloatArray:
        """Fractional image indices (3, y, x) of a plane; the next one may overwrite them."""


@dataclass(frozen=True, eq=False)
class Positions:
    """Image indices of the voxels of a grid.

    Attributes
    ----------
    transform
        From the frame of `onto` to that of `image`.
    onto, image
        The whole grids.
    tolerance
        Largest error of an index, in voxels of the image; 0 evaluates every voxel.
    """

    transform: Transform
    onto: Grid
    image: Grid
    tolerance: float = TOLERANCE_VOXELS

    @cached_property
    def step(self) -> int:
        """Voxels between nodes; 0 where the grid is small or the transform too rough for them."""
        if self.tolerance <= 0 or self.onto.size < _EXACT_BELOW:
            return 0
        best, lowest = 0, 0.5
        for step in STEPS:
            cost = self._cost(step)
            if cost < lowest:
                best, lowest = step, cost
            if cost < 1 / _PROBES:
                break
        return best

    def _cost(self, step: int) -> float:
        """Count evaluations per voxel: nodes, and cells that need every voxel."""
        rng = np.random.default_rng(0)
        cell = rng.integers(0, np.maximum(1, np.asarray(self.onto.shape) // step), (_PROBES, 3))
        smooth = self._probe(cell, step) <= self.tolerance
        return 1 - float(smooth.mean()) + 4 / step**3

    def __call__(self, box: Box) -> FloatArray:
        """Fractional image indices (3, z, y, x) of the voxels of `box`.

        Raises
        ------
        ConvergenceError
            The transform is an inverse that does not exist there.
        """
        planes = self.planes(box)
        index = np.empty((3, *box.shape))
        for z in range(len(planes)):
            index[:, z] = planes[z]
        return index

    def planes(self, box: Box) -> Planes:
        """Return the same indices, one plane at a time, and their bounds.

        Raises
        ------
        ConvergenceError
            The transform is an inverse that does not exist there.
        """
        if not self.step:
            exact = self._at(_voxels(box))
            return _Evaluated(_quantised(exact).reshape(3, *box.shape))
        values = self._nodes(box)
        rough = ~(_error(values) <= self.tolerance)
        smooth = _Interpolated(values, box, self.step)
        return self._mended(smooth, box, rough) if rough.any() else smooth

    def _at(self, voxel: FloatArray) -> FloatArray:
        """Image indices (3, N) of voxels (N, 3)."""
        return self.image.to_index(self.transform(self.onto.to_world(voxel))).T

    def _at_nodes(self, voxel: FloatArray) -> FloatArray:
        """As `_at`; NaN near nodes without an inverse: a node need not be a voxel."""
        try:
            return self._at(voxel)
        except ConvergenceError:
            if len(voxel) <= _LEAF:
                return np.full((3, len(voxel)), np.nan)
        leaves = [voxel[i : i + _LEAF] for i in range(0, len(voxel), _LEAF)]
        return np.hstack([self._at_nodes(leaf) for leaf in leaves])

    def _probe(self, cell: NDArray[np.int64], step: int) -> FloatArray:
        """Error bound (n,) of cells (n, 3)."""
        around = np.stack(np.meshgrid(*[np.arange(-2, 4)] * 3, indexing="ij"), -1)
        nodes = (cell[:, None] + around.reshape(-1, 3)).reshape(-1, 3) * step
        values = self._at_nodes(nodes.astype(np.float64)).reshape(3, len(cell), 6, 6, 6)
        return _error(values)[:, 0, 0, 0]

    def _nodes(self, box: Box) -> FloatArray:
        """Image indices (3, a, b, c) of the nodes around a box, with a margin of two."""
        axes = [
            np.arange(a // self.step - _MARGIN, -(-b // self.step) + _MARGIN + 1) * float(self.step)
            for a, b in zip(box.start, box.stop, strict=True)
        ]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        return self._at_nodes(nodes.reshape(-1, 3)).reshape(3, *nodes.shape[:3])

    def _mended(self, smooth: Planes, box: Box, rough: NDArray[np.bool_]) -> Planes:
        """Evaluate the voxels of the cells where interpolation is not good enough."""
        step = self.step
        corner = (np.argwhere(rough) + np.asarray(box.start) // step) * step
        offset = np.stack(np.meshgrid(*[np.arange(step)] * 3, indexing="ij"), -1)
        voxel = (corner[:, None] + offset.reshape(-1, 3)).reshape(-1, 3)
        voxel = voxel[((voxel >= box.start) & (voxel < box.stop)).all(axis=1)]
        voxel = voxel[np.argsort(voxel[:, 0], kind="stable")]
        exact = self._at(voxel.astype(np.float64))
        return _Mended(smooth, voxel - np.asarray(box.start), _quantised(exact))


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """Planes of indices (3, z, y, x) that are all there."""

    index: FloatArray

    @cached_property
    def low(self) -> FloatArray:
        return np.asarray(self.index.min(axis=(1, 2, 3)))

    @cached_property
    def high(self) -> FloatArray:
        return np.asarray(self.index.max(axis=(1, 2, 3)))

    def __len__(self) -> int:
        return int(self.index.shape[1])

    def __getitem__(self, z: int, /) -> FloatArray:
        return self.index[:, z].copy()


class _Interpolated:
    """Planes interpolated from nodes (3, a, b, c): cubic Lagrange polynomials, axis by axis.

    What a node without a value (NaN) spoils must not be used.
    """

    def __init__(self, nodes: FloatArray, box: Box, step: int) -> None:
        z, y, x = (
            _weights(np.arange(a, b), a // step - _MARGIN, step, n)
            for a, b, n in zip(box.start, box.stop, nodes.shape[1:], strict=True)
        )
        self._columns = np.einsum("za,cabd->zcbd", z, np.nan_to_num(nodes))
        self._along_y = y
        self._rows = np.empty((3, len(y), nodes.shape[3]))
        # Along x all cells are alike: their four nodes times the same weights.
        self._along_x = _lagrange(np.arange(step) / step)
        self._skipped = box.start[2] % step
        # The same memory for every plane: fresh memory costs more than the arithmetic.
        self._index = np.empty((3, len(y), len(x)))
        self.low, self.high = _bounds(nodes)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, z: int, /) -> FloatArray:
        np.matmul(self._along_y, self._columns[z], out=self._rows)
        _fill_rows(self._rows, self._along_x, self._skipped, self._index)
        return self._index


class _Mended:
    """Planes in which some voxels (n, 3), sorted, have other indices (3, n)."""

    def __init__(self, planes: Planes, voxel: NDArray[np.intp], index: FloatArray) -> None:
        self._planes, self._voxel, self._index = planes, voxel, index
        self._first = np.searchsorted(voxel[:, 0], np.arange(len(planes) + 1))
        self.low = np.minimum(planes.low, index.min(axis=1))
        self.high = np.maximum(planes.high, index.max(axis=1))

    def __len__(self) -> int:
        return len(self._planes)

    def __getitem__(self, z: int, /) -> FloatArray:
        index = self._planes[z]
        part = slice(self._first[z], self._first[z + 1])
        _, y, x = self._voxel[part].T
        index[:, y, x] = self._index[:, part]
        return index


def _voxels(box: Box) -> FloatArray:
    axes = [np.arange(a, b, dtype=np.float64) for a, b in zip(box.start, box.stop, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _quantised(index: FloatArray) -> FloatArray:
    """Round to 1e-9 voxel in place, so that a tie is a tie in every block."""
    index += _QUANTISER
    index -= _QUANTISER
    return index


@compiled
def _fill_rows(rows: FloatArray, weights: FloatArray, skipped: int, index: FloatArray) -> None:
    """Interpolate along x, and round as `_quantised`.

    Parameters
    ----------
    rows
        (3, y, nodes).
    weights
        (4, step) of the nodes around a cell, for each of its voxels.
    skipped
        Voxels of the first cell that are not asked for.
    index
        (3, y, x), filled.
    """
    step = weights.shape[1]
    _, height, width = index.shape
    for axis in range(3):
        for y in range(height):
            x = -skipped
            node = _MARGIN - 1
            while x < width:
                a, b = rows[axis, y, node], rows[axis, y, node + 1]
                c, d = rows[axis, y, node + 2], rows[axis, y, node + 3]
                for k in range(max(0, -x), min(step, width - x)):
                    value = a * weights[0, k] + b * weights[1, k]
                    value += c * weights[2, k] + d * weights[3, k]
                    index[axis, y, x + k] = value + _QUANTISER - _QUANTISER
                x += step
                node += 1


def _lagrange(t: FloatArray) -> FloatArray:
    """Weights (4, n) of the four nodes around fractions t of a cell: cubic polynomials."""
    return np.stack(
        [
            -t * (t - 1) * (t - 2) / 6,
            (t + 1) * (t - 1) * (t - 2) / 2,
            -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6,
        ]
    )


def _weights(voxel: NDArray[np.int64], first_node: int, step: int, nodes: int) -> FloatArray:
    """Matrix (voxels, nodes) of cubic interpolation from the four nodes around."""
    node = voxel // step - first_node
    matrix = np.zeros((len(voxel), nodes))
    for k, weight in enumerate(_lagrange((voxel % step) / step)):
        matrix[np.arange(len(voxel)), node - 1 + k] = weight
    return matrix


def _bounds(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and greatest index (3,) that interpolation of nodes (3, a, b, c) can give.

    A cubic through four nodes is within an eighth of their greatest second difference of the line
    between the middle two; interpolating along the axes before makes that at most 1.25 times
    larger each time, the greatest sum of the weights' magnitudes. NaN does not count.
    """
    kept = (slice(None), *(slice(_MARGIN, -_MARGIN),) * 3)
    over = np.zeros(3)
    for axis in range(3):
        second = np.abs(np.diff(values, n=2, axis=axis + 1))
        second = np.fmax.reduce(second, axis=(1, 2, 3), initial=0.0)
        over += second * (1.25**axis / 8)
    low = np.fmin.reduce(values[kept], axis=(1, 2, 3), initial=np.inf)
    high = np.fmax.reduce(values[kept], axis=(1, 2, 3), initial=-np.inf)
    return low - over, high + over


def _error(values: FloatArray) -> FloatArray:
    """Error bound of each cell from nodes (3, ..., a, b, c): (..., a-5, b-5, c-5).

    The nodes have a margin of two. For each axis the fourth differences at the two ends of the
    cell, in all rows of nodes that the interpolation uses: so a jump at any of its nodes is seen.
    """
    total = np.zeros(1)
    for axis in (-3, -2, -1):
        fourth = np.abs(np.diff(values, n=4, axis=axis)).max(axis=0)
        for other in (-3, -2, -1):
            if other != axis:
                fourth = np.take(fourth, np.arange(1, fourth.shape[other] - 1), axis=other)
            window = 2 if other == axis else 4
            fourth = sliding_window_view(fourth, window, axis=other).max(axis=-1)
        total = total + fourth * (3 / 128)
    return total

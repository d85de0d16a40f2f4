"""Where the voxels of one grid lie in an image: exact at lattice nodes, cubic between them.

A transform is smooth at the scale of a voxel, so evaluating it at every voxel is waste. It is
evaluated at every `step`-th voxel and interpolated with cubic polynomials. The fourth differences
of the nodes bound the error; where that is above the tolerance, every voxel is evaluated. Nodes
are counted from voxel 0 of the whole grid, so the result does not depend on the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from clemreg.errors import ConvergenceError
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import FloatArray, Transform

TOLERANCE_VOXELS = 1e-3
STEPS = (32, 16, 8, 4)
_EXACT_BELOW = 64**3
_PROBES = 64
_LEAF = 216
_MARGIN = 2
_QUANTUM = 2.0**-32


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
        if self.step:
            return _quantised(self._interpolated(box))
        return _quantised(self._at(_voxels(box)).reshape(3, *box.shape))

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
        return np.array([_error(values[:, k])[0, 0, 0] for k in range(len(cell))])

    def _interpolated(self, box: Box) -> FloatArray:
        step = self.step
        first = [a // step for a in box.start]
        count = [-(-b // step) - f for b, f in zip(box.stop, first, strict=True)]
        axes = [
            np.arange(f - _MARGIN, f + n + _MARGIN + 1, dtype=np.float64) * step
            for f, n in zip(first, count, strict=True)
        ]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        values = self._at_nodes(nodes.reshape(-1, 3)).reshape(3, *nodes.shape[:3])
        weights = [
            _weights(np.arange(a, b), f - _MARGIN, step, len(axis))
            for a, b, f, axis in zip(box.start, box.stop, first, axes, strict=True)
        ]
        # A node without a value spoils its neighbours only, which are mended.
        filled = np.nan_to_num(values)
        index = np.einsum("za,cabd->czbd", weights[0], filled, optimize=True)
        index = np.matmul(weights[1], index)
        index = np.asarray(np.matmul(index, weights[2].T))
        self._mend(index, box, ~(_error(values) <= self.tolerance))
        return index

    def _mend(self, index: FloatArray, box: Box, rough: NDArray[np.bool_]) -> None:
        """Evaluate the voxels of the cells where interpolation is not good enough."""
        if not rough.any():
            return
        cell = [
            np.arange(a, b) // self.step - a // self.step
            for a, b in zip(box.start, box.stop, strict=True)
        ]
        voxel = np.argwhere(rough[np.ix_(*cell)])
        exact = self._at((voxel + np.asarray(box.start)).astype(np.float64))
        index[:, voxel[:, 0], voxel[:, 1], voxel[:, 2]] = exact


def _voxels(box: Box) -> FloatArray:
    axes = [np.arange(a, b, dtype=np.float64) for a, b in zip(box.start, box.stop, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _quantised(index: FloatArray) -> FloatArray:
    """Round to 2e-10 voxel, so that a tie is a tie in every block."""
    index /= _QUANTUM
    np.rint(index, out=index)
    index *= _QUANTUM
    return index


def _weights(voxel: NDArray[np.int64], first_node: int, step: int, nodes: int) -> FloatArray:
    """Matrix (voxels, nodes) of cubic Lagrange interpolation from the four nodes around."""
    node, t = voxel // step - first_node, (voxel % step) / step
    four = (
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    )
    matrix = np.zeros((len(voxel), nodes))
    for k, weight in enumerate(four):
        matrix[np.arange(len(voxel)), node - 1 + k] = weight
    return matrix


def _error(values: FloatArray) -> FloatArray:
    """Error bound of each cell from nodes (3, a, b, c) with a margin of two: (a-5, b-5, c-5).

    For each axis the fourth differences at the two ends of the cell, in all rows of nodes that
    the interpolation uses: so a jump at any of its nodes is seen.
    """
    total = np.zeros(tuple(n - 2 * _MARGIN - 1 for n in values.shape[1:]))
    for axis in range(3):
        fourth = np.abs(np.diff(values, n=4, axis=axis + 1)).max(axis=0)
        for other in range(3):
            if other != axis:
                fourth = np.take(fourth, np.arange(1, fourth.shape[other] - 1), axis=other)
            window = 2 if other == axis else 4
            fourth = sliding_window_view(fourth, window, axis=other).max(axis=-1)
        total += fourth * (3 / 128)
    return total

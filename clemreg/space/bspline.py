"""Cubic B-spline deformation on a control grid, as elastix and ITK define it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import GridError
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray, Transform, as_points

IndexArray = NDArray[np.intp]
_CHUNK = 4096  # points at a time: their gathered neighbours fit a core's cache


@dataclass(frozen=True, eq=False)
class BSpline(Transform):
    """``y = x + u(x)``, with u a cubic B-spline through control point coefficients.

    As in ITK's ``BSplineTransform`` (order 3), u is zero where the 4 x 4 x 4 control points around
    a point are not all there.

    Parameters
    ----------
    coefficients_nm
        (3, gz, gy, gx): displacement component (z, y, x) in nm at each control point.
    grid_origin_nm
        (3,) zyx: world position of control point (0, 0, 0).
    grid_spacing_nm
        (3,) zyx: control point grid spacing.
    source, target
        Frame names.
    direction
        (3, 3) zyx: columns are the world directions of the grid's z, y and x axes.

    Raises
    ------
    GridError
        Shapes are wrong, a spacing is not positive, or the direction is not a rotation (or mirror).
    """

    coefficients_nm: FloatArray
    grid_origin_nm: FloatArray
    grid_spacing_nm: FloatArray
    source: str
    target: str
    direction: FloatArray = field(default_factory=lambda: np.eye(3))
    _rows: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        coefficients = np.array(self.coefficients_nm, dtype=np.float64)
        if coefficients.ndim != 4 or coefficients.shape[0] != 3 or min(coefficients.shape) < 1:
            raise GridError(f"coefficients must be (3, gz, gy, gx), got {coefficients.shape}")
        spacing = np.array(self.grid_spacing_nm, dtype=np.float64)
        direction = np.array(self.direction, dtype=np.float64)
        if spacing.shape != (3,) or not (spacing > 0).all():
            raise GridError(f"control point grid spacing must be positive, got {spacing} nm")
        if direction.shape != (3, 3) or not np.allclose(
            direction @ direction.T, np.eye(3), atol=1e-6
        ):
            raise GridError("the direction of a control grid must be an orthogonal 3 x 3 matrix")
        for name, value in (
            ("coefficients_nm", coefficients),
            ("grid_origin_nm", np.array(self.grid_origin_nm, dtype=np.float64)),
            ("grid_spacing_nm", spacing),
            ("direction", direction),
        ):
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_rows", _neighbour_rows(coefficients))

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Control points along z, y, x."""
        z, y, x = self.coefficients_nm.shape[1:]
        return z, y, x

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm."""
        points = as_points(points_nm)
        return points + self.displacement(points)

    def displacement(self, points_nm: ArrayLike) -> FloatArray:
        """Displacement u (N, 3) zyx nm at points (N, 3)."""
        points = as_points(points_nm)
        result = np.zeros_like(points)
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[part] = self._displace(points[part])
        return result

    def _displace(self, points: FloatArray) -> FloatArray:
        base, fraction, inside = self._locate(points)
        wz, wy, wx = (_basis(t) for t in fraction)
        result: FloatArray = np.einsum("in,nic->nc", wx, self._gather(base, (wz, wy)))
        result[~inside] = 0.0
        return result

    def _gather(self, base: IndexArray, weights: tuple[FloatArray, FloatArray]) -> FloatArray:
        """Sum over the 4 x 4 neighbours along z and y: (N, 4 along x, 3 components)."""
        along_z, along_y = weights
        summed = (along_z[:, None] * along_y[None]).reshape(16, -1).T
        rows = np.take(self._rows, base[:, None] + self._steps(), axis=0, mode="clip")
        result: FloatArray = np.matmul(summed[:, None, :], rows).reshape(-1, 4, 3)
        return result

    def _steps(self) -> IndexArray:
        """Offsets (16,) of the 4 x 4 rows of control points around a point."""
        _, gy, gx = self.grid_shape
        four = np.arange(4)
        return ((four[:, None] * gy + four) * gx).ravel()

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Analytic spatial derivative (N, 3, 3) at points (N, 3)."""
        points = as_points(points_nm)
        result = np.empty((len(points), 3, 3))
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[part] = self._derive(points[part])
        return result

    def _derive(self, points: FloatArray) -> FloatArray:
        base, fraction, inside = self._locate(points)
        wz, wy, wx = (_basis(t) for t in fraction)
        sz, sy, sx = (_basis_slope(t) for t in fraction)
        per_index = np.stack(
            [
                np.einsum("in,nic->nc", wx, self._gather(base, (sz, wy))),
                np.einsum("in,nic->nc", wx, self._gather(base, (wz, sy))),
                np.einsum("in,nic->nc", sx, self._gather(base, (wz, wy))),
            ],
            axis=-1,
        )
        per_index[~inside] = 0.0
        return np.eye(3) + per_index @ self._world_to_index()

    def on_grid(self, grid: Grid) -> FloatArray:
        """Displacement (z, y, x, 3) at every voxel of `grid`: the same numbers, much faster.

        Needs a control grid that is not rotated: the sum is then done one axis after the other.
        """
        if not np.allclose(self.direction, np.eye(3), atol=1e-12):
            points = grid.points_nm().reshape(-1, 3)
            return self.displacement(points).reshape(*grid.shape, 3)
        total = np.asarray(self.coefficients_nm)
        for axis in range(3):
            positions = grid.origin_nm[axis] + np.arange(grid.shape[axis]) * grid.spacing_nm[axis]
            index = (positions - self.grid_origin_nm[axis]) / self.grid_spacing_nm[axis]
            matrix = _axis_matrix(index, self.grid_shape[axis])
            total = np.moveaxis(np.tensordot(matrix, total, axes=(1, axis + 1)), 0, axis + 1)
        return self._zero_outside(np.moveaxis(total, 0, -1), grid)

    def _zero_outside(self, values: FloatArray, grid: Grid) -> FloatArray:
        for axis in range(3):
            positions = grid.origin_nm[axis] + np.arange(grid.shape[axis]) * grid.spacing_nm[axis]
            index = (positions - self.grid_origin_nm[axis]) / self.grid_spacing_nm[axis]
            outside = ~_supported(index, self.grid_shape[axis])
            values[(slice(None),) * axis + (outside,)] = 0.0
        return np.ascontiguousarray(values)

    def inverse(self) -> Transform:
        """Return the inverse, solved point by point (`Inverse`)."""
        from clemreg.space.inverse import Inverse

        return Inverse(self)

    def _world_to_index(self) -> FloatArray:
        return (self.direction / self.grid_spacing_nm).T

    def _locate(self, points: FloatArray) -> tuple[IndexArray, FloatArray, NDArray[np.bool_]]:
        """Row of the first neighbour (N,), fraction within the cell (3, N), full support (N,)."""
        index = self._world_to_index() @ (points - self.grid_origin_nm).T
        inside = np.asarray(_supported(index, np.asarray(self.grid_shape)[:, None]).all(axis=0))
        cell = np.floor(index)
        first = np.where(inside, cell - 1, 0).astype(np.intp)
        _, gy, gx = self.grid_shape
        return (first[0] * gy + first[1]) * gx + first[2], index - cell, inside


def _neighbour_rows(coefficients: FloatArray) -> FloatArray:
    """Row i holds control points i to i + 3 along x, three components each: (control points, 12).

    One gather of twelve numbers in a row then replaces twelve gathers.
    """
    flat = np.moveaxis(coefficients, 0, -1).reshape(-1, 3)
    padded = np.concatenate([flat, np.zeros((3, 3))])
    return np.concatenate([padded[i : i + len(flat)] for i in range(4)], axis=1)


def _supported(index: FloatArray, size: ArrayLike) -> NDArray[np.bool_]:
    """Tell where the four control points around an index all exist."""
    result: NDArray[np.bool_] = (index >= 1) & (index < np.asarray(size) - 2)
    return result


def _basis(t: FloatArray) -> FloatArray:
    """Weights (4, N) of the uniform cubic B-spline at fractions t of a cell."""
    s = 1 - t
    t2, t3 = t * t, t * t * t
    return np.stack([s * s * s, 3 * t3 - 6 * t2 + 4, -3 * t3 + 3 * t2 + 3 * t + 1, t3]) / 6


def _basis_slope(t: FloatArray) -> FloatArray:
    """Differentiate `_basis` with respect to t."""
    s = 1 - t
    t2 = t * t
    return np.stack([-s * s, 3 * t2 - 4 * t, -3 * t2 + 2 * t + 1, t2]) / 2


def _axis_matrix(index: FloatArray, size: int) -> FloatArray:
    """Matrix (len(index), size) of basis weights along one axis; rows outside are zero."""
    inside = _supported(index, size)
    cell = np.floor(index)
    weights = _basis(index - cell)
    matrix = np.zeros((len(index), size))
    rows = np.flatnonzero(inside)
    for i in range(4):
        matrix[rows, cell[rows].astype(int) - 1 + i] = weights[i, rows]
    return matrix

"""The normal equations of a cubic B-spline deformation on a regular lattice of control points.

A sample touches 4 x 4 x 4 control points, so two control points are coupled only if they are at
most three apart along each axis: the matrix has 7 x 7 x 7 neighbours per control point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

from clemreg.space.bspline import BSpline
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray

IndexArray = NDArray[np.intp]
_REACH = 7


@dataclass(frozen=True, eq=False)
class Lattice:
    """Regular control points.

    Attributes
    ----------
    shape
        Control points along z, y, x.
    origin_nm, spacing_nm
        (3,) zyx: position of the first and distance between neighbours.
    """

    shape: tuple[int, int, int]
    origin_nm: FloatArray
    spacing_nm: FloatArray

    @classmethod
    def covering(cls, low_nm: FloatArray, high_nm: FloatArray, spacing_nm: FloatArray) -> Lattice:
        """Return a lattice with full support (four control points) between two corners zyx."""
        cells = np.maximum(1, np.ceil((high_nm - low_nm) / spacing_nm - 1e-9)).astype(int)
        z, y, x = (int(n) for n in cells + 4)
        middle = (np.asarray(low_nm) + high_nm) / 2
        origin = middle - (np.array((z, y, x)) - 1) / 2 * spacing_nm
        return cls((z, y, x), origin, np.asarray(spacing_nm, dtype=np.float64))

    @property
    def size(self) -> int:
        """Number of control points."""
        return int(np.prod(self.shape))

    def nodes_nm(self) -> FloatArray:
        """Positions (N, 3) zyx nm."""
        z, y, x = self.origin_nm
        sz, sy, sx = self.spacing_nm
        return Grid(self.shape, (sz, sy, sx), (z, y, x)).points_nm().reshape(-1, 3)

    def spline(self, coefficients_nm: FloatArray, frame: str) -> BSpline:
        """Deformation of `frame` with coefficients (N, 3) zyx nm."""
        values = coefficients_nm.T.reshape(3, *self.shape)
        return BSpline(values, self.origin_nm, self.spacing_nm, frame, frame)

    @cached_property
    def _steps(self) -> IndexArray:
        """Offsets (64,) from the first to each of the 64 control points around a point."""
        _, ny, nx = self.shape
        z, y, x = np.meshgrid(*(np.arange(4),) * 3, indexing="ij")
        return ((z * ny + y) * nx + x).ravel()

    @cached_property
    def _neighbour(self) -> IndexArray:
        """(64, 64): which of the 343 neighbours control point j is of control point i."""
        where = np.stack(np.meshgrid(*(np.arange(4),) * 3, indexing="ij"), -1).reshape(-1, 3)
        apart = where[None] - where[:, None] + 3
        return np.asarray((apart[..., 0] * _REACH + apart[..., 1]) * _REACH + apart[..., 2])

    @cached_property
    def _pattern(self) -> tuple[NDArray[np.bool_], IndexArray, IndexArray]:
        """Which of the (N, 343) neighbours exist, their column, and the row pointers."""
        where = np.stack(np.unravel_index(np.arange(self.size), self.shape), -1)
        step = np.stack(np.meshgrid(*(np.arange(-3, 4),) * 3, indexing="ij"), -1).reshape(-1, 3)
        there = where[:, None] + step[None]
        exists = np.asarray(((there >= 0) & (there < self.shape)).all(axis=-1))
        _, ny, nx = self.shape
        columns = (there[..., 0] * ny + there[..., 1]) * nx + there[..., 2]
        pointers = np.concatenate([[0], np.cumsum(exists.sum(axis=1))])
        return exists, np.asarray(columns[exists], np.intp), np.asarray(pointers, np.intp)

    def supports(self, points_nm: FloatArray) -> NDArray[np.bool_]:
        """Tell which points (N, 3) have all their 64 control points."""
        index = (points_nm - self.origin_nm) / self.spacing_nm
        return np.asarray(((index >= 1) & (index < np.asarray(self.shape) - 2)).all(axis=1))

    def place(self, points_nm: FloatArray) -> Placement:
        """Find the control points and weights of points (N, 3); all must have full support."""
        index = (points_nm - self.origin_nm) / self.spacing_nm
        cell = np.clip(np.floor(index), 1, np.asarray(self.shape) - 3).astype(np.intp)
        z, y, x = (_weights(t) for t in (index - cell).T)
        weight = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).reshape(-1, 64)
        first = np.ravel_multi_index((cell - 1).T, self.shape)
        return Placement(self, np.asarray(first, np.intp), weight.astype(np.float32))

    def bending(self) -> sparse.csr_matrix:
        """Matrix K (N, N): ``c K c`` is the integral of the squared second derivatives.

        For coefficients in um, of the displacement along one axis, over the supported region; the
        unit is um. Mixed derivatives count twice (Rueckert et al., IEEE TMI 1999, equation 8).
        """
        grams = [
            [_gram(n, k) * (h / 1e3) ** (1 - 2 * k) for k in range(3)]
            for n, h in zip(self.shape, self.spacing_nm, strict=True)
        ]
        total = sparse.csr_matrix((self.size, self.size))
        orders = {
            (2, 0, 0): 1,
            (0, 2, 0): 1,
            (0, 0, 2): 1,
            (1, 1, 0): 2,
            (1, 0, 1): 2,
            (0, 1, 1): 2,
        }
        for (a, b, c), times in orders.items():
            plane = sparse.kron(grams[0][a], grams[1][b])
            total = total + times * sparse.kron(plane, grams[2][c])
        return sparse.csr_matrix(total)


@dataclass(frozen=True, eq=False)
class Placement:
    """Points on a lattice.

    Attributes
    ----------
    lattice
        Where the control points are.
    first
        (N,) the first of the 64 control points of each point.
    weight
        (N, 64) float32.
    """

    lattice: Lattice
    first: IndexArray
    weight: NDArray[np.float32]

    def __getitem__(self, keep: NDArray[np.bool_]) -> Placement:
        return Placement(self.lattice, self.first[keep], self.weight[keep])

    def displace(self, coefficients_nm: FloatArray) -> FloatArray:
        """Displacements (N, 3) of the points."""
        return np.asarray(self._matrix @ coefficients_nm)

    @cached_property
    def _matrix(self) -> sparse.csr_matrix:
        """Return (N, control points): the weights where they belong."""
        n = len(self.first)
        nodes = (self.first[:, None] + self.lattice._steps).ravel()  # noqa: SLF001
        pointers = np.arange(n + 1) * 64
        return sparse.csr_matrix((self.weight.ravel(), nodes, pointers), (n, self.lattice.size))

    def normal_equations(
        self, residual: NDArray[np.float32], slope: NDArray[np.float32]
    ) -> NormalEquations:
        """Sum ``J' J`` and ``J' r`` over the points, for ``J = slope (N, 3) x weight``."""
        lattice = self.lattice
        blocks = np.zeros((lattice.size, _REACH**3, 3, 3), np.float32)
        right = np.zeros((lattice.size, 3))
        order = np.argsort(self.first, kind="stable")
        jacobian = self.weight[order][:, :, None] * slope[order][:, None, :]
        cells, starts = np.unique(self.first[order], return_index=True)
        groups = np.split(jacobian.reshape(len(order), 192), starts[1:])
        parts = np.split(residual[order], starts[1:])
        for cell, group, part in zip(cells, groups, parts, strict=True):
            nodes = cell + lattice._steps  # noqa: SLF001
            square = (group.T @ group).reshape(64, 3, 64, 3).transpose(0, 2, 1, 3)
            blocks[nodes[:, None], lattice._neighbour] += square  # noqa: SLF001
            right[nodes] += (group.T @ part).reshape(64, 3)
        return NormalEquations(lattice, blocks, right)

    def pull(self, towards_nm: FloatArray, weight: float) -> NormalEquations:
        """Equations that draw the points by (N, 3) nm, each axis with the same weight."""
        total = NormalEquations.empty(self.lattice)
        for axis in range(3):
            slope = np.zeros((len(self.first), 3), np.float32)
            slope[:, axis] = np.sqrt(weight)
            wanted = (towards_nm[:, axis] * np.sqrt(weight)).astype(np.float32)
            total = total.plus(self.normal_equations(wanted, slope), 1.0)
        return total


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """``A c = b`` for coefficients c (N, 3), as blocks of neighbours.

    Attributes
    ----------
    blocks
        (N, 343, 3, 3) float32.
    right
        (N, 3).
    """

    lattice: Lattice
    blocks: NDArray[np.float32]
    right: FloatArray

    @classmethod
    def empty(cls, lattice: Lattice) -> NormalEquations:
        """All zero."""
        blocks = np.zeros((lattice.size, _REACH**3, 3, 3), np.float32)
        return cls(lattice, blocks, np.zeros((lattice.size, 3)))

    def plus(self, other: NormalEquations, factor: float) -> NormalEquations:
        """Return this plus `factor` times the other."""
        blocks = self.blocks + np.float32(factor) * other.blocks
        return NormalEquations(self.lattice, blocks, self.right + factor * other.right)

    def matrix(self) -> sparse.bsr_matrix:
        """Return A (3 N, 3 N)."""
        exists, columns, pointers = self.lattice._pattern  # noqa: SLF001
        size = 3 * self.lattice.size
        data = self.blocks[exists].astype(np.float64)
        return sparse.bsr_matrix((data, columns, pointers), shape=(size, size))

    def solve(self, penalty: sparse.csr_matrix, coefficients: FloatArray) -> FloatArray:
        """Return the change (N, 3) of `coefficients` that minimises data term plus penalty."""
        stiff = sparse.kron(penalty, sparse.eye(3), format="bsr")
        right = self.right.ravel() - stiff @ coefficients.ravel()
        matrix = (self.matrix() + stiff).tobsr((3, 3))
        diagonal = matrix.diagonal()
        diagonal = diagonal + 1e-9 * diagonal.max()
        scale = LinearOperator(matrix.shape, matvec=lambda v: v / diagonal)
        answer, _ = cg(matrix, right, rtol=1e-3, maxiter=300, M=scale)
        return np.asarray(answer).reshape(-1, 3)


def _weights(t: FloatArray) -> FloatArray:
    """Weights (N, 4) of the uniform cubic B-spline at fractions t of a cell."""
    s = 1 - t
    weights = [s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3]
    return np.stack(weights, axis=-1) / 6


def _gram(n: int, order: int) -> sparse.csr_matrix:
    """(n, n) integrals of products of derivatives of `order`, over the cells with full support."""
    nodes, quadrature = np.polynomial.legendre.leggauss(4)
    t, weight = (nodes + 1) / 2, quadrature / 2
    pieces = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]]) / 6
    values = np.stack(
        [np.polynomial.Polynomial(p).deriv(order)(t) if order else np.polynomial.Polynomial(p)(t)
         for p in pieces]
    )  # fmt: skip
    local = (values * weight) @ values.T
    total = sparse.lil_matrix((n, n))
    for cell in range(n - 3):
        total[cell : cell + 4, cell : cell + 4] += local
    return sparse.csr_matrix(total)

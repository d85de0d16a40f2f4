"""Where to evaluate a transform: a regular subset of a grid's voxels, in bounded pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, FrameError, GridError
from clemreg.space.grid import Box, Grid, Shape
from clemreg.space.transform import Transform

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CHUNK = 100_000
"""Points evaluated at once: about 30 MB of work space for a Jacobian."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Every `stride`-th voxel of a grid along each axis, within a mask.

    Attributes
    ----------
    grid
        The whole grid.
    stride
        Voxels from one evaluated voxel to the next, zyx.
    mask
        Boolean zyx on `grid`, or None for the whole of it.
    """

    grid: Grid
    stride: Shape
    mask: BoolArray | None = None

    @classmethod
    def choose(cls, grid: Grid, mask: BoolArray | None, n: int | None) -> Lattice:
        """Take the finest lattice, near isotropic in nm, that has about `n` points in the mask.

        Parameters
        ----------
        grid
            The LM grid.
        mask
            zyx on `grid`; not 0 is inside; None for all.
        n
            Wanted number of points; None for every voxel.

        Raises
        ------
        DataError
            The mask is empty, or has no voxel on the lattice.
        GridError
            The mask is not on the grid.
        """
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != grid.shape:
                raise GridError(
                    f"the mask has shape {mask.shape}, the grid {grid.shape}",
                    hint="the mask must be on the LM grid that the transform belongs to",
                )
            mask = mask if mask.dtype == np.bool_ else mask != 0
        inside = grid.size if mask is None else int(np.count_nonzero(mask))
        if inside == 0:
            raise DataError("the mask is empty", hint="voxels that are not 0 are inside")
        stride = (1, 1, 1) if n is None else _stride(grid, grid.size / inside * n)
        return cls(grid, stride, mask)

    @property
    def points_grid(self) -> Grid:
        """The lattice as a grid of its own, mask not applied."""
        z, y, x = (-(-n // s) for n, s in zip(self.grid.shape, self.stride, strict=True))
        spacing = np.asarray(self.grid.spacing_nm) * self.stride
        return Grid((z, y, x), tuple(spacing), self.grid.origin_nm, self.grid.frame)

    @property
    def inside(self) -> BoolArray | None:
        """The mask on `points_grid`, or None."""
        if self.mask is None:
            return None
        a, b, c = self.stride
        return self.mask[::a, ::b, ::c]

    def chunks(self) -> Iterator[FloatArray]:
        """Points (at most about `CHUNK`, 3) zyx nm inside the mask, in scan order of the tiles."""
        for _box, points in self.tiles():
            if len(points):
                yield points

    def tiles(self) -> Iterator[tuple[Box, FloatArray]]:
        """Boxes of `points_grid` and their points (n, 3) zyx nm inside the mask."""
        grid, inside = self.points_grid, self.inside
        for box in grid.box.tiles(_tile_shape(grid.shape)):
            points = grid.points_nm(box)
            yield box, points.reshape(-1, 3) if inside is None else points[inside[box.slices]]

    def evaluate(self, function: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Values (N, ...) of `function` at all points, computed chunk by chunk.

        Raises
        ------
        DataError
            No voxel of the mask lies on the lattice.
        """
        values = [function(points) for points in self.chunks()]
        if not values:
            raise DataError(
                f"no voxel of the mask lies on the lattice of stride {self.stride}",
                hint="evaluate every voxel",
            )
        return np.concatenate(values)

    def fill(self, function: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Map of `function` (scalar) on `points_grid`, zyx; NaN outside the mask."""
        inside = self.inside
        values = np.full(self.points_grid.shape, np.nan)
        for box, points in self.tiles():
            if len(points):
                values[box.slices][... if inside is None else inside[box.slices]] = function(
                    points
                ).reshape(box.shape if inside is None else -1)
        return values


def check_frame(transform: Transform, grid: Grid) -> None:
    """Raise FrameError unless the grid is in the frame where the transform starts."""
    if transform.source != grid.frame:
        raise FrameError(
            f"the transform starts in frame {transform.source!r}, the grid is in {grid.frame!r}",
            hint="evaluate a transform on the grid of its fixed (LM) image",
        )


def _stride(grid: Grid, wanted: float) -> Shape:
    """Choose the coarsest near-cubic lattice that has at least `wanted` points."""

    def at(step_nm: float) -> tuple[int, ...]:
        return tuple(
            min(max(1, int(step_nm / s)), n)
            for s, n in zip(grid.spacing_nm, grid.shape, strict=True)
        )

    def count(stride: tuple[int, ...]) -> int:
        return math.prod(-(-n // k) for n, k in zip(grid.shape, stride, strict=True))

    steps = sorted(
        {s * k for s, n in zip(grid.spacing_nm, grid.shape, strict=True) for k in range(1, n + 1)}
    )
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(at(steps[middle])) >= wanted else (low, middle - 1)
    z, y, x = at(steps[low])
    return z, y, x


def _tile_shape(shape: Shape) -> Shape:
    """Whole rows, then whole planes, up to CHUNK points."""
    tile = [1, 1, 1]
    for axis in reversed(range(3)):
        room = CHUNK // math.prod(tile)
        tile[axis] = min(shape[axis], max(1, room))
    return tile[0], tile[1], tile[2]

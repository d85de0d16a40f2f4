"""A transform as displacements on a grid, evaluated block by block, for formats that need one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.errors import FrameError
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, FloatArray, Transform

BLOCK = (64, 64, 64)
_PROBES = 20_000


@dataclass(frozen=True)
class FieldError:
    """Distance between a transform and its linearly interpolated field, in nm.

    Attributes
    ----------
    mean_nm, max_nm
        Half way between the grid points, where it is worst.
    """

    mean_nm: float
    max_nm: float

    def __str__(self) -> str:
        return f"mean {self.mean_nm:.2f} nm, max {self.max_nm:.2f} nm"


@dataclass(frozen=True, eq=False)
class SampledField:
    """``T(x) = A(x + d(x))`` with d known at the voxels of a grid.

    Attributes
    ----------
    transform
        The transform T.
    grid
        Where d is sampled, in the frame where T starts.
    affine
        A, from that frame to the one where T ends; None leaves all of T in d.
    """

    transform: Transform
    grid: Grid
    affine: Affine | None = None

    def __post_init__(self) -> None:
        if self.grid.frame != self.transform.source:
            raise FrameError(
                f"grid in {self.grid.frame!r}, transform from {self.transform.source!r}"
            )
        ends = (self.transform.source, self.transform.target)
        if self.affine is not None and (self.affine.source, self.affine.target) != ends:
            raise FrameError(f"the affine part must lead from {ends[0]!r} to {ends[1]!r}")

    def at(self, points_nm: FloatArray) -> FloatArray:
        """Displacement d (N, 3) zyx nm at points (N, 3)."""
        moved = self.transform(points_nm)
        if self.affine is not None:
            moved = self.affine.inverse()(moved)
        result: FloatArray = moved - points_nm
        return result

    def block(self, box: Box) -> FloatArray:
        """Displacement (z, y, x, 3) at the voxels of a box."""
        points = self.grid.points_nm(box)
        return self.at(points.reshape(-1, 3)).reshape(points.shape)

    def inverse(self) -> SampledField:
        """Field of the inverse on the same grid: ``T^-1(A p) = p + e(p)``.

        Raises
        ------
        FrameError
            There is no affine part that brings points of the target to the grid.
        """
        if self.affine is None:
            raise FrameError(
                "the field of an inverse needs the affine part of the transform",
                hint="give it as SampledField(transform, grid, affine)",
            )
        return SampledField(self.affine.then(self.transform.inverse()), self.grid)

    def write(
        self,
        store: Callable[[Box, FloatArray], None],
        chunk: Sequence[int] = BLOCK,
        progress: Progress | None = None,
    ) -> None:
        """Hand every block, box and displacement, to `store`; memory is one block."""

        def work(block: Block) -> None:
            store(block.core, self.block(block.core))

        run(work, plan_blocks(self.grid.shape, chunk), progress=progress)

    def error(self, seed: int = 0) -> FieldError:
        """Compare with the transform in the middle of up to 20 000 cells of the grid."""
        cells = np.maximum(np.asarray(self.grid.shape) - 1, 1)
        rng = np.random.default_rng(seed)
        low = rng.integers(0, cells, (min(_PROBES, int(cells.prod())), 3))
        step = np.minimum(1, np.asarray(self.grid.shape) - 1)
        between = np.zeros((len(low), 3))
        for corner in np.ndindex(2, 2, 2):
            between += self.at(self.grid.to_world(low + np.array(corner) * step)) / 8
        middle = self.grid.to_world(low + step / 2)
        distance = between - self.at(middle)
        if self.affine is not None:
            distance = distance @ self.affine.linear.T
        length = np.linalg.norm(distance, axis=1)
        return FieldError(float(length.mean()), float(length.max()))


def field_grid(grid: Grid, spacing_nm: float | None) -> Grid:
    """Grid for a field over an image: its own, or one of that spacing that reaches beyond it."""
    if spacing_nm is None:
        return grid
    coarse = grid.with_spacing((spacing_nm,) * 3)
    return coarse.crop(coarse.box.grow(1))

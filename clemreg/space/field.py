"""A transform given by its displacement at every voxel of a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clemreg.errors import FrameError, GridError
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import FloatArray, Transform, as_points


@dataclass(frozen=True, eq=False)
class DisplacementField(Transform):
    """``y = x + d(x)``, d interpolated linearly; beyond the grid the nearest edge value holds.

    Parameters
    ----------
    displacement_nm
        (3, z, y, x): component (z, y, x) in nm at each voxel centre.
    grid
        Where the voxels are; its frame is the source.
    target
        Frame of the result.

    Raises
    ------
    GridError
        The array does not fit the grid.
    """

    displacement_nm: FloatArray
    grid: Grid
    target: str

    def __post_init__(self) -> None:
        if tuple(self.displacement_nm.shape) != (3, *self.grid.shape):
            raise GridError(
                f"a field on grid {self.grid.shape} needs an array (3, z, y, x), "
                f"got {self.displacement_nm.shape}"
            )

    @property
    def source(self) -> str:  # type: ignore[override]
        """Frame of the points that go in."""
        return self.grid.frame

    @classmethod
    def sample(cls, transform: Transform, grid: Grid) -> DisplacementField:
        """Evaluate a transform at every voxel of `grid`.

        Raises
        ------
        FrameError
            The grid is not in the transform's source frame.
        """
        if grid.frame != transform.source:
            raise FrameError(f"grid in {grid.frame!r}, transform from {transform.source!r}")
        displacement = np.empty((3, *grid.shape))
        for z in range(grid.shape[0]):
            plane = grid.crop(_plane(grid, z)).points_nm().reshape(-1, 3)
            moved = transform(plane) - plane
            displacement[:, z] = moved.T.reshape(3, *grid.shape[1:])
        return cls(displacement, grid, transform.target)

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm."""
        from scipy.ndimage import map_coordinates

        points = as_points(points_nm)
        index = self.grid.to_index(points).T
        moved = [
            map_coordinates(component, index, order=1, mode="nearest")
            for component in self.displacement_nm
        ]
        result: FloatArray = points + np.stack(moved, axis=-1)
        return result

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Exact derivative (N, 3, 3) of the linear interpolation; 0 slope beyond the grid."""
        index = self.grid.to_index(as_points(points_nm))
        last = np.asarray(self.grid.shape) - 1
        inside = (index >= 0) & (index <= last)
        low = np.clip(np.floor(index), 0, np.maximum(last - 1, 0)).astype(np.intp)
        high = np.minimum(low + 1, last)
        fraction = np.clip(index - low, 0, 1)
        result = np.broadcast_to(np.eye(3), (len(index), 3, 3)).copy()
        for axis in range(3):
            slope = self._slope(axis, (low, high), fraction)
            slope[~inside[:, axis]] = 0.0
            result[:, :, axis] += slope / self.grid.spacing_nm[axis]
        return result

    def _slope(
        self, axis: int, ends: tuple[np.ndarray, np.ndarray], fraction: FloatArray
    ) -> FloatArray:
        """Difference of the displacement (N, 3) along one axis of the cell around each point."""
        total = np.zeros((len(fraction), 3))
        for corner in np.ndindex(2, 2, 2):
            at = [ends[c][:, a] for a, c in enumerate(corner)]
            weight = np.ones(len(fraction)) if corner[axis] else -np.ones(len(fraction))
            for other in range(3):
                if other != axis:
                    f = fraction[:, other]
                    weight = weight * (f if corner[other] else 1 - f)
            total += weight[:, None] * self.displacement_nm[:, at[0], at[1], at[2]].T
        return total

    def inverse(self) -> Transform:
        """Return the inverse, solved point by point (`Inverse`)."""
        from clemreg.space.inverse import Inverse

        return Inverse(self)


def _plane(grid: Grid, z: int) -> Box:
    return Box((z, 0, 0), (z + 1, *grid.shape[1:]))

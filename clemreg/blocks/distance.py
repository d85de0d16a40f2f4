"""Euclidean distance to a mask in nm, exact in every block up to a given reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.stages import Read
from clemreg.space.grid import Box, Grid, Shape


def halo_voxels(reach_nm: float, spacing_nm: Sequence[float]) -> Shape:
    """Voxels along each axis (zyx) that a reach in nm spans, rounded up."""
    z, y, x = (math.ceil(reach_nm / s - 1e-9) for s in spacing_nm)
    return z, y, x


@dataclass(frozen=True)
class DistanceTo:
    """Distance in nm from each voxel centre to the nearest voxel centre of a mask.

    A block is read with a halo of the reach, so whatever is nearer than that is seen, and the
    result is that of the whole volume: exact up to the reach, and the reach beyond.

    Parameters
    ----------
    mask
        Reads the mask; not 0 is inside.
    grid
        Of the volume.
    reach_nm
        Largest distance of interest.
    """

    mask: Read
    grid: Grid
    reach_nm: float

    def __call__(self, box: Box) -> NDArray[np.float32]:
        """Distances (z, y, x) of a box, float32 nm, 0 inside the mask."""
        import edt

        around = box.grow(halo_voxels(self.reach_nm, self.grid.spacing_nm)).clip(self.grid.shape)
        outside = np.ascontiguousarray(self.mask(around) == 0)
        if outside.all():
            return np.full(box.shape, self.reach_nm, dtype=np.float32)
        spacing = self.grid.spacing_nm
        distance: NDArray[np.float32] = edt.edt(
            outside, anisotropy=spacing, black_border=False, parallel=1
        )
        near = np.minimum(inner(distance, around, box), np.float32(self.reach_nm))
        return np.asarray(near, dtype=np.float32)


@dataclass(frozen=True)
class Near:
    """Mask of the voxels within a distance of a mask or of any object; 0 is the mask itself."""

    read: Read
    grid: Grid
    expand_nm: float

    def __call__(self, box: Box) -> NDArray[np.bool_]:
        """Mask of a box."""
        if self.expand_nm == 0:
            return np.asarray(self.read(box) > 0)
        # Distances saturate at the reach, so it lies a little beyond what is asked for.
        distance = DistanceTo(self.read, self.grid, self.expand_nm * 1.001 + 1e-3)
        near: NDArray[np.bool_] = distance(box) <= self.expand_nm * 1.00001
        return near


def inner(array: NDArray[Any], around: Box, box: Box) -> NDArray[Any]:
    """Cut `box` out of an array that covers the box `around`."""
    return array[box.shift([-a for a in around.start]).slices]

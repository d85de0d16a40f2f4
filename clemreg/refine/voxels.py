"""What needs a voxel and its surroundings only: blur, threshold, masks, parents. All are `Read`s.

Each is a value that gives the voxels of any box, and reads as far around the box as it must, so
that a block has the values of the whole volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.distance import inner
from clemreg.blocks.stages import Read
from clemreg.io.quantise import threshold_for
from clemreg.space.grid import Box, Grid

TRUNCATE = 4.0  # sigmas after which the Gaussian is cut


@dataclass(frozen=True)
class Smoothed:
    """Gaussian blur, float32; beyond its border the volume goes on with its last voxel.

    Parameters
    ----------
    read
        What to blur.
    grid
        Of the volume.
    sigma_nm
        Same in all directions; voxels may be anisotropic.
    """

    read: Read
    grid: Grid
    sigma_nm: float

    def __call__(self, box: Box) -> NDArray[np.float32]:
        """Blurred voxels of a box."""
        from scipy.ndimage import gaussian_filter

        sigma = [self.sigma_nm / s for s in self.grid.spacing_nm]
        halo = [int(TRUNCATE * s + 0.5) for s in sigma]
        around = box.grow(halo).clip(self.grid.shape)
        values = np.asarray(self.read(around), dtype=np.float32)
        blurred = gaussian_filter(values, sigma, mode="nearest", truncate=TRUNCATE)
        return np.ascontiguousarray(inner(blurred, around, box))


@dataclass(frozen=True)
class AtLeast:
    """Mask of a prediction: ``v >= 128 tanh(d / 50 nm) + 127``.

    Parameters
    ----------
    read
        Stored prediction, blurred or not.
    distance_nm
        Signed distance d, positive inside.
    """

    read: Read
    distance_nm: float

    def __call__(self, box: Box) -> NDArray[np.bool_]:
        """Mask of a box."""
        mask: NDArray[np.bool_] = self.read(box) >= threshold_for(self.distance_nm)
        return mask


@dataclass(frozen=True)
class Inside:
    """Values where a mask is true, 0 elsewhere."""

    read: Read
    mask: Read

    def __call__(self, box: Box) -> NDArray[Any]:
        """Values of a box."""
        values = self.read(box)
        return np.where(self.mask(box), values, values.dtype.type(0))


@dataclass(frozen=True)
class Outside:
    """Values where a mask is false, 0 elsewhere."""

    read: Read
    mask: Read

    def __call__(self, box: Box) -> NDArray[Any]:
        """Values of a box."""
        values = self.read(box)
        return np.where(self.mask(box), values.dtype.type(0), values)


def enough_voxels(min_volume_nm3: float, grid: Grid) -> int:
    """Fewest voxels of an object that is kept.

    The paper's rule drops objects of at most ``ceil(min_volume / voxel volume)`` voxels.
    """
    if min_volume_nm3 == 0:
        return 1
    return math.ceil(min_volume_nm3 / math.prod(grid.spacing_nm)) + 1

"""EM at the voxel size that a network takes, box by box."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import VoxelSizeError
from clemreg.segment.blockwise import read_extended
from clemreg.segment.data import weigh
from clemreg.space.grid import Box, Grid, Triple
from clemreg.volume import Volume

log = logging.getLogger(__name__)

# A voxel size within this ratio of a compact network's is taken as it is: training covers it.
TOLERATED_RATIO = 1.25
# Finer than this in volume and the resampled EM would be mostly invention.
MOST_UPSAMPLING = 30.0
# A level of a pyramid may be coarser than wanted by this ratio along an axis.
_COARSER = 1.26


# Positions and weights are whole multiples of this: then the products of three weights and grey
# values of up to 16 bits, and their sums in any order, fit into float64 without rounding.
_PARTS = 1 << 12


@dataclass(frozen=True, eq=False)
class Reader:
    """Boxes of a volume on another grid; beyond its borders the outer voxels go on.

    A voxel has the same value in any box, to the last bit for whole numbers up to 16 bits.

    Attributes
    ----------
    volume
        EM (z, y, x).
    grid
        Voxels that are read; interpolated linearly, or averaged, unless they are the EM's own.
    """

    volume: Volume
    grid: Grid

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box of `grid` that may reach outside."""
        fine = self.volume.grid
        if self.grid == fine:
            return read_extended(self.volume, box)
        positions = []
        for axis in range(3):
            # From the second voxel beyond an end on, all are the same, to the last bit.
            index = np.arange(box.start[axis], box.stop[axis]).clip(-2, self.grid.shape[axis] + 1)
            world = self.grid.origin_nm[axis] + index * self.grid.spacing_nm[axis]
            place = (world - fine.origin_nm[axis]) / fine.spacing_nm[axis]
            positions.append(np.rint(place * _PARTS) / _PARTS)
        widths = [g / f for g, f in zip(self.grid.spacing_nm, fine.spacing_nm, strict=True)]
        low = [int(np.floor(p.min() - w)) for p, w in zip(positions, widths, strict=True)]
        high = [int(np.ceil(p.max() + w)) + 2 for p, w in zip(positions, widths, strict=True)]
        part = read_extended(self.volume, Box(tuple(low), tuple(high)))  # type: ignore[arg-type]
        weights = [
            _weights(p - a, b - a, w)
            for p, a, b, w in zip(positions, low, high, widths, strict=True)
        ]
        return weigh(part.astype(np.float64), *weights).astype(np.float32)


def _weights(position: NDArray[np.float64], n: int, width: float) -> NDArray[np.float64]:
    """Rows of triangle-filter weights of half width max(1, width), in whole parts; sums are 1."""
    raw = np.clip(1 - np.abs(position[:, None] - np.arange(n)) / max(1.0, width), 0, None)
    parts = np.rint(raw * _PARTS)  # whole numbers: their sum is that of any larger box
    parts = np.rint(parts * (_PARTS / parts.sum(axis=1, keepdims=True)))
    rows = np.arange(len(parts))
    parts[rows, parts.argmax(axis=1)] += _PARTS - parts.sum(axis=1)
    return np.asarray(parts / _PARTS)


def misfit(found_nm: Sequence[float] | NDArray[np.float64], wanted_nm: Triple | float) -> float:
    """Largest ratio of voxel sizes along an axis, from 1 on."""
    ratio = np.asarray(found_nm) / np.asarray(wanted_nm)
    return float(np.maximum(ratio, 1 / ratio).max())


def size_ratio(found_nm: Triple, wanted_nm: Triple) -> float:
    """How much larger voxels are, along an edge: the geometric mean over the axes."""
    return float(np.exp(np.mean(np.log(found_nm) - np.log(wanted_nm))))


def nearest_spacing(found_nm: Triple, wanted_nm: Triple, tolerated: float) -> Triple:
    """Voxel size zyx nearest to that of an EM which a network can take, of the network's shape.

    Fine EM keeps what the network can see of it, and coarse EM is not drawn out for nothing.

    Parameters
    ----------
    found_nm, wanted_nm
        Voxel sizes of the EM, and that which the network was made for.
    tolerated
        Ratio up to which voxels may be larger or smaller than `wanted_nm`.
    """
    ratio = np.clip(size_ratio(found_nm, wanted_nm), 1 / tolerated, tolerated)
    z, y, x = (np.asarray(wanted_nm) * ratio).tolist()
    return z, y, x


def taken_spacing(found_nm: Triple, wanted_nm: Triple) -> Triple:
    """Voxel size zyx at which EM is predicted: its own if the network takes it, or the nearest."""
    if misfit(found_nm, wanted_nm) <= TOLERATED_RATIO:
        return found_nm
    return nearest_spacing(found_nm, wanted_nm, TOLERATED_RATIO)


def nearest_level(volume: Volume, wanted_nm: Triple) -> Volume:
    """Coarsest level of a pyramid that is not coarser than wanted."""
    most = np.asarray(wanted_nm) * _COARSER
    fit = [v for v in volume.levels if (np.asarray(v.grid.spacing_nm) <= most).all()]
    return fit[-1] if fit else volume


def reader_for(volume: Volume, wanted_nm: Triple, tolerated: float) -> Reader:
    """Read EM at about the voxel size that a network takes, with a note where it is not its own.

    Parameters
    ----------
    volume
        EM (z, y, x); the level of its pyramid that suits best is read.
    wanted_nm
        Voxel size of the network, zyx.
    tolerated
        Voxels that differ by this ratio along an axis, or less, are taken as they are; others are
        resampled to `nearest_spacing`.

    Raises
    ------
    VoxelSizeError
        The EM is too coarse.
    """
    taken = nearest_spacing(volume.grid.spacing_nm, wanted_nm, tolerated)
    level = nearest_level(volume, taken)
    found = level.grid.spacing_nm
    if np.prod(np.asarray(found) / np.asarray(wanted_nm)) > MOST_UPSAMPLING:
        raise VoxelSizeError(
            f"EM voxels of {found} nm (z, y, x) are too coarse for a network made for "
            f"{wanted_nm} nm",
            hint="is the unit right? Otherwise use a network for coarser EM",
        )
    if found != volume.grid.spacing_nm:
        log.warning(
            "of EM voxels of %s nm (z, y, x) those averaged to %s nm are segmented",
            volume.grid.spacing_nm,
            found,
        )
    if misfit(found, wanted_nm) <= tolerated:
        return Reader(level, level.grid)
    log.warning(
        "EM voxels of %s nm (z, y, x) are resampled to %s nm for a network made for %s nm",
        found,
        tuple(round(s, 3) for s in taken),
        wanted_nm,
    )
    return Reader(level, level.grid.with_spacing(taken))

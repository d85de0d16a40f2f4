"""What predicting block by block needs, whichever the network: options, EM, where, how fast."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.executors import Threads
from clemreg.blocks.pyramid import write_pyramid
from clemreg.blocks.run import Ledger, Progress
from clemreg.errors import ConfigError, DataError
from clemreg.io.volumes import VolumeWriter
from clemreg.segment.data import contrast_limits
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Volume

log = logging.getLogger(__name__)

VIEWS = (1, 2, 4, 8)
# One block is computed while another is read and a third written.
WORKERS = 3
# Planes of a large volume that are looked at for its contrast.
_PLANES = 24
# Voxels of a level that is looked at for the contrast: of fewer, each is a mean of too many.
_ENOUGH = 2**24
_NO_NUMBERS = "NaN or infinite values"
_MEND = "replace them first, for example by the grey value of empty resin"


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes
    ----------
    block
        Output voxels per block along each axis; 0: as many as memory and network suggest.
    threads
        Threads of torch; 0: as torch chooses.
    precise
        Compute in float32 even where bfloat16 is faster; blocks of any size then give the same
        voxels. Networks of others compute as they are written.
    limits
        Grey values that become -1 and 1; None: percentiles of the volume.
    views
        Mirrored views of each block whose predictions are averaged: 1 (as it is), 2, 4 or 8
        (mirrored along x, y, z). Each costs as much time as the first.
    mask
        Where to predict: not 0 in this volume, which lies in the same frame as the EM. Elsewhere
        the prediction is 0, far outside; blocks wholly outside are not computed.
    inputs
        What tells the files of EM and mask from changed ones of the same name.
    """

    block: int = 0
    threads: int = 0
    precise: bool = False
    limits: tuple[float, float] | None = None
    views: int = 1
    mask: Volume | None = None
    inputs: str = ""

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ConfigError(f"{self.views} views; expected one of {', '.join(map(str, VIEWS))}")
        if self.block < 0:
            raise ConfigError(
                f"blocks of {self.block} voxels cannot be computed", hint="0 stands for automatic"
            )
        if self.limits is not None and not all(math.isfinite(v) for v in self.limits):
            raise ConfigError(f"black and white are {self.limits}, expected two grey values")
        if self.limits is not None and self.limits[0] == self.limits[1]:
            raise ConfigError(
                f"black and white are the same grey value, {self.limits[0]:g}",
                hint="give two grey values, or none for percentiles",
            )

    @property
    def mirrorings(self) -> tuple[tuple[int, ...], ...]:
        """Axes (0: z, 1: y, 2: x) along which each view is mirrored."""
        return tuple(
            tuple(axis for bit, axis in enumerate((2, 1, 0)) if view >> bit & 1)
            for view in range(self.views)
        )

    @property
    def job(self) -> str:
        """What of these options the content of a block depends on."""
        mask = self.mask and f"{self.mask.name} {self.mask.grid}"
        return f"{self.precise} {self.views} {mask} {self.inputs}"


def finish(writer: VolumeWriter, ledger: Ledger, progress: Progress | None) -> None:
    """Make the coarser levels of an output whose finest is written, several blocks at a time."""

    def told(done: int, total: int, _message: str) -> None:
        if progress is not None:
            progress(done, total, "coarser levels")

    write_pyramid(writer, ledger.path, Threads(WORKERS), told)


def read_extended(volume: Volume, box: Box) -> NDArray[np.float32]:
    """Read a box that may reach outside; there, the outermost voxels go on.

    Not mirrored: in a thin volume, a mirrored piece of cytoplasm looks like an organelle.

    Raises
    ------
    DataError
        The EM holds NaN or infinite values.
    """
    nearest = [
        (min(max(a, 0), n - 1), min(max(b, 1), n))
        for a, b, n in zip(box.start, box.stop, volume.shape, strict=True)
    ]
    low, high = zip(*nearest, strict=True)
    inner = Box(low, high)
    result = np.empty(box.shape, dtype=np.float32)
    place = tuple(
        slice(first, first + m)
        for first, m in (
            (min(max(i - a, 0), n - m), m)
            for i, a, n, m in zip(inner.start, box.start, box.shape, inner.shape, strict=True)
        )
    )
    result[place] = volume.read(inner)
    if volume.dtype.kind == "f" and not np.isfinite(result[place]).all():
        raise DataError(f"{volume.name or 'the EM'} holds {_NO_NUMBERS} in {inner}", hint=_MEND)
    _repeat_ends(result, place)
    return result


def _repeat_ends(block: NDArray[np.float32], filled: tuple[slice, ...]) -> None:
    """Fill a block from the part that is filled: the last axis first, then slices of it."""
    for axis in reversed(range(block.ndim)):
        key: Any = (*filled[:axis], ...)
        part = np.moveaxis(block[key], axis, 0)
        first, stop = filled[axis].start, filled[axis].stop
        part[:first] = part[first]
        part[stop:] = part[stop - 1]


def find_limits(volume: Volume) -> tuple[float, float]:
    """Percentiles of a few planes of the coarsest level that has voxels enough, else of the finest.

    Coarser levels are averages, in which black and white come together to grey: the very coarsest
    may be one voxel.

    Raises
    ------
    DataError
        The EM holds NaN or infinite values, or the same grey value everywhere.
    """
    enough = [level for level in volume.levels if level.grid.size >= _ENOUGH]
    level = enough[-1] if enough else volume
    planes = np.unique(np.linspace(0, level.shape[0] - 1, _PLANES).astype(int))
    sample = np.concatenate(
        [level.read(Box((int(z), 0, 0), (int(z) + 1, *level.shape[1:]))) for z in planes]
    )
    if not np.isfinite(sample).all():
        raise DataError(f"{volume.name or 'the EM'} holds {_NO_NUMBERS}", hint=_MEND)
    if sample.min() == sample.max():
        raise DataError(
            f"{volume.name or 'the EM'} has the same grey value everywhere, {sample.min():g}",
            hint="is it the right volume? If so, say what is black and white: --contrast LOW HIGH",
        )
    return contrast_limits(sample)


class Where:
    """Where to predict, on the grid of the prediction.

    Parameters
    ----------
    mask
        Not 0 where to predict; None: everywhere.
    grid
        Voxels of the prediction, in the frame of the mask.

    Raises
    ------
    DataError
        The mask lies beside the EM.
    """

    def __init__(self, mask: Volume | None, grid: Grid) -> None:
        self.mask, self.grid = mask, grid
        self.anywhere = mask is None
        if mask is not None and not _overlap(mask.grid, grid):
            raise DataError(
                f"the mask {mask.name} lies from {mask.grid.origin_nm} nm on and the EM from "
                f"{grid.origin_nm} nm on (z, y, x): they do not meet",
                hint="both must lie in one frame: `clemreg info` shows origin and voxel size",
            )

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Nearest mask voxel of each voxel of a box; beyond the mask there is nothing."""
        if self.mask is None:
            return np.ones((1, 1, 1), dtype=bool)
        picks = []
        for axis in range(3):
            index = np.arange(box.start[axis], box.stop[axis])
            world = self.grid.origin_nm[axis] + index * self.grid.spacing_nm[axis]
            place = (world - self.mask.grid.origin_nm[axis]) / self.mask.grid.spacing_nm[axis]
            picks.append(np.floor(place + 0.5).astype(int))
        within = [(p >= 0) & (p < n) for p, n in zip(picks, self.mask.shape, strict=True)]
        result = np.zeros(box.shape, dtype=bool)
        if not all(w.any() for w in within):
            return result
        low = [int(p[w].min()) for p, w in zip(picks, within, strict=True)]
        high = [int(p[w].max()) + 1 for p, w in zip(picks, within, strict=True)]
        part = self.mask.read(Box(tuple(low), tuple(high))) != 0  # type: ignore[arg-type]
        local = [p[w] - a for p, w, a in zip(picks, within, low, strict=True)]
        result[np.ix_(*within)] = part[np.ix_(*local)]
        self.anywhere = self.anywhere or bool(result.any())
        return result

    def warn_if_nowhere(self) -> None:
        """Say so if the mask was 0 in all that was read."""
        if not self.anywhere and self.mask is not None:
            log.warning("the mask %s is 0 in all of the EM: nothing is predicted", self.mask.name)


def _overlap(a: Grid, b: Grid) -> bool:
    """Tell whether some voxel of one grid meets one of the other."""
    return all(
        p - s / 2 < q + (n - 0.5) * t and q - t / 2 < p + (m - 0.5) * s
        for p, s, m, q, t, n in zip(
            a.origin_nm, a.spacing_nm, a.shape, b.origin_nm, b.spacing_nm, b.shape, strict=True
        )
    )


class Pace:
    """Adds voxels per second to the progress of blocks, which knows the time left."""

    def __init__(self, progress: Progress, shape: Shape) -> None:
        self.progress = progress
        self.voxels = float(np.prod(shape))
        self.begin = time.monotonic()
        self.before: int | None = None

    def __call__(self, done: int, total: int, _message: str) -> None:
        """Pass on how many blocks are done, and how fast."""
        if self.before is None:
            self.before = done - 1  # finished by an earlier run
        seconds = max(time.monotonic() - self.begin, 1e-6)
        share = (done - self.before) / total
        self.progress(done, total, f"{share * self.voxels / seconds / 1e6:.2f} Mvoxel/s")

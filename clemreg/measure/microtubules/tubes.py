"""Draw traced microtubules as hollow tubes: wall and lumen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.errors import ConfigError
from clemreg.io.volumes import WriteOptions
from clemreg.measure.microtubules.candidates import FloatArray
from clemreg.space.grid import Box, Grid


@dataclass(frozen=True)
class Tube:
    """Cross-section of a microtubule.

    Attributes
    ----------
    inner_nm, outer_nm
        Radius of the lumen and of the whole.
    """

    inner_nm: float = 6.0
    outer_nm: float = 12.5

    def __post_init__(self) -> None:
        if not 0 <= self.inner_nm < self.outer_nm:
            raise ConfigError(
                f"a tube of radius {self.outer_nm:g} nm cannot have a lumen of {self.inner_nm:g} nm"
            )


def write_tubes(
    lines_nm: Sequence[FloatArray],
    grid: Grid,
    out: Path,
    tube: Tube | None = None,
    *,
    how: Blockwise | None = None,
) -> tuple[Path, Path]:
    """Write ``wall.zarr`` and ``lumen.zarr`` in a folder: the number of the line, from 1.

    Ends are cut flat. Where tubes meet, the nearer line wins, the first of those that tie.

    Parameters
    ----------
    lines_nm
        (n, 3) zyx nm each.
    grid
        Grid of the volumes.
    how
        Blocks, executor and progress; resumable.

    Returns
    -------
    tuple
        Paths of wall and lumen.
    """
    how, tube = how or Blockwise(), tube or Tube()
    segments = _Segments.of(lines_nm)
    wall, lumen = out / "wall.zarr", out / "lumen.zarr"
    for work, path in (
        (_Wall(segments, grid, tube), wall),
        (_Lumen(segments, grid, tube), lumen),
    ):
        options = WriteOptions(labels=True)
        map_volume(work, path, grid, np.uint32, how.named(path.stem), options)
    return wall, lumen


@dataclass(frozen=True, eq=False)
class _Wall:
    """Number of the line where a voxel is in a tube and not in its lumen."""

    segments: _Segments
    grid: Grid
    tube: Tube

    def __call__(self, box: Box) -> NDArray[np.uint32]:
        line, squared = self.segments.nearest(self.grid, box, self.tube.outer_nm)
        return np.where(squared <= self.tube.inner_nm**2, np.uint32(0), line)


@dataclass(frozen=True, eq=False)
class _Lumen:
    """Number of the line where a voxel is in a lumen."""

    segments: _Segments
    grid: Grid
    tube: Tube

    def __call__(self, box: Box) -> NDArray[np.uint32]:
        line, squared = self.segments.nearest(self.grid, box, self.tube.outer_nm)
        return np.where(squared <= self.tube.inner_nm**2, line, np.uint32(0))


@dataclass(frozen=True, eq=False)
class _Segments:
    """Straight pieces of lines.

    Attributes
    ----------
    start_nm, end_nm
        (S, 3).
    line
        (S,) number of the line, from 1.
    first, last
        (S,) whether the piece begins, or ends, its line.
    """

    start_nm: FloatArray
    end_nm: FloatArray
    line: NDArray[np.uint32]
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]

    @classmethod
    def of(cls, lines_nm: Sequence[FloatArray]) -> _Segments:
        lines = [(k, line) for k, line in enumerate(lines_nm, start=1) if len(line) > 1]
        number = np.concatenate(
            [np.zeros(0, np.uint32), *(np.full(len(p) - 1, k, np.uint32) for k, p in lines)]
        )
        change = np.diff(number, prepend=0) != 0
        return cls(
            np.concatenate([np.zeros((0, 3)), *(p[:-1] for _, p in lines)]),
            np.concatenate([np.zeros((0, 3)), *(p[1:] for _, p in lines)]),
            number,
            change,
            np.roll(change, -1),
        )

    def nearest(
        self, grid: Grid, box: Box, radius_nm: float
    ) -> tuple[NDArray[np.uint32], FloatArray]:
        """Line within `radius_nm` of each voxel of `box` (0: none), and the squared distance."""
        line = np.zeros(box.shape, np.uint32)
        squared = np.full(box.shape, radius_nm**2 * (1 + 1e-9))
        low, high = (
            f(self.start_nm, self.end_nm) + sign * radius_nm
            for f, sign in ((np.minimum, -1), (np.maximum, 1))
        )
        corner, opposite = grid.to_world(box.start), grid.to_world(np.asarray(box.stop) - 1)
        for s in np.flatnonzero(((high >= corner) & (low <= opposite)).all(axis=1)):
            start = np.ceil(grid.to_index(low[s])).astype(int)
            stop = np.floor(grid.to_index(high[s])).astype(int) + 1
            part = Box(tuple(start), tuple(stop)).intersect(box)
            if not part.size:
                continue
            view = part.shift(tuple(-v for v in box.start)).slices
            distance = self._squared_distance(int(s), grid.points_nm(part))
            closer = distance < squared[view]
            squared[view][closer] = distance[closer]
            line[view][closer] = self.line[s]
        return line, squared

    def _squared_distance(self, s: int, points_nm: FloatArray) -> FloatArray:
        """Squared distance to a piece; infinite beyond the flat ends of its line."""
        along = self.end_nm[s] - self.start_nm[s]
        from_start = points_nm - self.start_nm[s]
        t = from_start @ along / max(float(along @ along), 1e-300)
        nearest = np.clip(t, 0.0, 1.0)[..., None] * along
        squared = ((from_start - nearest) ** 2).sum(axis=-1)
        beyond = ((t < 0) & self.first[s]) | ((t > 1) & self.last[s])
        return np.where(beyond, np.inf, squared)

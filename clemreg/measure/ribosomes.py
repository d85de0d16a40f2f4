"""Ribosomes: their centres in a prediction, as spheres, and what they sit on.

Centres after Heinrich et al. 2021: every foreground voxel is scored by how much of a sphere around
it is filled in its line of sight, and by how central it lies in that part; the maxima that do not
overlap are ribosomes. Three things differ from the published program: all lengths are in nm along
each axis; the better of two overlapping centres wins (there: a chessboard order), so the result
does not depend on the blocks; and a sphere must be filled to `min_fraction`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.stages import Blockwise, Part, map_volume
from clemreg.errors import ConfigError, DataError, GridError
from clemreg.io.volumes import WriteOptions, open_labels
from clemreg.measure.gather import gather, read_padded
from clemreg.measure.lines import IntArray, ball_offsets, line_offsets
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RibosomeOptions:
    """What counts as a ribosome.

    Attributes
    ----------
    radius_nm
        Radius of the sphere that is looked for.
    separation_nm
        Of two centres at most this far apart, the better stays. A little under the diameter,
        since the centres of touching ribosomes are found to within a voxel.
    threshold
        Foreground is at or above; 127 is the surface in a signed-distance prediction.
    min_fraction
        Least filled share of the sphere; 0 keeps every speck, as in the paper.
    """

    radius_nm: float = 10.0
    separation_nm: float = 16.0
    threshold: float = 127.0
    min_fraction: float = 0.3

    def __post_init__(self) -> None:
        if not (self.radius_nm > 0 and self.separation_nm >= 0 and 0 <= self.min_fraction <= 1):
            raise ConfigError(
                f"ribosome options make no sense: {self}",
                hint="radius above 0 nm, separation at least 0 nm, fraction between 0 and 1",
            )


@dataclass(frozen=True, eq=False)
class Ribosomes:
    """Centres of ribosomes, ordered by voxel; the id of entry i is i + 1.

    Attributes
    ----------
    centre_nm
        (N, 3) zyx nm, finer than a voxel: the centre of mass of what is filled.
    score
        (N,) filled share plus centrality, at most 2.
    fraction
        (N,) filled share of the sphere.
    """

    centre_nm: FloatArray
    score: FloatArray
    fraction: FloatArray

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.score)


def find_ribosomes(
    prediction: Volume,
    options: RibosomeOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Ribosomes:
    """Find ribosomes in a prediction (z, y, x), block by block.

    Parameters
    ----------
    prediction
        Signed distance (uint8), probability, or mask; see `RibosomeOptions.threshold`.
    how
        Blocks, executor and progress; no choice here changes a digit.
    scratch
        Folder from which a killed search goes on.

    Raises
    ------
    GridError
        The voxels are so coarse that the sphere holds only one.
    DataError
        It is a mask or probability, and the threshold is that of a signed distance.
    """
    options, how = options or RibosomeOptions(), how or Blockwise()
    grid = prediction.grid
    offsets = ball_offsets(options.radius_nm, grid.spacing_nm)
    if len(offsets) < 7:
        raise GridError(
            f"a sphere of {options.radius_nm:g} nm holds {len(offsets)} voxels of "
            f"{grid.spacing_nm} nm (z, y, x)",
            hint="ribosomes need voxels of at most half their radius",
        )
    halo = np.abs(offsets).max(axis=0) + np.abs(_rounded_ball(options, grid)).max(axis=0)
    blocks = plan_blocks(grid.shape, how.block, tuple(int(h) for h in halo))
    work = _Maxima(prediction, options)
    job = f"ribosomes {prediction.name} {grid} {options}"
    found = gather(work, blocks, how.named("ribosomes"), job=job, scratch=scratch)
    _check_range(prediction, float(found["largest"].max(initial=0)), options.threshold)
    linear = np.ravel_multi_index(tuple(found["voxel"].T), grid.shape)
    order = np.argsort(linear, kind="stable")
    voxel, score = found["voxel"][order], found["score"][order]
    keep = non_overlapping(grid.to_world(voxel), score, options.separation_nm)
    centre = grid.to_world(voxel) + found["shift_nm"][order]
    return Ribosomes(centre[keep], score[keep], found["fraction"][order][keep])


def _check_range(prediction: Volume, largest: float, threshold: float) -> None:
    """Say so where nothing can be found since values end at 1 and the threshold does not."""
    if not 0 < largest <= 1 < threshold:
        return
    text = f"{prediction.name or 'the prediction'} ends at {largest:g}, below the threshold of"
    if prediction.dtype.kind not in "iu":
        raise DataError(
            f"{text} {threshold:g}", hint="take --threshold 0.5 for a mask or a probability"
        )
    log.warning("%s %g: if it is a mask, take --threshold 1", text, threshold)


def non_overlapping(
    centre_nm: FloatArray, score: FloatArray, separation_nm: float
) -> NDArray[np.intp]:
    """Choose centres (N, 3), best first, none within `separation_nm` of another.

    Of equal scores the first in the list wins.

    Returns
    -------
    ndarray
        Indices of those that stay, ascending.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(centre_nm)
    free = np.ones(len(score), dtype=bool)
    accepted = []
    # Neighbours of those that stay only: all pairs at once would fill the memory where a large
    # patch of foreground has every voxel as a centre.
    for i in np.lexsort((np.arange(len(score)), -score)):
        if free[i]:
            accepted.append(i)
            free[tree.query_ball_point(centre_nm[i], separation_nm + 1e-6)] = False
    return np.sort(np.asarray(accepted, dtype=np.intp))


def write_spheres(
    ribosomes: Ribosomes,
    grid: Grid,
    out: Path,
    *,
    radius_nm: float = 10.0,
    values: NDArray[Any] | None = None,
    how: Blockwise | None = None,
) -> Labels:
    """Draw every ribosome as a ball, block by block; a voxel in two belongs to the nearer centre.

    Parameters
    ----------
    grid
        Where to draw: usually that of the prediction.
    out
        OME-Zarr to write; resumable.
    values
        (N,) what to write in each ball; default its id. Their type is that of the volume.
    """
    values = np.arange(1, len(ribosomes) + 1, dtype=np.uint32) if values is None else values
    balls = _Balls(ribosomes.centre_nm, values, radius_nm)
    how = (how or Blockwise()).named("spheres")
    work = _Spheres(balls, grid)
    map_volume(work, out, grid, values.dtype, how, WriteOptions(labels=True))
    return open_labels(out, frame=grid.frame)


@dataclass(frozen=True, eq=False)
class _Spheres:
    """The balls in a box."""

    balls: _Balls
    grid: Grid

    def __call__(self, box: Box) -> NDArray[Any]:
        return self.balls.near(self.grid.crop(box)).draw(self.grid, box)


@dataclass(frozen=True, eq=False)
class _Balls:
    """Balls of one radius and the value of each."""

    centre_nm: FloatArray
    value: NDArray[Any]
    radius_nm: float

    def near(self, grid: Grid) -> _Balls:
        """Those that may reach into a grid, in order."""
        low = grid.to_world((0, 0, 0)) - self.radius_nm
        high = grid.to_world(np.asarray(grid.shape) - 1) + self.radius_nm
        here = ((self.centre_nm >= low) & (self.centre_nm <= high)).all(axis=1)
        return _Balls(self.centre_nm[here], self.value[here], self.radius_nm)

    def draw(self, grid: Grid, box: Box) -> NDArray[Any]:
        """Voxels of `box`: the value of the nearest centre, the first of those that tie."""
        result = np.zeros(box.shape, self.value.dtype)
        nearest = np.full(box.shape, self.radius_nm**2 * (1 + 1e-9))
        offsets = ball_offsets(self.radius_nm + max(grid.spacing_nm), grid.spacing_nm)
        first = np.floor(grid.to_index(self.centre_nm) + 0.5).astype(np.intp)
        for point, voxel, value in zip(self.centre_nm, first, self.value, strict=True):
            index = voxel + offsets
            index = index[((index >= box.start) & (index < box.stop)).all(axis=1)]
            # World positions come from the whole grid: the same to the last bit in every block.
            squared = ((grid.to_world(index) - point) ** 2).sum(axis=1)
            where = index - np.asarray(box.start)
            closer = squared < nearest[tuple(where.T)]
            nearest[tuple(where[closer].T)] = squared[closer]
            result[tuple(where[closer].T)] = value
        return result


def _rounded_ball(options: RibosomeOptions, grid: Grid) -> IntArray:
    """Neighbourhood of a maximum: an ellipsoid with the radius rounded to whole voxels."""
    radii = np.maximum(1, np.floor(options.radius_nm / np.asarray(grid.spacing_nm) + 0.5))
    axes = [np.arange(-r, r + 1) for r in radii]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    inside = ((offsets / radii) ** 2).sum(axis=1) <= 1 + 1e-9
    return np.asarray(offsets[inside], dtype=np.intp)


@dataclass(frozen=True)
class _Maxima:
    """Local maxima of the score in the core of a block."""

    prediction: Volume
    options: RibosomeOptions

    def __call__(self, block: Block) -> Part:
        values = read_padded(self.prediction, block.read)
        foreground = values >= self.options.threshold
        found = _maxima(foreground, block, self.prediction.grid, self.options)
        return {**found, "largest": np.array([float(values.max(initial=0))])}


def _maxima(
    foreground: NDArray[np.bool_], part: Block, grid: Grid, options: RibosomeOptions
) -> Part:
    """Local maxima of the score in the core of a block."""
    ball = ball_offsets(options.radius_nm, grid.spacing_nm)
    count, moment = _filled(foreground, ball)
    voxels = np.argwhere(foreground)
    shift_nm = moment / np.maximum(count, 1)[:, None] * np.asarray(grid.spacing_nm)
    z, y, x = shift_nm.T
    fraction = count / len(ball)
    score = fraction + 1 - np.sqrt(z * z + y * y + x * x) / options.radius_nm
    dense = np.zeros(foreground.shape)
    dense[foreground] = score
    highest = _neighbourhood_maximum(dense, voxels, _rounded_ball(options, grid))
    world = voxels + np.asarray(part.read.start)
    core = ((world >= part.core.start) & (world < part.core.stop)).all(axis=1)
    keep = core & (score >= highest) & (fraction >= options.min_fraction)
    return {
        "voxel": world[keep],
        "score": score[keep],
        "fraction": fraction[keep],
        "shift_nm": shift_nm[keep],
    }


def _filled(foreground: NDArray[np.bool_], ball: IntArray) -> tuple[IntArray, IntArray]:
    """Count what each foreground voxel sees of its ball (n,), and sum those offsets (n, 3)."""
    margin = np.abs(ball).max(axis=0)
    padded = np.pad(foreground, [(int(m), int(m)) for m in margin])
    stride = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat = padded.reshape(-1)
    here = np.flatnonzero(flat)
    count = np.zeros(len(here), dtype=np.intp)
    moment = np.zeros((len(here), 3), dtype=np.intp)
    for offset in ball:
        seen = flat[here + int(offset @ stride)]
        for between in line_offsets(offset):
            seen = seen & flat[here + int(between @ stride)]
        count += seen
        moment += seen[:, None] * offset
    return count, moment


def _neighbourhood_maximum(
    dense: FloatArray, voxels: NDArray[np.intp], offsets: IntArray
) -> FloatArray:
    margin = np.abs(offsets).max(axis=0)
    padded = np.pad(dense, [(int(m), int(m)) for m in margin])
    stride = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat = padded.reshape(-1)
    here = (voxels + margin) @ stride
    highest = np.zeros(len(here))
    for offset in offsets:
        np.maximum(highest, flat[here + int(offset @ stride)], out=highest)
    return highest

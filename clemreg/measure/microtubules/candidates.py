"""Candidate points: the strongest voxel of every 80 nm, where the prediction is strong enough."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.stages import Blockwise, Part
from clemreg.errors import ConfigError, DataError
from clemreg.measure.gather import gather, read_padded
from clemreg.measure.lines import ball_offsets
from clemreg.space.grid import Grid, Shape
from clemreg.volume import Volume

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]


@dataclass(frozen=True)
class CandidateOptions:
    """Which voxels may be points of a microtubule (defaults: Heinrich et al. 2021).

    Attributes
    ----------
    cell_nm
        Edge of the cells of which each gives at most one point, and of the window in which a
        point must be the strongest.
    threshold
        Prediction (0 to 1; uint8 is divided by 255) above which a voxel may be a point.
    radius_nm
        Radius of a microtubule: the point is moved to the centroid of the prediction within it.
    """

    cell_nm: float = 80.0
    threshold: float = 0.4
    radius_nm: float = 12.5

    def __post_init__(self) -> None:
        if not (self.cell_nm > 0 and self.radius_nm >= 0 and 0 <= self.threshold < 1):
            raise ConfigError(
                f"candidate options make no sense: {self}",
                hint="lengths above 0 nm, threshold from 0 to below 1",
            )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Points that may lie on microtubules, ordered by voxel.

    Attributes
    ----------
    voxel
        (N, 3) zyx index of the strongest voxel.
    points_nm
        (N, 3) zyx nm, the centroid of the prediction around it.
    """

    voxel: IntArray
    points_nm: FloatArray

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.voxel)


def as_probability(values: NDArray[Any]) -> FloatArray:
    """Scale uint8 predictions to 0..1; take masks and numbers from 0 to 1 as they are.

    Raises
    ------
    DataError
        It is neither.
    """
    if values.dtype == np.uint8:
        return values / 255.0
    low, high = values.min(initial=0), values.max(initial=0)
    if values.dtype.kind in "iu" or not (low >= 0 and high <= 1):
        raise DataError(
            f"the prediction holds {values.dtype} from {low:g} to {high:g}, expected uint8 signed "
            "distances, or bool or float from 0 to 1",
            hint="store v = clip(round(128 tanh(d / 50 nm) + 127), 0, 255); a mask as bool, or as "
            "0 and 255 in uint8",
        )
    return values.astype(np.float64)


def cell_shape(options: CandidateOptions, grid: Grid) -> Shape:
    """Voxels of a cell, zyx."""
    z, y, x = (max(1, round(options.cell_nm / s)) for s in grid.spacing_nm)
    return z, y, x


def find_candidates(
    prediction: Volume,
    options: CandidateOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Candidates:
    """Find candidate points, block by block.

    Cells are counted from voxel 0. Of equal voxels the first in scan order wins (the published
    program adds noise).

    Parameters
    ----------
    prediction
        (z, y, x), uint8 signed distance or 0..1.
    how
        Blocks, executor and progress; blocks are cut to whole cells. No choice changes a digit.
    scratch
        Folder from which a killed search goes on.

    Raises
    ------
    DataError
        The prediction holds something else.
    """
    options, how = options or CandidateOptions(), how or Blockwise()
    grid, cell = prediction.grid, cell_shape(options, prediction.grid)
    ball = ball_offsets(options.radius_nm, grid.spacing_nm)
    halo = tuple(int(h) for h in np.abs(ball).max(axis=0))
    block = tuple(max(1, b // c) * c for b, c in zip(how.block, cell, strict=True))
    blocks = plan_blocks(grid.shape, block, halo)
    work = _Strongest(prediction, cell, ball, options.threshold)
    job = f"candidates, largest {prediction.name} {grid} {options}"
    found = gather(work, blocks, how.named("candidates"), job=job, scratch=scratch)
    _warn_of_mask(prediction, int(found["largest"].max(initial=0)))
    voxel, value, shift = found["voxel"], found["value"], found["shift"]
    order = np.argsort(np.ravel_multi_index(tuple(voxel.T), grid.shape), kind="stable")
    voxel, value, shift = voxel[order], value[order], shift[order]
    keep = _strongest_in_window(voxel, value, cell)
    points = grid.to_world(voxel) + shift * np.asarray(grid.spacing_nm)
    return Candidates(voxel[keep], points[keep])


def _warn_of_mask(prediction: Volume, largest: int) -> None:
    """Say why nothing can be found in a mask that is stored as 0 and 1."""
    if largest == 1:
        log.warning(
            "%s ends at 1 of 255, so there is nothing in it: if it is a mask, save it as 0 and "
            "255, or as bool",
            prediction.name or "the prediction",
        )


@dataclass(frozen=True, eq=False)
class _Strongest:
    """Strongest voxel of each cell of a block."""

    prediction: Volume
    cell: Shape
    ball: IntArray
    threshold: float

    def __call__(self, block: Block) -> Part:
        stored = read_padded(self.prediction, block.read)
        values = as_probability(stored)
        largest = stored.max(initial=0) if stored.dtype == np.uint8 else 0
        inner = block.core.shift(tuple(-s for s in block.read.start))
        local, value = _strongest(values[inner.slices], self.cell, self.threshold)
        shift = _centroid(values, local + np.asarray(inner.start), self.ball, self.threshold)
        voxel = local + np.asarray(block.core.start)
        return {"voxel": voxel, "value": value, "shift": shift, "largest": np.array([largest])}


def _strongest(values: FloatArray, cell: Shape, threshold: float) -> tuple[IntArray, FloatArray]:
    """Index (n, 3) and value (n,) of the strongest voxel of each cell that is above threshold."""
    pad = [(0, -n % c) for n, c in zip(values.shape, cell, strict=True)]
    padded = np.pad(values, pad, constant_values=-math.inf)
    count = [n // c for n, c in zip(padded.shape, cell, strict=True)]
    split = padded.reshape(count[0], cell[0], count[1], cell[1], count[2], cell[2])
    by_cell = split.transpose(0, 2, 4, 1, 3, 5).reshape(*count, -1)
    best = by_cell.argmax(axis=-1)
    value = np.take_along_axis(by_cell, best[..., None], -1)[..., 0]
    where = np.argwhere(value > threshold)
    inside = np.stack(np.unravel_index(best[tuple(where.T)], cell), -1)
    return where * np.asarray(cell) + inside, value[tuple(where.T)]


def _strongest_in_window(voxel: IntArray, value: FloatArray, cell: Shape) -> NDArray[np.bool_]:
    """Tell which points no stronger (or equal and earlier) one shares a window with."""
    from scipy.spatial import cKDTree

    # In units of half a window, "in the window" is a chessboard distance below 1.
    tree = cKDTree(voxel / (np.asarray(cell) / 2))
    pairs = tree.query_pairs(1 - 1e-9, p=math.inf, output_type="ndarray")
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    loses = np.where(value[second] > value[first], first, second)
    keep = np.ones(len(voxel), dtype=bool)
    keep[loses] = False
    return keep


def _centroid(values: FloatArray, voxel: IntArray, ball: IntArray, threshold: float) -> FloatArray:
    """Shift (n, 3) in voxels from a point to the centroid of what is above threshold around it."""
    index = voxel[:, None] + ball
    weight = np.maximum(values[tuple(np.moveaxis(index, -1, 0))] - threshold, 0)
    total = weight.sum(axis=1)
    moment = (weight[..., None] * ball).sum(axis=1)
    return np.asarray(moment / np.maximum(total, 1e-300)[:, None])

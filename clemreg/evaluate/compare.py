"""How far apart two transforms send the same points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import FrameError
from clemreg.evaluate.lattice import Lattice, check_frame
from clemreg.evaluate.statistics import ErrorStats, to_plain
from clemreg.space.grid import Grid, Shape
from clemreg.space.transform import Transform

FloatArray = NDArray[np.float64]

LIMITS_NM = (200.0, 500.0)
BINS = 50


@dataclass(frozen=True, eq=False)
class ComparisonReport:
    """Distance between two transforms at the same points of their source frame.

    Attributes
    ----------
    distance
        Of second minus first, in the target (EM) frame.
    share_below
        Limit in nm to the share of points that are closer than it.
    histogram_edges_nm, histogram_counts
        Points per range of distance: (B + 1,) and (B,).
    n, stride
        Points evaluated, and voxels from one to the next, zyx.
    """

    distance: ErrorStats
    share_below: dict[float, float]
    histogram_edges_nm: FloatArray
    histogram_counts: NDArray[np.int64]
    n: int
    stride: Shape

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares are keyed ``share_below_200_nm`` and so on."""
        shares = {f"share_below_{limit:g}_nm": part for limit, part in self.share_below.items()}
        return to_plain(
            {
                **self.distance.to_json(),
                **shares,
                "histogram": {
                    "edges_nm": self.histogram_edges_nm,
                    "counts": self.histogram_counts,
                },
                "stride": list(self.stride),
            }
        )


def compare_transforms(
    first: Transform,
    second: Transform,
    grid: Grid,
    mask: NDArray[Any] | None = None,
    *,
    n: int | None = 1_000_000,
) -> ComparisonReport:
    """Measure the distance between two transforms, for example from two light channels.

    Parameters
    ----------
    first, second
        Both from and to the same frames.
    grid
        The LM grid, in their source frame.
    mask
        zyx on `grid`, not 0 where to evaluate; None for everywhere.
    n
        About how many points, on a lattice of every k-th voxel; None for every voxel.

    Returns
    -------
    ComparisonReport

    Raises
    ------
    FrameError
        The frames differ.
    DataError, GridError
        The mask is empty or not on the grid.
    """
    _check(first, second, grid)
    lattice = Lattice.choose(grid, mask, n)
    difference = lattice.evaluate(lambda points: second(points) - first(points))
    distance = np.linalg.norm(difference, axis=1)
    counts, edges = np.histogram(distance, bins=BINS, range=(0.0, max(float(distance.max()), 1e-9)))
    return ComparisonReport(
        distance=ErrorStats.of(difference),
        share_below={limit: float((distance < limit).mean()) for limit in LIMITS_NM},
        histogram_edges_nm=edges,
        histogram_counts=counts.astype(np.int64),
        n=len(distance),
        stride=lattice.stride,
    )


def distance_map(
    first: Transform,
    second: Transform,
    grid: Grid,
    mask: NDArray[Any] | None = None,
    *,
    n: int | None = 200_000,
) -> tuple[FloatArray, Grid]:
    """Distance in nm as an image, for figures.

    Parameters
    ----------
    first, second, grid, mask, n
        As for `compare_transforms`.

    Returns
    -------
    array, Grid
        zyx with NaN outside the mask, and the grid of its voxels (every k-th of `grid`).

    Raises
    ------
    FrameError, DataError, GridError
        As `compare_transforms`.
    """
    _check(first, second, grid)
    lattice = Lattice.choose(grid, mask, n)
    values = lattice.fill(lambda points: np.linalg.norm(second(points) - first(points), axis=1))
    return values, lattice.points_grid


def _check(first: Transform, second: Transform, grid: Grid) -> None:
    check_frame(first, grid)
    if (first.source, first.target) != (second.source, second.target):
        raise FrameError(
            f"cannot compare {first.source!r} -> {first.target!r} with "
            f"{second.source!r} -> {second.target!r}",
            hint="both transforms must map the same frames; one may need .inverse()",
        )

"""Local volume change of a transform: determinant of its spatial derivative, folds, affine part."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.evaluate.lattice import Lattice, check_frame
from clemreg.evaluate.statistics import to_plain
from clemreg.space.fits import best_affine
from clemreg.space.grid import Grid, Shape
from clemreg.space.transform import Affine, Transform

FloatArray = NDArray[np.float64]

PERCENTILES = {"p0_1": 0.1, "p1": 1.0, "p50": 50.0, "p99": 99.0, "p99_9": 99.9}
_FIT_POINTS = 50_000


@dataclass(frozen=True)
class DeterminantStats:
    """Distribution of a Jacobian determinant; 1 keeps volume, 0 or less is a fold.

    Attributes
    ----------
    min, p0_1, p1, p50, p99, p99_9, max
        Extremes and percentiles (linear interpolation).
    mean, sd
        Mean and standard deviation.
    fold_fraction
        Share of the points where the determinant is 0 or negative. Of a mirroring transform, the
        share where it is 0 or positive.
    """

    min: float
    p0_1: float
    p1: float
    p50: float
    p99: float
    p99_9: float
    max: float
    mean: float
    sd: float
    fold_fraction: float

    @classmethod
    def of(cls, determinants: ArrayLike, *, mirrored: bool = False) -> DeterminantStats:
        """Sum up determinants (N,); `mirrored` says which sign is the fold."""
        values = np.asarray(determinants, dtype=np.float64)
        folded = values >= 0 if mirrored else values <= 0
        levels = np.percentile(values, list(PERCENTILES.values()))
        return cls(
            min=float(values.min()),
            max=float(values.max()),
            mean=float(values.mean()),
            sd=float(values.std()),
            fold_fraction=float(folded.mean()),
            **{key: float(level) for key, level in zip(PERCENTILES, levels, strict=True)},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; percentiles are keyed ``p0.1`` to ``p99.9``."""
        return to_plain(
            {
                f.name.replace("_", ".") if f.name in PERCENTILES else f.name: getattr(self, f.name)
                for f in fields(self)
            }
        )


@dataclass(frozen=True, eq=False)
class JacobianReport:
    """Volume change of a transform over a grid or a mask.

    Attributes
    ----------
    with_affine
        Of the transform as it is.
    without_affine
        After removing the best affine: divided by that affine's determinant, so 1 is where the
        deformation keeps the volume.
    affine
        The best affine: least squares to the transform on a lattice of about 50 000 points over
        the whole grid, also where a mask is given. (Fitted to an irregular mask it would follow
        the mask's shape, and its determinant would be far from the mean of the determinants.)
    n, stride
        Points evaluated, and voxels from one to the next, zyx.
    """

    with_affine: DeterminantStats
    without_affine: DeterminantStats
    affine: Affine
    n: int
    stride: Shape

    def to_json(self) -> dict[str, Any]:
        """Return the ``jacobian`` object of ``report.json``, with how it was sampled."""
        return to_plain(
            {
                "with_affine": self.with_affine,
                "without_affine": self.without_affine,
                "affine_determinant": np.linalg.det(self.affine.linear),
                "n": self.n,
                "stride": list(self.stride),
            }
        )


def evaluate_jacobian(
    transform: Transform, grid: Grid, mask: NDArray[Any] | None = None, *, n: int | None = 1_000_000
) -> JacobianReport:
    """Measure the Jacobian determinant, with the affine part and without it.

    The derivative is analytic at every evaluated point. The points are a lattice of every k-th
    voxel (`JacobianReport.stride`); the determinant varies on the scale of the control points, so
    a lattice that is finer than these misses little of the extremes.

    Parameters
    ----------
    transform
        Any; evaluated on its source side.
    grid
        The LM grid, in the transform's source frame.
    mask
        zyx on `grid`, not 0 where to evaluate (where there is a cell); None for everywhere.
    n
        About how many points; None for every voxel. Memory is 8 bytes per point.

    Returns
    -------
    JacobianReport

    Raises
    ------
    FrameError
        The grid is not in the transform's source frame.
    DataError, GridError
        The mask is empty or not on the grid.
    """
    check_frame(transform, grid)
    lattice = Lattice.choose(grid, mask, n)
    determinant = lattice.evaluate(transform.determinant)
    everywhere = Lattice.choose(grid, None, _FIT_POINTS)
    affine = best_affine(transform, everywhere.evaluate(np.array))
    volume = float(np.linalg.det(affine.linear))
    return JacobianReport(
        with_affine=DeterminantStats.of(determinant, mirrored=affine.is_mirrored),
        without_affine=DeterminantStats.of(determinant / volume),
        affine=affine,
        n=len(determinant),
        stride=lattice.stride,
    )


def jacobian_map(
    transform: Transform,
    grid: Grid,
    mask: NDArray[Any] | None = None,
    *,
    affine: Affine | None = None,
    n: int | None = 200_000,
) -> tuple[FloatArray, Grid]:
    """Map the determinant as an image, for figures.

    Parameters
    ----------
    transform, grid, mask, n
        As for `evaluate_jacobian`.
    affine
        Divide by this affine's determinant, such as `JacobianReport.affine`.

    Returns
    -------
    array, Grid
        zyx with NaN outside the mask, and the grid of its voxels (every k-th of `grid`).

    Raises
    ------
    FrameError, DataError, GridError
        As `evaluate_jacobian`.
    """
    check_frame(transform, grid)
    lattice = Lattice.choose(grid, mask, n)
    values = lattice.fill(transform.determinant)
    volume = 1.0 if affine is None else float(np.linalg.det(affine.linear))
    return values / volume, lattice.points_grid

"""How well a structure of the EM, carried onto the LM grid, covers the same structure in the LM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, GridError
from clemreg.evaluate.statistics import to_plain
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BLOCK = (64, 256, 256)


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between two surfaces, both ways together.

    Attributes
    ----------
    mean_nm, median_nm, p95_nm, max_nm
        Over the surface voxels of both structures, each to the nearest of the other; the 95th
        percentile and the maximum are the usual Hausdorff distances.
    """

    mean_nm: float
    median_nm: float
    p95_nm: float
    max_nm: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are the attributes."""
        return to_plain(vars(self))


@dataclass(frozen=True)
class OverlapReport:
    """Agreement of two structures on one grid.

    Attributes
    ----------
    dice, jaccard
        Overlap of the two structures, 0 to 1.
    ncc
        Normalised cross correlation of the intensities over the whole grid, -1 to 1; NaN if one
        is constant.
    warped_um3, fixed_um3
        Volumes of the structures.
    surface
        None if one of the structures is empty.
    """

    dice: float
    jaccard: float
    ncc: float
    warped_um3: float
    fixed_um3: float
    surface: SurfaceDistance | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are the attributes."""
        return to_plain(vars(self))


def evaluate_overlap(
    warped: Volume,
    fixed: Volume,
    *,
    warped_threshold: float = 0.5,
    fixed_threshold: float = 0.5,
) -> OverlapReport:
    """Measure the overlap of an EM structure on the LM grid with the LM's own.

    Both are read block by block.

    Parameters
    ----------
    warped
        EM mask or probability, resampled onto the LM grid; zyx.
    fixed
        LM mask or intensity; zyx on the same grid.
    warped_threshold, fixed_threshold
        A voxel belongs to the structure from this value on.

    Returns
    -------
    OverlapReport

    Raises
    ------
    GridError
        The grids differ, or a volume has channels.
    DataError
        A value is NaN, or both structures are empty.
    """
    _check(warped, fixed)
    sums = _Sums()
    surfaces: tuple[list[FloatArray], list[FloatArray]] = ([], [])
    for box in fixed.grid.box.tiles(BLOCK):
        halo = box.grow(1).clip(fixed.shape)
        core = box.shift(tuple(-s for s in halo.start))
        a, b = _read(warped, halo), _read(fixed, halo)
        sums.add(a[core.slices], b[core.slices], warped_threshold, fixed_threshold)
        for found, mask in zip(
            surfaces, (a >= warped_threshold, b >= fixed_threshold), strict=True
        ):
            found.append(_surface_points(mask, core, fixed.grid.crop(halo)))
    first, second = (np.concatenate(found) for found in surfaces)
    return sums.report(fixed.grid, _surface_distance(first, second))


def normalised_cross_correlation(warped: Volume, fixed: Volume) -> float:
    """Correlation (-1 to 1) of the intensities of two volumes on one grid; NaN if one is constant.

    Raises
    ------
    GridError
        The grids differ, or a volume has channels.
    DataError
        A value is NaN.
    """
    _check(warped, fixed)
    sums = _Sums()
    for box in fixed.grid.box.tiles(BLOCK):
        sums.add(_read(warped, box), _read(fixed, box), np.inf, np.inf)
    return sums.ncc


class _Sums:
    """Counts and moments, added up block by block."""

    def __init__(self) -> None:
        self.n = 0
        self.warped = self.fixed = self.both = 0
        self.mean = np.zeros(2)
        self.moments = np.zeros((2, 2))

    def add(self, a: FloatArray, b: FloatArray, a_from: float, b_from: float) -> None:
        in_a, in_b = a >= a_from, b >= b_from
        self.warped += int(in_a.sum())
        self.fixed += int(in_b.sum())
        self.both += int((in_a & in_b).sum())
        values = np.stack([a.ravel(), b.ravel()])
        # Means and co-moments of the parts, merged (Chan et al.): no large sums cancel.
        count, mean = values.shape[1], values.mean(axis=1)
        centred = values - mean[:, None]
        step = mean - self.mean
        total = self.n + count
        self.moments += centred @ centred.T + np.outer(step, step) * self.n * count / total
        self.mean = self.mean + step * count / total
        self.n = total

    @property
    def ncc(self) -> float:
        scale = np.sqrt(self.moments[0, 0] * self.moments[1, 1])
        return float(self.moments[0, 1] / scale) if scale > 0 else float("nan")

    def report(self, grid: Grid, surface: SurfaceDistance | None) -> OverlapReport:
        union = self.warped + self.fixed - self.both
        if union == 0:
            raise DataError(
                "neither volume reaches its threshold anywhere", hint="lower the thresholds"
            )
        voxel_um3 = float(np.prod(np.asarray(grid.spacing_nm) / 1e3))
        return OverlapReport(
            dice=2 * self.both / (self.warped + self.fixed),
            jaccard=self.both / union,
            ncc=self.ncc,
            warped_um3=self.warped * voxel_um3,
            fixed_um3=self.fixed * voxel_um3,
            surface=surface,
        )


def _check(warped: Volume, fixed: Volume) -> None:
    if warped.channels or fixed.channels:
        raise GridError("overlap needs volumes without channels", hint="choose one with .channel()")
    a, b = warped.grid, fixed.grid
    close = np.allclose(a.index_to_world, b.index_to_world, rtol=1e-9, atol=1e-6)
    if a.shape != b.shape or a.frame != b.frame or not close:
        raise GridError(
            f"the volumes are on different grids: {a} and {b}",
            hint="resample one onto the other first",
        )


def _read(volume: Volume, box: Box) -> FloatArray:
    values = np.asarray(volume.read(box), dtype=np.float64)
    if np.isnan(values).any():
        raise DataError(f"{volume.name or 'volume'} holds NaN in {box}")
    return values


def _surface_points(mask: BoolArray, core: Box, grid: Grid) -> FloatArray:
    """World positions (N, 3) of voxels of `mask` in `core` with a face neighbour outside it.

    What lies beyond the volume counts as inside, so that a cut face is no surface.
    """
    padded = np.pad(mask, 1, mode="constant", constant_values=True)
    enclosed = np.ones_like(mask)
    for axis in range(3):
        for start in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(start, start + mask.shape[axis])
            enclosed &= padded[tuple(window)]
    surface = (mask & ~enclosed)[core.slices]
    return grid.crop(core).to_world(np.argwhere(surface))


def _surface_distance(first: FloatArray, second: FloatArray) -> SurfaceDistance | None:
    from scipy.spatial import cKDTree

    if not len(first) or not len(second):
        return None
    there, _ = cKDTree(second).query(first)
    back, _ = cKDTree(first).query(second)
    distance = np.concatenate([there, back])
    median, p95 = np.percentile(distance, [50, 95])
    return SurfaceDistance(float(distance.mean()), float(median), float(p95), float(distance.max()))

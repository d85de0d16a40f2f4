"""BigWarp landmarks sampled from a transform, and how well their spline reproduces it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clemreg.errors import DataError
from clemreg.io.points import write_bigwarp
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import FloatArray, Transform

# BigWarp solves a dense system and evaluates every landmark at every voxel.
MOST_LANDMARKS = 1500


@dataclass(frozen=True)
class SplineError:
    """Distance between a transform and the thin-plate spline of its landmarks, in nm.

    Attributes
    ----------
    landmarks
        How many were written.
    mean_nm, max_nm
        Half way between the landmarks, where it is worst.
    """

    landmarks: int
    mean_nm: float
    max_nm: float

    def __str__(self) -> str:
        return f"{self.landmarks} landmarks, mean {self.mean_nm:.1f} nm, max {self.max_nm:.1f} nm"


def write_sampled_landmarks(
    transform: Transform, grid: Grid, path: Path, spacing_nm: float
) -> SplineError:
    """Place landmarks on a lattice over the LM grid and write them for BigWarp.

    Parameters
    ----------
    transform
        LM to EM.
    grid
        LM grid; the lattice reaches to the outer faces of its voxels.
    spacing_nm
        Distance between landmarks, widened so that there are at most 1500.

    Raises
    ------
    DataError
        The spacing is not positive.
    """
    if not spacing_nm > 0:
        raise DataError(f"landmark spacing must be positive, got {spacing_nm} nm")
    half_voxel = np.asarray(grid.spacing_nm) / 2
    low, high = grid.corners_nm()[[0, -1]] + [-half_voxel, half_voxel]
    counts = np.maximum(2, np.ceil((high - low) / spacing_nm).astype(int) + 1)
    while counts.prod() > MOST_LANDMARKS:
        counts[np.argmax(counts)] -= 1
    lm = _lattice(low, high, counts)
    em = transform(lm)
    names = tuple(f"Pt-{i}" for i in range(len(lm)))
    write_bigwarp(Landmarks(names, lm, em), path)
    spline = ThinPlateSpline(lm, em, transform.source, transform.target)
    step = (high - low) / (counts - 1)
    between = _lattice(low + step / 2, high - step / 2, counts - 1)
    error = np.linalg.norm(spline(between) - transform(between), axis=1)
    return SplineError(len(lm), float(error.mean()), float(error.max()))


def _lattice(low: FloatArray, high: FloatArray, counts: FloatArray) -> FloatArray:
    axes = [np.linspace(a, b, int(n)) for a, b, n in zip(low, high, counts, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)

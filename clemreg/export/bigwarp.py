"""BigWarp: landmarks sampled from a transform, their spline's error, and project files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clemreg.errors import DataError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.bigwarp import bigwarp_transform
from clemreg.io.points import write_bigwarp
from clemreg.io.xyz import flip
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import FloatArray, Transform
from clemreg.units import nm_per

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
    transform: Transform, grid: Grid, path: Path, spacing_nm: float, *, unit: str = "um"
) -> SplineError:
    """Place landmarks on a lattice over the LM grid and write them for BigWarp.

    Parameters
    ----------
    transform
        LM to EM.
    grid
        LM grid; the lattice reaches to the outer faces of its voxels.
    path
        A landmark table, or a transform file with the suffix ``.json``.
    spacing_nm
        Distance between landmarks, widened so that there are at most 1500.
    unit
        Unit of the coordinates in the file.

    Raises
    ------
    DataError
        The spacing is not positive.
    """
    landmarks, error = sample_landmarks(transform, grid, spacing_nm)
    write_bigwarp(landmarks, path, unit=unit)
    return error


def sample_landmarks(
    transform: Transform, grid: Grid, spacing_nm: float
) -> tuple[Landmarks, SplineError]:
    """Return landmarks on a lattice over the LM grid, and the error of their spline."""
    if not spacing_nm > 0:
        raise DataError(f"landmark spacing must be positive, got {spacing_nm} nm")
    half_voxel = np.asarray(grid.spacing_nm) / 2
    low, high = grid.corners_nm()[[0, -1]] + [-half_voxel, half_voxel]
    counts = np.maximum(2, np.ceil((high - low) / spacing_nm).astype(int) + 1)
    while counts.prod() > MOST_LANDMARKS:
        counts[np.argmax(counts)] -= 1
    lm = _lattice(low, high, counts)
    em = transform(lm)
    landmarks = Landmarks(tuple(f"Pt-{i}" for i in range(len(lm))), lm, em)
    spline = ThinPlateSpline(lm, em, transform.source, transform.target)
    step = (high - low) / (counts - 1)
    between = _lattice(low + step / 2, high - step / 2, counts - 1)
    distance = np.linalg.norm(spline(between) - transform(between), axis=1)
    return landmarks, SplineError(len(lm), float(distance.mean()), float(distance.max()))


def _lattice(low: FloatArray, high: FloatArray, counts: FloatArray) -> FloatArray:
    axes = [np.linspace(a, b, int(n)) for a, b, n in zip(low, high, counts, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True)
class BigWarpImage:
    """An image as a BigWarp project names it.

    Attributes
    ----------
    path
        A file or folder that BigWarp opens: TIFF, BigDataViewer XML, N5, OME-Zarr.
    name
        Shown in the viewer.
    """

    path: Path
    name: str


def write_bigwarp_project(
    path: Path,
    moving: BigWarpImage,
    target: BigWarpImage,
    landmarks: Landmarks,
    *,
    unit: str = "um",
) -> None:
    """Write a project that opens EM (moving) and LM (target) with their landmarks.

    Parameters
    ----------
    path
        The ``.json`` file, opened with *Plugins > BigDataViewer > Big Warp*.
    moving, target
        The images; both in `unit`, since BigWarp takes the numbers of a file as they are.
    landmarks
        Pairs; the current transform is their thin-plate spline.
    unit
        Unit of the coordinates.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    sources = {
        str(number): {
            "uri": image.path.resolve().as_posix(),
            "name": image.name,
            "isMoving": number == 0,
        }
        for number, image in enumerate((moving, target))
    }
    points = (flip(side) / nm_per(unit) for side in (landmarks.em_nm, landmarks.lm_nm))
    project = {"Sources": sources, "Transform": bigwarp_transform(landmarks, *points)}
    atomic_write_text(path, json.dumps(project, indent=1) + "\n")

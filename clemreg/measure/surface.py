"""Surface area from counts of voxel pairs that straddle a surface (Crofton, and voxel faces)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Box

_STEPS = (-1, 0, 1)
DIRECTIONS = tuple(d for d in itertools.product(_STEPS, _STEPS, _STEPS) if d > (0, 0, 0))
"""The 13 neighbours (zyx) that come later in scan order; the other 13 are their opposites."""

FACES = tuple(DIRECTIONS.index(d) for d in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
"""Which of the directions are neighbours across a face, for z, y, x."""


def neighbour_pairs(
    core: Box, window: Box, direction: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices into the array of `window` of the pairs (v, v + direction) with v in `core`.

    Pairs whose second voxel lies outside `window` are left out.
    """
    back = tuple(-d for d in direction)
    first = core.intersect(window.shift(back))
    local = first.shift(tuple(-s for s in window.start))
    return local.slices, local.shift(direction).slices


@cache
def crofton_weights(spacing_nm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Area in nm2 that one straddling pair along each of the 13 directions stands for, (13,).

    The Cauchy-Crofton formula makes the area of a surface twice the mean, over directions, of the
    number of times it crosses lines of that direction, times the area per line. Thirteen directions
    are weighed by the part of the sphere nearest to each (spherical Voronoi cells), in nm, so
    that any voxel shape is right. Exact on average over orientations, hence for a sphere; a
    plane along an axis comes out 7 % too small with cubes and 9 % with 5.24 x 4 x 4 nm.

    References
    ----------
    Legland, Kieu and Devaux (2007), Computation of Minkowski measures on 2D and 3D binary images,
    Image Anal. Stereol. 26:83-92.
    """
    from scipy.spatial import SphericalVoronoi

    steps = np.asarray(DIRECTIONS) * np.asarray(spacing_nm)
    lengths = np.linalg.norm(steps, axis=1)
    units = steps / lengths[:, None]
    areas = SphericalVoronoi(np.vstack([units, -units])).calculate_areas()
    share = (areas[:13] + areas[13:]) / areas.sum()
    weights: NDArray[np.float64] = 2 * share * np.prod(spacing_nm) / lengths
    return weights


@cache
def face_areas(spacing_nm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Area in nm2 of the voxel faces across each of the 13 directions; 0 for edges and corners."""
    areas = np.zeros(len(DIRECTIONS))
    areas[list(FACES)] = np.prod(spacing_nm) / np.asarray(spacing_nm)
    return areas


def crossings(
    labels: NDArray[np.integer], core: Box, window: Box
) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Yield (direction, ids that end there) of the pairs that start in `core`.

    A pair between two objects counts for both. Pairs that leave the volume count for none, as in
    the paper.

    Parameters
    ----------
    labels
        Ids in `window`, which holds `core` and one voxel around it where the volume goes on.
    """
    for number, direction in enumerate(DIRECTIONS):
        one, other = neighbour_pairs(core, window, direction)
        a, b = labels[one], labels[other]
        differ = a != b
        ends = np.concatenate([a[differ], b[differ]])
        yield number, ends[ends != 0]


def areas_nm2(counts: NDArray[np.integer], weights_nm2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area (N,) of crossings (N, 13); each row by itself, so that its place changes no digit."""
    result: NDArray[np.float64] = (counts * weights_nm2).sum(axis=1)
    return result

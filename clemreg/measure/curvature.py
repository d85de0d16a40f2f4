"""Mean and Gaussian curvature of surfaces, from the mask smoothed at one scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Read
from clemreg.measure.gather import gathered
from clemreg.measure.sheetness import gradient, hessian, smoothed
from clemreg.measure.surface import neighbour_pairs
from clemreg.measure.tables import Table
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

FloatArray = NDArray[np.float64]
_STENCIL = 2


# Sums are of whole numbers, in steps of 2^-20 and of 2^-45, so that they are the same in any order.
_COARSE, _FINE = 2.0**20, 2.0**25


def surface_curvature(
    read: Read, grid: Grid, points: NDArray[np.int64], sigma_nm: float
) -> tuple[FloatArray, FloatArray]:
    """Mean (1/nm) and Gaussian (1/nm2) curvature (N,) of the level sets of the smoothed mask.

    With gradient g and second derivatives H of the smoothed mask f, which falls outwards::

        mean = (g.H g - |g|^2 trace H) / (2 |g|^3),   gauss = g. adj(H) g / |g|^4

    so that a sphere of radius r has 1/r and 1/r^2, and a tube 1/(2 r) and 0 (Goldman 2005).

    Parameters
    ----------
    points
        (N, 3) voxel indices zyx near the surface.
    """
    if not len(points):
        return np.zeros(0), np.zeros(0)
    box = Box(tuple(points.min(0)), tuple(points.max(0) + 1)).grow(_STENCIL)
    field = smoothed(read, grid, box, sigma_nm)
    local = points - np.asarray(box.start)
    g, h = gradient(field, local, grid.spacing_nm), hessian(field, local, grid.spacing_nm)
    size = np.linalg.norm(g, axis=1)
    size = np.where(size > 1e-12, size, np.nan)
    along = np.einsum("ni,nij,nj->n", g, h, g)
    trace = np.trace(h, axis1=1, axis2=2)
    # The adjugate of a symmetric matrix: H^2 - H tr H + (tr^2 H - tr H^2) / 2.
    square = h @ h
    half = (trace**2 - np.trace(square, axis1=1, axis2=2)) / 2
    adjugate = square - h * trace[:, None, None] + half[:, None, None] * np.eye(3)
    gauss = np.einsum("ni,nij,nj->n", g, adjugate, g) / size**4
    return (along - size**2 * trace) / (2 * size**3), gauss


def curvature_histogram(
    mask: Volume,
    sigma_nm: float,
    edges_per_nm: FloatArray,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Table:
    """Count surface voxels by mean curvature.

    A surface voxel is one of the object with a face to the background.

    Parameters
    ----------
    sigma_nm
        Scale: finer bends are smoothed away, and so are parts thinner than about twice this.
    edges_per_nm
        (M + 1,) rising edges of the bins; voxels beyond count in the outermost bins.

    Returns
    -------
    Table
        ``curvature_from_per_nm``, ``curvature_to_per_nm``, ``voxels``, ``gauss_mean_per_nm2``.
    """
    how = how or Blockwise()
    edges = np.asarray(edges_per_nm, float)
    work = _Curvature(mask, sigma_nm, edges)
    job = f"curvature {mask.name} {mask.grid} {sigma_nm} {edges.tolist()}"
    with gathered(work, how.blocks(mask.grid), how, job=job, scratch=scratch) as parts:
        count = np.sum([part["count"] for part in parts], axis=0)
        coarse, fine = (np.sum([part[n] for part in parts], axis=0) for n in ("coarse", "fine"))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (coarse + fine / _FINE) / _COARSE / count
    return Table.of(
        curvature_from_per_nm=edges[:-1],
        curvature_to_per_nm=edges[1:],
        voxels=count,
        gauss_mean_per_nm2=mean,
    )


@dataclass(frozen=True)
class _Curvature:
    mask: Volume
    sigma_nm: float
    edges: FloatArray

    def __call__(self, block: Block) -> Part:
        window = block.core.grow(1).clip(self.mask.shape)
        inside = self.mask.read(window) != 0
        surface = np.zeros(inside.shape, bool)
        box = Box.of_shape(inside.shape)
        for direction in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            one, other = neighbour_pairs(box, box, direction)
            differ = inside[one] != inside[other]
            surface[one] |= differ & inside[one]
            surface[other] |= differ & inside[other]
        inner = block.core.shift([-s for s in window.start]).slices
        points = np.argwhere(surface[inner]) + np.asarray(block.core.start)
        mean, gauss = surface_curvature(self.mask.read, self.mask.grid, points, self.sigma_nm)
        known = np.isfinite(mean)
        bins = len(self.edges) - 1
        place = np.clip(np.searchsorted(self.edges, mean[known], side="right") - 1, 0, bins - 1)
        coarse = np.floor(gauss[known] * _COARSE)
        fine = np.rint((gauss[known] * _COARSE - coarse) * _FINE)
        sums = [np.bincount(place, part, bins).astype(np.int64) for part in (coarse, fine)]
        return {
            "count": np.bincount(place, minlength=bins),
            "coarse": sums[0],
            "fine": sums[1],
        }

"""How sheet-like an object is around a point: multi-scale second derivatives of its mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.distance import halo_voxels
from clemreg.blocks.stages import Read
from clemreg.errors import ConfigError
from clemreg.space.grid import Box, Grid

FloatArray = NDArray[np.float64]
ScaleRule = Literal["heinrich2021", "exact"]
_TRUNCATE = 4.0
_STENCIL = 2


@dataclass(frozen=True)
class SheetnessOptions:
    """Scales and the weights of the three terms.

    Attributes
    ----------
    smallest_sigma_nm
        First scale; half a voxel of 4 nm in the paper.
    scales
        Number of scales, each the square root of 2 times the one before.
    scale_rule
        ``"heinrich2021"``: second derivatives are multiplied by the sum of the squares of all
        sigmas so far, which is about twice sigma^2, and the first scale is not smoothed, as in the
        paper's program; its cut at 0.6 rests on that. ``"exact"``: by sigma^2, the scale-space
        norm; the best sheet then reaches 0.37.
    sheet, blob, noise
        Widths (alpha, beta, c) of the three exponentials.

    Raises
    ------
    ConfigError
        A value is impossible.
    """

    smallest_sigma_nm: float = 2.0
    scales: int = 12
    scale_rule: ScaleRule = "heinrich2021"
    sheet: float = 0.5
    blob: float = 0.5
    noise: float = 0.5

    def __post_init__(self) -> None:
        if self.scales < 1 or not self.smallest_sigma_nm > 0:
            raise ConfigError("sheetness needs at least one scale, with a sigma above 0 nm")
        if min(self.sheet, self.blob, self.noise) <= 0:
            raise ConfigError("the widths of the sheetness terms must be above 0")
        if self.scale_rule not in ("heinrich2021", "exact"):
            raise ConfigError(f"scale rule {self.scale_rule!r}, expected heinrich2021 or exact")

    def sigmas_nm(self) -> list[tuple[float, float]]:
        """Smoothing, and factor sigma of the norm, of every scale in nm."""
        sigma = [self.smallest_sigma_nm * 2 ** (i / 2) for i in range(self.scales)]
        if self.scale_rule == "exact":
            return [(s, s) for s in sigma]
        norms = np.sqrt(np.cumsum(np.square(sigma)))
        return [
            (math.sqrt(max(s * s - sigma[0] ** 2, 0.0)), float(n))
            for s, n in zip(sigma, norms, strict=True)
        ]


def sheetness(
    read: Read, grid: Grid, points: NDArray[np.int64], options: SheetnessOptions
) -> FloatArray:
    """Sheetness (N,) at voxels: 0 for tubes and blobs, high in the middle of sheets.

    With the eigenvalues |l0| <= |l1| <= |l2| of the matrix of second derivatives, normed by scale::

        S = exp(-Rsheet^2 / 2 a^2) (1 - exp(-Rblob^2 / 2 b^2)) (1 - exp(-Rnoise^2 / 2 c^2))
        Rsheet = |l1 / l2|,  Rblob = |2 |l2| - |l1| - |l0|| / |l2|,  Rnoise = sqrt(l0^2+l1^2+l2^2)

    where l2 is negative, else 0; the largest over all scales (Descoteaux et al. 2006, with the
    constants of Heinrich et al. 2021). Derivatives are central differences of central differences.

    Parameters
    ----------
    read
        Gives the mask (not 0: object) of any box inside the volume; outside is background.
    points
        (N, 3) voxel indices zyx.
    """
    best = np.zeros(len(points))
    if not len(points):
        return best
    tight = Box(tuple(points.min(0)), tuple(points.max(0) + 1))
    for smooth_nm, norm_nm in options.sigmas_nm():
        field = smoothed(read, grid, tight.grow(_STENCIL), smooth_nm)
        local = points - np.asarray(tight.start) + _STENCIL
        second = hessian(field, local, grid.spacing_nm)
        eigenvalues = np.asarray(np.linalg.eigvalsh(second) * norm_nm**2, np.float64)
        best = np.maximum(best, response(eigenvalues, options))
    return best


def smoothed(read: Read, grid: Grid, box: Box, sigma_nm: float) -> NDArray[np.float32]:
    """Gaussian-smoothed mask over a box, which may reach outside; cut axis by axis to save work."""
    from scipy.ndimage import gaussian_filter1d

    radius = halo_voxels(_TRUNCATE * sigma_nm, grid.spacing_nm)
    window = box.grow(radius)
    inside = window.clip(grid.shape)
    array = np.zeros(window.shape, np.float32)
    if inside.size:
        array[inside.shift([-s for s in window.start]).slices] = read(inside) != 0
    for axis in range(3):
        if radius[axis]:
            sigma = sigma_nm / grid.spacing_nm[axis]
            array = gaussian_filter1d(array, sigma, axis=axis, radius=radius[axis], mode="constant")
            array = array[(slice(None),) * axis + (slice(radius[axis], -radius[axis]),)]
    return array


def hessian(
    field: NDArray[np.float32], points: NDArray[np.int64], spacing_nm: tuple[float, float, float]
) -> FloatArray:
    """Second derivatives (N, 3, 3) per nm2 at voxels that are 2 or more away from the border."""

    def at(*steps: tuple[int, int]) -> FloatArray:
        index = points.copy()
        for axis, step in steps:
            index[:, axis] += step
        return np.asarray(field[tuple(index.T)], dtype=np.float64)

    result = np.empty((len(points), 3, 3))
    middle = at()
    for i in range(3):
        result[:, i, i] = (at((i, 2)) - 2 * middle + at((i, -2))) / (2 * spacing_nm[i]) ** 2
        for j in range(i):
            mixed = at((i, 1), (j, 1)) - at((i, 1), (j, -1)) - at((i, -1), (j, 1))
            mixed += at((i, -1), (j, -1))
            result[:, i, j] = result[:, j, i] = mixed / (4 * spacing_nm[i] * spacing_nm[j])
    return result


def gradient(
    field: NDArray[np.float32], points: NDArray[np.int64], spacing_nm: tuple[float, float, float]
) -> FloatArray:
    """First derivatives (N, 3) per nm at voxels that are 1 or more away from the border."""
    result = np.empty((len(points), 3))
    for axis in range(3):
        step = np.zeros(3, np.int64)
        step[axis] = 1
        ahead, behind = field[tuple((points + step).T)], field[tuple((points - step).T)]
        result[:, axis] = (ahead.astype(float) - behind) / (2 * spacing_nm[axis])
    return result


def response(eigenvalues: FloatArray, options: SheetnessOptions) -> FloatArray:
    """Sheetness (N,) from eigenvalues (N, 3) of the normed second derivatives."""
    order = np.argsort(np.abs(eigenvalues), axis=1)
    l0, l1, l2 = np.take_along_axis(eigenvalues, order, axis=1).T
    size = np.abs(l2)
    bright = l2 < 0
    divisor = np.where(bright, size, 1.0)
    sheet = np.abs(l1) / divisor
    blob = np.abs(2 * size - np.abs(l1) - np.abs(l0)) / divisor
    noise = np.sqrt(l0**2 + l1**2 + l2**2)
    value = (
        np.exp(-(sheet**2) / (2 * options.sheet**2))
        * (1 - np.exp(-(blob**2) / (2 * options.blob**2)))
        * (1 - np.exp(-(noise**2) / (2 * options.noise**2)))
    )
    return np.where(bright, value, 0.0)

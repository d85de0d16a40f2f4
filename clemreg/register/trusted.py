"""Averages and blurs that take nothing from where an image cannot be trusted.

A sum over trusted voxels is divided by how many there are (normalised convolution; Knutsson and
Westin, CVPR 1993). Far from all of them the result is their mean, which says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from clemreg.space.grid import Grid
from clemreg.space.resample import pool_mean, sample_array
from clemreg.space.transform import FloatArray

Image = NDArray[np.float32]
Mask = NDArray[np.bool_] | None
"""Where an image can be trusted; None is everywhere."""

_LITTLE = 1e-3  # weight of the mean of all trusted voxels, against 1 for those of the neighbourhood
_HALF = 0.5


def blur(image: Image, mask: Mask, sigma: ArrayLike, truncate: float = 4.0) -> Image:
    """Blur (z, y, x) by a Gaussian of `sigma` voxels, each axis its own or all the same."""

    def smooth(values: Image) -> Image:
        result: Image = ndimage.gaussian_filter(values, sigma, mode="nearest", truncate=truncate)
        return result

    if mask is None:
        return smooth(image)
    return _ratio(smooth(_cut(image, mask)), smooth(mask.astype(np.float32)), image, mask)


def filled(image: Image, mask: Mask) -> Image:
    """Put the blurred surroundings where an image cannot be trusted: now it may be interpolated."""
    return image if mask is None else np.where(mask, image, blur(image, mask, 1.0))


def pool(image: Image, mask: Mask, factor: Sequence[int]) -> tuple[Image, Mask]:
    """Average blocks of voxels; those that are half trusted or more are trusted."""
    if mask is None:
        return np.asarray(pool_mean(image, factor)), None
    weight = np.asarray(pool_mean(mask.astype(np.float32), factor), np.float32)
    sums = np.asarray(pool_mean(_cut(image, mask), factor), np.float32)
    return _ratio(sums, weight, image, mask), weight >= _HALF


def mask_onto(mask: NDArray[np.bool_], of: Grid, grid: Grid) -> NDArray[np.bool_]:
    """Bring a mask onto another grid of its frame by nearest voxel; nothing is beyond its ends."""
    planes = []
    for z in range(grid.shape[0]):
        plane = np.meshgrid([z], *(np.arange(n) for n in grid.shape[1:]), indexing="ij")
        points = grid.to_world(np.stack(plane, -1).reshape(-1, 3))
        planes.append(sample_array(mask, of, points, order=0).reshape(grid.shape[1:]))
    return np.stack(planes)


def trusted_at(mask: Mask, index: FloatArray) -> NDArray[np.bool_]:
    """Whether places (3, N), as indices into the mask, are nearest to a trusted voxel of it."""
    if mask is None:
        return np.ones(index.shape[1], dtype=bool)
    last = np.asarray(mask.shape)[:, None] - 1
    nearest = np.clip(np.rint(index).astype(np.intp), 0, last)
    return np.asarray(mask[tuple(nearest)])


def trusted_share(mask: Mask) -> float:
    """Share of the voxels that can be trusted."""
    return 1.0 if mask is None else float(mask.mean())


def _cut(image: Image, mask: NDArray[np.bool_]) -> Image:
    return np.where(mask, image, np.float32(0)).astype(np.float32)


def _ratio(sums: Image, weight: Image, image: Image, mask: NDArray[np.bool_]) -> Image:
    mean = np.float32(image[mask].mean()) if mask.any() else np.float32(0)
    return np.asarray((sums + _LITTLE * mean) / (weight + _LITTLE), np.float32)

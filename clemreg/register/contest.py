"""Poses that the coarse images cannot tell apart, compared on the images as they were prepared.

A wrong pose matches blurred images half as well as the right one does, or better where the overlap
is small; walls and small organelles it does not match. So each pose is fitted to an affine by a few
Gauss-Newton steps, and scored without blurring.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import RegistrationError
from clemreg.register.matching import EVERYWHERE, Channel, Masks, draw_samples
from clemreg.register.newton import AffineFit, fit_affine
from clemreg.register.pose import Pose, overlap_of
from clemreg.register.trusted import Mask, blur, filled, pool, trusted_at
from clemreg.space.grid import Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Volume

_MOST_VOXELS = 4_000_000
_SMOOTH_UM = (0.15, 0.05)
_FIT = AffineFit(smooth_um=(0.0,), steps=5, samples=10_000)
_SAMPLES = 12_000


class Contest:
    """Fits and scores poses, each by itself.

    Parameters
    ----------
    fixed, moving
        Prepared images; large ones are averaged down.
    masks
        Where they can be trusted, on their grids.
    """

    def __init__(self, fixed: Volume, moving: Volume, masks: Masks = EVERYWHERE) -> None:
        self._fixed, of_fixed = _affordable(fixed, masks.fixed)
        self._moving, of_moving = _affordable(moving, masks.moving)
        self._masks = Masks(of_fixed, of_moving)
        self._levels = [
            Channel(
                _blurred(self._fixed, of_fixed, 1e3 * s), _blurred(self._moving, of_moving, 1e3 * s)
            )
            for s in _SMOOTH_UM
        ]

    def settle(self, pose: Pose) -> Pose:
        """Return the pose fitted, with its score there; 0 if the volumes hardly overlap."""
        affine = Affine(pose.matrix, self._fixed.grid.frame, self._moving.grid.frame)
        try:
            for level in self._levels:
                affine = fit_affine([level], self._masks, affine, _FIT, 0)
            return self._scored(affine)
        except RegistrationError:
            return replace(pose, score=0.0, overlap=0.0)

    def _scored(self, affine: Affine) -> Pose:
        channel = Channel(self._fixed, self._moving)
        rng = np.random.default_rng(0)
        points = draw_samples(rng, channel, self._masks, affine, _SAMPLES, 0.0)
        points = points[_holds(self._masks.moving, self._moving.grid, affine(points))]
        light = sample_array(self._fixed.read(), self._fixed.grid, points)
        dark = sample_array(self._moving.read(), self._moving.grid, affine(points))
        score = float(np.corrcoef(light, dark)[0, 1]) if light.std() * dark.std() > 0 else 0.0
        places = _lattice(self._moving)
        back = affine.inverse()(places[_holds(self._masks.moving, self._moving.grid, places)])
        inside = _holds(self._masks.fixed, self._fixed.grid, back)
        overlap = overlap_of(
            affine.matrix,
            float(inside.mean()) if len(inside) else 0.0,
            self._fixed.grid,
            self._moving.grid,
            self._masks,
        )
        return Pose(affine.matrix, score, overlap)


def _affordable(volume: Volume, mask: Mask) -> tuple[Volume, Mask]:
    image, grid = np.asarray(volume.read(), np.float32), volume.grid
    factor = math.ceil((volume.grid.size / _MOST_VOXELS) ** (1 / 3))
    if factor > 1:
        z, y, x = (min(factor, max(1, n // 4)) for n in volume.shape)
        image, mask = pool(image, mask, (z, y, x))
        grid = grid.downsample((z, y, x))
    return Volume(filled(image, mask), grid, name=volume.name), mask


def _blurred(volume: Volume, mask: Mask, sigma_nm: float) -> Volume:
    sigma = sigma_nm / np.asarray(volume.grid.spacing_nm)
    return Volume(blur(volume.read(), mask, sigma, 3.0), volume.grid, name=volume.name)


def _holds(mask: Mask, grid: Grid, points: FloatArray) -> NDArray[np.bool_]:
    """Whether points (N, 3) lie in a volume, and there where it can be trusted."""
    inside = grid.contains(points)
    return inside if mask is None else inside & trusted_at(mask, grid.to_index(points).T)


def _lattice(volume: Volume) -> FloatArray:
    """Points (N, 3) spread evenly over a volume."""
    at = (np.stack(np.meshgrid(*(np.arange(16),) * 3, indexing="ij"), -1) + 0.5) / 16
    return volume.grid.to_world(at.reshape(-1, 3) * np.asarray(volume.grid.shape) - 0.5)

"""Poses that the coarse images cannot tell apart, compared on the images as they were prepared.

A wrong pose matches blurred images half as well as the right one does, or better where the overlap
is small; walls and small organelles it does not match. So each pose is fitted to an affine by a few
Gauss-Newton steps, and scored without blurring.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import ndimage

from clemreg.errors import RegistrationError
from clemreg.register.matching import Channel, Masks, draw_samples
from clemreg.register.newton import AffineFit, fit_affine
from clemreg.register.pose import Pose, overlap_of
from clemreg.space.resample import pool_mean, sample_array
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
    """

    def __init__(self, fixed: Volume, moving: Volume) -> None:
        self._fixed, self._moving = _affordable(fixed), _affordable(moving)
        self._levels = [
            Channel(_blurred(self._fixed, 1e3 * s), _blurred(self._moving, 1e3 * s))
            for s in _SMOOTH_UM
        ]

    def settle(self, pose: Pose) -> Pose:
        """Return the pose fitted, with its score there; 0 if the volumes hardly overlap."""
        affine = Affine(pose.matrix, self._fixed.grid.frame, self._moving.grid.frame)
        try:
            for level in self._levels:
                affine = fit_affine([level], Masks(), affine, _FIT, 0)
            return self._scored(affine)
        except RegistrationError:
            return replace(pose, score=0.0, overlap=0.0)

    def _scored(self, affine: Affine) -> Pose:
        channel = Channel(self._fixed, self._moving)
        points = draw_samples(np.random.default_rng(0), channel, Masks(), affine, _SAMPLES, 0.0)
        light = sample_array(self._fixed.read(), self._fixed.grid, points)
        dark = sample_array(self._moving.read(), self._moving.grid, affine(points))
        score = float(np.corrcoef(light, dark)[0, 1]) if light.std() * dark.std() > 0 else 0.0
        inside = self._fixed.grid.contains(affine.inverse()(_lattice(self._moving)))
        overlap = overlap_of(
            affine.matrix, float(inside.mean()), self._fixed.grid, self._moving.grid
        )
        return Pose(affine.matrix, score, overlap)


def _affordable(volume: Volume) -> Volume:
    factor = math.ceil((volume.grid.size / _MOST_VOXELS) ** (1 / 3))
    if factor == 1:
        return Volume(np.asarray(volume.read(), np.float32), volume.grid, name=volume.name)
    z, y, x = (min(factor, max(1, n // 4)) for n in volume.shape)
    pooled = pool_mean(volume.read(), (z, y, x))
    return Volume(pooled, volume.grid.downsample((z, y, x)), name=volume.name)


def _blurred(volume: Volume, sigma_nm: float) -> Volume:
    sigma = sigma_nm / np.asarray(volume.grid.spacing_nm)
    image = ndimage.gaussian_filter(volume.read(), sigma, mode="nearest", truncate=3.0)
    return Volume(image, volume.grid, name=volume.name)


def _lattice(volume: Volume) -> FloatArray:
    """Points (N, 3) spread evenly over a volume."""
    at = (np.stack(np.meshgrid(*(np.arange(16),) * 3, indexing="ij"), -1) + 0.5) / 16
    return volume.grid.to_world(at.reshape(-1, 3) * np.asarray(volume.grid.shape) - 0.5)

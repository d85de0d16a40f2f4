"""The random changes that the COSEM paper trained with: turn, bend, contrast, gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError
from clemreg.segment.data import separable_resample
from clemreg.space.grid import Box, Grid

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class AugmentOptions:
    """Ranges, as in the paper.

    Attributes
    ----------
    control_voxels
        Voxels of the EM between control points of the deformation.
    jitter_nm
        Standard deviation of their displacement along each axis.
    rotation
        Range of the rotation about z, in radians.
    subsample
        The deformation is computed at every so many voxels and interpolated linearly.
    contrast, brightness
        Ranges of the factor about the mean, and of what is added; grey values from 0 to 1.
    gamma
        Range of the exponent.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # as a section of a configuration

    control_voxels: int = 100
    jitter_nm: float = 10.0
    rotation: tuple[float, float] = (0.0, np.pi / 2)
    subsample: int = 8
    contrast: tuple[float, float] = (0.25, 1.75)
    brightness: tuple[float, float] = (-0.5, 0.35)
    gamma: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        for name, least in (("control_voxels", 1), ("subsample", 1), ("jitter_nm", 0)):
            value = getattr(self, name)
            if not least <= value < np.inf:
                raise ConfigError(f"{name} = {value}: expected from {least} on")
        for name in ("rotation", "contrast", "brightness", "gamma"):
            low, high = getattr(self, name)
            if not -np.inf < low <= high < np.inf:
                raise ConfigError(
                    f"{name} = {[low, high]}: expected two numbers, the smaller first"
                )
        if self.gamma[0] <= 0:
            raise ConfigError(f"gamma = {list(self.gamma)}: expected above 0")


@dataclass(frozen=True, eq=False)
class Deformation:
    """Where the voxels of an augmented block come from.

    Attributes
    ----------
    grid
        Coarse voxels, a little beyond the EM, at which it was computed.
    positions_nm
        World positions (3, z, y, x) that they are taken from; linear in between.
    """

    grid: Grid
    positions_nm: FloatArray

    def at(self, grid: Grid) -> FloatArray:
        """World positions (3, z, y, x) that the voxels of `grid` are taken from.

        Raises
        ------
        DataError
            The grid reaches farther than the deformation is known.
        """
        index = self.grid.to_index(grid.corners_nm())
        if (index < 0).any() or (index > np.asarray(self.grid.shape) - 1).any():
            raise DataError("the deformation was drawn for a smaller volume")
        low = self.grid.to_index(grid.origin_nm)
        step = np.asarray(grid.spacing_nm) / np.asarray(self.grid.spacing_nm)
        axes = [a + np.arange(n) * k for a, n, k in zip(low, grid.shape, step, strict=True)]
        return np.stack([separable_resample(p, axes, (1.0, 1.0, 1.0)) for p in self.positions_nm])

    def reach_nm(self, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest world position zyx that the voxels of `grid` may be taken from.

        Between coarse voxels positions are linear, so these bound them.
        """
        index = self.grid.to_index(grid.corners_nm())
        low = np.floor(index.min(axis=0) + 1e-6).astype(int)
        high = np.ceil(index.max(axis=0) - 1e-6).astype(int) + 1
        around = Box(tuple(low), tuple(high)).clip(self.grid.shape)
        corners = self.positions_nm[(slice(None), *around.slices)].reshape(3, -1)
        return corners.min(axis=1).astype(float), corners.max(axis=1).astype(float)


def draw_deformation(
    rng: np.random.Generator, grid: Grid, options: AugmentOptions | None = None
) -> Deformation:
    """Draw a deformation of what lies on `grid`, the voxels of the EM.

    Control points are moved by a normal distribution along each axis, with cubic interpolation
    in between, and everything is turned about z, around the middle. EM and annotation are warped
    by one deformation, each on its own voxels.
    """
    options = options or AugmentOptions()
    coarse = _around(grid, options.subsample, 2)
    points = coarse.points_nm()
    control = _around(grid, options.control_voxels, 2)
    index = np.moveaxis(control.to_index(points), -1, 0)
    jitter = rng.normal(scale=options.jitter_nm, size=(3, *control.shape))
    positions = _turned(points - grid.centre_nm, float(rng.uniform(*options.rotation)))
    positions += grid.centre_nm + np.stack([_smooth(c, index) for c in jitter], axis=-1)
    return Deformation(coarse, np.moveaxis(positions, -1, 0).astype(np.float32))


def _around(grid: Grid, voxels: int, margin: int) -> Grid:
    """Points every so many voxels, from the first voxel on, with a margin of points."""
    spacing = np.asarray(grid.spacing_nm) * voxels
    shape = np.ceil(np.asarray(grid.shape) / voxels).astype(int) + 1 + 2 * margin
    origin = np.asarray(grid.origin_nm) - margin * spacing
    return Grid(tuple(shape), tuple(spacing), tuple(origin), grid.frame)


def _turned(offsets_nm: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Turn about z, from y to x."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(offsets_nm @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]))


def _smooth(control: NDArray[np.float64], index: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import map_coordinates

    return np.asarray(map_coordinates(control, index, order=3, mode="nearest"))


def warp(
    values: NDArray[Any], source: Grid, target: Grid, deformation: Deformation
) -> NDArray[Any]:
    """Take the voxels of `target` from where the deformation says.

    Parameters
    ----------
    values
        Voxels (z, y, x) on `source`: integers are labels, taken from the nearest voxel and 0
        (not annotated) outside; fractions are interpolated linearly, and 0 outside.

    Raises
    ------
    DataError
        `values` does not lie on `source`.
    """
    from scipy.ndimage import map_coordinates

    if values.shape != source.shape:
        raise DataError(f"{values.shape} voxels do not lie on a grid of {source.shape}")
    origin, spacing = (
        np.asarray(v, dtype=np.float32)[:, None, None, None]
        for v in (source.origin_nm, source.spacing_nm)
    )
    index = (deformation.at(target) - origin) / spacing
    near = np.rint(index).astype(np.intp)
    limits = np.asarray(values.shape)[:, None, None, None]
    inside = ((near >= 0) & (near < limits)).all(axis=0)
    if values.dtype.kind == "f":
        taken = map_coordinates(values, index, order=1, mode="nearest")
    else:
        z, y, x = np.where(inside, near, 0)
        taken = values[z, y, x]
    return np.where(inside, taken, 0).astype(values.dtype)


def recolour(
    rng: np.random.Generator, em: FloatArray, options: AugmentOptions | None = None
) -> FloatArray:
    """Change contrast about the mean, brightness and gamma, and scale to [-1, 1].

    Parameters
    ----------
    em
        Grey values from 0 to 1.

    Raises
    ------
    DataError
        A value lies outside 0 to 1, or is NaN.
    """
    options = options or AugmentOptions()
    if not (em.min() >= 0 and em.max() <= 1):
        raise DataError(f"grey values reach from {em.min()} to {em.max()}, expected 0 to 1")
    mean = em.mean()
    changed = (em - mean) * rng.uniform(*options.contrast) + mean
    changed = np.clip(changed + rng.uniform(*options.brightness), 0, 1)
    toned = changed ** rng.uniform(*options.gamma)
    return np.asarray(2 * toned - 1, dtype=np.float32)

"""Hostile inputs for tests: nothing is a cube, at the origin, isotropic or upright."""

from __future__ import annotations

import numpy as np

from clemreg.space.bspline import BSpline
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, FloatArray


def hostile_grid(frame: str = "em") -> Grid:
    """Return the default test grid: (11, 17, 23) voxels of 5.24 x 4 x 4 nm, far from the origin."""
    return Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), frame)


def random_rotation(rng: np.random.Generator) -> FloatArray:
    """Draw a proper rotation matrix (3, 3), uniformly."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return np.asarray(q, dtype=np.float64)


def random_affine(
    rng: np.random.Generator, source: str = "lm", target: str = "em", *, mirror: bool = False
) -> Affine:
    """Draw rotation, anisotropic scale, shear and shift; with a negative determinant if asked."""
    scale = np.diag(rng.uniform(0.8, 1.25, 3)) + np.triu(rng.uniform(-0.1, 0.1, (3, 3)), 1)
    linear = random_rotation(rng) @ scale
    if mirror:
        linear = linear @ np.diag([-1.0, 1.0, 1.0])
    return Affine.from_linear(linear, rng.uniform(-500, 500, 3), source, target)


def random_bspline(
    rng: np.random.Generator,
    grid: Grid,
    *,
    amplitude_nm: float = 2.0,
    direction: FloatArray | None = None,
    target: str | None = None,
) -> BSpline:
    """Draw a smooth deformation whose control grid (9, 8, 7) covers `grid` with room to spare."""
    shape = np.array((9, 8, 7))
    direction = np.eye(3) if direction is None else direction
    spacing = np.linalg.norm(grid.extent_nm) * 1.3 / (shape - 3)
    origin = grid.centre_nm - direction @ (spacing * (shape - 1) / 2)
    coefficients = rng.normal(scale=amplitude_nm, size=(3, *shape))
    return BSpline(coefficients, origin, spacing, grid.frame, target or grid.frame, direction)

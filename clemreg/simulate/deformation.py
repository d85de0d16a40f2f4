"""A true transform as sample preparation makes it: affine, then a smooth deformation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clemreg.space.bspline import BSpline
from clemreg.space.fits import best_affine
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain, FloatArray, Transform


@dataclass(frozen=True)
class DeformationOptions:
    """Sizes of the parts of a true transform.

    Attributes
    ----------
    rotation_deg
        Rotation about the optical axis.
    tilt_deg
        Standard deviation of the tilts out of the plane.
    stretch
        Mean scale EM / LM along z, y, x; the published COS-7 affine has 1.11, 1.02, 0.96.
    shear
        Standard deviation of the shears.
    shift_nm
        Standard deviation of the shift.
    displacement_nm
        Root mean square of the displacement by the deformation, over the EM; most of it is slow
        (`wave_nm`). 0.33 um (PALM) and 0.57 um (SIM) in the published COS-7 fields.
    wave_nm
        Length over which the slow part changes.
    knot_nm
        Control point spacing of the deformation: the finest detail.
    jacobian_sd
        Standard deviation of its Jacobian determinant; 0.05 (PALM) and 0.056 (SIM) in the
        published COS-7 fields.
    """

    rotation_deg: float = 17.0
    tilt_deg: float = 3.0
    stretch: tuple[float, float, float] = (0.97, 1.08, 1.04)
    shear: float = 0.02
    shift_nm: float = 200.0
    displacement_nm: float = 500.0
    wave_nm: float = 12_000.0
    knot_nm: float = 2200.0
    jacobian_sd: float = 0.06


def random_transform(
    rng: np.random.Generator,
    lm_centre_nm: FloatArray,
    em_region: Grid,
    options: DeformationOptions,
) -> Transform:
    """Draw ``T(x) = B(A(x))`` from ``"lm"`` to ``"em"`` that brings the LM centre to the EM's.

    Parameters
    ----------
    lm_centre_nm
        (3,) zyx: centre of the LM field.
    em_region
        Where the EM material is; the deformation is defined on all of it and 20 % around.
    """
    angles = np.deg2rad([options.rotation_deg, *rng.normal(scale=options.tilt_deg, size=2)])
    linear = _rotation(*angles) @ np.diag(options.stretch)
    linear = linear @ (np.eye(3) + np.triu(rng.normal(scale=options.shear, size=(3, 3)), 1))
    goal = em_region.centre_nm + rng.normal(scale=options.shift_nm, size=3) * [0.25, 1, 1]
    affine = Affine.from_linear(linear, goal - linear @ lm_centre_nm, "lm", "em")
    return Chain((affine, random_deformation(rng, em_region, options)))


def random_deformation(
    rng: np.random.Generator, region: Grid, options: DeformationOptions
) -> BSpline:
    """Smooth random B-spline within the frame of `region`: a slow wave, and detail upon it.

    Over the region, the displacement has the root mean square and the Jacobian determinant the
    standard deviation asked for. The detail has no affine part; the wave has what a window of a
    larger field has.
    """
    knot = np.minimum(options.knot_nm, np.maximum(region.extent_nm, 1000.0))
    shape = np.ceil(region.extent_nm * 1.4 / knot).astype(int) + 5
    origin = region.centre_nm - (shape - 1) / 2 * knot
    points = _lattice(region, 12)

    def spline(coefficients: FloatArray) -> BSpline:
        return BSpline(coefficients, origin, knot, region.frame, region.frame)

    centres = _nodes(origin, knot, shape)
    detail = rng.normal(size=(3, *shape))
    # Take out the affine part of the detail: it belongs to the affine.
    detail = detail - _on_nodes(best_affine(spline(detail), points), centres, shape)
    wave = _wave(rng, centres, options.wave_nm).reshape(3, *shape)
    displacement = spline(wave)(points) - points
    wave = wave * options.displacement_nm / np.sqrt((displacement**2).sum(axis=1).mean())
    spread = float(spline(wave).determinant(points).std())
    missing = np.sqrt(max(options.jacobian_sd**2 - spread**2, 0.0))
    size = missing * _size_for_unit_sd(detail, origin, knot, points)
    return spline(wave + detail * size)


def _wave(rng: np.random.Generator, points: FloatArray, length_nm: float) -> FloatArray:
    """Random smooth vectors (3, N) at points; along z half as large, as in a cell on glass."""
    total = np.zeros((3, len(points)))
    for axis, strength in enumerate((0.5, 0.9, 1.1)):
        for _ in range(6):
            direction = rng.normal(size=3)
            direction *= 2 * np.pi / (4 * length_nm) / np.linalg.norm(direction)
            phase = rng.uniform(0, 2 * np.pi)
            total[axis] += strength * np.cos(points @ direction + phase)
    return total


def _nodes(origin: FloatArray, knot: FloatArray, shape: FloatArray) -> FloatArray:
    """Positions (N, 3) of control points."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return (origin + index * knot).reshape(-1, 3)


def _on_nodes(affine: Affine, nodes: FloatArray, shape: FloatArray) -> FloatArray:
    """Coefficients (3, z, y, x) that move as `affine` does (B-splines reproduce lines)."""
    return (affine(nodes) - nodes).T.reshape(3, *shape)


def _size_for_unit_sd(
    coefficients: FloatArray, origin: FloatArray, knot: FloatArray, points: FloatArray
) -> float:
    """Factor that makes the standard deviation of the determinant 1, to first order."""
    small = 1e-3
    probe = BSpline(coefficients * small, origin, knot, "a", "a")
    return small / float(probe.determinant(points).std())


def _lattice(region: Grid, count: int) -> FloatArray:
    low, high = region.corners_nm()[[0, -1]]
    axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _rotation(about_z: float, about_y: float, about_x: float) -> FloatArray:
    """Rotation matrix zyx: about x, then y, then z."""
    total = np.eye(3)
    for axis, angle in ((2, about_x), (1, about_y), (0, about_z)):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        total = turn @ total
    return np.asarray(total, dtype=np.float64)

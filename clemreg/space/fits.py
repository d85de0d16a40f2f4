"""Least-squares fits of transforms to pairs of points."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clemreg.errors import DataError
from clemreg.space.transform import Affine, FloatArray, Transform, as_points

_LINE = 1e-4  # breadth over length of points that count as a line: clicks are no better than this


def fit_rigid(source_nm: ArrayLike, target_nm: ArrayLike, source: str, target: str) -> Affine:
    """Rotation and shift that bring `source_nm` closest to `target_nm`; never a mirror.

    Parameters
    ----------
    source_nm, target_nm
        Pairs of points (N, 3) zyx nm, N >= 3, not on one line.
    source, target
        Frame names.

    Raises
    ------
    DataError
        Too few points, not finite, or all on one line.

    References
    ----------
    Umeyama, IEEE PAMI 13:376 (1991), eq. 34 to 43.
    """
    rotation, centre_from, centre_to, _ = _umeyama(source_nm, target_nm)
    return Affine.from_linear(rotation, centre_to - rotation @ centre_from, source, target)


def fit_similarity(source_nm: ArrayLike, target_nm: ArrayLike, source: str, target: str) -> Affine:
    """Rotation, one scale and shift; otherwise as `fit_rigid`."""
    rotation, centre_from, centre_to, scale = _umeyama(source_nm, target_nm)
    linear = scale * rotation
    return Affine.from_linear(linear, centre_to - linear @ centre_from, source, target)


def fit_affine(source_nm: ArrayLike, target_nm: ArrayLike, source: str, target: str) -> Affine:
    """Affine that brings `source_nm` closest to `target_nm` (it may mirror).

    Raises
    ------
    DataError
        Fewer than 4 points, not finite, or all in one plane.
    """
    a, b = _pairs(source_nm, target_nm, least=4)
    centre_from, centre_to = a.mean(axis=0), b.mean(axis=0)
    a0, b0 = a - centre_from, b - centre_to
    if np.linalg.matrix_rank(a0, tol=1e-9 * max(1.0, float(np.abs(a0).max()))) < 3:
        raise DataError(
            "the landmarks lie in one plane, so an affine is not determined",
            hint="add a landmark above or below the plane, or fit a similarity",
        )
    solution, *_ = np.linalg.lstsq(a0, b0, rcond=None)
    linear = solution.T
    return Affine.from_linear(linear, centre_to - linear @ centre_from, source, target)


def best_affine(transform: Transform, points_nm: ArrayLike) -> Affine:
    """Affine closest to `transform` in the least-squares sense at points (N, 3)."""
    points = as_points(points_nm)
    return fit_affine(points, transform(points), transform.source, transform.target)


def _umeyama(
    source_nm: ArrayLike, target_nm: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    a, b = _pairs(source_nm, target_nm, least=3)
    centre_from, centre_to = a.mean(axis=0), b.mean(axis=0)
    a0, b0 = a - centre_from, b - centre_to
    for side in (a0, b0):
        spread = np.linalg.svd(side, compute_uv=False)
        if spread[1] <= _LINE * float(spread[0]) or spread[0] == 0:
            raise DataError(
                "the landmarks lie on one line, so a rotation is not determined",
                hint="add a landmark to the side of the others, and look for rows that are alike",
            )
    u, singular, vt = np.linalg.svd(b0.T @ a0)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / (a0**2).sum())
    return np.asarray(rotation, dtype=np.float64), centre_from, centre_to, scale


def _pairs(source_nm: ArrayLike, target_nm: ArrayLike, least: int) -> tuple[FloatArray, FloatArray]:
    a, b = as_points(source_nm), as_points(target_nm)
    if a.shape != b.shape:
        raise DataError(f"point pairs differ in number: {len(a)} against {len(b)}")
    if len(a) < least:
        raise DataError(
            f"{len(a)} point pairs are too few", hint=f"this fit needs at least {least}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("some points are not finite", hint="leave out landmarks that are not set")
    return a, b

"""Thin-plate spline through landmarks, as BigWarp computes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from clemreg.errors import DataError
from clemreg.space.transform import FloatArray, Transform, as_points

_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class ThinPlateSpline(Transform):
    """Smooth map that takes every source landmark exactly to its target landmark.

    ``y = A x + t + sum_i w_i phi(|x - c_i|)`` with ``phi(r) = r^2 log r``, which BigWarp uses in
    three dimensions too.

    Parameters
    ----------
    source_points_nm, target_points_nm
        Landmarks (N, 3) zyx nm, N >= 4, distinct and not in one plane.
    source, target
        Frame names.

    Raises
    ------
    DataError
        The landmarks do not determine the spline.
    """

    source_points_nm: FloatArray
    target_points_nm: FloatArray
    source: str
    target: str
    _weights: FloatArray = field(init=False, repr=False)
    _affine: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        centres = as_points(self.source_points_nm).copy()
        goals = as_points(self.target_points_nm).copy()
        if centres.shape != goals.shape or len(centres) < 4:
            raise DataError(
                f"a thin-plate spline needs at least 4 landmark pairs, got {len(centres)}"
            )
        if not (np.isfinite(centres).all() and np.isfinite(goals).all()):
            raise DataError("some landmarks are not set", hint="leave out inactive landmarks")
        shift, scale = centres.mean(axis=0), float(np.ptp(centres, axis=0).max()) or 1.0
        weights, affine = _solve((centres - shift) / scale, goals)
        # In units of the landmarks' extent the system is well conditioned; log r^2 then adds a
        # multiple of r^2, which the side conditions on the weights turn into an affine.
        centres.flags.writeable = goals.flags.writeable = False
        for name, value in (
            ("source_points_nm", centres),
            ("target_points_nm", goals),
            ("_weights", weights),
            ("_affine", affine),
            ("_shift", shift),
            ("_scale", scale),
        ):
            object.__setattr__(self, name, value)

    def _normalise(self, points: FloatArray) -> FloatArray:
        result: FloatArray = (points - self._shift) / self._scale  # type: ignore[attr-defined]
        return result

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm."""
        points = as_points(points_nm)
        centres = self._normalise(self.source_points_nm)
        result = np.empty_like(points)
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            x = self._normalise(points[part])
            squared = ((x[:, None] - centres) ** 2).sum(axis=-1)
            result[part] = _kernel(squared) @ self._weights + x @ self._affine[1:] + self._affine[0]
        return result

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Analytic spatial derivative (N, 3, 3)."""
        x = self._normalise(as_points(points_nm))
        centres = self._normalise(self.source_points_nm)
        away = x[:, None] - centres
        squared = (away**2).sum(axis=-1)
        slope = np.zeros_like(squared)
        np.log(squared, out=slope, where=squared > 0)
        slope = np.where(squared > 0, slope + 1, 0)  # d(r^2 log r)/dx = (log r^2 + 1) (x - c)
        radial = np.einsum("nk,nkj,ki->nij", slope, away, self._weights)
        result: FloatArray = (radial + self._affine[1:].T) / self._scale  # type: ignore[attr-defined]
        return result

    def inverse(self) -> Transform:
        """Return the inverse, solved point by point (`Inverse`)."""
        from clemreg.space.inverse import Inverse

        return Inverse(self)


def _kernel(squared: FloatArray) -> FloatArray:
    """``r^2 log r`` from squared distances."""
    result = np.zeros_like(squared)
    np.log(squared, out=result, where=squared > 0)
    result *= squared
    result *= 0.5
    return result


def _solve(centres: FloatArray, goals: FloatArray) -> tuple[FloatArray, FloatArray]:
    n = len(centres)
    squared = ((centres[:, None] - centres) ** 2).sum(axis=-1)
    linear = np.hstack([np.ones((n, 1)), centres])
    system = np.zeros((n + 4, n + 4))
    system[:n, :n] = _kernel(squared)
    system[:n, n:] = linear
    system[n:, :n] = linear.T
    right = np.vstack([goals, np.zeros((4, 3))])
    if np.linalg.matrix_rank(linear) < 4:
        raise DataError(
            "the landmarks lie in one plane, so a thin-plate spline is not determined",
            hint="add a landmark above or below the plane",
        )
    try:
        solution = np.asarray(np.linalg.solve(system, right), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise DataError("two landmarks stand at the same place", hint="remove one") from error
    if not np.isfinite(solution).all():
        raise DataError("two landmarks stand at the same place", hint="remove one")
    return solution[:n], solution[n:]

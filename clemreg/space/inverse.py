"""The inverse of any transform, solved point by point."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import ConvergenceError
from clemreg.space.transform import FloatArray, Transform, as_points

TOLERANCE_NM = 1e-4
_FIXED_POINT_STEPS = 12
_NEWTON_STEPS = 25


@dataclass(frozen=True, eq=False)
class Inverse(Transform):
    """The inverse of `forward`, by fixed-point iteration, then Newton where that stalls.

    For a target y it solves ``forward(x) = y``: x moves by the residual (all transforms here are
    deformations of the identity, their affine parts being separate links of a chain), and points
    that do not halve their residual are finished with damped Newton steps.

    Parameters
    ----------
    forward
        Transform whose Jacobian is close enough to the identity to be inverted (no folds).

    Notes
    -----
    The residual ``|forward(x) - y|`` of every returned point is at most `TOLERANCE_NM` (1e-4 nm).
    """

    forward: Transform

    @property
    def source(self) -> str:  # type: ignore[override]
        """Frame of the points that go in."""
        return self.forward.target

    @property
    def target(self) -> str:  # type: ignore[override]
        """Frame of the points that come out."""
        return self.forward.source

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm back.

        Raises
        ------
        ConvergenceError
            Some point could not be solved: the transform folds, or is not defined there.
        """
        goal = as_points(points_nm)
        guess = goal.copy()
        todo = np.arange(len(goal))
        for _ in range(_FIXED_POINT_STEPS):
            residual = goal[todo] - self.forward(guess[todo])
            guess[todo] += residual
            todo = todo[np.abs(residual).max(axis=1, initial=0) > TOLERANCE_NM / 4]
            if not len(todo):
                return guess
        return self._newton(goal, guess, todo)

    def _newton(self, goal: FloatArray, guess: FloatArray, todo: NDArray[np.intp]) -> FloatArray:
        start = goal[todo] - self.forward(guess[todo])
        # A diverged fixed point is a worse start than the goal itself.
        lost = np.linalg.norm(start, axis=1) > np.linalg.norm(
            goal[todo] - self.forward(goal[todo]), axis=1
        )
        guess[todo[lost]] = goal[todo[lost]]
        for _ in range(_NEWTON_STEPS):
            residual = goal[todo] - self.forward(guess[todo])
            active = np.linalg.norm(residual, axis=1) > TOLERANCE_NM / 2
            todo, residual = todo[active], residual[active]
            if not len(todo):
                return guess
            guess[todo] += self._damped_step(guess[todo], goal[todo], residual)
        worst = float(np.linalg.norm(goal[todo] - self.forward(guess[todo]), axis=1).max())
        raise ConvergenceError(
            f"{len(todo)} of {len(goal)} points have no inverse within {TOLERANCE_NM} nm; "
            f"the worst residual is {worst:.3g} nm",
            hint="the transform folds or ends there; look at `clemreg evaluate jacobian`",
        )

    def _damped_step(self, at: FloatArray, goal: FloatArray, residual: FloatArray) -> FloatArray:
        jacobian = self.forward.jacobian(at)
        singular = np.abs(np.linalg.det(jacobian)) < 1e-9
        jacobian[singular] = np.eye(3)
        full = np.linalg.solve(jacobian, residual[..., None])[..., 0]
        best, size = full / 16, np.linalg.norm(residual, axis=1)
        done = np.zeros(len(at), dtype=bool)
        for damping in (1.0, 0.5, 0.25):
            left = np.linalg.norm(goal - self.forward(at + damping * full), axis=1)
            better = ~done & (left < size)
            best[better] = damping * full[better]
            done |= better
        return best

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Inverse of the forward Jacobian (N, 3, 3), where the forward arrives at the points."""
        inverted = np.linalg.inv(self.forward.jacobian(self(points_nm)))
        return np.asarray(inverted, dtype=np.float64)

    def inverse(self) -> Transform:
        """Return the forward transform."""
        return self.forward


def round_trip_nm(transform: Transform, points_nm: ArrayLike) -> FloatArray:
    """Distance (N,) in nm between points and their image there and back again."""
    points = as_points(points_nm)
    back = transform.inverse()(transform(points))
    return np.asarray(np.linalg.norm(back - points, axis=1), dtype=np.float64)


def lattice(corner_low: ArrayLike, corner_high: ArrayLike, count: int) -> FloatArray:
    """Regular points (count ** 3, 3) that fill a box, its faces included."""
    axes = [
        np.linspace(a, b, count)
        for a, b in zip(*map(np.asarray, (corner_low, corner_high)), strict=True)
    ]
    return np.array(list(itertools.product(*axes)))

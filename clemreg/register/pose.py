"""Refine a pose on coarse images by least squares, and compare two poses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.linalg import expm

from clemreg.register.correlate import strength
from clemreg.register.matching import EVERYWHERE, Masks
from clemreg.register.trusted import Mask, blur, trusted_at, trusted_share
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray
from clemreg.volume import Volume

_UNCORRELATED = 1.3  # residual of a voxel without LM to compare: somewhat below chance (sqrt 2)
_STIFFNESS = 0.3
_STEPS = 15
SPENT_UM3 = 1.5
"""Volume of overlap that proves nothing: a few organelles can always be made to agree."""

Freedom = Literal["similarity", "affine"]
_MOST_VOXELS: dict[Freedom, int] = {"similarity": 3_000, "affine": 8_000}
_TURNS_AND_SCALE = np.array(  # antisymmetric matrices, and the identity
    [[0, 1, 0, -1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, 0, 0, 0, 0, 1, 0, -1, 0],
     [1, 0, 0, 0, 1, 0, 0, 0, 1]]
).T.astype(float)  # fmt: skip
_BASIS: dict[Freedom, FloatArray] = {"similarity": _TURNS_AND_SCALE, "affine": np.eye(9)}


@dataclass(frozen=True)
class Pose:
    """An affine lm -> em with its scores.

    Attributes
    ----------
    matrix
        4 x 4, zyx, nm, lm -> em.
    score
        Normalised correlation over the voxels of the EM that lie in the LM.
    overlap
        How much of the smaller of both volumes lies in the other, 0 to 1, less `SPENT_UM3`.
    """

    matrix: FloatArray
    score: float
    overlap: float

    @property
    def linear(self) -> FloatArray:
        """The 3 x 3 part."""
        return self.matrix[:3, :3]

    @property
    def strength(self) -> float:
        """Score, less where the overlap is small (`clemreg.register.correlate.strength`)."""
        return float(strength(self.score, self.overlap))


def pose_difference(a: Pose, b: Pose, at_em_nm: FloatArray) -> tuple[float, float]:
    """Angle in degrees (180 for different handedness) and distance in nm at a point of the EM."""
    inverse_a, inverse_b = np.linalg.inv(a.matrix), np.linalg.inv(b.matrix)
    point = np.append(at_em_nm, 1.0)
    distance = float(np.linalg.norm((inverse_a @ point - inverse_b @ point)[:3]))
    relative = nearest_rotation(a.linear) @ nearest_rotation(b.linear).T
    if np.linalg.det(relative) < 0:
        return 180.0, distance
    cosine = np.clip((np.trace(relative) - 1) / 2, -1, 1)
    return float(np.degrees(np.arccos(cosine))), distance


def nearest_rotation(linear: FloatArray) -> FloatArray:
    """Orthogonal matrix (rotation or mirror) nearest to a linear map."""
    u, _, vt = np.linalg.svd(linear)
    return np.asarray(u @ vt)


def refine_pose(
    pose: Pose, fixed: Volume, moving: Volume, freedom: Freedom, masks: Masks = EVERYWHERE
) -> Pose:
    """Move a pose to its nearest best agreement, by damped Gauss-Newton steps.

    It reaches 20 degrees and 20 % of scale if the scale is free, which it is in both.

    Parameters
    ----------
    pose
        Start.
    fixed, moving
        Coarse images.
    freedom
        Seven degrees of freedom on few voxels; or twelve, held near a rotation, on many.
    masks
        Where both can be trusted, on their grids.
    """
    agreement = _Agreement(pose, fixed, moving, freedom, masks)
    for sigma in (1.0, 0.0):
        agreement.smooth(sigma)
        agreement.improve()
    return agreement.pose()


def overlap_of(
    matrix: FloatArray, inside: float, fixed: Grid, moving: Grid, masks: Masks = EVERYWHERE
) -> float:
    """Return how much of the smaller volume lies in the other, less `SPENT_UM3`.

    Parameters
    ----------
    matrix
        4 x 4, lm -> em.
    inside
        Share of the moving volume (EM) that lies in the fixed one.
    masks
        What of either volume counts.
    """
    em = _um3(moving, masks.moving) / abs(float(np.linalg.det(matrix[:3, :3])))
    smaller = min(em, _um3(fixed, masks.fixed))
    return float(np.clip((inside * em - SPENT_UM3) / smaller, 0.0, 1.0))


def _um3(grid: Grid, mask: Mask) -> float:
    return float(np.prod(grid.extent_nm / 1e3)) * trusted_share(mask)


@dataclass(frozen=True)
class _State:
    """A change of the em -> lm map about the EM's centre, and how well it fits."""

    linear: FloatArray
    shift: FloatArray
    cost: float
    jacobian: FloatArray
    residual: FloatArray


class _Agreement:
    """Standardised EM minus standardised LM, over the voxels of the coarse EM.

    Lengths are in units of half the EM's size, so that turns and shifts have about the same effect.
    """

    def __init__(
        self, pose: Pose, fixed: Volume, moving: Volume, freedom: Freedom, masks: Masks
    ) -> None:
        inverse = np.linalg.inv(pose.matrix)
        self._centre = moving.grid.centre_nm
        voxels = round(moving.grid.size * trusted_share(masks.moving))
        self._every = max(1, voxels // _MOST_VOXELS[freedom])
        self._masks = masks
        points = self._thinned(moving.grid.points_nm().reshape(-1, 3))
        self._linear = inverse[:3, :3]
        self._points = (points - self._centre) @ self._linear.T
        self._middle = self._linear @ self._centre + inverse[:3, 3]
        self._size = float(np.linalg.norm(moving.grid.extent_nm) / 2)
        self._grid, self._of_moving = fixed.grid, moving.grid
        self._basis, self._freedom = _BASIS[freedom], freedom
        self._fixed, self._moving = fixed.read(), moving.read()
        self._last = np.asarray(fixed.shape) - 1
        self._best = _State(np.eye(3), np.zeros(3), np.inf, np.empty(0), np.empty(0))
        self.smooth(0.0)

    def smooth(self, sigma: float) -> None:
        """Blur both images by `sigma` coarse voxels."""
        self._image = blur(self._fixed, self._masks.fixed, sigma)
        self._values = self._thinned(blur(self._moving, self._masks.moving, sigma).ravel())
        self._slopes = [
            np.gradient(self._image, step / self._size, axis=axis)
            for axis, step in enumerate(self._grid.spacing_nm)
        ]

    def improve(self) -> None:
        """Step downhill until nothing moves any more."""
        state, damping = self._state(self._best.linear, self._best.shift), 1e-3
        for _ in range(_STEPS):
            square = state.jacobian.T @ state.jacobian
            right = -state.jacobian.T @ state.residual
            step = np.linalg.solve(square + damping * np.diag(square.diagonal() + 1e-9), right)
            strain = (self._basis @ step[:-3]).reshape(3, 3)
            tried = self._state(expm(strain) @ state.linear, state.shift + step[-3:] * self._size)
            if tried.cost < state.cost:
                small = state.cost - tried.cost < 1e-4 * state.cost
                state, damping = tried, damping / 5
                if small:
                    break
            else:
                damping *= 10
                if damping > 1e3:
                    break
        self._best = state

    def _at(self, linear: FloatArray, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Offsets from the centre in the light frame, and indices there."""
        turned = self._points @ linear.T
        return turned, self._grid.to_index(turned + self._middle + shift).T

    def _thinned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Of values per voxel of the EM, those of some voxels that can be trusted."""
        if self._masks.moving is not None:
            values = values[self._masks.moving.ravel()]
        return values[:: self._every]

    def _inside(self, index: FloatArray) -> NDArray[np.bool_]:
        last = self._last[:, None]
        inside = np.asarray(((index >= -0.5) & (index <= last + 0.5)).all(axis=0))
        return (
            inside if self._masks.fixed is None else inside & trusted_at(self._masks.fixed, index)
        )

    def _state(self, linear: FloatArray, shift: FloatArray) -> _State:
        turned, index = self._at(linear, shift)
        inside = self._inside(index)
        residual = np.full(len(turned), _UNCORRELATED)
        jacobian = np.zeros((len(turned), self._basis.shape[1] + 3))
        if inside.sum() > 10:
            index = index[:, inside]
            seen = ndimage.map_coordinates(self._image, index, order=1, mode="nearest")
            spread = float(seen.std()) or 1.0
            residual[inside] = _standard(seen) - _standard(self._values[inside])
            slope = [
                ndimage.map_coordinates(c, index, order=1, mode="nearest") for c in self._slopes
            ]
            by_shift = np.stack(slope, axis=-1) / spread
            arm = turned[inside] / self._size
            by_strain = (by_shift[:, :, None] * arm[:, None, :]).reshape(-1, 9) @ self._basis
            both = np.concatenate([by_strain, by_shift], axis=1)
            jacobian[inside] = both - both.mean(axis=0)
        residual, jacobian = self._held(linear, residual, jacobian)
        return _State(linear, shift, float(residual @ residual), jacobian, residual)

    def _held(
        self, linear: FloatArray, residual: FloatArray, jacobian: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Add nine residuals that hold an affine near a rotation."""
        if self._freedom == "similarity":
            return residual, jacobian
        weight = _STIFFNESS * np.sqrt(len(residual))
        strain = weight * (linear.T @ linear - np.eye(3)).ravel()
        rows = np.zeros((9, jacobian.shape[1]))
        unit = np.eye(9).reshape(9, 3, 3)
        rows[:, :9] = weight * (unit + unit.transpose(0, 2, 1)).reshape(9, 9).T
        return np.concatenate([residual, strain]), np.concatenate([jacobian, rows])

    def pose(self) -> Pose:
        """Return the best pose, scored."""
        _, index = self._at(self._best.linear, self._best.shift)
        inside = self._inside(index)
        score = 0.0
        if inside.sum() > 10:
            seen = ndimage.map_coordinates(self._image, index[:, inside], order=1, mode="nearest")
            score = float(np.mean(_standard(seen) * _standard(self._values[inside])))
        forward = np.eye(4)
        forward[:3, :3] = self._best.linear @ self._linear
        forward[:3, 3] = self._middle + self._best.shift - forward[:3, :3] @ self._centre
        matrix = np.asarray(np.linalg.inv(forward), dtype=np.float64)
        overlap = overlap_of(matrix, float(inside.mean()), self._grid, self._of_moving, self._masks)
        return Pose(matrix, score, overlap)


def _standard(values: FloatArray) -> FloatArray:
    spread = float(values.std())
    result: FloatArray = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return result

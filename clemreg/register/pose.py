"""Refine a pose on coarse images by least squares, and compare two poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from clemreg.space.transform import FloatArray
from clemreg.volume import Volume

_UNCORRELATED = 1.3  # residual of a voxel that leaves the LM: somewhat below chance (sqrt 2)


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
        Share of the EM's voxels that lie in the LM.
    """

    matrix: FloatArray
    score: float
    overlap: float

    @property
    def linear(self) -> FloatArray:
        """The 3 x 3 part."""
        return self.matrix[:3, :3]

    @property
    def rank(self) -> float:
        """Score, less where the overlap is small."""
        return float(self.score * np.sqrt(self.overlap))


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


def refine_pose(pose: Pose, fixed: Volume, moving: Volume, *, rigid: bool) -> Pose:
    """Move a pose to its nearest best agreement.

    Parameters
    ----------
    pose
        Start.
    fixed, moving
        Coarse images.
    rigid
        Six degrees of freedom; else twelve, held near a rotation.
    """
    objective = _Objective(pose, fixed, moving, rigid=rigid)
    for sigma in (1.0, 0.0):
        objective.smooth(sigma)
        answer = optimize.least_squares(
            objective.residuals,
            objective.parameters,
            method="trf",
            max_nfev=15,
            diff_step=1e-4,
            x_scale=1.0,
        )
        objective.parameters = answer.x
    return objective.pose()


class _Objective:
    """Standardised EM minus standardised LM, over the voxels of the coarse EM.

    The parameters are the change to the em -> lm map about the EM's centre: a rotation vector and a
    shift, or nine matrix entries and a shift; lengths are in units of half the EM's size, so that
    all have about the same effect.
    """

    def __init__(self, pose: Pose, fixed: Volume, moving: Volume, *, rigid: bool) -> None:
        inverse = np.linalg.inv(pose.matrix)
        self._centre = moving.grid.centre_nm
        points = moving.grid.points_nm().reshape(-1, 3)
        self._points = (points - self._centre) @ inverse[:3, :3].T
        self._middle = inverse[:3, :3] @ self._centre + inverse[:3, 3]
        self._linear = inverse[:3, :3]
        self._size = float(np.linalg.norm(moving.grid.extent_nm) / 2)
        self._grid, self._rigid = fixed.grid, rigid
        self._fixed, self._moving = fixed.read(), moving.read()
        self._last = np.asarray(fixed.shape) - 1
        self.parameters = np.zeros(6 if rigid else 12)
        self.smooth(0.0)

    def smooth(self, sigma: float) -> None:
        """Blur both images by `sigma` coarse voxels."""
        self._image = ndimage.gaussian_filter(self._fixed, sigma, mode="nearest")
        values = ndimage.gaussian_filter(self._moving, sigma, mode="nearest").ravel()
        self._values = values

    def _change(self, parameters: FloatArray) -> FloatArray:
        if self._rigid:
            return np.asarray(Rotation.from_rotvec(parameters[:3]).as_matrix())
        return np.eye(3) + parameters[:9].reshape(3, 3)

    def _sampled(self, parameters: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        lm = self._points @ self._change(parameters).T + self._middle + parameters[-3:] * self._size
        index = self._grid.to_index(lm)
        inside = np.asarray(((index >= -0.5) & (index <= self._last + 0.5)).all(axis=1))
        return ndimage.map_coordinates(self._image, index.T, order=1, mode="nearest"), inside

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """One per EM voxel, and for an affine nine that hold it near a rotation."""
        sampled, inside = self._sampled(parameters)
        result = np.full(len(sampled), _UNCORRELATED)
        if inside.sum() > 10:
            result[inside] = _standard(sampled[inside]) - _standard(self._values[inside])
        if self._rigid:
            return result
        change = self._change(parameters)
        strain = (change.T @ change - np.eye(3)).ravel()
        return np.concatenate([result, np.sqrt(len(result)) * 0.3 * strain])

    def pose(self) -> Pose:
        """Return the pose at the current parameters, scored."""
        sampled, inside = self._sampled(self.parameters)
        score = 0.0
        if inside.sum() > 10:
            score = float(np.mean(_standard(sampled[inside]) * _standard(self._values[inside])))
        forward = np.eye(4)
        forward[:3, :3] = self._change(self.parameters) @ self._linear
        shift = self._middle + self.parameters[-3:] * self._size
        forward[:3, 3] = shift - forward[:3, :3] @ self._centre
        return Pose(
            np.asarray(np.linalg.inv(forward), dtype=np.float64), score, float(inside.mean())
        )


def _standard(values: FloatArray) -> FloatArray:
    spread = float(values.std())
    result: FloatArray = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return result

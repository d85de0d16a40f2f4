"""Rotations, mirrors, tilts and scales that the search of the start pose tries, easy ones first."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial.transform import Rotation

from clemreg.space.transform import FloatArray


def turns(step_deg: float) -> list[FloatArray]:
    """Rotations about z by multiples of `step_deg`."""
    return [_about("z", a) for a in np.arange(0.0, 360.0 - 0.5 * step_deg, step_deg)]


def ups(*, every_axis: bool, mirror: bool) -> list[FloatArray]:
    """Which axis of the EM lies along z of the LM; matrices lm -> em, zyx.

    Parameters
    ----------
    every_axis
        Any of them, not only z; either way round.
    mirror
        Also mirrored.
    """
    proper = [np.eye(3), _about("x", 180.0)]
    if every_axis:
        proper += [_about(axis, angle) for axis, angle in itertools.product("xy", (90.0, -90.0))]
    flip = np.diag([-1.0, 1.0, 1.0])
    return proper + [flip @ up for up in proper] if mirror else proper


def tilts(tilt_deg: float, count: int) -> list[FloatArray]:
    """Rotations by one angle about `count` axes in the plane."""
    if tilt_deg <= 0:
        return []
    return [
        _about("z", -a) @ _about("x", tilt_deg) @ _about("z", a)
        for a in np.arange(count) * 360.0 / count
    ]


def products(
    standing: list[FloatArray],
    tilted: list[FloatArray],
    turned: list[FloatArray],
    scales: list[float],
) -> list[FloatArray]:
    """Turn in the plane of the LM, tilt out of it, stand up in the EM, scale: every combination."""
    return [s * (up @ t @ r) for up, r, t, s in itertools.product(standing, turned, tilted, scales)]


def _about(axis: str, degrees: float) -> FloatArray:
    """Rotation matrix zyx about a world axis."""
    xyz = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return np.ascontiguousarray(xyz[::-1, ::-1])

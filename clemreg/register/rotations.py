"""Rotations, mirrors, tilts and scales that the search of the start pose tries, easy ones first."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.spatial.transform import Rotation

from clemreg.space.transform import FloatArray


def upright(step_deg: float, *, every_axis: bool, mirror: bool) -> list[FloatArray]:
    """Rotations about z, the same after a half turn; all matrices lm -> em, zyx.

    Parameters
    ----------
    step_deg
        Between rotations about z.
    every_axis
        Also with another axis of the EM along z of the LM.
    mirror
        Also mirrored.
    """
    in_plane = [_about("z", a) for a in np.arange(0.0, 360.0 - 0.5 * step_deg, step_deg)]
    ups = [np.eye(3), _about("x", 180.0)]
    if every_axis:
        ups += [_about(axis, angle) for axis, angle in itertools.product("xy", (90.0, -90.0))]
    proper = [up @ r for up, r in itertools.product(ups, in_plane)]
    flip = np.diag([-1.0, 1.0, 1.0])
    return proper + [flip @ r for r in proper] if mirror else proper


def tilts(tilt_deg: float, count: int) -> list[FloatArray]:
    """Rotations by one angle about `count` axes in the plane."""
    if tilt_deg <= 0:
        return []
    return [
        _about("z", -a) @ _about("x", tilt_deg) @ _about("z", a)
        for a in np.arange(count) * 360.0 / count
    ]


def products(
    turns: list[FloatArray], tilted: list[FloatArray], scales: list[float]
) -> list[FloatArray]:
    """Every scale of every tilt of every turn."""
    return [s * (t @ r) for r, t, s in itertools.product(turns, tilted, scales)]


def _about(axis: str, degrees: float) -> FloatArray:
    """Rotation matrix zyx about a world axis."""
    xyz = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return np.ascontiguousarray(xyz[::-1, ::-1])

"""Choose poses that differ from each other, the strongest first."""

from __future__ import annotations

import math

import numpy as np

from clemreg.register.pose import Pose, nearest_rotation
from clemreg.space.transform import FloatArray

DIFFERENT_DEG = 15.0
DIFFERENT_NM = 1000.0


class Distinct:
    """Poses that were chosen so far; a further one is compared with all of them at once.

    Two poses differ if they turn the EM by more than `DIFFERENT_DEG` from each other, bring its
    middle to places farther apart than `DIFFERENT_NM`, or have different hands.

    Parameters
    ----------
    at_em_nm
        Middle of the EM, zyx.
    stronger
        A pose that is so many times as strong as one near it counts as different, too.
    """

    def __init__(self, at_em_nm: FloatArray, stronger: float = math.inf) -> None:
        self._at, self._stronger = np.append(at_em_nm, 1.0), stronger
        self._places, self._turns = np.empty((0, 3)), np.empty((0, 9))
        self._hands, self._strengths = np.empty(0), np.empty(0)

    def choose(self, poses: list[Pose], count: int) -> list[Pose]:
        """Return the `count` strongest that differ from those chosen before and from each other."""
        chosen: list[Pose] = []
        for pose in sorted(poses, key=lambda p: -p.strength):
            if len(chosen) == count or pose.strength <= 0:
                break
            if self._added(pose):
                chosen.append(pose)
        return chosen

    def _added(self, pose: Pose) -> bool:
        place = (np.linalg.inv(pose.matrix) @ self._at)[:3]
        turn = nearest_rotation(pose.linear)
        hand, strength = np.sign(np.linalg.det(turn)), pose.strength
        cosine = np.clip((self._turns @ turn.ravel() - 1) / 2, -1, 1)
        near = np.degrees(np.arccos(cosine)) <= DIFFERENT_DEG
        near &= np.linalg.norm(self._places - place, axis=1) <= DIFFERENT_NM
        near &= (self._hands == hand) & (strength <= self._stronger * self._strengths)
        if near.any():
            return False
        self._places = np.append(self._places, place[None], axis=0)
        self._turns = np.append(self._turns, turn.reshape(1, 9), axis=0)
        self._hands = np.append(self._hands, hand)
        self._strengths = np.append(self._strengths, strength)
        return True

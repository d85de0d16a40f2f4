"""Find how the EM lies in the LM field, from any start: rotations by brute force, shifts by FFT.

Coarse copies of both images (250 to 600 nm voxels) are correlated over all shifts for each rotation
of a set; the best different poses are refined to an affine by least squares, and compared on the
full images. If none stands out, the set grows: tilts and wrong scales; if none does even then, more
of all poses are refined. A second pose that scores nearly as well means the answer cannot be
trusted: the margin says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clemreg.errors import ConfigError, DataError, RegistrationError
from clemreg.register.contest import Contest
from clemreg.register.distinct import DIFFERENT_DEG, DIFFERENT_NM, Distinct
from clemreg.register.finder import Finder
from clemreg.register.matching import EVERYWHERE, Channel, Masks
from clemreg.register.pose import Freedom, Pose, pose_difference, refine_pose
from clemreg.register.rotations import products, tilts, turns, ups
from clemreg.register.trusted import Mask, blur, pool
from clemreg.space.grid import Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Volume

log = logging.getLogger(__name__)

Search = Literal["in-plane", "all"]
_TARGET_SIZE = 2.5e5  # voxels of the zero-padded correlation: about 10 ms each
_COARSER = 1.4  # voxel size of the wide rounds over that of the first one
_STRONGER = 1.1  # a start that much stronger than one near it is tried, too
_CLEAR_SCORE = 0.4
_CLEAR_MARGIN = 0.15
# How many different poses are refined on the coarse images, and how many of these on the full
# ones: twice in the first round, since refining is cheaper than the many rotations of the others,
# and in the last one, since no other comes.
_DEPTHS = (((16, 4), (48, 6)), ((48, 6),), ((64, 6), (160, 6)))
_DEEPEST = (400, 12)  # the same for the poses of all rounds together, if none has stood out


@dataclass(frozen=True)
class OrientationOptions:
    """How poses are searched.

    Parameters
    ----------
    search
        ``"in-plane"``: every rotation about the optical axis, the same after a half turn about x,
        small tilts; ``"all"``: every axis of the EM may lie along the optical axis.
    allow_mirror
        Also try mirrored poses.
    angle_step_deg
        Step of the in-plane rotation.
    tilt_deg
        Greatest tilt out of the plane; 0 for none.
    scale
        Greatest error of the scale, as a factor; 1 for none.
    spacing_nm
        Voxel size of the coarse copies; None chooses it from the size of the volumes.
    threads
        FFT threads; 0 means all cores.
    """

    search: Search = "in-plane"
    allow_mirror: bool = False
    angle_step_deg: float = 12.0
    tilt_deg: float = 30.0
    scale: float = 1.3
    spacing_nm: float | None = None
    threads: int = 0

    def __post_init__(self) -> None:
        if self.search not in ("in-plane", "all"):
            raise ConfigError(f"search must be 'in-plane' or 'all', got {self.search!r}")
        if not 0 < self.angle_step_deg <= 45 or not 0 <= self.tilt_deg <= 60 or self.scale < 1:
            raise ConfigError(
                "angle_step_deg must be in (0, 45], tilt_deg in [0, 60], scale 1 or more: got "
                f"{self.angle_step_deg}, {self.tilt_deg}, {self.scale}"
            )


@dataclass(frozen=True)
class Orientation:
    """The start pose and how much better it is than any other.

    Attributes
    ----------
    affine
        Points of the LM frame to points of the EM frame.
    score
        Normalised correlation of the images in that pose; where they overlap in part, the one
        that would be as significant at full overlap (`clemreg.register.correlate.strength`).
    runner_up
        The same for the best pose that differs by more than 15 degrees or 1 um; 0 if no other
        pose correlates at all.
    margin
        `score` minus `runner_up`.
    mirrored
        Whether the pose changes handedness.
    spacing_nm
        Voxel size at which it was found.
    """

    affine: Affine
    score: float
    runner_up: float
    margin: float
    mirrored: bool
    spacing_nm: float


def search_orientation(
    fixed: Volume,
    moving: Volume,
    options: OrientationOptions | None = None,
    masks: Masks = EVERYWHERE,
) -> Orientation:
    """Find the pose of the moving (EM) in the fixed (LM) volume.

    Parameters
    ----------
    fixed, moving
        Prepared images (`clemreg.register.features`), zyx.
    options
        Defaults if None.
    masks
        Where both can be trusted, on their grids; the rest takes no part.

    Raises
    ------
    DataError
        An image has no contrast, or a mask leaves next to nothing of it.
    RegistrationError
        No pose has the required overlap.
    """
    options = OrientationOptions() if options is None else options
    spacing = options.spacing_nm or _coarse_spacing(fixed.grid, moving.grid)
    rivals = _Rivals(fixed, moving, spacing, masks)
    found: list[Pose] = []
    for number, (linears, depths) in enumerate(zip(_rounds(options), _DEPTHS, strict=True)):
        if rivals.clear or not linears:
            continue
        voxel = spacing if number == 0 else spacing * _COARSER
        pair, trusted = _coarse_pair(fixed, moving, voxel, masks)
        poses = Finder(pair.fixed, pair.moving, linears, options.threads, trusted).poses()
        found += poses
        for tried, settled in depths:
            if not rivals.clear:
                rivals.add(poses, tried, settled)
    if not rivals.clear:
        rivals.add(found, *_DEEPEST)
    return _decide(rivals, fixed.grid.frame, moving.grid.frame, spacing)


class _Rivals:
    """The different poses that were tried so far, the best first."""

    def __init__(
        self, fixed: Volume, moving: Volume, spacing: float, masks: Masks = EVERYWHERE
    ) -> None:
        self._coarse, self._masks = _coarse_pair(fixed, moving, spacing, masks)
        self._contest = Contest(fixed, moving, masks)
        self._starts = Distinct(self._coarse.moving.grid.centre_nm, _STRONGER)
        self.poses: list[Pose] = []

    @property
    def runner_up(self) -> float:
        """Score of the best pose that differs from the best; 0 if none correlates."""
        others = [p.strength for p in self.poses[1:] if self._differ(self.poses[0], p)]
        return max(others, default=0.0)

    @property
    def clear(self) -> bool:
        """Whether the best pose stands out."""
        if not self.poses:
            return False
        best = self.poses[0].strength
        return best >= _CLEAR_SCORE and best - self.runner_up >= _CLEAR_MARGIN

    def add(self, found: list[Pose], tried: int, settled: int) -> None:
        """Refine the best new ones on coarse images, and the best of these on full ones.

        The strongest go to the full images unrefined, too: on coarse ones a thin slab tilts away.
        """
        fresh = self._starts.choose(found, tried)
        quick = [self._refined(pose, "similarity") for pose in fresh]
        quick = self._different(quick, settled)
        refined = [self._refined(pose, "affine") for pose in quick]
        refined = self._different(refined, settled)
        for pose in (*fresh[:settled], *refined):
            self.poses.append(self._contest.settle(pose))
        self.poses = sorted((p for p in self.poses if p.strength > 0), key=lambda p: -p.strength)

    def _refined(self, pose: Pose, freedom: Freedom) -> Pose:
        return refine_pose(pose, self._coarse.fixed, self._coarse.moving, freedom, self._masks)

    def _different(self, poses: list[Pose], count: int) -> list[Pose]:
        return Distinct(self._coarse.moving.grid.centre_nm).choose(poses, count)

    def _differ(self, a: Pose, b: Pose) -> bool:
        angle, shift = pose_difference(a, b, self._coarse.moving.grid.centre_nm)
        return angle > DIFFERENT_DEG or shift > DIFFERENT_NM


def _decide(rivals: _Rivals, source: str, target: str, spacing: float) -> Orientation:
    if not rivals.poses:
        raise RegistrationError(
            "no pose of the EM in the LM correlates at all",
            hint="check voxel sizes and units, and whether both show mitochondria",
        )
    best, runner_up = rivals.poses[0], rivals.runner_up
    score, affine = best.strength, Affine(best.matrix, source, target)
    log.info("orientation: score %.3f, runner-up %.3f", score, runner_up)
    return Orientation(affine, score, runner_up, score - runner_up, affine.is_mirrored, spacing)


def _coarse_spacing(fixed: Grid, moving: Grid) -> float:
    diagonal = float(np.linalg.norm(moving.extent_nm[1:]))
    padded = fixed.extent_nm + np.array([moving.extent_nm[0] * 1.5, diagonal, diagonal])
    spacing = (float(np.prod(padded)) / _TARGET_SIZE) ** (1 / 3)
    return float(np.clip(spacing, 250.0, 600.0))


def _coarse_pair(
    fixed: Volume, moving: Volume, spacing: float, masks: Masks
) -> tuple[Channel, Masks]:
    light, of_light = _coarse(fixed, spacing, masks.fixed)
    dark, of_dark = _coarse(moving, spacing, masks.moving)
    return Channel(light, dark), Masks(of_light, of_dark)


def _coarse(volume: Volume, spacing: float, mask: Mask) -> tuple[Volume, Mask]:
    """Average down to isotropic voxels; what is finer than that is blurred away first."""
    ratio = spacing / np.asarray(volume.grid.spacing_nm)
    factor = tuple(max(1, int(r)) for r in ratio)
    grid = volume.grid.downsample(factor)
    pooled, mask = pool(volume.read(), mask, factor)
    smooth = blur(pooled, mask, 0.35 * spacing / np.asarray(grid.spacing_nm))
    shape = tuple(max(2, round(v)) for v in volume.grid.extent_nm / spacing)
    start = volume.grid.centre_nm - (np.asarray(shape) - 1) / 2 * spacing
    target = Grid(shape, (spacing,) * 3, tuple(start), volume.grid.frame)
    points = target.points_nm().reshape(-1, 3)
    index = np.clip(grid.to_index(points), 0, np.asarray(grid.shape) - 1)
    inside = grid.to_world(index)
    values = sample_array(smooth, grid, inside).reshape(shape)
    if mask is not None:
        mask = sample_array(mask, grid, inside, order=0).reshape(shape)
    seen = values if mask is None else values[mask]
    if seen.size == 0 or np.ptp(seen) == 0:
        where = "" if mask is None else " where its mask is not 0"
        raise DataError(f"{volume.name or 'image'} has no contrast at {spacing:.0f} nm{where}")
    return Volume(values.astype(np.float32), target, name=volume.name), mask


def _rounds(options: OrientationOptions) -> list[list[FloatArray]]:
    """Linear parts (lm -> em, zyx) of the poses to try, easy ones first."""
    standing = ups(every_axis=options.search == "all", mirror=options.allow_mirror)
    narrow, wide = turns(options.angle_step_deg), turns(2.0 * options.angle_step_deg)
    little, much = tilts(0.5 * options.tilt_deg, 6), tilts(0.85 * options.tilt_deg, 8)
    near = [options.scale**-0.5, options.scale**0.5] if options.scale > 1 else []
    far = [1 / options.scale, options.scale] if options.scale > 1 else []
    level = [np.eye(3)]
    return [
        products(standing, level, narrow, [1.0]),
        products(standing, little, wide, [1.0]) + products(standing, level, wide, near),
        products(standing, much, wide, [1.0])
        + products(standing, little, wide, near)
        + products(standing, level, wide, far),
    ]

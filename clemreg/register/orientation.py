"""Find how the EM lies in the LM field, from any start: rotations by brute force, shifts by FFT.

Coarse copies of both images (200 to 500 nm voxels) are correlated over all shifts for each rotation
of a set; the best few poses are refined to an affine by least squares. A second pose that scores
nearly as well means the answer cannot be trusted: the margin says so.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from clemreg.errors import ConfigError, DataError, RegistrationError
from clemreg.register.correlate import Image, MaskedCorrelator
from clemreg.register.pose import Pose, pose_difference, refine_pose
from clemreg.space.grid import Grid
from clemreg.space.resample import pool_mean, sample_array
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Volume

log = logging.getLogger(__name__)

Search = Literal["in-plane", "all"]
_TARGET_SIZE = 4.0e5  # voxels of the zero-padded correlation: about 50 ms each on two cores


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
        Tilts that are tried around the best poses.
    min_overlap
        Share of the smaller volume that must overlap.
    spacing_nm
        Voxel size of the coarse copies; None chooses it from the size of the volumes.
    refined
        How many different poses are refined.
    threads
        FFT threads; 0 means all cores.
    """

    search: Search = "in-plane"
    allow_mirror: bool = False
    angle_step_deg: float = 12.0
    tilt_deg: float = 10.0
    min_overlap: float = 0.4
    spacing_nm: float | None = None
    refined: int = 5
    threads: int = 0

    def __post_init__(self) -> None:
        if self.search not in ("in-plane", "all"):
            raise ConfigError(f"search must be 'in-plane' or 'all', got {self.search!r}")
        if not 0 < self.min_overlap <= 1 or not 0 < self.angle_step_deg <= 45:
            raise ConfigError("min_overlap must be in (0, 1] and angle_step_deg in (0, 45]")


@dataclass(frozen=True)
class Orientation:
    """The start pose and how much better it is than any other.

    Attributes
    ----------
    affine
        Points of the LM frame to points of the EM frame.
    score
        Normalised correlation of the coarse images in that pose.
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


@dataclass(frozen=True)
class _Candidate:
    """A pose found by correlation, and what it ranks by."""

    pose: Pose
    rank: float


def search_orientation(
    fixed: Volume, moving: Volume, options: OrientationOptions | None = None
) -> Orientation:
    """Find the pose of the moving (EM) in the fixed (LM) volume.

    Parameters
    ----------
    fixed, moving
        Prepared images (`clemreg.register.features`), zyx.
    options
        Defaults if None.

    Raises
    ------
    DataError
        An image has no contrast.
    RegistrationError
        No pose has the required overlap.
    """
    options = OrientationOptions() if options is None else options
    spacing = options.spacing_nm or _coarse_spacing(fixed.grid, moving.grid)
    coarse_fixed, coarse_moving = _coarse(fixed, spacing), _coarse(moving, spacing)
    finder = _Finder(coarse_fixed, coarse_moving, options)
    found = finder.candidates(_rotations(options))
    if not found:
        raise RegistrationError(
            "no pose of the EM in the LM has the required overlap",
            hint="check voxel sizes and units, or lower min_overlap",
        )
    tilted = finder.candidates(_tilted([c.pose for c in found[:4]], options.tilt_deg))
    best = _distinct(sorted([*found, *tilted], key=lambda c: -c.rank), moving, 2 * options.refined)
    quick = [refine_pose(c.pose, coarse_fixed, coarse_moving, rigid=True) for c in best]
    quick = sorted(quick, key=lambda p: -p.rank)[: options.refined]
    refined = [refine_pose(p, coarse_fixed, coarse_moving, rigid=False) for p in quick]
    refined = sorted(refined, key=lambda p: -p.rank)
    other = _runner_up(refined, best, coarse_fixed, coarse_moving)
    return _decide(refined[0], other, fixed.grid.frame, moving.grid.frame, spacing)


def _runner_up(
    refined: list[Pose], candidates: list[_Candidate], fixed: Volume, moving: Volume
) -> float:
    """Score of the best pose that is another one than `refined[0]`, also after refinement.

    Refined poses often fall together; then the candidates that were another pose to begin with
    are refined one by one, and if all of them fall to the best too, the unrefined score counts.
    """
    best = refined[0]
    others = [p.score for p in refined[1:] if _differs(best, p, moving)]
    if others:
        return max(others)
    apart = [c.pose for c in candidates if _differs(best, c.pose, moving)]
    for pose in apart[:4]:
        moved = refine_pose(pose, fixed, moving, rigid=True)
        if math.isfinite(moved.score) and _differs(best, moved, moving):
            return moved.score
    return max((p.score for p in apart if math.isfinite(p.score)), default=0.0)


def _decide(best: Pose, runner_up: float, source: str, target: str, spacing: float) -> Orientation:
    affine = Affine(best.matrix, source, target)
    log.info("orientation: score %.3f, runner-up %.3f", best.score, runner_up)
    return Orientation(
        affine, best.score, runner_up, best.score - runner_up, affine.is_mirrored, spacing
    )


def _differs(a: Pose, b: Pose, moving: Volume) -> bool:
    angle, shift = pose_difference(a, b, moving.grid.centre_nm)
    return angle > 15.0 or shift > 1000.0


def _distinct(ranked: list[_Candidate], moving: Volume, count: int) -> list[_Candidate]:
    kept: list[_Candidate] = []
    for candidate in ranked:
        if all(_differs(candidate.pose, k.pose, moving) for k in kept):
            kept.append(candidate)
        if len(kept) == count:
            break
    return kept


def _coarse_spacing(fixed: Grid, moving: Grid) -> float:
    diagonal = float(np.linalg.norm(moving.extent_nm[1:]))
    padded = fixed.extent_nm + np.array([moving.extent_nm[0] * 1.5, diagonal, diagonal])
    spacing = (float(np.prod(padded)) / _TARGET_SIZE) ** (1 / 3)
    return float(np.clip(spacing, 200.0, 500.0))


def _coarse(volume: Volume, spacing: float) -> Volume:
    """Average down to isotropic voxels; what is finer than that is blurred away first."""
    ratio = spacing / np.asarray(volume.grid.spacing_nm)
    factor = tuple(max(1, int(r)) for r in ratio)
    pooled, grid = pool_mean(volume.read(), factor), volume.grid.downsample(factor)
    sigma = 0.35 * spacing / np.asarray(grid.spacing_nm)
    smooth = ndimage.gaussian_filter(pooled, sigma, mode="nearest")
    shape = tuple(max(2, round(v)) for v in volume.grid.extent_nm / spacing)
    start = volume.grid.centre_nm - (np.asarray(shape) - 1) / 2 * spacing
    target = Grid(shape, (spacing,) * 3, tuple(start), volume.grid.frame)
    points = target.points_nm().reshape(-1, 3)
    index = np.clip(grid.to_index(points), 0, np.asarray(grid.shape) - 1)
    values = sample_array(smooth, grid, grid.to_world(index)).reshape(shape)
    if np.ptp(values) == 0:
        raise DataError(f"{volume.name or 'image'} has no contrast at {spacing:.0f} nm")
    return Volume(values.astype(np.float32), target, name=volume.name)


def _rotations(options: OrientationOptions) -> list[FloatArray]:
    """Linear parts (lm -> em, zyx) of the poses to try."""
    angles = np.arange(0.0, 360.0, options.angle_step_deg)
    in_plane = [_about("z", a) for a in angles]
    ups = [np.eye(3), _about("x", 180.0)]
    if options.search == "all":
        ups += [_about(axis, angle) for axis, angle in itertools.product("xy", (90.0, -90.0))]
    proper = [up @ r for up, r in itertools.product(ups, in_plane)]
    mirror = np.diag([-1.0, 1.0, 1.0])
    return proper + [mirror @ r for r in proper] if options.allow_mirror else proper


def _tilted(poses: list[Pose], tilt_deg: float) -> list[FloatArray]:
    if tilt_deg <= 0:
        return []
    tilts = [
        _about("x", a) @ _about("y", b)
        for a, b in itertools.product((-tilt_deg, 0.0, tilt_deg), repeat=2)
        if (a, b) != (0.0, 0.0)
    ]
    return [t @ p.linear for p in poses for t in tilts]


def _about(axis: str, degrees: float) -> FloatArray:
    """Rotation matrix zyx about a world axis."""
    xyz = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return np.ascontiguousarray(xyz[::-1, ::-1])


class _Finder:
    """Correlates rotated copies of the moving image with the fixed image."""

    def __init__(self, fixed: Volume, moving: Volume, options: OrientationOptions) -> None:
        self._fixed, self._moving = fixed, moving
        self._spacing = fixed.grid.spacing_nm[0]
        self._image: Image = moving.read()
        self._peaks = 3
        corner = moving.grid.extent_nm / 2
        rotations = _rotations(replace(options, angle_step_deg=15.0))
        tilt = math.sin(math.radians(1.5 * options.tilt_deg))
        reach = np.max([np.abs(r.T) @ corner for r in rotations], axis=0)
        reach = reach + tilt * np.linalg.norm(corner)
        largest = tuple(2 * math.ceil(v / self._spacing) + 1 for v in reach)
        image = fixed.read()
        self._correlate = MaskedCorrelator(
            image,
            np.ones(image.shape, dtype=bool),
            largest,
            min_overlap=options.min_overlap,
            workers=options.threads or os.cpu_count() or 1,
        )

    def candidates(self, linears: list[FloatArray]) -> list[_Candidate]:
        """Best shifts of every rotation, best rank first."""
        found = [c for linear in linears for c in self._best_shifts(linear)]
        return sorted(found, key=lambda c: -c.rank)

    def _best_shifts(self, linear: FloatArray) -> list[_Candidate]:
        template, mask = self._template(linear)
        correlation = self._correlate(template, mask)
        rank = correlation.rank
        found = []
        radius = max(1, round(1000.0 / self._spacing))
        for _ in range(self._peaks):
            at = np.unravel_index(int(rank.argmax()), rank.shape)
            if rank[at] <= 0:
                break
            shift = np.array(at) - np.array(correlation.zero)
            pose = self._pose(linear, shift, template.shape)
            found.append(_Candidate(pose, float(rank[at])))
            around = tuple(slice(max(0, a - radius), a + radius + 1) for a in at)
            rank[around] = 0
        return found

    def _template(self, linear: FloatArray) -> tuple[Image, NDArray[np.bool_]]:
        """Resample the moving image turned into the LM's axes, about its centre."""
        corner = self._moving.grid.extent_nm / 2
        half = np.ceil((np.abs(linear.T) @ corner) / self._spacing).astype(int)
        axes = [np.arange(-n, n + 1) * self._spacing for n in half]
        offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        points = (offsets @ linear.T + self._moving.grid.centre_nm).reshape(-1, 3)
        shape = offsets.shape[:3]
        mask = self._moving.grid.contains(points).reshape(shape)
        template = sample_array(self._image, self._moving.grid, points).reshape(shape)
        return template.astype(np.float32), mask

    def _pose(self, linear: FloatArray, shift: FloatArray, shape: tuple[int, ...]) -> Pose:
        centre_lm = self._fixed.grid.to_world(shift + (np.asarray(shape) - 1) / 2)
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = self._moving.grid.centre_nm - linear @ centre_lm
        return Pose(matrix, math.nan, math.nan)

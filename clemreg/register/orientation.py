"""Find how the EM lies in the LM field, from any start: rotations by brute force, shifts by FFT.

Coarse copies of both images (250 to 600 nm voxels) are correlated over all shifts for each rotation
of a set; the best few poses are refined to an affine by least squares. If no pose stands out, the
set grows: tilts and wrong scales. A second pose that scores nearly as well means the answer cannot
be trusted: the margin says so.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from dataclasses import dataclass
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
_TARGET_SIZE = 2.5e5  # voxels of the zero-padded correlation: about 10 ms each
_COARSER = 1.4  # voxel size of the wide rounds over that of the first one
_CLEAR_SCORE = 0.5
_CLEAR_MARGIN = 0.15
_PEAKS = 2


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
    refined
        How many different poses are refined.
    threads
        FFT threads; 0 means all cores.
    """

    search: Search = "in-plane"
    allow_mirror: bool = False
    angle_step_deg: float = 12.0
    tilt_deg: float = 30.0
    scale: float = 1.3
    spacing_nm: float | None = None
    refined: int = 5
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
    coarse = _coarse(fixed, spacing), _coarse(moving, spacing)
    found: list[_Candidate] = []
    for number, linears in enumerate(_rounds(options)):
        factor = 1.0 if number == 0 else _COARSER
        if linears:
            found += _candidates(fixed, moving, linears, spacing * factor, options)
        if not found:
            continue
        best, runner_up = _judged(found, coarse, options)
        if best.score >= _CLEAR_SCORE and best.score - runner_up >= _CLEAR_MARGIN:
            break
    if not found:
        raise RegistrationError(
            "no pose of the EM in the LM correlates at all",
            hint="check voxel sizes and units, and whether both show mitochondria",
        )
    return _decide(best, runner_up, fixed.grid.frame, moving.grid.frame, spacing)


def _candidates(
    fixed: Volume,
    moving: Volume,
    linears: list[FloatArray],
    spacing: float,
    options: OrientationOptions,
) -> list[_Candidate]:
    finder = _Finder(_coarse(fixed, spacing), _coarse(moving, spacing), linears, options.threads)
    return finder.candidates(linears)


def _judged(
    found: list[_Candidate], coarse: tuple[Volume, Volume], options: OrientationOptions
) -> tuple[Pose, float]:
    """Refine the best candidates; return the best pose and the score of the next different one."""
    fixed, moving = coarse
    ranked = sorted(found, key=lambda c: -c.rank)
    best = _distinct(ranked, moving, 2 * options.refined)
    quick = [refine_pose(c.pose, fixed, moving, rigid=True) for c in best]
    quick = sorted(quick, key=lambda p: -p.rank)[: options.refined]
    refined = sorted(
        (refine_pose(p, fixed, moving, rigid=False) for p in quick), key=lambda p: -p.rank
    )
    return refined[0], _runner_up(refined, best, fixed, moving)


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
    return float(np.clip(spacing, 250.0, 600.0))


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


def _rounds(options: OrientationOptions) -> list[list[FloatArray]]:
    """Linear parts (lm -> em, zyx) of the poses to try, easy ones first."""
    upright = _upright(options, options.angle_step_deg)
    wide = _upright(options, 1.25 * options.angle_step_deg)
    little, much = _tilts(0.4 * options.tilt_deg, 8), _tilts(0.8 * options.tilt_deg, 12)
    near = [options.scale**-0.5, options.scale**0.5] if options.scale > 1 else []
    far = [1 / options.scale, *near, options.scale] if options.scale > 1 else []
    level = [np.eye(3)]
    return [
        upright,
        _products(wide, little, [1.0]) + _products(wide, level, near),
        _products(wide, much, [1.0]) + _products(wide, [*level, *little[::2]], far),
    ]


def _products(
    upright: list[FloatArray], tilts: list[FloatArray], scales: list[float]
) -> list[FloatArray]:
    return [s * (t @ r) for r, t, s in itertools.product(upright, tilts, scales)]


def _upright(options: OrientationOptions, step_deg: float) -> list[FloatArray]:
    in_plane = [_about("z", a) for a in np.arange(0.0, 360.0 - 0.5 * step_deg, step_deg)]
    ups = [np.eye(3), _about("x", 180.0)]
    if options.search == "all":
        ups += [_about(axis, angle) for axis, angle in itertools.product("xy", (90.0, -90.0))]
    proper = [up @ r for up, r in itertools.product(ups, in_plane)]
    mirror = np.diag([-1.0, 1.0, 1.0])
    return proper + [mirror @ r for r in proper] if options.allow_mirror else proper


def _tilts(tilt_deg: float, count: int) -> list[FloatArray]:
    """Rotations by one angle about `count` axes in the plane."""
    if tilt_deg <= 0:
        return []
    return [
        _about("z", -a) @ _about("x", tilt_deg) @ _about("z", a)
        for a in np.arange(count) * 360.0 / count
    ]


def _about(axis: str, degrees: float) -> FloatArray:
    """Rotation matrix zyx about a world axis."""
    xyz = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return np.ascontiguousarray(xyz[::-1, ::-1])


class _Finder:
    """Correlates rotated copies of the moving image with the fixed image."""

    def __init__(
        self, fixed: Volume, moving: Volume, linears: list[FloatArray], threads: int
    ) -> None:
        self._fixed, self._moving = fixed, moving
        self._spacing = fixed.grid.spacing_nm[0]
        self._image: Image = moving.read()
        halves = np.array([self._half(linear) for linear in linears])
        z, y, x = (int(2 * n + 1) for n in halves.max(axis=0))
        image = fixed.read()
        everywhere = np.ones(image.shape, dtype=bool)
        workers = threads or os.cpu_count() or 1
        self._correlate = MaskedCorrelator(
            image, everywhere, (z, y, x), min_overlap=0.1, workers=workers
        )

    def candidates(self, linears: list[FloatArray]) -> list[_Candidate]:
        """Best shifts of every rotation."""
        return [c for linear in linears for c in self._best_shifts(linear)]

    def _half(self, linear: FloatArray) -> NDArray[np.intp]:
        """Half the size in voxels of the turned moving image."""
        corner = self._moving.grid.extent_nm / 2
        half = np.abs(np.linalg.inv(linear)) @ corner / self._spacing
        return np.asarray(np.ceil(half), np.intp)

    def _best_shifts(self, linear: FloatArray) -> list[_Candidate]:
        template, mask = self._template(linear)
        rank, zero = self._correlate.quick(template, mask)
        found = []
        radius = max(1, round(1000.0 / self._spacing))
        for _ in range(_PEAKS):
            at = np.unravel_index(int(rank.argmax()), rank.shape)
            if rank[at] <= 0:
                break
            shift = np.array(at) - np.array(zero)
            found.append(_Candidate(self._pose(linear, shift, template.shape), float(rank[at])))
            around = tuple(slice(max(0, a - radius), a + radius + 1) for a in at)
            rank[around] = 0
        return found

    def _template(self, linear: FloatArray) -> tuple[Image, NDArray[np.bool_]]:
        """Resample the moving image turned into the LM's axes, about its centre."""
        half = self._half(linear)
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

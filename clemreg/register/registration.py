"""The registration: start pose, affine, B-spline; checked, and repeated to see how stable it is."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import RegistrationError
from clemreg.io.atomic import atomic_write_json
from clemreg.io.elastix_files import write_elastix
from clemreg.io.transforms import write_transform
from clemreg.register.elastix import ElastixJob, run_elastix
from clemreg.register.orientation import Orientation, OrientationOptions, search_orientation
from clemreg.register.stages import (
    AffineStage,
    BSplineStage,
    ParameterMap,
    affine_parameters,
    bspline_parameters,
)
from clemreg.space.grid import Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, Chain, FloatArray, Transform
from clemreg.volume import Volume

log = logging.getLogger(__name__)

JACOBIAN_RANGE = (0.5, 2.0)
STIFFER = 1.4
MOST_TRIES = 3
USUAL_SCALE = (0.7, 1.4)


@dataclass(frozen=True)
class RegisterOptions:
    """Everything that can be chosen about a registration.

    Attributes
    ----------
    orientation
        Search of the start pose.
    affine, bspline
        The two elastix stages.
    seed
        Seed of elastix's sampler.
    stability_seeds
        How many more times both stages are run, with other seeds.
    threads
        Threads; 0 means all cores.
    parameters
        elastix parameter maps instead of the two stages.
    """

    orientation: OrientationOptions = field(default_factory=OrientationOptions)
    affine: AffineStage = field(default_factory=AffineStage)
    bspline: BSplineStage = field(default_factory=BSplineStage)
    seed: int = 0
    stability_seeds: int = 0
    threads: int = 0
    parameters: tuple[ParameterMap, ...] = ()


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """What was found, and how.

    Attributes
    ----------
    transform
        LM to EM.
    affine
        Its affine part, LM to EM.
    orientation
        The start pose.
    scores
        Normalised correlation inside the EM: ``start``, ``affine``, ``final``.
    timings_s
        Seconds of ``orientation``, ``elastix`` and ``stability``.
    repeats
        The transforms found with other seeds.
    grid_spacing_um
        Control point spacing zyx that was used in the end.
    warnings
        Full sentences.
    """

    transform: Transform
    affine: Affine
    orientation: Orientation
    scores: dict[str, float]
    timings_s: dict[str, float]
    repeats: tuple[Transform, ...] = ()
    grid_spacing_um: tuple[float, float, float] | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the parts of ``report.json`` that the registration knows."""
        pose = self.orientation
        return {
            "orientation": {
                "score": pose.score,
                "runner_up": pose.runner_up,
                "margin": pose.margin,
                "mirrored": pose.mirrored,
                "matrix": pose.affine.matrix,
            },
            "affine": {
                "matrix": self.affine.matrix,
                "singular_values": self.affine.singular_values,
                "determinant": float(np.linalg.det(self.affine.linear)),
                "warnings": list(self.warnings),
            },
            "scores": self.scores,
            "grid_spacing_um": self.grid_spacing_um,
            "timings_s": self.timings_s,
        }

    def save(self, folder: Path, fixed_grid: Grid) -> None:
        """Write ``transform.json``, ``orientation.json``, repeats, ``elastix/`` and the figures."""
        folder.mkdir(parents=True, exist_ok=True)
        write_transform(self.orientation.affine, folder / "orientation.json")
        for number, repeat in enumerate(self.repeats):
            write_transform(repeat, folder / f"repeat-{number}.json")
        write_elastix(self.transform, folder / "elastix", fixed_grid)
        atomic_write_json(folder / "registration.json", self.to_json())
        write_transform(self.transform, folder / "transform.json")


def register(
    fixed: Volume,
    moving: Volume,
    options: RegisterOptions | None = None,
    *,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> RegistrationResult:
    """Register prepared images.

    Parameters
    ----------
    fixed, moving
        Light image and EM as the light microscope would see it (`clemreg.register.features`).
    options
        Defaults if None.
    work_dir
        Where elastix's inputs and logs are kept; default: a folder that is removed.

    Raises
    ------
    RegistrationError
        No pose was found, or elastix failed.
    """
    options = options or RegisterOptions()
    tell = _teller(progress, 3 + options.stability_seeds)
    clock = _Clock()
    tell("searching the start pose")
    pose_options = replace(options.orientation, threads=options.threads)
    pose = search_orientation(fixed, moving, pose_options)
    clock.lap("orientation")
    with _folder(work_dir) as folder:
        finder = _Stages(fixed, moving, pose.affine, options, folder)
        tell("affine and B-spline")
        transform, stage = finder.find()
        clock.lap("elastix")
        repeats = []
        for number in range(options.stability_seeds):
            tell(f"repeat {number + 1} with another seed")
            repeats.append(finder.once(stage, options.seed + 1 + number))
        clock.lap("stability")
    affine = affine_of(transform)
    scores = {
        "start": correlation(fixed, moving, pose.affine),
        "affine": correlation(fixed, moving, affine),
        "final": correlation(fixed, moving, transform),
    }
    tell("done")
    return RegistrationResult(
        transform,
        affine,
        pose,
        scores,
        clock.seconds,
        tuple(repeats),
        None if options.parameters else stage.grid_spacing_um,
        (*finder.warnings, *scale_warnings(affine), *_score_warnings(scores)),
    )


class _Stages:
    """Runs both elastix stages, stiffer where the result is not plausible."""

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        start: Affine,
        options: RegisterOptions,
        folder: Path,
    ) -> None:
        self.fixed = fixed
        self.moving = padded(moving)
        self.start = start
        self.options = options
        self.folder = folder
        self.mask = footprint(fixed.grid, moving.grid, start)
        self.warnings: list[str] = []
        self.runs = 0

    def find(self) -> tuple[Transform, BSplineStage]:
        """Find the transform; a fold or an implausible volume change widens the control grid."""
        stage = self.options.bspline
        for attempt in range(MOST_TRIES):
            transform = self.once(stage, self.options.seed)
            low, high = self._volume_change(transform)
            if JACOBIAN_RANGE[0] <= low and high <= JACOBIAN_RANGE[1]:
                return transform, stage
            log.warning("volume changes by %.2f to %.2f: stiffening", low, high)
            if attempt < MOST_TRIES - 1 and not self.options.parameters:
                z, y, x = (STIFFER * s for s in stage.grid_spacing_um)
                stage = replace(stage, grid_spacing_um=(z, y, x))
        self.warnings.append(
            f"Local volume still changes by {low:.2f} to {high:.2f} with control points "
            f"{stage.grid_spacing_um[1]:.1f} um apart."
        )
        return transform, stage

    def once(self, stage: BSplineStage, seed: int) -> Transform:
        """Run affine and B-spline once."""
        spacing = self.fixed.grid.spacing_nm
        parameters = self.options.parameters or (
            affine_parameters(self.options.affine, spacing, seed),
            bspline_parameters(stage, spacing, seed),
        )
        job = ElastixJob(self.fixed, self.moving, parameters, self.mask, self.start)
        self.runs += 1
        run = run_elastix(job, self.folder / f"run-{self.runs}", threads=self.options.threads)
        return _merged(run.transform)

    def _volume_change(self, transform: Transform) -> tuple[float, float]:
        points = _inside_points(self.fixed.grid, self.mask)
        local = transform.determinant(points) / np.linalg.det(affine_of(transform).linear)
        return float(local.min()), float(local.max())


def footprint(fixed: Grid, moving: Grid, start: Affine) -> NDArray[np.bool_]:
    """LM voxels that the start pose puts into the imaged EM.

    Samples elsewhere would be compared with material that was not imaged.

    Raises
    ------
    RegistrationError
        Hardly any voxel is left.
    """
    inside = np.zeros(fixed.shape, dtype=bool)
    for z in range(fixed.shape[0]):
        plane = np.stack(
            np.meshgrid([z], *(np.arange(n) for n in fixed.shape[1:]), indexing="ij"), -1
        )
        points = fixed.to_world(plane.reshape(-1, 3))
        inside[z] = moving.contains(start(points)).reshape(fixed.shape[1:])
    if inside.mean() < 1e-3:
        raise RegistrationError(
            "the EM and the LM hardly overlap in the start pose",
            hint="check voxel sizes and which volumes belong together",
        )
    return inside


def padded(moving: Volume, margin_nm: float = 600.0) -> Volume:
    """Add a rim of background to the moving image.

    elastix leaves out samples that map outside the moving image, so that sliding off a thin slab
    would cost nothing; over the rim it costs the lost correlation.
    """
    voxels = [math.ceil(margin_nm / s) for s in moving.grid.spacing_nm]
    image = np.pad(moving.read(), [(n, n) for n in voxels])
    z, y, x = voxels
    return Volume(image, moving.grid.crop(moving.grid.box.grow((z, y, x))), name=moving.name)


def correlation(fixed: Volume, moving: Volume, transform: Transform) -> float:
    """Normalised correlation of the LM and the EM brought onto it, inside the EM."""
    image = fixed.read()
    kept: list[NDArray[Any]] = []
    seen: list[NDArray[Any]] = []
    pixels = moving.read()
    for z in range(fixed.shape[0]):
        plane = np.stack(
            np.meshgrid([z], *(np.arange(n) for n in fixed.shape[1:]), indexing="ij"), -1
        )
        there = transform(fixed.grid.to_world(plane.reshape(-1, 3)))
        inside = moving.grid.contains(there)
        kept.append(image[z].ravel()[inside])
        seen.append(sample_array(pixels, moving.grid, there[inside]))
    a, b = np.concatenate(kept), np.concatenate(seen)
    if len(a) < 100 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def affine_of(transform: Transform) -> Affine:
    """Affine links of a chain up to the first deformation, from its source to its target frame."""
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    total = Affine.identity(transform.source, transform.source)
    for part in parts:
        if not isinstance(part, Affine):
            break
        joined = total.then(part)
        total = joined if isinstance(joined, Affine) else total
    return Affine(total.matrix, transform.source, transform.target)


def scale_warnings(affine: Affine) -> list[str]:
    """Name a voxel size that the affine has silently absorbed."""
    scales = np.linalg.norm(affine.linear, axis=0)
    found = []
    for axis, scale in zip("zyx", scales, strict=True):
        if not USUAL_SCALE[0] <= scale <= USUAL_SCALE[1]:
            found.append(
                f"The affine stretches {axis} of the LM by {scale:.2f}: "
                f"its true {axis} voxel size is probably {scale:.2f} times what the file says, "
                f"or that of the EM along the same direction {1 / scale:.2f} times."
            )
    return found


def _score_warnings(scores: dict[str, float]) -> list[str]:
    if scores["final"] < scores["start"]:
        return [
            f"The correlation fell from {scores['start']:.2f} in the start pose to "
            f"{scores['final']:.2f}: the optimisation lost the right place."
        ]
    return []


def _merged(transform: Transform) -> Transform:
    """Join neighbouring affines of a chain into one."""
    parts = list(transform.parts if isinstance(transform, Chain) else (transform,))
    joined: list[Transform] = [parts[0]]
    for part in parts[1:]:
        last = joined[-1]
        if isinstance(last, Affine) and isinstance(part, Affine):
            joined[-1] = last.then(part)
        else:
            joined.append(part)
    return joined[0] if len(joined) == 1 else Chain(tuple(joined))


def _inside_points(grid: Grid, mask: NDArray[np.bool_], most: int = 20_000) -> FloatArray:
    index = np.argwhere(mask)
    step = max(1, len(index) // most)
    return grid.to_world(index[::step])


def _folder(work_dir: Path | None) -> AbstractContextManager[Path]:
    if work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
        return nullcontext(work_dir)
    return _Temporary()


class _Temporary(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    def __enter__(self) -> Path:
        return Path(super().__enter__())


def _teller(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def tell(message: str) -> None:
        nonlocal done
        if progress is not None:
            progress(min(done, total), total, message)
        done += 1

    return tell


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

"""The registration: start pose, affine, B-spline; checked, and repeated to see how stable it is."""

from __future__ import annotations

import logging
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
from clemreg.io.atomic import atomic_write_json
from clemreg.io.elastix_files import fits_elastix, write_elastix
from clemreg.io.transforms import write_transform
from clemreg.register.engines import (
    ElastixStages,
    NewtonStages,
    Stages,
    Task,
    check_stages,
    engine_for,
)
from clemreg.register.guides import (
    Guides,
    corrected,
    landmark_warnings,
    require_overlap,
    start_from_landmarks,
)
from clemreg.register.matching import EVERYWHERE, Channel, Masks, check_images, draw_samples
from clemreg.register.orientation import Orientation, OrientationOptions, search_orientation
from clemreg.register.trusted import filled, trusted_at
from clemreg.register.worker import ElastixWorker
from clemreg.space.grid import Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, Chain, Transform
from clemreg.volume import Volume

log = logging.getLogger(__name__)

EARLIER = ("transform.json", "repeat-*.json", "elastix/TransformParameters.*.txt")
"""What a result leaves in its folder, and the next one there replaces as a whole."""
JACOBIAN_RANGE = (0.5, 2.0)
MOST_TRIES = 3
USUAL_SCALE = (0.7, 1.4)
USUAL_DRIFT = (0.8, 1.25)
"""Change of volume by the deformation, median over the EM: 1 if the affine has done its part."""
USUAL_RATIO = 1.25
LOST_CORRELATION = 0.03
"""The deformation fits the contrast place by place, so it may lose a little of the whole's."""


@dataclass(frozen=True)
class RegisterOptions:
    """Everything that can be chosen about a registration.

    Attributes
    ----------
    orientation
        Search of the start pose.
    stages
        Affine and deformation, by Gauss-Newton or by elastix.
    seed
        Seed of the sampler.
    stability_seeds
        How many more times both stages are run, with other seeds.
    threads
        Threads; 0 means all cores.
    """

    orientation: OrientationOptions = field(default_factory=OrientationOptions)
    stages: Stages = field(default_factory=NewtonStages)
    seed: int = 0
    stability_seeds: int = 0
    threads: int = 0


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
        Seconds of ``orientation``, ``deformation`` and ``stability``.
    repeats
        The transforms found with other seeds.
    grid_spacing_um
        Control point spacing zyx that was used in the end.
    attempts
        Least and greatest local volume change of each try; the last one is the result.
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
    attempts: tuple[tuple[float, float], ...] = ()
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
            "stiffened": {
                "times": max(len(self.attempts) - 1, 0),
                "volume_change": [list(a) for a in self.attempts],
            },
            "timings_s": self.timings_s,
        }

    def save(self, folder: Path, fixed_grid: Grid) -> None:
        """Write ``transform.json``, ``orientation.json``, repeats, ``elastix/`` and the figures.

        Every transform says `fixed_grid`, so that it can be evaluated without the image. Transforms
        of an earlier result are removed, also those that this one has no successor for.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for form in EARLIER:
            for path in folder.glob(form):
                path.unlink()
        start = self.orientation.affine
        write_transform(start, folder / "orientation.json", fixed_grid=fixed_grid)
        for number, repeat in enumerate(self.repeats):
            write_transform(repeat, folder / f"repeat-{number}.json", fixed_grid=fixed_grid)
        if fits_elastix(self.transform):
            write_elastix(self.transform, folder / "elastix", fixed_grid)
        atomic_write_json(folder / "registration.json", self.to_json())
        write_transform(self.transform, folder / "transform.json", fixed_grid=fixed_grid)


def register(
    fixed: Volume,
    moving: Volume,
    options: RegisterOptions | None = None,
    *,
    guides: Guides | None = None,
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
    guides
        Further channels, masks and landmarks.
    work_dir
        Where elastix's inputs and logs are kept; default: a folder that is removed.

    Raises
    ------
    DataError
        An image holds NaN, is flat or too thin.
    RegistrationError
        No pose was found, or the optimisation failed.
    ConfigError, DependencyError
        elastix was asked for what it cannot do, or is not installed.
    """
    options, guides = options or RegisterOptions(), guides or Guides()
    channels = (Channel(fixed, moving), *guides.channels)
    check_images(channels)
    check_stages(options.stages, len(channels), guides.metric is not None)
    tell = _teller(progress, 3 + options.stability_seeds)
    clock = _Clock()
    tell("searching the start pose")
    pose = _start(fixed, moving, options, guides)
    clock.lap("orientation")
    with _folder(work_dir) as folder, ElastixWorker() as worker:
        task = Task(
            channels, guides.masks, pose.affine, guides.metric, folder, options.threads, worker
        )
        tell("affine and B-spline")
        finder = _Finder(task, options)
        transform, stages = finder.find()
        plain, transform = transform, corrected(transform, guides, moving.grid)
        clock.lap("deformation")
        repeats = []
        for number in range(options.stability_seeds):
            tell(f"repeat {number + 1} with another seed")
            again = finder.once(stages, options.seed + 1 + number)
            repeats.append(corrected(again, guides, moving.grid))
        clock.lap("stability")
    affine = affine_of(transform)
    poses = {"start": pose.affine, "affine": affine, "final": transform}
    scores = {k: correlation(fixed, moving, p, guides.masks) for k, p in poses.items()}
    spoilt: tuple[str, ...] = ()
    if transform is not plain:
        before = correlation(fixed, moving, plain, guides.masks)
        spoilt = tuple(_correction_warnings(before, scores["final"]))
    warnings = (
        *finder.warnings,
        *scale_warnings(affine),
        *landmark_warnings(guides, affine, fixed.grid, moving.grid),
        *_score_warnings(scores),
        *spoilt,
    )
    tell("done")
    return RegistrationResult(
        transform,
        affine,
        pose,
        scores,
        clock.seconds,
        tuple(repeats),
        _grid_spacing(stages),
        tuple(finder.attempts),
        warnings,
    )


def _start(fixed: Volume, moving: Volume, options: RegisterOptions, guides: Guides) -> Orientation:
    if guides.pose is not None:
        return guides.pose
    if guides.start is not None:
        pose = start_from_landmarks(fixed, moving, guides.start)
        require_overlap(pose.affine, fixed.grid, moving.grid)
        return pose
    search = replace(options.orientation, threads=options.threads)
    return search_orientation(fixed, moving, search, guides.masks)


def _grid_spacing(stages: Stages) -> tuple[float, float, float] | None:
    if isinstance(stages, NewtonStages):
        return stages.deformation.grid_spacing_um
    return None if stages.parameters else stages.bspline.grid_spacing_um


class _Finder:
    """Runs the stages, stiffer where the result is not plausible."""

    def __init__(self, task: Task, options: RegisterOptions) -> None:
        self._task, self._options = task, options
        self._engine = engine_for(task, options.stages)
        self.attempts: list[tuple[float, float]] = []
        self.warnings: list[str] = []

    def find(self) -> tuple[Transform, Stages]:
        """Find the transform; a fold or an implausible volume change makes it stiffer."""
        tries = MOST_TRIES
        if isinstance(self._options.stages, ElastixStages) and self._options.stages.parameters:
            tries = 1
        for attempt in range(tries):
            stages = self._options.stages.stiffer(attempt) if attempt else self._options.stages
            transform = self.once(stages, self._options.seed)
            low, middle, high = self._volume_change(transform)
            self.attempts.append((low, high))
            if JACOBIAN_RANGE[0] <= low and high <= JACOBIAN_RANGE[1]:
                self.warnings += drift_warnings(middle)
                return transform, stages
            log.warning("volume changes by %.2f to %.2f: stiffening", low, high)
        self.warnings.append(
            f"Local volume still changes by {low:.2f} to {high:.2f} after {tries - 1} times "
            "stiffening."
        )
        self.warnings += drift_warnings(middle)
        return transform, stages

    def once(self, stages: Stages, seed: int) -> Transform:
        """Run affine and deformation once."""
        return self._engine.find(stages, seed)

    def _volume_change(self, transform: Transform) -> tuple[float, float, float]:
        """Least, median and largest change of volume by the deformation, inside the EM."""
        affine = affine_of(transform)
        points = draw_samples(
            np.random.default_rng(0), self._task.channels[0], self._task.masks, affine, 20_000, 0.0
        )
        local = transform.determinant(points) / np.linalg.det(affine.linear)
        return float(local.min()), float(np.median(local)), float(local.max())


def correlation(
    fixed: Volume, moving: Volume, transform: Transform, masks: Masks = EVERYWHERE
) -> float:
    """Normalised correlation of the LM and the EM brought onto it, inside the EM and the masks."""
    image = fixed.read()
    kept: list[NDArray[Any]] = []
    seen: list[NDArray[Any]] = []
    pixels = filled(moving.read(), masks.moving)
    for z in range(fixed.shape[0]):
        plane = np.stack(
            np.meshgrid([z], *(np.arange(n) for n in fixed.shape[1:]), indexing="ij"), -1
        )
        there = transform(fixed.grid.to_world(plane.reshape(-1, 3)))
        inside = moving.grid.contains(there)
        inside &= trusted_at(masks.moving, moving.grid.to_index(there).T)
        if masks.fixed is not None:
            inside &= masks.fixed[z].ravel()
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
    """Name a voxel size that the affine has silently absorbed.

    If the file of the EM says c times too little along an axis, the affine LM to EM, fitted with
    the file's voxel sizes, shrinks that direction by c. Preparation shrinks or swells too, but
    about alike in all directions: an axis is suspected if its scale leaves `USUAL_SCALE`, or if it
    differs from the other two by more than `USUAL_RATIO` and they from each other by less.
    """
    scales = np.linalg.norm(affine.linear, axis=0)
    found = []
    for number, (axis, scale) in enumerate(zip("zyx", scales, strict=True)):
        others = np.delete(scales, number)
        ratio = float(scale / np.sqrt(others.prod()))
        unusual = not USUAL_SCALE[0] <= scale <= USUAL_SCALE[1]
        apart = max(ratio, 1 / ratio) > USUAL_RATIO > others.max() / others.min()
        if not unusual and not apart:
            continue
        along = "zyx"[int(np.argmax(np.abs(affine.linear[:, number])))]
        off, than = float(scale), "more than preparation does"
        if not unusual:
            off, than = ratio, f"{ratio:.2f} times as much as the other axes"
        em, lm = ("large", "small") if off > 1 else ("small", "large")
        factor = max(off, 1 / off)
        found.append(
            f"The affine stretches {axis} of the LM by {scale:.2f}, {than}: "
            f"the EM {along} voxel size is probably {factor:.2f} times too {em}, "
            f"or the LM {axis} voxel size {factor:.2f} times too {lm}."
        )
    return found


def drift_warnings(volume_change: float) -> list[str]:
    """Name a deformation that scales all of the EM, which is the affine's part.

    Parameters
    ----------
    volume_change
        Median over the EM of the deformation's change of volume, the affine's left out.
    """
    if USUAL_DRIFT[0] <= volume_change <= USUAL_DRIFT[1]:
        return []
    return [
        f"The deformation changes the volume of the whole EM by {volume_change:.2f}, which the "
        "affine should have done: the pose is probably wrong, or the EM is mirrored."
    ]


def _score_warnings(scores: dict[str, float]) -> list[str]:
    if scores["final"] < scores["start"] - LOST_CORRELATION:
        return [
            f"The correlation fell from {scores['start']:.2f} in the start pose to "
            f"{scores['final']:.2f}: the optimisation lost the right place."
        ]
    return []


def _correction_warnings(before: float, after: float) -> list[str]:
    if after < before - LOST_CORRELATION:
        return [
            f"The correction by landmarks lowered the correlation from {before:.2f} to "
            f"{after:.2f}: it follows what the clicks are off by, most of all where there are no "
            "landmarks. In the metric (--use-landmarks metric) they are weighed against the images."
        ]
    return []


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

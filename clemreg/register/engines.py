"""The two ways to find affine and deformation from a start pose: Gauss-Newton, and elastix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, RegistrationError
from clemreg.register.elastix import ElastixJob, require_elastix, run_elastix
from clemreg.register.matching import Channel, Masks
from clemreg.register.newton import AffineFit, DeformableFit, fit_affine, fit_deformation
from clemreg.register.stages import (
    AffineStage,
    BSplineStage,
    ParameterMap,
    affine_parameters,
    bspline_parameters,
)
from clemreg.register.worker import ElastixWorker
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.resample import sample_array
from clemreg.space.transform import Affine, Chain, Transform
from clemreg.volume import Volume

STIFFER_WEIGHT = 3.0
STIFFER_GRID = 1.4


@dataclass(frozen=True)
class NewtonStages:
    """Affine and deformation by Gauss-Newton (`clemreg.register.newton`).

    Attributes
    ----------
    affine, deformation
        Options of the two fits.
    """

    affine: AffineFit = field(default_factory=AffineFit)
    deformation: DeformableFit = field(default_factory=DeformableFit)

    def stiffer(self, times: int) -> NewtonStages:
        """Return the same stages with the bending energy weighted more."""
        weight = max(self.deformation.bending_weight, 0.1) * STIFFER_WEIGHT**times
        return replace(self, deformation=replace(self.deformation, bending_weight=weight))


@dataclass(frozen=True)
class ElastixStages:
    """Affine and B-spline by elastix, or any elastix parameter maps.

    Attributes
    ----------
    affine, bspline
        Options of the two stages.
    parameters
        Parameter maps instead of the two stages; done in order, never changed.
    """

    affine: AffineStage = field(default_factory=AffineStage)
    bspline: BSplineStage = field(default_factory=BSplineStage)
    parameters: tuple[ParameterMap, ...] = ()

    def stiffer(self, times: int) -> ElastixStages:
        """Return the same stages with control points farther apart."""
        z, y, x = (STIFFER_GRID**times * s for s in self.bspline.grid_spacing_um)
        return replace(self, bspline=replace(self.bspline, grid_spacing_um=(z, y, x)))


Stages = NewtonStages | ElastixStages


@dataclass(frozen=True, eq=False)
class Task:
    """What every run of an engine starts from.

    Attributes
    ----------
    channels
        Images; the first one is the one that poses are scored on.
    masks
        Where they can be trusted.
    start
        Start pose LM to EM.
    landmarks
        Pairs that pull on the deformation, or None.
    folder
        For the files of elastix.
    threads
        Threads of elastix; 0 means all cores.
    worker
        Where elastix runs; None starts a process for every run.
    """

    channels: tuple[Channel, ...]
    masks: Masks
    start: Affine
    landmarks: Landmarks | None
    folder: Path
    threads: int = 0
    worker: ElastixWorker | None = None


class Engine(Protocol):
    """Finds a transform LM to EM: an affine, then a deformation of the EM frame."""

    def find(self, stages: Stages, seed: int) -> Transform:
        """Run all stages once."""


def engine_for(task: Task, stages: Stages) -> Engine:
    """Return the engine that runs such stages."""
    return _Newton(task) if isinstance(stages, NewtonStages) else _Elastix(task)


def check_stages(stages: Stages, channels: int, landmarks: bool) -> None:
    """Refuse what no engine can do, before a pose is searched.

    Parameters
    ----------
    channels
        How many are registered.
    landmarks
        Whether some are in the metric.

    Raises
    ------
    ConfigError
        elastix was asked for what only the other engine does.
    DependencyError
        elastix is not installed.
    """
    if isinstance(stages, NewtonStages):
        return
    if channels > 1 or landmarks:
        raise ConfigError(
            "several channels and landmarks in the metric need the newton engine",
            hint="elastix's own multi-metric registration crashes with more than one thread; "
            "leave out --engine elastix, --preset and --params",
        )
    require_elastix()


class _Newton:
    def __init__(self, task: Task) -> None:
        self._task = task

    def find(self, stages: Stages, seed: int) -> Transform:
        assert isinstance(stages, NewtonStages)
        task = self._task
        affine = fit_affine(task.channels, task.masks, task.start, stages.affine, seed)
        return fit_deformation(
            task.channels, task.masks, affine, stages.deformation, seed, task.landmarks
        )


class _Elastix:
    """Samples are drawn where the start pose puts the EM, and the EM gets a rim of background."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._fixed = task.channels[0].fixed
        moving = task.channels[0].moving
        self._moving = padded(moving)
        self._mask = footprint(self._fixed.grid, moving.grid, task.start, task.masks)
        self._runs = 0

    def find(self, stages: Stages, seed: int) -> Transform:
        assert isinstance(stages, ElastixStages)
        spacing = self._fixed.grid.spacing_nm
        parameters: Sequence[ParameterMap] = stages.parameters or (
            affine_parameters(stages.affine, spacing, seed),
            bspline_parameters(stages.bspline, spacing, seed),
        )
        seeded = tuple({**one, "RandomSeed": (str(seed),)} for one in parameters)
        job = ElastixJob(self._fixed, self._moving, seeded, self._mask, self._task.start)
        self._runs += 1
        folder, task = self._task.folder / f"run-{self._runs}", self._task
        run = run_elastix(job, folder, threads=task.threads, worker=task.worker)
        return merged(run.transform)


def footprint(
    fixed: Grid, moving: Grid, start: Affine, masks: Masks | None = None
) -> NDArray[np.bool_]:
    """LM voxels that can be trusted and that the start pose puts into trusted, imaged EM.

    Samples elsewhere would be compared with material that was not imaged.

    Raises
    ------
    RegistrationError
        Hardly any voxel is left.
    """
    masks = masks or Masks()
    inside = np.zeros(fixed.shape, dtype=bool)
    for z in range(fixed.shape[0]):
        plane = np.stack(
            np.meshgrid([z], *(np.arange(n) for n in fixed.shape[1:]), indexing="ij"), -1
        )
        there = start(fixed.to_world(plane.reshape(-1, 3)))
        seen = moving.contains(there)
        if masks.moving is not None:
            seen &= sample_array(masks.moving, moving, there, order=0).astype(bool)
        inside[z] = seen.reshape(fixed.shape[1:])
    if masks.fixed is not None:
        inside &= masks.fixed
    if inside.mean() < 1e-4:
        raise RegistrationError(
            "the EM and the LM hardly overlap in the start pose",
            hint="check voxel sizes and which volumes belong together, or give a larger mask",
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


def merged(transform: Transform) -> Transform:
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

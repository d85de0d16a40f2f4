"""Apply the steps of a recipe to one organelle. Steps stay lazy until one needs whole objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.blocks.distance import Near
from clemreg.blocks.stages import Blockwise, Read, map_volume
from clemreg.errors import ConfigError, DataError
from clemreg.io.volumes import WriteOptions, open_labels
from clemreg.refine import objects, recipe
from clemreg.refine.agglomerate import Agglomeration
from clemreg.refine.voxels import AtLeast, Inside, Outside, Smoothed, enough_voxels
from clemreg.refine.watershed import segment_instances
from clemreg.space.grid import Grid
from clemreg.volume import Labels

Kind = Literal["prediction", "mask", "labels"]


@dataclass(frozen=True)
class Stage:
    """What an organelle is between two steps.

    Attributes
    ----------
    read, grid
        Its voxels, and where they are.
    kind
        Stored signed distances, a mask, or ids.
    dtype
        Of the voxels.
    """

    read: Read
    grid: Grid
    kind: Kind
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Workplace:
    """Where and how one step works.

    Attributes
    ----------
    name
        Of the organelle, for messages.
    folder
        For what the step keeps; resumable.
    how
        Blocks and executor.
    others
        Finished organelles of the recipe, for masks and parents.
    """

    name: str
    folder: Path
    how: Blockwise
    others: Mapping[str, Labels]


def refine_organelle(
    organelle: recipe.Organelle, stage: Stage, work: Workplace, out: Path
) -> Labels:
    """Apply all steps and write the result.

    Parameters
    ----------
    organelle
        Its steps.
    stage
        The prediction, or the organelle that it is made from.
    work
        Working folder, blocks, and finished organelles.
    out
        OME-Zarr to write: ids, or 0 and 1 if the recipe does not label; with a pyramid.

    Raises
    ------
    ConfigError
        A step cannot follow the one before it.
    DataError
        An organelle lies on another grid, or an id does not exist.
    """
    for number, step in enumerate(organelle.steps):
        folder = work.folder / f"{number}-{step.do}"
        stage = apply_step(step, stage, replace(work, folder=folder))
    if stage.kind == "prediction":
        raise ConfigError(
            f"the recipe of {work.name} ends with a prediction", hint="add a threshold step"
        )
    dtype = np.dtype(np.uint8) if stage.kind == "mask" else stage.dtype
    options = WriteOptions(labels=True)
    map_volume(stage.read, out, stage.grid, dtype, work.how.named(work.name), options)
    return open_labels(out, frame=stage.grid.frame)


@singledispatch
def apply_step(step: Any, _stage: Stage, _work: Workplace) -> Stage:
    """Apply one step of a recipe."""
    raise TypeError(f"{type(step).__name__} is no step")


@apply_step.register
def _(step: recipe.Smooth, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "prediction")
    return replace(
        stage,
        read=Smoothed(stage.read, stage.grid, step.sigma_nm),
        dtype=np.dtype(np.float32),
    )


@apply_step.register
def _(step: recipe.Threshold, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "prediction")
    read = AtLeast(stage.read, step.distance_nm)
    return Stage(read, stage.grid, "mask", np.dtype(bool))


@apply_step.register
def _(step: recipe.KeepInside, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "mask", "labels")
    mask = Near(_other(step.mask, stage, work).read, stage.grid, step.expand_nm)
    return replace(stage, read=Inside(stage.read, mask))


@apply_step.register
def _(step: recipe.RemoveInside, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "mask", "labels")
    mask = Near(_other(step.mask, stage, work).read, stage.grid, step.expand_nm)
    return replace(stage, read=Outside(stage.read, mask))


@apply_step.register
def _(step: recipe.ComponentsStep, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "mask", "labels")
    minimum = step.min_volume_nm3
    return _labels(objects.label_objects(stage.read, stage.grid, minimum, work.folder, work.how))


@apply_step.register
def _(step: recipe.WatershedStep, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "prediction")
    settings = Agglomeration(step.quantile, step.threshold, step.affinity)
    smoothed = Smoothed(stage.read, stage.grid, step.sigma_nm)
    labels = segment_instances(smoothed, stage.grid, settings, work.folder, work.how)
    return _large(_labels(labels), step.min_volume_nm3, work)


@apply_step.register
def _(step: recipe.FillHoles, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "labels")
    filled = objects.fill_holes(_materialised(stage, work), work.folder, work.how)
    return _large(_labels(filled), step.min_volume_nm3, work)


@apply_step.register
def _(step: recipe.Largest, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "labels")
    ids, voxels = objects.count_voxels(stage.read, stage.grid, work.folder, work.how)
    # Of equally large ones argmax takes the first, which has the lowest id.
    kept = (int(ids[np.argmax(voxels)]),) if len(ids) else ()
    return replace(stage, read=objects.Selected(stage.read, kept))


@apply_step.register
def _(step: recipe.Keep, stage: Stage, work: Workplace) -> Stage:
    _check_ids(step.ids, step.do, stage, work)
    return replace(stage, read=objects.Selected(stage.read, step.ids))


@apply_step.register
def _(step: recipe.Drop, stage: Stage, work: Workplace) -> Stage:
    _check_ids(step.ids, step.do, stage, work)
    return replace(stage, read=objects.Without(stage.read, step.ids))


@apply_step.register
def _(step: recipe.KeepAdjacent, stage: Stage, work: Workplace) -> Stage:
    _check_ids(step.ids, step.do, stage, work)
    folder = work.folder / "touching"
    kept = objects.touching_ids(stage.read, stage.grid, step.ids, folder, work.how)
    return replace(stage, read=objects.Selected(stage.read, kept))


@apply_step.register
def _(step: recipe.Assign, stage: Stage, work: Workplace) -> Stage:
    _require(stage, work, step.do, "mask")
    parent = _other(step.parent, stage, work)
    return Stage(Inside(parent.read, stage.read), stage.grid, "labels", parent.dtype)


def _labels(labels: Labels) -> Stage:
    return Stage(labels.read, labels.grid, "labels", labels.dtype)


def _materialised(stage: Stage, work: Workplace) -> Labels:
    """Labels on disk: what reads them many times must not compute them each time."""
    path = work.folder / "before.zarr"
    map_volume(stage.read, path, stage.grid, stage.dtype, work.how.named("objects"))
    return open_labels(path, frame=stage.grid.frame)


def _large(stage: Stage, min_volume_nm3: float, work: Workplace) -> Stage:
    """Drop objects up to a volume; ids stay."""
    if min_volume_nm3 == 0:
        return stage
    ids, voxels = objects.count_voxels(stage.read, stage.grid, work.folder / "count", work.how)
    small = ids[voxels < enough_voxels(min_volume_nm3, stage.grid)]
    return replace(stage, read=objects.Without(stage.read, tuple(small.tolist())))


def _check_ids(ids: tuple[int, ...], do: str, stage: Stage, work: Workplace) -> None:
    _require(stage, work, do, "labels")
    present, _ = objects.count_voxels(stage.read, stage.grid, work.folder / "ids", work.how)
    objects.require_ids(ids, present, work.name)


def _require(stage: Stage, work: Workplace, do: str, *kinds: Kind) -> None:
    if stage.kind not in kinds:
        raise ConfigError(
            f"{work.name}: step {do!r} needs a {' or '.join(kinds)}, but has a {stage.kind}",
            hint="predictions become masks by `threshold`, masks become labels by `components`",
        )


def _other(name: str, stage: Stage, work: Workplace) -> Labels:
    other = work.others[name]
    same = (
        other.grid.shape == stage.grid.shape
        and np.allclose(other.grid.spacing_nm, stage.grid.spacing_nm)
        and np.allclose(other.grid.origin_nm, stage.grid.origin_nm)
    )
    if not same:
        raise DataError(
            f"{work.name} lies on {stage.grid}, but {name} on {other.grid}",
            hint="predictions of one recipe must have the same voxels",
        )
    return other

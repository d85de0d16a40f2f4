"""What needs whole objects: label, drop the small, fill holes, choose by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.components import (
    Components,
    consecutive,
    find_components,
    relabelled,
    write_components,
)
from clemreg.blocks.distance import inner
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Read, collect, map_volume
from clemreg.errors import DataError
from clemreg.io.volumes import open_labels
from clemreg.refine.voxels import enough_voxels
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels


def label_objects(
    read: Read, grid: Grid, min_volume_nm3: float, folder: Path, how: Blockwise
) -> Labels:
    """Give ids 1, 2, ... to 6-connected objects that are large enough.

    Parameters
    ----------
    read
        Mask, or labels of which only equal ones join.
    grid
        Of the volume.
    min_volume_nm3
        Objects up to this are dropped (see `enough_voxels`).
    folder
        Working folder; the labels stay in it.
    """
    found = find_components(read, grid, folder, how)
    keep = found.table["voxels"] >= enough_voxels(min_volume_nm3, grid)
    return write_components(found, consecutive(keep), folder / "objects.zarr", how)


def fill_holes(labels: Labels, folder: Path, how: Blockwise) -> Labels:
    """Fill the holes of objects.

    A hole is a 6-connected part of the background that touches exactly one object, through voxel
    faces, and does not touch the border of the volume (Heinrich et al. 2021).
    """
    grid = labels.grid
    neighbours = _Neighbours(labels.read, grid)
    found = find_components(_Background(labels.read), grid, folder, how, measure=neighbours)
    fill = relabelled(found, hole_ids(found), "fill")
    read = _Filled(labels.read, fill)
    map_volume(read, folder / "filled.zarr", grid, labels.dtype, how.named("fill holes"))
    return open_labels(folder / "filled.zarr", frame=grid.frame)


def hole_ids(found: Components) -> NDArray[np.uint64]:
    """Id that each part of the background gets: that of the one object around it, or 0."""
    low, high = found.table["object_min"], found.table["object_max"]
    hole = (found.table["border_max"] == 0) & (low == high) & (high > 0)
    return np.where(hole, high, np.uint64(0))


@dataclass(frozen=True)
class _Background:
    read: Read

    def __call__(self, box: Box) -> NDArray[np.bool_]:
        background: NDArray[np.bool_] = self.read(box) == 0
        return background


@dataclass(frozen=True)
class _Filled:
    read: Read
    fill: Read

    def __call__(self, box: Box) -> NDArray[Any]:
        values = self.read(box)
        return np.where(values > 0, values, self.fill(box).astype(values.dtype))


@dataclass(frozen=True)
class _Neighbours:
    """Smallest and largest id that each part of the background touches."""

    read: Read
    grid: Grid

    def __call__(self, box: Box, labels: NDArray[np.uint32], count: int) -> dict[str, NDArray[Any]]:
        none = np.iinfo(np.uint64).max
        low = np.full(count + 1, none, dtype=np.uint64)
        high = np.zeros(count + 1, dtype=np.uint64)
        for mine, ids in self._beside(box):
            touching = (labels[mine] > 0) & (ids > 0)
            part, id_ = labels[mine][touching], ids[touching].astype(np.uint64)
            np.minimum.at(low, part, id_)
            np.maximum.at(high, part, id_)
        return {"object_min": low[1:], "object_max": high[1:]}

    def _beside(self, box: Box) -> list[tuple[tuple[slice, ...], NDArray[Any]]]:
        """For each of six directions: the voxels that have a neighbour there, and its id."""
        around = box.grow(1).clip(self.grid.shape)
        ids = self.read(around)
        pairs: list[tuple[tuple[slice, ...], NDArray[Any]]] = []
        for axis in range(3):
            for step in (-1, 1):
                offset = [0, 0, 0]
                offset[axis] = step
                there = box.shift(offset).intersect(around)
                mine = there.shift([-o for o in offset]).shift([-a for a in box.start])
                pairs.append((mine.slices, inner(ids, around, there)))
        return pairs


@dataclass(frozen=True)
class _Counts:
    read: Read

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        values = self.read(block.core)
        ids, voxels = np.unique(values[values > 0], return_counts=True)
        return {"ids": ids.astype(np.uint64), "voxels": voxels}


def count_voxels(
    read: Read, grid: Grid, folder: Path, how: Blockwise
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids that occur, ascending, and how many voxels each has."""
    parts = list(collect(_Counts(read), folder, how.blocks(grid), how.named("count")))
    every = np.concatenate([part["ids"] for part in parts])
    ids, where = np.unique(every, return_inverse=True)
    voxels = np.zeros(len(ids), dtype=np.int64)
    np.add.at(voxels, where, np.concatenate([part["voxels"] for part in parts]))
    return ids, voxels


@dataclass(frozen=True)
class Selected:
    """Objects with given ids (ascending); all others are 0."""

    read: Read
    ids: tuple[int, ...]

    def __call__(self, box: Box) -> NDArray[Any]:
        """Ids of a box."""
        values = self.read(box)
        return np.where(_is_in(values, self.ids), values, values.dtype.type(0))


@dataclass(frozen=True)
class Without:
    """Objects but those with given ids."""

    read: Read
    ids: tuple[int, ...]

    def __call__(self, box: Box) -> NDArray[Any]:
        """Ids of a box."""
        values = self.read(box)
        return np.where(_is_in(values, self.ids), values.dtype.type(0), values)


def _is_in(values: NDArray[Any], ids: Sequence[int]) -> NDArray[np.bool_]:
    return np.isin(values, np.asarray(ids, dtype=np.uint64).astype(values.dtype))


def require_ids(wanted: Sequence[int], present: NDArray[np.uint64], name: str) -> None:
    """Check that ids given by a person exist.

    Raises
    ------
    DataError
        Some do not.
    """
    absent = sorted(set(wanted) - set(present.tolist()))
    if absent:
        raise DataError(
            f"{name} has no object {', '.join(map(str, absent[:10]))}",
            hint="ids belong to one recipe and one input; look them up again in the result",
        )


@dataclass(frozen=True)
class _Touching:
    """Ids that share a voxel face with one of some ids."""

    read: Read
    grid: Grid
    ids: tuple[int, ...]

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        # One voxel behind each face is enough: the pair across it is then in one of two blocks.
        z, y, x = block.core.stop
        values = self.read(Box(block.core.start, (z + 1, y + 1, x + 1)).clip(self.grid.shape))
        wanted = _is_in(values, self.ids)
        found = [np.empty(0, values.dtype)]
        for axis in range(3):
            here = [slice(None)] * 3
            there = [slice(None)] * 3
            here[axis], there[axis] = slice(None, -1), slice(1, None)
            a, b = tuple(here), tuple(there)
            found += [values[b][wanted[a]], values[a][wanted[b]]]
        ids = np.unique(np.concatenate(found))
        return {"ids": ids[ids > 0].astype(np.uint64)}


def touching_ids(
    read: Read, grid: Grid, ids: Sequence[int], folder: Path, how: Blockwise
) -> tuple[int, ...]:
    """Those ids and the ids of objects that touch one of them, ascending."""
    work = _Touching(read, grid, tuple(ids))
    parts = collect(work, folder, how.blocks(grid), how.named("neighbours"))
    found = np.concatenate([part["ids"] for part in parts])
    return tuple(sorted({*found.tolist(), *(int(i) for i in ids)}))

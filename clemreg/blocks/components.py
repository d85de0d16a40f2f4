"""Connected components of a volume of any size, labelled block by block and then joined.

Each block is labelled alone (Rosenfeld and Pfaltz 1966, as cc3d does it); labels that meet across
the faces of blocks are joined as disjoint sets; a second pass writes the final ids. Objects are
numbered in the order of their first voxel, so that ids do not depend on blocks or executors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Parts, Read, collect, map_volume, stored
from clemreg.blocks.stitch import PLANES, Connectivity, FacePairs, face_planes, merge
from clemreg.io.atomic import atomic_path, partial_path, remove
from clemreg.io.volumes import VolumeWriter, WriteOptions, create_volume, open_labels
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels

COLUMNS = ("first_min", "voxels", "value", "border_max")


Measure = Callable[[Box, NDArray[np.uint32], int], dict[str, NDArray[Any]]]
"""Called with a box, its labels and their number; columns for labels 1, 2, ... of the block.

A column whose name ends in ``_min`` or ``_max`` is joined by minimum or maximum, others by sum.
"""


@dataclass(frozen=True, eq=False)
class Components:
    """Objects found, before ids are written.

    Attributes
    ----------
    folder, grid, block
        Where the labelled blocks are, and what they cover.
    table
        One row an object, in the order of first voxels: ``first_min`` (linear index of the first
        voxel), ``voxels``, ``value_max`` (what it is made of), ``border_max`` (1 where it touches
        the border of the volume), and what else was measured.
    of_label
        Row of each label, counted through all blocks.
    offsets
        Number of the first label of each block.
    """

    folder: Path
    grid: Grid
    block: Shape
    table: dict[str, NDArray[Any]] = field(repr=False)
    of_label: NDArray[np.int64] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.table["voxels"])

    @property
    def volume_nm3(self) -> NDArray[np.float64]:
        """Volume of each object."""
        result: NDArray[np.float64] = self.table["voxels"] * math.prod(self.grid.spacing_nm)
        return result


def find_components(
    read: Read,
    grid: Grid,
    folder: Path,
    how: Blockwise,
    *,
    connectivity: Connectivity = 6,
    measure: Measure | None = None,
) -> Components:
    """Find the objects of a mask or label image.

    Parameters
    ----------
    read
        Gives the mask (bool), or values of which equal ones join (0 is background).
    grid
        Of the volume.
    folder
        Working folder; resumable.
    connectivity
        6: voxels join through faces; 26: through faces, edges and corners.
    measure
        More to know of each object.
    """
    blocks = how.blocks(grid)
    local = folder / "local.zarr"
    parts = Parts(folder / "labels", len(blocks))
    if not local.exists():
        if not partial_path(local).exists():
            remove(parts.folder)  # of a run whose labels are gone
        options = stored(WriteOptions(levels=1, resume=True), grid, how.block)
        with create_volume(local, grid, np.uint32, options=options) as writer:
            work = _LabelBlock(read, writer, connectivity, measure)
            parts = collect(work, parts.folder, blocks, how.named("label"))
    rows, offsets = gather(parts, [name for name in parts[0] if name not in PLANES])
    counts = block_counts(grid, how.block)
    pairs = FacePairs(parts, counts, how.block, offsets, connectivity)
    found = collect(pairs, folder / "pairs", blocks, how.named("join"))
    joined = np.concatenate([part["pairs"] for part in found])
    table, of_label = join_labels(rows, merge(int(offsets[-1]), joined))
    return Components(folder, grid, how.block, table, of_label, offsets)


def write_components(
    found: Components,
    ids: ArrayLike,
    out: Path,
    how: Blockwise,
    options: WriteOptions | None = None,
) -> Labels:
    """Write the objects under given ids.

    Parameters
    ----------
    ids
        Id of each row of the table; 0 leaves the object out.
    out
        OME-Zarr to write; resumable.
    options
        Default: one level.
    """
    read = relabelled(found, ids, out.name)
    map_volume(read, out, found.grid, read.dtype, how.named("write"), options)
    return open_labels(out, frame=found.grid.frame)


def relabelled(found: Components, ids: ArrayLike, name: str) -> Relabelled:
    """Objects under given ids, as a `Read` of boxes that are blocks; see `write_components`.

    Parameters
    ----------
    name
        Of the id table that is kept in the working folder.
    """
    new = np.asarray(ids)
    dtype = np.dtype(np.uint32 if int(new.max(initial=0)) < 2**32 else np.uint64)
    of_label = new.astype(dtype)[found.of_label] if len(new) else np.empty(0, dtype)
    lookup = found.folder / f"ids-{name}.npy"
    with atomic_path(lookup) as partial, partial.open("wb") as stream:
        np.save(stream, of_label)
    labels = open_labels(found.folder / "local.zarr")
    return Relabelled(labels, lookup, dtype, found.offsets, found.block)


def consecutive(keep: ArrayLike) -> NDArray[np.int64]:
    """Ids 1, 2, ... for the rows to keep (bool), 0 for the others."""
    mask = np.asarray(keep, dtype=bool)
    return np.where(mask, np.cumsum(mask), 0)


@dataclass(frozen=True)
class _LabelBlock:
    """Label one block, and note what is needed to join it to the others."""

    read: Read
    writer: VolumeWriter
    connectivity: Connectivity
    measure: Measure | None

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        import cc3d

        values = self.read(block.core)
        labels, count = cc3d.connected_components(
            values, connectivity=self.connectivity, return_N=True, out_dtype=np.uint32
        )
        self.writer[block.core] = labels
        rows = label_rows(labels, int(count), values, block.core, self.writer.grid)
        if self.measure is not None:
            rows |= self.measure(block.core, labels, int(count))
        return rows | face_planes(labels)


def label_rows(
    labels: NDArray[np.uint32], count: int, values: NDArray[Any], core: Box, grid: Grid
) -> dict[str, NDArray[Any]]:
    """Columns of the labels 1 to `count` of a block: see `Components`."""
    flat = labels.ravel()
    where = np.flatnonzero(flat != 0)  # much faster on bool
    present = flat[where]
    first = np.zeros(count + 1, dtype=np.int64)
    first[present[::-1]] = where[::-1]  # of several writes the last stays: the first voxel
    index = np.unravel_index(first[1:], labels.shape)
    world = tuple(i + a for i, a in zip(index, core.start, strict=True))
    return {
        "first_min": np.ravel_multi_index(world, grid.shape).astype(np.int64),
        "voxels": np.bincount(present, minlength=count + 1)[1:].astype(np.int64),
        "value": values.ravel()[first[1:]].astype(np.uint64),
        "border_max": _on_border(labels, count, core, grid),
    }


def _on_border(labels: NDArray[np.uint32], count: int, core: Box, grid: Grid) -> NDArray[np.uint8]:
    touching = np.zeros(count + 1, dtype=np.uint8)
    for axis in range(3):
        if core.start[axis] == 0:
            touching[labels.take(0, axis=axis)] = 1
        if core.stop[axis] == grid.shape[axis]:
            touching[labels.take(-1, axis=axis)] = 1
    return touching[1:]


def gather(
    parts: Parts, columns: Sequence[str]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Columns of all labels, block after block, and where each block starts."""
    rows = [parts.some(number, *columns) for number in range(len(parts))]
    offsets = np.concatenate([[0], np.cumsum([len(r["voxels"]) for r in rows])]).astype(np.int64)
    return {name: np.concatenate([r[name] for r in rows]) for name in columns}, offsets


def block_counts(grid: Grid, block: Shape) -> Shape:
    """Blocks along z, y, x."""
    z, y, x = (-(-n // b) for n, b in zip(grid.shape, block, strict=True))
    return z, y, x


def join_labels(
    rows: dict[str, NDArray[Any]], sets: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Join columns of labels by their sets: the table of objects, and the row of each label."""
    count = int(sets.max(initial=-1)) + 1
    table = {
        ("value_max" if name == "value" else name): _reduced(name, column, sets, count)
        for name, column in rows.items()
    }
    order = np.argsort(table["first_min"], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(count)
    return {name: column[order] for name, column in table.items()}, rank[sets]


def _reduced(name: str, column: NDArray[Any], sets: NDArray[np.int64], count: int) -> NDArray[Any]:
    if name.endswith("_min"):
        low = np.full(count, np.iinfo(column.dtype).max, dtype=column.dtype)
        np.minimum.at(low, sets, column)
        return low
    high = np.zeros(count, dtype=column.dtype)
    if name.endswith("_max") or name == "value":
        np.maximum.at(high, sets, column)
    else:
        np.add.at(high, sets, column)
    return high


@dataclass(frozen=True)
class Relabelled:
    """Final ids of a box that is one block."""

    labels: Labels
    lookup: Path
    dtype: np.dtype[Any]
    offsets: NDArray[np.int64]
    block: Shape

    def __call__(self, box: Box) -> NDArray[Any]:
        """Ids of a block."""
        place = [a // b for a, b in zip(box.start, self.block, strict=True)]
        number = int(np.ravel_multi_index(place, block_counts(self.labels.grid, self.block)))
        ids = np.load(self.lookup, mmap_mode="r")
        start, stop = self.offsets[number], self.offsets[number + 1]
        table = np.concatenate([np.zeros(1, ids.dtype), ids[start:stop]])
        return np.asarray(table[self.labels.read(box)])

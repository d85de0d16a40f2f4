"""Split touching objects: ascending watershed of the smoothed prediction, then agglomeration.

The normalised prediction ``n = max(0, (v - 126) / 129)`` is cut into the basins of its local
maxima. Each voxel belongs to the maximum that it reaches by always going to its highest neighbour
(the drop-of-water principle; Cousty et al., IEEE TPAMI 31:1362, 2009). Where a voxel goes depends
on its 26 neighbours only, so basins that leave a block are joined exactly, whatever the blocks.
Heinrich et al. 2021 flood from the same maxima in blocks with 50 voxels of context.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.components import (
    COLUMNS,
    Components,
    block_counts,
    consecutive,
    gather,
    join_labels,
    label_rows,
    write_components,
)
from clemreg.blocks.distance import inner
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Parts, Read, collect, map_volume, stored
from clemreg.blocks.stitch import PLANES, face_planes, merge
from clemreg.io.atomic import partial_path, remove
from clemreg.io.volumes import VolumeWriter, WriteOptions, create_volume
from clemreg.refine.agglomerate import Agglomeration, Boundaries, agglomerate, find_boundaries
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels

STEPS = tuple(s for s in itertools.product((-1, 0, 1), repeat=3) if any(s))


@dataclass(frozen=True)
class Affinity:
    """Normalised prediction, float32 from 0 (126 and below) to 1 (255)."""

    read: Read

    def __call__(self, box: Box) -> NDArray[np.float32]:
        """Affinities of a box."""
        scaled = (np.asarray(self.read(box), dtype=np.float32) - 126) / 129
        return np.maximum(scaled, np.float32(0))


@dataclass(frozen=True, eq=False)
class Fragments:
    """Basins and the boundaries between them.

    Attributes
    ----------
    found
        The basins; their rows are the nodes of the graph.
    basins
        Their ids, row + 1.
    boundaries
        Affinities between touching basins.
    """

    found: Components
    basins: Labels
    boundaries: Boundaries


def segment_instances(
    read: Read, grid: Grid, settings: Agglomeration, folder: Path, how: Blockwise
) -> Labels:
    """Ids of the objects in a smoothed prediction, touching ones apart.

    Parameters
    ----------
    read
        Smoothed prediction, 0 to 255.
    grid
        Of the volume.
    settings
        Which fragments merge again.
    folder
        Working folder; resumable.
    """
    fragments = find_fragments(read, grid, folder, how)
    ids = agglomerate(
        fragments.boundaries, settings.quantile, [settings.threshold], settings.affinity
    )[0]
    return write_components(fragments.found, ids, folder / "instances.zarr", how)


def find_fragments(read: Read, grid: Grid, folder: Path, how: Blockwise) -> Fragments:
    """Watershed basins and their graph; what every setting of the agglomeration starts from."""
    affinity = map_volume(
        Affinity(read), folder / "affinity.zarr", grid, np.float32, how.named("smooth")
    )
    found = find_basins(affinity.read, grid, folder, how)
    basins = write_components(found, consecutive(np.ones(len(found))), folder / "basins.zarr", how)
    boundaries = find_boundaries(basins, affinity, len(found), folder / "boundaries", how)
    return Fragments(found, basins, boundaries)


def find_basins(read: Read, grid: Grid, folder: Path, how: Blockwise) -> Components:
    """Basins of the maxima of `read` (0 is background), block by block."""
    blocks = how.blocks(grid)
    local = folder / "local.zarr"
    parts = Parts(folder / "labels", len(blocks))
    if not local.exists():
        if not partial_path(local).exists():
            remove(parts.folder)  # of a run whose labels are gone
        options = stored(WriteOptions(levels=1, resume=True), grid, how.block)
        with create_volume(local, grid, np.uint32, options=options) as writer:
            parts = collect(_BasinBlock(read, writer), parts.folder, blocks, how.named("basins"))
    rows, offsets = gather(parts, COLUMNS)
    pairs = _ExitPairs(parts, grid, how.block, offsets)
    found = collect(pairs, folder / "pairs", blocks, how.named("join"))
    joined = np.concatenate([part["pairs"] for part in found])
    table, of_label = join_labels(rows, merge(int(offsets[-1]), joined))
    return Components(folder, grid, how.block, table, of_label, offsets)


@dataclass(frozen=True)
class _BasinBlock:
    """Basins of one block; those that lead out of it end at the first voxel outside."""

    read: Read
    writer: VolumeWriter

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        grid = self.writer.grid
        around = block.core.grow(1).clip(grid.shape)
        heights = np.asarray(self.read(around))
        core_of = np.zeros(around.shape, dtype=bool)
        core_of[block.core.shift([-a for a in around.start]).slices] = True
        index = np.flatnonzero(core_of & (heights > 0))
        ends = _ends(heights, index, core_of)
        roots, label = np.unique(ends, return_inverse=True)
        labels = np.zeros(around.shape, dtype=np.uint32)
        labels.ravel()[index] = label + 1
        labels = np.ascontiguousarray(inner(labels, around, block.core))
        self.writer[block.core] = labels
        outside = ~core_of.ravel()[roots]
        place = np.unravel_index(roots[outside], around.shape)
        target = [p + a for p, a in zip(place, around.start, strict=True)]
        rows = label_rows(labels, len(roots), labels, block.core, grid)
        exits = {
            "exit_label": np.flatnonzero(outside) + 1,
            "exit_target": np.stack(target, axis=1).reshape(-1, 3),
        }
        return rows | exits | face_planes(labels)


def _ends(
    heights: NDArray[Any], index: NDArray[np.intp], core_of: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Where each voxel of `index` ends by steepest ascent: a maximum, or a voxel outside core."""
    target = np.arange(heights.size)
    target[index] = _highest_neighbour(heights, index)
    target[~core_of.ravel()] = np.flatnonzero(~core_of.ravel())
    ends = target[index]
    while True:
        further = target[ends]
        if (further == ends).all():
            return ends
        target[index] = further
        ends = further


def _highest_neighbour(heights: NDArray[Any], index: NDArray[np.intp]) -> NDArray[np.intp]:
    """Neighbour with the largest height, itself included; of equal ones the first in the array.

    The order of voxels in a block is that in the volume, so ties do not depend on blocks.
    """
    flat = heights.ravel()
    place = np.unravel_index(index, heights.shape)
    best, height = index.copy(), flat[index].copy()
    for step in STEPS:
        moved = [p + s for p, s in zip(place, step, strict=True)]
        valid = np.ones(len(index), dtype=bool)
        for m, n in zip(moved, heights.shape, strict=True):
            valid &= (m >= 0) & (m < n)
        other = np.ravel_multi_index([np.where(valid, m, 0) for m in moved], heights.shape)
        value = flat[other]
        higher = valid & ((value > height) | ((value == height) & (other < best)))
        best = np.where(higher, other, best)
        height = np.where(higher, value, height)
    return best


@dataclass(frozen=True)
class _ExitPairs:
    """Which basins of a block go on as which basins of its neighbours."""

    parts: Parts
    grid: Grid
    block: Shape
    offsets: NDArray[np.int64]

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        mine = self.parts.some(block.number, "exit_label", "exit_target")
        target = mine["exit_target"]
        place = target // np.asarray(self.block)
        counts = block_counts(self.grid, self.block)
        number = np.ravel_multi_index(tuple(place.T), counts)
        pairs = np.empty((len(target), 2), dtype=np.int64)
        pairs[:, 0] = mine["exit_label"] - 1 + self.offsets[block.number]
        for other in np.unique(number):
            here = number == other
            local = target[here] - place[here] * np.asarray(self.block)
            pairs[here, 1] = self._labels_at(int(other), local) - 1 + self.offsets[other]
        return {"pairs": pairs}

    def _labels_at(self, number: int, local: NDArray[np.int64]) -> NDArray[np.int64]:
        """Labels of voxels on the outer planes of a block."""
        planes = self.parts.some(number, *PLANES)
        labels = np.zeros(len(local), dtype=np.int64)
        for name, plane in planes.items():
            axis = int(name[-1])
            sides = [a for a in range(3) if a != axis]
            last = self._last(number, axis)
            on = local[:, axis] == (0 if name.startswith("low") else last)
            labels[on] = plane[local[on, sides[0]], local[on, sides[1]]]
        return labels

    def _last(self, number: int, axis: int) -> int:
        place = np.unravel_index(number, block_counts(self.grid, self.block))
        start = int(place[axis]) * self.block[axis]
        return min(self.block[axis], self.grid.shape[axis] - start) - 1

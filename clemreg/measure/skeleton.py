"""Centre lines of objects: thinned, pruned, with length, radius and branches."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.nearest import box_distances
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Read
from clemreg.errors import ConfigError
from clemreg.io.atomic import remove
from clemreg.io.skeletons import Skeleton
from clemreg.measure.gather import gather, gathered, working
from clemreg.measure.morphology import object_boxes
from clemreg.measure.paths import (
    VoxelGraph,
    longest_path,
    path_length_nm,
    prune,
    smooth_path,
)
from clemreg.measure.tables import Table
from clemreg.measure.thin import thin_volume
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels

BYTES_PER_VOXEL = 10
"""Of an object's box that is thinned as a whole, ids of 8 bytes while they are read included."""


@dataclass(frozen=True)
class SkeletonOptions:
    """How objects are thinned.

    Attributes
    ----------
    shortest_branch_nm
        Shorter branches are cut, until there is none.
    prune_above
        Only objects whose longest path is longer than this many times `shortest_branch_nm` are
        pruned, so that small ones keep their shape (3 in the paper).
    largest_box_voxels
        Up to this, an object is thinned as a whole, in memory: about `BYTES_PER_VOXEL` for each
        voxel of its box and each worker. Larger ones are thinned block by block.

    Raises
    ------
    ConfigError
        A value is negative.
    """

    shortest_branch_nm: float = 80.0
    prune_above: float = 3.0
    largest_box_voxels: int = 400_000_000

    def __post_init__(self) -> None:
        if not (self.shortest_branch_nm >= 0 and self.prune_above >= 0):
            raise ConfigError("branch lengths must be 0 or more")


@dataclass(frozen=True, eq=False)
class ObjectSkeleton:
    """The pruned centre line of one object.

    Attributes
    ----------
    object_id
        Its id.
    skeleton
        Nodes in nm of the world frame, each with the radius of the largest ball in the object whose
        centre is within one voxel of it.
    longest
        Numbers of the nodes along the longest shortest path.
    """

    object_id: int
    skeleton: Skeleton
    longest: NDArray[np.int64]


def skeletonize(
    labels: Labels,
    options: SkeletonOptions | None = None,
    *,
    only: Collection[int] | None = None,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Iterator[ObjectSkeleton]:
    """Thin every object to its centre line.

    Lee thinning (Lee, Kashyap and Chu 1994, scikit-image) of each object by itself, then pruning
    of branches as in Heinrich et al. 2021. The order in which Lee's method looks at voxels matters,
    so an object is thinned as a whole within its own box; blocks are used to find the boxes. An
    object whose box is too large for that is thinned in subfields (see `thin_volume`), block by
    block: the same for any blocks, with memory for a block and for the line.

    Parameters
    ----------
    labels
        Ids zyx.
    only
        Ids of the objects to thin; None: all.
    how
        Executor, progress, and blocks. No choice here changes a result.
    scratch
        Folder from which a killed job goes on.

    Yields
    ------
    ObjectSkeleton
        One an object, by rising id.
    """
    options, how = options or SkeletonOptions(), how or Blockwise()
    ids, boxes = object_boxes(labels, how=how.named("boxes"), scratch=scratch)
    if only is not None:
        chosen = np.flatnonzero(np.isin(ids, np.array(sorted(only), np.uint64)))
        ids, boxes = ids[chosen], [boxes[k] for k in chosen]
    small = np.array([box.size <= options.largest_box_voxels for box in boxes], bool)
    chosen = np.flatnonzero(small)
    blocks = [Block(i, boxes[k], boxes[k].grow(1)) for i, k in enumerate(chosen)]
    work = _Thin(labels, ids[chosen], options)
    job = f"skeletons {labels.name} {labels.grid} {options} {ids[chosen].tolist()}"
    with gathered(work, blocks, how.named("objects"), job=job, scratch=scratch) as parts:
        of_small = iter(parts)
        for number, box, fits in zip(ids.tolist(), boxes, small, strict=True):
            if fits:
                part = next(of_small)
            else:
                part = _in_blocks(labels, number, box, options, how, scratch)
            yield _skeleton(labels, number, part)


def _skeleton(labels: Labels, number: int, part: Mapping[str, NDArray[Any]]) -> ObjectSkeleton:
    nodes_nm = labels.grid.to_world(part["index"])
    return ObjectSkeleton(
        number, Skeleton(nodes_nm, part["edges"], part["radius_nm"]), part["longest"]
    )


def measure_skeleton(item: ObjectSkeleton) -> dict[str, Any]:
    """Measure one skeleton.

    Returns
    -------
    dict
        ``length_nm`` of the longest shortest path from voxel to voxel, as in the paper, and
        ``smooth_length_nm`` without its staircase; ``end_to_end_nm``; mean, standard deviation and
        smallest radius along the path; ``cable_nm``, the length of all branches; number of
        branches, branch points, ends and rings.
    """
    skeleton, path = item.skeleton, item.skeleton.nodes_nm[item.longest]
    radius = skeleton.radius_nm[item.longest]
    ways = skeleton.nodes_nm[skeleton.edges]
    return {
        "object_id": item.object_id,
        "length_nm": path_length_nm(path),
        "smooth_length_nm": path_length_nm(smooth_path(path)),
        "end_to_end_nm": float(np.linalg.norm(path[-1] - path[0])),
        "radius_mean_nm": float(radius.mean()),
        "radius_sd_nm": float(radius.std()),
        "radius_min_nm": float(radius.min()),
        "cable_nm": float(np.linalg.norm(ways[:, 0] - ways[:, 1], axis=1).sum()),
        **_counts(skeleton),
    }


def skeleton_table(items: list[dict[str, Any]]) -> Table:
    """Put the results of `measure_skeleton` into a table, one row an object."""
    if not items:
        return Table.of(object_id=np.zeros(0, np.uint64))
    # Numpy would make floats of ids of which some are above 2^63, and lose their last digits.
    types = {"object_id": np.uint64}
    columns = {n: np.array([item[n] for item in items], types.get(n)) for n in items[0]}
    return Table(columns)


def _counts(skeleton: Skeleton) -> dict[str, int]:
    """Count branches, branch points, ends and rings; touching branch voxels are one point."""
    count = len(skeleton.nodes_nm)
    degree = np.bincount(skeleton.edges.ravel(), minlength=count)
    branching = degree > 2
    inner = branching[skeleton.edges].all(axis=1)
    parts, _ = Skeleton(skeleton.nodes_nm, skeleton.edges[inner], skeleton.radius_nm).parts()
    points = parts - int((~branching).sum())
    ends = int((degree == 1).sum())
    pieces, _ = skeleton.parts()
    rings = len(skeleton.edges) - count + pieces
    # Cut at the branch points, every piece of what is left is a branch.
    left = skeleton.edges[~branching[skeleton.edges].any(axis=1)]
    pieces_left, _ = Skeleton(skeleton.nodes_nm, left, skeleton.radius_nm).parts()
    return {
        "branches": pieces_left - int(branching.sum()),
        "branch_points": points,
        "ends": ends,
        "rings": rings,
    }


@dataclass(frozen=True)
class _Thin:
    """Thin the object whose box a block is."""

    labels: Labels
    ids: NDArray[np.uint64]
    options: SkeletonOptions

    def __call__(self, block: Block) -> Part:
        grid = self.labels.grid
        window = block.core.grow(1).clip(grid.shape)
        mask = self.labels.read(window) == self.ids[block.number]
        found = thin_mask(mask, grid.crop(window), self.options)
        return {**found, "index": found["index"] + np.asarray(window.start)}


def thin_mask(
    mask: NDArray[np.bool_], grid: Grid, options: SkeletonOptions
) -> dict[str, NDArray[Any]]:
    """Thin and prune one object.

    Parameters
    ----------
    mask
        The object (z, y, x), with one voxel of background around it where the volume goes on.

    Returns
    -------
    dict
        ``index`` (N, 3), ``edges`` (E, 2), ``radius_nm`` (N,), ``longest`` (M,).
    """
    from skimage.morphology import skeletonize as lee

    index = np.argwhere(lee(mask, method="lee"))
    away = _depth_nm(mask, grid)
    if not len(index):
        index = np.array([np.unravel_index(int(away.argmax()), away.shape)])
    return pruned(index, _around(away, index), grid, options)


def pruned(
    index: NDArray[np.int64], radius_nm: NDArray[np.float32], grid: Grid, options: SkeletonOptions
) -> dict[str, NDArray[Any]]:
    """Prune a thinned object, given as voxels (N, 3) in scan order; see `thin_mask`."""
    graph = VoxelGraph.of_voxels(index, grid.spacing_nm)
    slim = graph.slim()
    longest = longest_path(graph, slim)
    length = path_length_nm(grid.to_world(graph.index[longest]))
    if length > options.prune_above * options.shortest_branch_nm:
        stays = prune(slim, options.shortest_branch_nm)
        graph, radius_nm = graph.keep(stays), radius_nm[stays]
        slim = graph.slim()
        longest = longest_path(graph, slim)
    return {
        "index": graph.index,
        "edges": slim.edges,
        "radius_nm": radius_nm.astype(float),
        "longest": longest,
    }


def _depth_nm(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """Distance in nm to the background, which the volume's border is not; NaN without any."""
    import edt

    if mask.all():
        return np.full(mask.shape, np.nan, np.float32)
    away = edt.edt(np.ascontiguousarray(mask), anisotropy=grid.spacing_nm, parallel=1)
    return np.asarray(away, dtype=np.float32)


def _around(away: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Radius of the largest ball in the object whose centre is within one voxel, in nm.

    A voxel of the centre line may lie one voxel beside the axis, where the distance to the nearest
    background voxel is smaller than the radius.
    """
    last = np.asarray(away.shape) - 1
    steps = itertools.product((-1, 0, 1), repeat=3)
    near = (away[tuple(np.clip(index + step, 0, last).T)] for step in steps)
    return np.asarray(np.maximum.reduce(list(near)), dtype=np.float32)


# -- block by block -------------------------------------------------------------------------------


def _in_blocks(
    labels: Labels,
    number: int,
    box: Box,
    options: SkeletonOptions,
    how: Blockwise,
    scratch: Path | None,
) -> dict[str, NDArray[Any]]:
    """As `thin_mask`, with memory for a block and the line; indices are those of the volume."""
    window = box.grow(1).clip(labels.shape)
    grid = labels.grid.crop(window)
    read = _Object(labels, number, window.start)
    with working(scratch) as folder:
        thin = thin_volume(read, grid, folder / f"thin-{number}", how, "line")
        work = _Nodes(read, thin.read, grid)
        job = f"nodes {labels.name} {labels.grid} {number}"
        found = gather(work, how.blocks(grid), how.named("radius"), job=job, scratch=folder)
        remove(folder / f"thin-{number}")
    order = np.lexsort(found["index"].T[::-1])
    result = pruned(found["index"][order], found["radius_nm"][order], grid, options)
    return {**result, "index": result["index"] + np.asarray(window.start)}


@dataclass(frozen=True)
class _Object:
    """Reads whether voxels belong to one object, counted from `start`."""

    labels: Labels
    number: int
    start: Shape

    def __call__(self, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.labels.read(box.shift(self.start)) == self.number)


@dataclass(frozen=True)
class _Nodes:
    """Voxels of the thinned object in a block, and their radius."""

    read: Read
    thin: Read
    grid: Grid

    def __call__(self, block: Block) -> Part:
        index = np.argwhere(self.thin(block.core))
        box = block.core.grow(1).clip(self.grid.shape)
        away = np.zeros(box.shape, np.float32)
        local = index + np.asarray(block.core.start) - np.asarray(box.start)
        for step in itertools.product((-1, 0, 1), repeat=3):
            away[tuple(np.clip(local + step, 0, np.asarray(box.shape) - 1).T)] = 1
        wanted = away > 0
        if len(index):
            spacing_nm = self.grid.spacing_nm
            found = box_distances(wanted, box, self._outside, self.grid.shape, spacing_nm)
            away[wanted] = np.where(np.isfinite(found), found, np.nan)
        return {"index": index + np.asarray(block.core.start), "radius_nm": _around(away, local)}

    def _outside(self, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.read(box) == 0)

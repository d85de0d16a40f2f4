"""Centre lines of objects: thinned, pruned, with length, radius and branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part
from clemreg.errors import ConfigError
from clemreg.io.skeletons import Skeleton
from clemreg.measure.gather import gathered
from clemreg.measure.morphology import check_boxes, object_boxes
from clemreg.measure.paths import (
    VoxelGraph,
    longest_path,
    path_length_nm,
    prune,
    smooth_path,
)
from clemreg.measure.tables import Table
from clemreg.space.grid import Grid
from clemreg.volume import Labels


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
        An object is thinned as a whole, in memory: about 10 bytes for each voxel of its box.

    Raises
    ------
    ConfigError
        A value is negative.
    """

    shortest_branch_nm: float = 80.0
    prune_above: float = 3.0
    largest_box_voxels: int = 1_000_000_000

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
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Iterator[ObjectSkeleton]:
    """Thin every object to its centre line.

    Lee thinning (Lee, Kashyap and Chu 1994, scikit-image) of each object by itself, then pruning
    of branches as in Heinrich et al. 2021. The order in which Lee's method looks at voxels matters,
    so an object is thinned as a whole within its own box; blocks are used to find the boxes.

    Parameters
    ----------
    labels
        Ids zyx.
    how
        Executor and progress; blocks for finding the boxes. No choice here changes a result.
    scratch
        Folder from which a killed job goes on.

    Yields
    ------
    ObjectSkeleton
        One an object, by rising id.

    Raises
    ------
    DataError
        An object's box has more voxels than allowed; the text names it.
    """
    options, how = options or SkeletonOptions(), how or Blockwise()
    ids, boxes = object_boxes(labels, how=how.named("boxes"), scratch=scratch)
    check_boxes(labels.name, ids, boxes, options.largest_box_voxels)
    blocks = [Block(i, box, box.grow(1)) for i, box in enumerate(boxes)]
    work = _Thin(labels, ids, options)
    job = f"skeletons {labels.name} {labels.grid} {options}"
    with gathered(work, blocks, how.named("objects"), job=job, scratch=scratch) as parts:
        for number, part in zip(ids.tolist(), parts, strict=True):
            skeleton = Skeleton(
                labels.grid.to_world(part["index"]), part["edges"], part["radius_nm"]
            )
            yield ObjectSkeleton(number, skeleton, part["longest"])


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
    columns = {name: np.array([item[name] for item in items]) for name in items[0]}
    return Table({**columns, "object_id": columns["object_id"].astype(np.uint64)})


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

    radius = _inscribed_radius_nm(mask, grid)
    thin = np.asarray(lee(mask, method="lee") > 0)
    if not thin.any():
        thin[np.unravel_index(int(radius.argmax()), radius.shape)] = True
    graph = VoxelGraph.of_mask(thin, grid.spacing_nm)
    slim = graph.slim()
    longest = longest_path(graph, slim)
    length = path_length_nm(grid.to_world(graph.index[longest]))
    if length > options.prune_above * options.shortest_branch_nm:
        graph = graph.keep(prune(slim, options.shortest_branch_nm))
        slim = graph.slim()
        longest = longest_path(graph, slim)
    return {
        "index": graph.index,
        "edges": slim.edges,
        "radius_nm": radius[tuple(graph.index.T)].astype(float),
        "longest": longest,
    }


def _inscribed_radius_nm(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
    """Radius of the largest ball in the object whose centre is within one voxel, in nm.

    A voxel of the centre line may lie one voxel beside the axis, where the distance to the nearest
    background voxel is smaller than the radius. The volume's border is no background.
    """
    import edt
    from scipy.ndimage import maximum_filter

    if mask.all():
        return np.full(mask.shape, np.nan, np.float32)
    inside = edt.edt(np.ascontiguousarray(mask), anisotropy=grid.spacing_nm, parallel=1)
    return np.asarray(maximum_filter(inside, 3), dtype=np.float32)

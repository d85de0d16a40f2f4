"""Skeleton voxels as a graph: branches, pruning, the longest shortest path."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clemreg.measure.surface import DIRECTIONS
from clemreg.space.grid import Triple

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
_MANY = 4_000_000


@dataclass(frozen=True, eq=False)
class VoxelGraph:
    """Voxels and the ways between neighbours.

    Attributes
    ----------
    index
        (N, 3) voxel indices zyx, in scan order.
    edges
        (E, 2) numbers of voxels that are 26-neighbours, smaller first.
    length_nm
        (E,) distance of their centres.
    """

    index: IntArray
    edges: IntArray
    length_nm: FloatArray

    @classmethod
    def of_mask(cls, mask: NDArray[np.bool_], spacing_nm: Triple) -> VoxelGraph:
        """Join the voxels of a mask (z, y, x) to their 26 neighbours."""
        return cls.of_voxels(np.argwhere(mask), spacing_nm)

    @classmethod
    def of_voxels(cls, index: IntArray, spacing_nm: Triple) -> VoxelGraph:
        """Join voxels (N, 3), given in scan order, to their 26 neighbours."""
        size = index.max(axis=0, initial=0) + 2  # with a border, so that no step wraps round
        code = (index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2]
        edges, lengths = [], []
        for direction in DIRECTIONS:
            ahead = (direction[0] * size[1] + direction[1]) * size[2] + direction[2]
            place = np.minimum(np.searchsorted(code, code + ahead), len(code) - 1)
            found = np.flatnonzero(code[place] == code + ahead)
            edges.append(np.stack([found, place[found]], 1))
            length = float(np.linalg.norm(np.multiply(direction, spacing_nm)))
            lengths.append(np.full(len(found), length))
        return cls(index, np.concatenate(edges), np.concatenate(lengths))

    def keep(self, nodes: NDArray[np.bool_]) -> VoxelGraph:
        """Return the graph of the voxels where `nodes` (N,) is true."""
        number = np.cumsum(nodes) - 1
        kept = nodes[self.edges].all(axis=1)
        return VoxelGraph(self.index[nodes], number[self.edges[kept]], self.length_nm[kept])

    def slim(self) -> VoxelGraph:
        """Leave out the longest side of every triangle, so that only true branches branch."""
        near: list[set[int]] = [set() for _ in self.index]
        rank: dict[tuple[int, int], tuple[float, int, int]] = {}
        for (a, b), length in zip(self.edges.tolist(), self.length_nm.tolist(), strict=True):
            near[a].add(b)
            near[b].add(a)
            rank[a, b] = rank[b, a] = (length, a, b)
        keep = np.ones(len(self.edges), bool)
        for number, (a, b) in enumerate(self.edges.tolist()):
            own = rank[a, b]
            keep[number] = not any(rank[a, c] < own and rank[c, b] < own for c in near[a] & near[b])
        return VoxelGraph(self.index, self.edges[keep], self.length_nm[keep])

    def degree(self) -> IntArray:
        """Neighbours (N,) of each voxel."""
        return np.bincount(self.edges.ravel(), minlength=len(self.index))


def prune(graph: VoxelGraph, shortest_nm: float) -> NDArray[np.bool_]:
    """Cut branches shorter than `shortest_nm`, the shortest first, until there is none.

    A branch leads from an end to the nearest branch point. Where one is cut, the two that are left
    become one, which may be long enough to stay: the stem of a Y keeps its longer arm.

    Parameters
    ----------
    graph
        Slim graph of one object.

    Returns
    -------
    ndarray of bool
        (N,) voxels that stay.
    """
    near: list[dict[int, float]] = [{} for _ in graph.index]
    for (a, b), length in zip(graph.edges.tolist(), graph.length_nm.tolist(), strict=True):
        near[a][b] = near[b][a] = length
    keep = np.ones(len(graph.index), bool)
    waiting = []
    for end in np.flatnonzero(graph.degree() == 1).tolist():
        length, _ = _branch(near, end)
        waiting.append((length, end))
    heapq.heapify(waiting)
    while waiting:
        told, end = heapq.heappop(waiting)
        if told >= shortest_nm:
            break
        length, nodes = _branch(near, end)
        if length != told:  # it grew since, where a neighbour was cut
            heapq.heappush(waiting, (length, end))
            continue
        for node in nodes:
            keep[node] = False
            for other in near[node]:
                near[other].pop(node)
            near[node] = {}
    return keep


def _branch(near: Sequence[dict[int, float]], end: int) -> tuple[float, list[int]]:
    """Length and voxels from an end up to its branch point; infinite if there is none."""
    nodes, length = [end], 0.0
    before, here = -1, end
    while True:
        ahead = [n for n in near[here] if n != before]
        if len(ahead) != 1:
            return float("inf"), nodes
        length += near[here][ahead[0]]
        before, here = here, ahead[0]
        if len(near[here]) > 2:
            return length, nodes
        nodes.append(here)


def longest_path(graph: VoxelGraph, slim: VoxelGraph) -> IntArray:
    """Voxels, in order, of the longest of all shortest ways between two voxels.

    Only ends and voxels on rings can be where it starts: any other way could be made longer.

    Parameters
    ----------
    graph, slim
        The graph with all its edges, and without the longest sides of triangles.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    count = len(graph.index)
    a, b = graph.edges.T
    network = coo_array((graph.length_nm, (a, b)), shape=(count, count)).tocsr()
    sources = np.flatnonzero((slim.degree() <= 1) | _on_rings(slim))
    best, start, end = -1.0, 0, 0
    step = max(1, _MANY // count)
    for first in range(0, len(sources), step):
        chunk = sources[first : first + step]
        distance = dijkstra(network, directed=False, indices=chunk)
        distance[~np.isfinite(distance)] = -1
        row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        if distance[row, column] > best:
            best, start, end = float(distance[row, column]), int(chunk[row]), int(column)
    _, before = dijkstra(network, directed=False, indices=start, return_predecessors=True)
    path = [end]
    while path[-1] != start:
        path.append(int(before[path[-1]]))
    return np.array(path)


def _on_rings(slim: VoxelGraph) -> NDArray[np.bool_]:
    """Voxels that stay when ends are taken away again and again."""
    near: list[set[int]] = [set() for _ in slim.index]
    for a, b in slim.edges.tolist():
        near[a].add(b)
        near[b].add(a)
    stays = np.ones(len(near), bool)
    ends = [n for n, others in enumerate(near) if len(others) <= 1]
    while ends:
        node = ends.pop()
        stays[node] = False
        for other in near[node]:
            near[other].discard(node)
            if len(near[other]) == 1 and stays[other]:
                ends.append(other)
        near[node] = set()
    return stays


def path_length_nm(points_nm: FloatArray) -> float:
    """Length of a line through points (N, 3)."""
    return float(np.linalg.norm(np.diff(points_nm, axis=0), axis=1).sum())


def smooth_path(points_nm: FloatArray, voxels: float = 3.0) -> FloatArray:
    """Smooth a staircase of voxels (N, 3) along itself; its two ends stay where they are.

    A chain of 26-neighbours is up to 8 % longer than the line that it stands for.
    """
    from scipy.ndimage import gaussian_filter1d

    margin = min(len(points_nm) - 1, int(4 * voxels))
    if margin < 1:
        return points_nm
    # Mirrored through the end points, so that these do not move.
    padded = np.pad(points_nm, ((margin, margin), (0, 0)), mode="reflect", reflect_type="odd")
    smooth: FloatArray = gaussian_filter1d(padded, min(voxels, margin / 4), axis=0)
    return smooth[margin : margin + len(points_nm)]

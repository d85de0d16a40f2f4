"""Join what was labelled block by block: which labels meet across the faces of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Parts
from clemreg.space.grid import Shape

Connectivity = Literal[6, 26]

# First and last plane of a block along each axis.
PLANES = tuple(f"{name}{axis}" for axis in range(3) for name in ("low", "high"))

# Neighbours within a plane, as steps along its two axes.
_SIDEWAYS: dict[Connectivity, tuple[tuple[int, int], ...]] = {
    6: ((0, 0),),
    26: tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)),
}


def face_planes(labels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """First and last plane of a labelled block along each axis, those that are not empty."""
    planes = {}
    for axis in range(3):
        for name, index in (("low", 0), ("high", -1)):
            plane = labels.take(index, axis=axis)
            if plane.any():
                planes[f"{name}{axis}"] = plane
    return planes


@dataclass(frozen=True)
class FacePairs:
    """Which labels of a block meet labels of the blocks before it.

    Parameters
    ----------
    parts
        For each block ``low0 ... high2`` (see `face_planes`) with labels from 1, and ``value``:
        what each label is made of; only equal values join.
    counts
        Blocks along z, y, x.
    block
        Voxels per block, zyx.
    offsets
        Number of the first label of each block, counting through all blocks.
    connectivity
        6: voxels join through faces; 26: through faces, edges and corners.
    """

    parts: Parts
    counts: Shape
    block: Shape
    offsets: NDArray[np.int64]
    connectivity: Connectivity

    def __call__(self, block: Block) -> dict[str, NDArray[Any]]:
        """Pairs (n, 2) of labels that join, counted through all blocks."""
        place = [int(p) for p in np.unravel_index(block.number, self.counts)]
        mine = self.parts.some(block.number, "low0", "low1", "low2", "value")
        pairs = [np.empty((0, 2), dtype=np.int64)]
        for axis in range(3):
            if f"low{axis}" not in mine or place[axis] == 0:
                continue
            for other in self._before(place, axis):
                number = int(np.ravel_multi_index(other, self.counts))
                theirs = self.parts.some(number, f"high{axis}", "value")
                if f"high{axis}" in theirs:
                    shift = [(o - p) * b for o, p, b in zip(other, place, self.block, strict=True)]
                    del shift[axis]
                    for a, b in self._touching(mine, theirs, axis, shift):
                        same = mine["value"][a - 1] == theirs["value"][b - 1]
                        mine_, theirs_ = a[same] - 1, b[same] - 1
                        pair = (
                            mine_ + self.offsets[block.number],
                            theirs_ + self.offsets[number],
                        )
                        pairs.append(np.stack(pair, axis=1))
        return {"pairs": np.unique(np.concatenate(pairs), axis=0)}

    def _before(self, place: Sequence[int], axis: int) -> Iterator[tuple[int, ...]]:
        """Blocks of the layer before along an axis whose last plane touches this block."""
        for step in _SIDEWAYS[self.connectivity]:
            around = list(step)
            around.insert(axis, -1)
            other = tuple(p + s for p, s in zip(place, around, strict=True))
            if all(0 <= o < n for o, n in zip(other, self.counts, strict=True)):
                yield other

    def _touching(
        self,
        mine: dict[str, NDArray[Any]],
        theirs: dict[str, NDArray[Any]],
        axis: int,
        shift: Sequence[int],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield pairs of labels on either side; `shift` is where their plane starts in mine."""
        low, high = mine[f"low{axis}"], theirs[f"high{axis}"]
        for step in _SIDEWAYS[self.connectivity]:
            a, b = _overlap(low, high, [s - d for s, d in zip(shift, step, strict=True)])
            both = (a > 0) & (b > 0)
            if both.any():
                found = np.unique(np.stack([a[both], b[both]], axis=1).astype(np.int64), axis=0)
                yield found[:, 0], found[:, 1]


def _overlap(
    a: NDArray[Any], b: NDArray[Any], shift: Sequence[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Parts of two planes that lie on each other when `b` starts at `shift` in `a`."""
    of_a, of_b = [], []
    for n, m, s in zip(a.shape, b.shape, shift, strict=True):
        start, stop = max(0, s), max(0, s, min(n, m + s))
        of_a.append(slice(start, stop))
        of_b.append(slice(start - s, stop - s))
    return a[tuple(of_a)], b[tuple(of_b)]


def merge(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Disjoint sets of `count` labels joined by pairs (n, 2): the set of each, from 0.

    Sets are numbered in the order of their first label.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if count == 0:
        return np.empty(0, dtype=np.int64)
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    sets = connected_components(graph, directed=False)[1]
    return in_order_of_first(sets)


def in_order_of_first(sets: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber sets 0, 1, ... in the order in which they first occur."""
    first = np.full(int(sets.max()) + 1, len(sets), dtype=np.int64)
    first[sets[::-1]] = np.arange(len(sets) - 1, -1, -1)
    rank = np.empty_like(first)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[sets], dtype=np.int64)

"""Which voxels lie between two objects that see each other: straight lines on a voxel lattice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from clemreg.measure.lines import line_between
from clemreg.measure.surface import neighbour_pairs
from clemreg.space.grid import Box, Shape, Triple

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Line:
    """A straight way from a voxel to another.

    Attributes
    ----------
    step
        Offset zyx of the other end in voxels.
    gap_nm
        Distance between the two voxels as boxes: 0 where they touch.
    length_nm
        Distance between their centres.
    between
        Offsets (M, 3) of the voxels on the way, without the ends.
    """

    step: Shape
    gap_nm: float
    length_nm: float
    between: IntArray


@dataclass(frozen=True, eq=False)
class Nodes:
    """Voxels that belong to the contact of a pair of objects; one voxel may serve several pairs.

    Attributes
    ----------
    flat
        Index (N,) into the raveled scene.
    pair
        Number (N,) of the pair: index of the a id times the number of b ids, plus that of the b id.
    gap_nm
        Gap (N,) between the two surface voxels: of the shortest line through the voxel, or naively
        of those that are nearest to it.
    """

    flat: IntArray
    pair: IntArray
    gap_nm: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scene:
    """What a block sees, with a border of nothing so that no line leaves the arrays.

    Attributes
    ----------
    box
        Where the arrays lie in the volume (may reach outside).
    a, b
        Ids, unsigned; the same array for contacts within one volume.
    surface_a, surface_b
        Whether a voxel of an object has a neighbour across a face that is not of the same object.
    spacing_nm
        Voxel size zyx.
    """

    box: Box
    a: NDArray[np.unsignedinteger]
    b: NDArray[np.unsignedinteger]
    surface_a: NDArray[np.bool_]
    surface_b: NDArray[np.bool_]
    spacing_nm: Triple

    @cached_property
    def names_a(self) -> NDArray[np.unsignedinteger]:
        """Ids of the a objects that show a surface."""
        return np.unique(self.a[self.surface_a])

    @cached_property
    def names_b(self) -> NDArray[np.unsignedinteger]:
        """Ids of the b objects that show a surface."""
        return np.unique(self.b[self.surface_b])


def reach(distance_nm: float, spacing_nm: Triple) -> Shape:
    """Longest step in voxels, zyx, between boxes that are not more than `distance_nm` apart."""
    z, y, x = (int(distance_nm / s + 1e-9) + 1 for s in spacing_nm)
    return z, y, x


@cache
def lines(distance_nm: float, spacing_nm: Triple) -> tuple[Line, ...]:
    """All lines between voxels at most `distance_nm` apart, the shortest gap first.

    In the paper, the centres of the two voxels may be the contact distance and one voxel apart;
    here the voxels as boxes may be the contact distance apart, which is the same along an axis and
    holds for voxels of any shape.
    """
    spacing = np.asarray(spacing_nm)
    found = []
    z, y, x = (range(-n, n + 1) for n in reach(distance_nm, spacing_nm))
    for step in itertools.product(z, y, x):
        gap = round(float(np.linalg.norm(_apart(np.asarray(step), spacing_nm))), 6)
        if gap <= distance_nm + 1e-6:
            length = round(float(np.linalg.norm(step * spacing)), 6)
            found.append(Line(step, gap, length, line_between(step)))
    return tuple(sorted(found, key=lambda line: (line.gap_nm, line.length_nm, line.step)))


def _apart(step: IntArray, spacing_nm: Triple) -> NDArray[np.float64]:
    """Distance along each axis (..., 3) between two voxels as boxes, from their offset."""
    return np.asarray(np.maximum(np.abs(step) - 1, 0) * np.asarray(spacing_nm))


def surface_of(ids: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Find object voxels with a face to something else; the array's border is no surface."""
    box = Box.of_shape(ids.shape)
    open_ = np.zeros(ids.shape, bool)
    for direction in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        one, other = neighbour_pairs(box, box, direction)
        differ = ids[one] != ids[other]
        open_[one] |= differ
        open_[other] |= differ
    open_ &= ids != 0
    return open_


def lines_of_sight(scene: Scene, region: Box, distance_nm: float) -> Nodes:
    """Mark every voxel on a free line between a surface voxel of an a and one of a b object.

    A line is free if no voxel between its ends belongs to any object of either kind. Marks outside
    `region` are dropped; those inside are all found if `scene` is right within the reach of it.
    """
    ways = lines(distance_nm, scene.spacing_nm)
    margin = reach(distance_nm, scene.spacing_nm)
    marks = _Marks(scene, [line.gap_nm for line in ways])
    starts = np.flatnonzero(scene.surface_a & _grown(scene.surface_b, margin))
    starts = starts[_inside(starts, scene, region.grow(margin))]
    a_at, b_at, end_at = scene.a.ravel(), scene.b.ravel(), scene.surface_b.ravel()
    taken = ((scene.a != 0) | (scene.b != 0)).ravel()
    itself = scene.a is scene.b
    for line in ways:
        last = _flat(line.step, scene)
        between = [_flat(voxel, scene) for voxel in line.between]
        seen = starts[end_at[starts + last]]
        for offset in between:
            seen = seen[~taken[seen + offset]]
        if itself:
            seen = seen[b_at[seen + last] > a_at[seen]]
        if not len(seen):
            continue
        pair = np.searchsorted(scene.names_a, a_at[seen]) * len(scene.names_b)
        pair += np.searchsorted(scene.names_b, b_at[seen + last])
        for offset in (0, *between, last):
            marks.add(seen + offset, pair, line.gap_nm)
    return _within(marks.nodes(), scene, region)


def shared_halo(scene: Scene, region: Box, distance_nm: float) -> Nodes:
    """Mark every voxel that is near both an a and a b object: the paper's naive contacts.

    A voxel's two ids are those of the nearest surfaces, the smaller where two are as near. Voxels
    inside an object, behind its surface, do not count.
    """
    margin = reach(distance_nm, scene.spacing_nm)
    hidden = (scene.a != 0) & ~scene.surface_a
    hidden |= (scene.b != 0) & ~scene.surface_b
    near = _grown(scene.surface_a, margin) & _grown(scene.surface_b, margin)
    flat = np.flatnonzero(near & ~hidden)
    flat = flat[_inside(flat, scene, region)]
    a, to_a = _nearest(np.where(scene.surface_a, scene.a, 0), flat, scene, distance_nm)
    b, to_b = _nearest(np.where(scene.surface_b, scene.b, 0), flat, scene, distance_nm)
    both = (a != 0) & (b != 0)
    pair = np.searchsorted(scene.names_a, a[both]) * len(scene.names_b)
    pair += np.searchsorted(scene.names_b, b[both])
    gap_nm = np.linalg.norm(_apart(to_b[both] - to_a[both], scene.spacing_nm), axis=1)
    return Nodes(flat[both], pair, np.round(gap_nm, 6))


class _Marks:
    """Marked (voxel, pair): one pair a voxel in an array, the few further ones in a list.

    Parameters
    ----------
    gaps_nm
        All gaps that can occur, rising; each voxel keeps only a number among these.
    """

    def __init__(self, scene: Scene, gaps_nm: Sequence[float]) -> None:
        pairs = len(scene.names_a) * len(scene.names_b)
        self.gaps_nm = np.unique(gaps_nm)
        self.owner = np.full(scene.a.size, -1, np.min_scalar_type(-max(pairs, 1)))
        self.gap = np.zeros(scene.a.size, np.min_scalar_type(len(self.gaps_nm)))
        self.more: list[tuple[IntArray, NDArray[np.float64]]] = []

    def add(self, flat: IntArray, pair: IntArray, gap_nm: float) -> None:
        """Mark voxels (N,) for pairs (N,); gaps must not become smaller from call to call."""
        owner = self.owner[flat]
        free = owner < 0
        self.owner[flat[free]] = pair[free]
        self.gap[flat[free]] = np.searchsorted(self.gaps_nm, gap_nm)
        other = self.owner[flat] != pair
        if other.any():
            keys = np.unique(pair[other] * self.owner.size + flat[other])
            self.more.append((keys, np.full(len(keys), gap_nm)))

    def nodes(self) -> Nodes:
        """All marks once, with the first, smallest gap of each."""
        size = self.owner.size
        flat = np.flatnonzero(self.owner >= 0)
        own = self.owner[flat].astype(np.int64) * size + flat
        keys = np.concatenate([own, *(k for k, _ in self.more)])
        gaps = np.concatenate([self.gaps_nm[self.gap[flat]], *(g for _, g in self.more)])
        keys, first = np.unique(keys, return_index=True)
        return Nodes(keys % size, keys // size, gaps[first])


def _nearest(
    surface: NDArray[np.unsignedinteger], flat: IntArray, scene: Scene, distance_nm: float
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int32]]:
    """Id of the nearest surface voxel of each of the voxels `flat` (0: none), and the way there."""
    at = surface.ravel()
    found = np.zeros(len(flat), at.dtype)
    steps = np.zeros((len(flat), 3), np.int32)
    for _, ways in itertools.groupby(
        lines(distance_nm, scene.spacing_nm), key=lambda line: (line.gap_nm, line.length_nm)
    ):
        todo = np.flatnonzero(found == 0)
        for line in ways:
            ids = at[flat[todo] + _flat(line.step, scene)]
            better = (ids > 0) & ((found[todo] == 0) | (ids < found[todo]))
            found[todo[better]] = ids[better]
            steps[todo[better]] = line.step
    return found, steps


def _grown(mask: NDArray[np.bool_], margin: Shape) -> NDArray[np.bool_]:
    """Grow a mask by some voxels along each axis: where a line from it may end."""
    grown = mask
    for axis, reached in enumerate(margin):
        before, grown = grown, grown.copy()
        for step in range(1, reached + 1):
            low = tuple(slice(None, -step) if i == axis else slice(None) for i in range(3))
            high = tuple(slice(step, None) if i == axis else slice(None) for i in range(3))
            grown[low] |= before[high]
            grown[high] |= before[low]
    return grown


def _flat(step: Shape | IntArray, scene: Scene) -> int:
    _, ny, nx = scene.a.shape
    return int((int(step[0]) * ny + int(step[1])) * nx + int(step[2]))


def _inside(flat: IntArray, scene: Scene, region: Box) -> NDArray[np.bool_]:
    index = np.stack(np.unravel_index(flat, scene.a.shape), 1) + scene.box.start
    inside: NDArray[np.bool_] = np.all((index >= region.start) & (index < region.stop), axis=1)
    return inside


def _within(nodes: Nodes, scene: Scene, region: Box) -> Nodes:
    keep = _inside(nodes.flat, scene, region)
    return Nodes(nodes.flat[keep], nodes.pair[keep], nodes.gap_nm[keep])

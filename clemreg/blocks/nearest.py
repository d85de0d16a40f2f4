"""Distance from the voxels of one mask to the nearest voxel of another, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Box

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
ReadMask = Callable[[Box], BoolArray]

BLOCK = (192, 192, 192)
FIRST_HALO = 48


def nearest_distances(
    source: ReadMask, target: ReadMask, shape: Sequence[int], spacing_nm: Sequence[float]
) -> Iterator[FloatArray]:
    """Distances in nm from every voxel of `source` to the nearest voxel of `target`.

    A voxel that is in both has distance 0. A block is transformed with a halo around it; a
    distance longer than the way to the halo's edge may not be the shortest, so the halo is
    doubled until none is. The distances are exact and do not depend on the blocks.

    Parameters
    ----------
    source, target
        Functions that read a box of a mask, as boolean (z, y, x).
    shape
        Voxels of the volume zyx.
    spacing_nm
        Voxel size zyx.

    Yields
    ------
    FloatArray
        (N,) distances of the source voxels of one block; infinite where `target` is empty.
    """
    for block in Box.of_shape(shape).tiles(BLOCK):
        inside = source(block)
        if not inside.any():
            continue
        box = _bounding(inside).shift(block.start)
        inside = inside[box.shift(tuple(-s for s in block.start)).slices]
        yield box_distances(inside, box, target, shape, spacing_nm)


def box_distances(
    inside: BoolArray,
    box: Box,
    target: ReadMask,
    shape: Sequence[int],
    spacing_nm: Sequence[float],
) -> FloatArray:
    """Distances in nm from some voxels of a box to the nearest voxel of `target`.

    Parameters
    ----------
    inside
        Which voxels (z, y, x) of the box.

    Returns
    -------
    FloatArray
        (N,) distances, in the order of the voxels; infinite where `target` is empty.
    """
    halo = FIRST_HALO
    while True:
        window = box.grow(halo).clip(shape)
        whole = window == Box.of_shape(shape)
        distance = _to_mask(target(window), spacing_nm)
        core = box.shift(tuple(-s for s in window.start))
        found: FloatArray = distance[core.slices][inside]
        if whole or bool((found <= _trusted_nm(box, window, shape, spacing_nm)).all()):
            return found
        halo *= 2


def _to_mask(mask: BoolArray, spacing_nm: Sequence[float]) -> FloatArray:
    """Distance of each voxel to the nearest one of the mask; infinite if there is none."""
    import edt

    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    anisotropy = tuple(float(s) for s in spacing_nm)
    result: FloatArray = edt.edt(np.ascontiguousarray(~mask), anisotropy=anisotropy, parallel=1)
    return result


def _trusted_nm(box: Box, window: Box, shape: Sequence[int], spacing_nm: Sequence[float]) -> float:
    """Up to here every voxel around the box was looked at; the volume's own border is no limit."""
    reach = [
        margin * spacing
        for a, b, low, high, n, spacing in zip(
            box.start, box.stop, window.start, window.stop, shape, spacing_nm, strict=True
        )
        for margin, cut in ((a - low, low > 0), (high - b, high < n))
        if cut
    ]
    return min(reach, default=np.inf)


def _bounding(mask: NDArray[Any]) -> Box:
    """Smallest box that holds every voxel of a mask that is not empty."""
    start, stop = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero(mask.any(axis=others))
        start.append(int(where[0]))
        stop.append(int(where[-1]) + 1)
    return Box(tuple(start), tuple(stop))  # type: ignore[arg-type]

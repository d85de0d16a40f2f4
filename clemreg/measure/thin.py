"""Thinning to medial surfaces or to centre lines, the same for any blocks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.executors import started
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Read, collect, map_volume
from clemreg.io.atomic import remove
from clemreg.io.volumes import open_volume
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

_AROUND = tuple(d for d in itertools.product((-1, 0, 1), repeat=3) if d != (0, 0, 0))
_DIRECTIONS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
_SUBFIELDS = 8
Kept = Literal["surface", "line"]
"""What is not peeled away: parts of surfaces, or ends of lines."""
REACH = len(_DIRECTIONS) * _SUBFIELDS
"""Voxels from which one round can hear: each of its passes looks one voxel far."""


def medial_surface(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Thin a whole object (z, y, x) in memory to its medial surface (1; else 0).

    Border voxels are peeled from six directions in turn, as in Lee, Kashyap and Chu (1994), unless
    that would change the topology or the voxel is part of a surface: the object voxels of each
    octant around it lie in one plane with it. Where Lee goes through the voxels of a direction one
    by one, here those of the same parity go at once, in eight subfields (Bertrand and Aktouf
    1994), so that no order of reading plays a part.
    """
    state = mask.astype(np.uint8)
    while True:
        left = thin_once(state, (0, 0, 0))
        if np.array_equal(left, state):
            return state
        state = left


def thin_once(
    state: NDArray[np.uint8], start: tuple[int, int, int], kept: Kept = "surface"
) -> NDArray[np.uint8]:
    """One round of peeling from all six directions.

    Parameters
    ----------
    state
        1 in the object (z, y, x); what is outside the array counts as background.
    start
        Index of its first voxel in the volume, on which the parity depends.
    kept
        With ``"line"``, a voxel with one neighbour stays, as an end; what is left is thin lines.
    """
    padded = np.pad(state, 1)
    flat = padded.ravel()
    alive = np.flatnonzero(flat)
    steps = [_flat(d, padded.shape) for d in _AROUND]
    for direction in _DIRECTIONS:
        alive = alive[flat[alive] != 0]
        border = alive[flat[alive + _flat(direction, padded.shape)] == 0]
        field = _subfield(border, padded.shape, start)
        for number in range(_SUBFIELDS):
            here = border[field == number]
            codes = np.zeros(len(here), np.int64)
            for bit, step in enumerate(steps):
                codes |= flat[here + step].astype(np.int64) << bit
            flat[here[_deletable(codes, kept)]] = 0
    result: NDArray[np.uint8] = padded[1:-1, 1:-1, 1:-1]
    return result


def thin_volume(
    read: Read, grid: Grid, folder: Path, how: Blockwise, kept: Kept = "surface"
) -> Volume:
    """Thin a volume block by block; exactly `medial_surface` of the whole, for any blocks.

    Every round reads `REACH` voxels around each block, which is as far as a round can hear, and
    writes the next state; rounds follow until one changes nothing. There are about as many as half
    the greatest thickness in voxels.

    Parameters
    ----------
    read
        Gives the mask (not 0: object) of any box.
    folder
        Where the states are kept; a killed job goes on from the last.
    kept
        See `thin_once`.
    """
    with started(how.executor) as running:
        return _thin(read, grid, folder, replace(how, executor=running), kept)


def _thin(read: Read, grid: Grid, folder: Path, how: Blockwise, kept: Kept) -> Volume:
    done = sorted((int(p.stem.removeprefix("round")), p) for p in folder.glob("round*.zarr"))
    number, last = done[-1] if done else (-1, None)
    state: Read = open_volume(last).read if last else _Binary(read)
    count = _count(state, grid, folder / f"count{number}", how)
    while True:
        number += 1
        out = folder / f"round{number}.zarr"
        stage = how.named(f"round {number + 1} of thinning")
        volume = map_volume(_Round(state, grid, kept), out, grid, np.uint8, stage)
        left = _count(volume.read, grid, folder / f"count{number}", how)
        if left == count:
            return volume
        if last is not None:
            remove(last)
        state, count, last = volume.read, left, out


@dataclass(frozen=True)
class _Binary:
    read: Read

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        return np.asarray(self.read(box) != 0, dtype=np.uint8)


@dataclass(frozen=True)
class _Round:
    read: Read
    grid: Grid
    kept: Kept

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        window = box.grow(REACH).clip(self.grid.shape)
        state = np.asarray(self.read(window), np.uint8)
        inner = box.shift([-s for s in window.start]).slices
        if not state[inner].any():
            return np.zeros(box.shape, np.uint8)
        return thin_once(state, window.start, self.kept)[inner]


@dataclass(frozen=True)
class _Count:
    read: Read

    def __call__(self, block: Block) -> Part:
        return {"count": np.array(np.count_nonzero(self.read(block.core)))}


def _count(read: Read, grid: Grid, folder: Path, how: Blockwise) -> int:
    parts = collect(_Count(read), folder, how.blocks(grid), Blockwise(how.block, how.executor))
    return sum(int(part["count"]) for part in parts)


def _flat(step: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return (step[0] * shape[1] + step[1]) * shape[2] + step[2]


def _subfield(
    flat: NDArray[np.int64], shape: tuple[int, ...], start: tuple[int, int, int]
) -> NDArray[np.int64]:
    """Parity class 0 to 7 of voxels, by their place in the volume."""
    z, y, x = ((i + s) & 1 for i, s in zip(np.unravel_index(flat, shape), start, strict=True))
    return np.asarray(4 * z + 2 * y + x, dtype=np.int64)


def _deletable(codes: NDArray[np.int64], kept: Kept) -> NDArray[np.bool_]:
    """Look up which neighbourhoods (26 bits in the order of `_AROUND`) may lose their centre."""
    table = _table(kept)
    new = np.unique(codes[table[codes] == 0])
    if len(new):
        table[new] = 1 + _judge(new, kept)
    answer: NDArray[np.bool_] = table[codes] == 2
    return answer


@cache
def _table(_kept: Kept) -> NDArray[np.uint8]:
    """Memory of `_judge`: 0 not asked yet, 1 must stay, 2 may go."""
    return np.zeros(1 << len(_AROUND), np.uint8)


def _judge(codes: NDArray[np.int64], kept: Kept) -> NDArray[np.bool_]:
    """Decide for neighbourhoods: simple, and not part of what is kept."""
    here = (codes[:, None] >> np.arange(len(_AROUND)) & 1).astype(bool)
    part = is_surface(here) if kept == "surface" else here.sum(1) <= 1
    return is_simple(here) & ~part


def is_simple(here: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell where removing the centre leaves the topology as it is (Bertrand and Malandain 1994).

    The object in the 26 neighbours is one piece, and so is the background that touches the centre
    by a face, within the 18 neighbours.

    Parameters
    ----------
    here
        (N, 26) object or not, neighbours in scan order.
    """
    around = np.array(_AROUND)
    apart = np.abs(around[:, None] - around[None])
    near26 = (apart.max(-1) == 1).astype(np.float32)
    within18 = np.abs(around).sum(1) <= 2
    near6 = ((apart.sum(-1) == 1) & within18 & within18[:, None]).astype(np.float32)
    face = np.abs(around).sum(1) == 1
    background = ~here & within18
    one_object = (_flooded(here, here, near26) == here).all(1) & here.any(1)
    flooded = _flooded(background, background & face, near6)
    one_background = (~(background & face) | flooded).all(1) & (background & face).any(1)
    result: NDArray[np.bool_] = one_object & one_background
    return result


def _flooded(
    inside: NDArray[np.bool_], seeds: NDArray[np.bool_], near: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Flood (N, 26) from the first seed of each row, within `inside`."""
    wet = np.zeros_like(inside)
    rows = np.flatnonzero(seeds.any(1))
    wet[rows, seeds[rows].argmax(1)] = True
    while True:
        more = wet | ((wet.astype(np.float32) @ near > 0) & inside)
        if np.array_equal(more, wet):
            return wet
        wet = more


def is_surface(here: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell where the object voxels of each octant around the centre lie in a plane with it.

    Parameters
    ----------
    here
        (N, 26) object or not, neighbours in scan order.
    """
    result = np.ones(len(here), bool)
    for corner in itertools.product((-1, 1), repeat=3):
        octant = [
            _AROUND.index(tuple(c * p for c, p in zip(corner, part, strict=True)))
            for part in _OCTANT
        ]
        pattern = here[:, octant] @ (1 << np.arange(len(octant)))
        result &= _planar()[pattern]
    return result


_OCTANT = tuple(p for p in itertools.product((0, 1), repeat=3) if p != (0, 0, 0))


@cache
def _planar() -> NDArray[np.bool_]:
    """Which of the 128 sets of octant voxels lie in a plane with the corner."""
    sets: list[Any] = [
        [p for bit, p in enumerate(_OCTANT) if number >> bit & 1]
        for number in range(1 << len(_OCTANT))
    ]
    return np.array([not points or np.linalg.matrix_rank(points) <= 2 for points in sets])

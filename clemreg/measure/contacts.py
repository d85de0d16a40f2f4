"""Contact sites: where two objects come near and see each other, one site per pair and place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.pyramid import remove_ledgers, write_pyramid
from clemreg.blocks.run import run
from clemreg.blocks.stages import Blockwise, Part, Parts, stored
from clemreg.errors import ConfigError
from clemreg.io.atomic import atomic_path
from clemreg.io.volumes import VolumeWriter
from clemreg.measure.gather import gathered, read_ids, same_grid
from clemreg.measure.sight import (
    Nodes,
    Scene,
    lines_of_sight,
    reach,
    shared_halo,
    surface_of,
)
from clemreg.measure.surface import DIRECTIONS, areas_nm2, crofton_weights, face_areas
from clemreg.measure.tables import Table
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels

Method = Literal["sight", "naive"]
Overlap = Literal["shared", "a", "b"]
_ADDED = ("voxels", "cleft", "sums", "crossings_a", "crossings_b")


@dataclass(frozen=True)
class ContactOptions:
    """What counts as a contact.

    Attributes
    ----------
    distance_nm
        Largest gap between two objects. The paper uses 10 nm, and 20 nm with microtubules.
    method
        ``"sight"``: voxels on free straight lines between the two surfaces (the paper's refined
        contacts). ``"naive"``: voxels within the distance of both.
    overlap
        Whose a voxel is that both segmentations claim: ``"b"`` takes it from a, the paper's
        "a masked with b"; ``"shared"`` leaves it to both.
    min_volume_nm3
        Smaller sites are left out.

    Raises
    ------
    ConfigError
        A value is impossible.
    """

    distance_nm: float = 10.0
    method: Method = "sight"
    overlap: Overlap = "shared"
    min_volume_nm3: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.distance_nm) and self.distance_nm >= 0):
            raise ConfigError(f"contact distance {self.distance_nm} nm, expected 0 or more")
        if self.method not in ("sight", "naive"):
            raise ConfigError(f"contact method {self.method!r}, expected sight or naive")
        if self.overlap not in ("shared", "a", "b"):
            raise ConfigError(f"overlap goes to {self.overlap!r}, expected shared, a or b")


def find_contacts(
    a: Labels,
    b: Labels | None = None,
    options: ContactOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
    out: Path | None = None,
) -> Table:
    """Find contact sites between the objects of two label volumes, or of one with itself.

    The voxels of one pair of objects are split into 26-connected sites. Follows Heinrich et al.
    2021, Extended Data Fig. 10, with distances in nm for voxels of any shape.

    Parameters
    ----------
    a, b
        Ids on the same voxels; without `b`, contacts between different objects of `a`.
    out
        OME-Zarr to write with the site number of every voxel (that of the first site where a
        voxel serves several).
    how
        Blocks, executor and progress; no choice here changes a digit.
    scratch
        Folder from which a killed search goes on.

    Returns
    -------
    Table
        One row a site, by a id, b id and place: ``contact_id`` (1, 2, ...), ``a_id``, ``b_id``;
        ``volume_nm3`` of all its voxels and ``cleft_volume_nm3`` of those outside both objects;
        ``area_a_nm2`` and ``area_b_nm2``, the part of each surface that faces the site (Crofton),
        and ``area_a_faces_nm2``, ``area_b_faces_nm2`` (voxel faces, as in the paper);
        ``gap_nm``, the smallest distance; the centre.

    Raises
    ------
    DataError
        There are negative ids.
    GridError
        `a` and `b` have other voxels.
    ConfigError
        Naive contacts are asked for within one volume: every voxel is nearest to one object.
    """
    options, how = options or ContactOptions(), how or Blockwise()
    if b is None and options.method == "naive":
        raise ConfigError(
            "naive contacts need two label volumes", hint="use --method sight within one"
        )
    if b is not None:
        same_grid(a, b)
    work = _Search(a, b, options)
    job = f"contacts {a.name} {b.name if b else ''} {a.grid} {options}"
    with gathered(work, how.blocks(a.grid), how, job=job, scratch=scratch) as parts:
        sites = _merge(parts)
        order, keep = _order(sites, a.grid, options.min_volume_nm3)
        if out is not None:
            numbers = np.zeros(len(sites["a"]), np.uint64)
            numbers[order[keep]] = np.arange(1, keep.sum() + 1)
            _write(out, a.grid, parts, numbers[sites["site"]], how)
    return _table({name: sites[name][order[keep]] for name in sites if name != "site"}, a.grid)


@dataclass(frozen=True)
class _Search:
    """Sites of one block's core, and what joins them to those of its neighbours."""

    a: Labels
    b: Labels | None
    options: ContactOptions

    def __call__(self, block: Block) -> Part:
        scene = self._scene(block.core)
        region = block.core.grow(1).clip(self.a.shape)
        mark = lines_of_sight if self.options.method == "sight" else shared_halo
        nodes = mark(scene, region, self.options.distance_nm)
        return _components(scene, nodes, block.core, self.a.shape)

    def _scene(self, core: Box) -> Scene:
        grid = self.a.grid
        margin = reach(self.options.distance_nm, grid.spacing_nm)
        window = core.grow(margin).grow(2).clip(grid.shape)
        box = core.grow(margin).grow(margin).grow(2)
        inner = window.shift([-s for s in box.start])
        a = _framed(_unsigned(read_ids(self.a, window)), inner, box)
        if self.b is None:
            surface = _framed(surface_of(a[inner.slices]), inner, box)
            return Scene(box, a, a, surface, surface, grid.spacing_nm)
        b = _framed(_unsigned(read_ids(self.b, window)), inner, box)
        if self.options.overlap == "b":
            a[b != 0] = 0
        elif self.options.overlap == "a":
            b[a != 0] = 0
        # The border of the volume is no surface, so what lies beyond it must not be looked at.
        surface_a, surface_b = (_framed(surface_of(v[inner.slices]), inner, box) for v in (a, b))
        return Scene(box, a, b, surface_a, surface_b, grid.spacing_nm)


def _framed(array: NDArray[Any], inner: Box, box: Box) -> NDArray[Any]:
    """Put an array where `inner` is within a box of zeros."""
    framed = np.zeros(box.shape, array.dtype)
    framed[inner.slices] = array
    return framed


def _unsigned(ids: NDArray[Any]) -> NDArray[Any]:
    """Ids in no more bytes than they need: 4 where they are below 2^32, else 8."""
    if ids.dtype.kind == "u" and ids.dtype.itemsize <= 4:
        return ids
    wide = ids.astype(np.uint64, copy=False)
    return wide.astype(np.uint32) if wide.max(initial=0) < 2**32 else wide


def _components(scene: Scene, nodes: Nodes, core: Box, shape: Shape) -> Part:
    """Join neighbouring voxels of a pair within the core; note the joints to other blocks."""
    names_a, names_b = (ids.astype(np.uint64) for ids in (scene.names_a, scene.names_b))
    a = names_a[nodes.pair // max(len(names_b), 1)]
    b = names_b[nodes.pair % max(len(names_b), 1)]
    index = np.stack(np.unravel_index(nodes.flat, scene.a.shape), 1) + scene.box.start
    linear = np.ravel_multi_index(index.T, shape) if len(index) else np.zeros(0, np.int64)
    inside = np.all((index >= core.start) & (index < core.stop), axis=1)
    in_a, in_b = scene.a.ravel()[nodes.flat] == a, scene.b.ravel()[nodes.flat] == b
    pairs = _neighbours(nodes, scene)
    first, second = np.concatenate(pairs, axis=1)
    both = inside[first] & inside[second]
    label = _connected(len(a), first[both], second[both])
    names, label[inside] = np.unique(label[inside], return_inverse=True)
    count = len(names)
    part = label[inside]
    out = inside[first] & ~inside[second]
    edge = np.any((index == core.start) | (index == np.asarray(core.stop) - 1), axis=1) & inside
    lead = np.unique(part, return_index=True)[1]
    gap = np.full(count, np.inf)
    np.minimum.at(gap, part, nodes.gap_nm[inside])
    first_linear = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first_linear, part, linear[inside])
    sums = [np.bincount(part, index[inside, axis], count) for axis in range(3)]
    return {
        "a": a[inside][lead], "b": b[inside][lead], "gap_nm": gap, "linear": first_linear,
        "voxels": np.bincount(part, minlength=count),
        "cleft": np.bincount(part[~(in_a | in_b)[inside]], minlength=count),
        "sums": np.stack(sums, 1).astype(np.int64),
        "crossings_a": _leaving(pairs, in_a, inside, label, count),
        "crossings_b": _leaving(pairs, in_b, inside, label, count),
        "edge": _keyed(linear[edge], a[edge], b[edge], label[edge]),
        "joint": _keyed(linear[second[out]], a[second[out]], b[second[out]], label[first[out]]),
        "node": linear[inside], "node_part": part,
    }  # fmt: skip


def _keyed(
    linear: NDArray[np.int64],
    a: NDArray[np.uint64],
    b: NDArray[np.uint64],
    part: NDArray[np.int64],
) -> NDArray[np.uint64]:
    return np.stack([linear.astype(np.uint64), a, b, part.astype(np.uint64)], axis=1)


def _neighbours(nodes: Nodes, scene: Scene) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each of the 13 directions the nodes (first, second) of a pair that are neighbours."""
    size = scene.a.size
    key = nodes.pair * size + nodes.flat
    order = np.argsort(key)
    ranked = key[order]
    result = []
    if not len(key):
        return [(order, order)] * len(DIRECTIONS)
    for z, y, x in DIRECTIONS:
        step = (z * scene.a.shape[1] + y) * scene.a.shape[2] + x
        place = np.searchsorted(ranked, key + step)
        found = np.flatnonzero(ranked[np.minimum(place, len(key) - 1)] == key + step)
        result.append((found, order[place[found]]))
    return result


def _leaving(
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    member: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    label: NDArray[np.int64],
    count: int,
) -> NDArray[np.int64]:
    """Count, by part and direction (N, 13), neighbours of which one is of the object."""
    counts = np.zeros((count, len(DIRECTIONS)), np.int64)
    for number, (first, second) in enumerate(pairs):
        own = np.where(member[first], first, second)
        counted = own[(member[first] != member[second]) & inside[own]]
        counts[:, number] = np.bincount(label[counted], minlength=count)
    return counts


def _connected(
    count: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if count == 0:
        return np.zeros(0, np.int64)
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


def _merge(found: Iterable[Part]) -> dict[str, NDArray[Any]]:
    """Join the parts of all blocks to sites; ``site`` tells the site of every part, in order."""
    names = ("a", "b", "gap_nm", "linear", *_ADDED, "edge", "joint")
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    total = 0
    for part in found:
        for name in names:
            rows = part[name]
            if name in ("edge", "joint"):
                rows = rows + np.array([0, 0, 0, total], np.uint64)
            columns[name].append(rows)
        total += len(part["a"])
    parts = {name: np.concatenate(columns[name]) for name in names}
    site = _connected(total, *_joints(parts["edge"], parts["joint"]))
    count = int(site.max()) + 1 if total else 0
    merged: dict[str, NDArray[Any]] = {"site": site}
    lead = np.unique(site, return_index=True)[1]
    merged["a"], merged["b"] = parts["a"][lead], parts["b"][lead]
    for name in ("gap_nm", "linear"):
        merged[name] = parts[name][lead]
        np.minimum.at(merged[name], site, parts[name])
    for name in _ADDED:
        merged[name] = np.zeros((count, *parts[name].shape[1:]), np.int64)
        np.add.at(merged[name], site, parts[name])
    return merged


def _joints(
    edge: NDArray[np.uint64], joint: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parts that meet across a face: a joint names voxel and pair, an edge says whose they are."""
    fields = np.dtype([("linear", "u8"), ("a", "u8"), ("b", "u8")])
    key = np.ascontiguousarray(edge[:, :3]).view(fields)[:, 0]
    asked = np.ascontiguousarray(joint[:, :3]).view(fields)[:, 0]
    _, number = np.unique(np.concatenate([key, asked]), return_inverse=True)
    owner = np.full(len(key) + len(asked), -1, np.int64)
    owner[number[: len(key)]] = edge[:, 3].astype(np.int64)
    return joint[:, 3].astype(np.int64), owner[number[len(key) :]]


def _order(
    sites: dict[str, NDArray[Any]], grid: Grid, min_volume_nm3: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Sites by a, b and place, the same for any blocks; and which of these are large enough."""
    order = np.lexsort((sites["linear"], sites["b"], sites["a"]))
    volume = sites["voxels"][order] * np.prod(grid.spacing_nm)
    return order, volume >= min_volume_nm3


def _table(sites: dict[str, NDArray[Any]], grid: Grid) -> Table:
    voxel = float(np.prod(grid.spacing_nm))
    smooth, faces = crofton_weights(grid.spacing_nm), face_areas(grid.spacing_nm)
    centre = grid.to_world(sites["sums"] / np.maximum(sites["voxels"], 1)[:, None])
    return Table.of(
        contact_id=np.arange(1, len(sites["a"]) + 1, dtype=np.uint64),
        a_id=sites["a"],
        b_id=sites["b"],
        volume_nm3=sites["voxels"] * voxel,
        cleft_volume_nm3=sites["cleft"] * voxel,
        area_a_nm2=areas_nm2(sites["crossings_a"], smooth),
        area_b_nm2=areas_nm2(sites["crossings_b"], smooth),
        area_a_faces_nm2=areas_nm2(sites["crossings_a"], faces),
        area_b_faces_nm2=areas_nm2(sites["crossings_b"], faces),
        gap_nm=sites["gap_nm"],
        centre_x_nm=centre[:, 2],
        centre_y_nm=centre[:, 1],
        centre_z_nm=centre[:, 0],
    )


def _write(
    out: Path, grid: Grid, parts: Parts, numbers: NDArray[np.uint64], how: Blockwise
) -> None:
    """Write the site number of every voxel; `numbers` (0: left out) of all parts in order."""
    from clemreg.io.volumes import WriteOptions, create_volume

    lookup = parts.folder / "numbers.npy"
    with atomic_path(lookup) as partial, partial.open("wb") as stream:
        np.save(stream, numbers)
    counts = [len(parts.some(number, "a")["a"]) for number in range(len(parts))]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    options = stored(WriteOptions(labels=True), grid, how.block)
    with create_volume(out, grid, np.uint64, options=options) as writer:
        work = _WriteSites(writer, parts, lookup, first)
        how = how.named("sites")
        run(work, how.blocks(grid), executor=how.executor, progress=how.progress)
        ledger = parts.folder / "pyramid"
        remove_ledgers(ledger)
        write_pyramid(writer, ledger, how.executor)


@dataclass(frozen=True)
class _WriteSites:
    """Write one block; where a voxel serves several sites, the first is shown."""

    writer: VolumeWriter
    parts: Parts
    lookup: Path
    first: NDArray[np.int64]

    def __call__(self, block: Block) -> None:
        part = self.parts.some(block.number, "node", "node_part")
        own = np.load(self.lookup, mmap_mode="r")[self.first[block.number] + part["node_part"]]
        none = np.uint64(2**64 - 1)
        array = np.full(block.core.size, none)
        index = np.stack(np.unravel_index(part["node"], self.writer.grid.shape))
        index -= np.asarray(block.core.start)[:, None]
        flat = np.ravel_multi_index(tuple(index), block.core.shape)
        np.minimum.at(array, flat[own > 0], own[own > 0])
        array[array == none] = 0
        self.writer[block.core] = array.reshape(block.core.shape)

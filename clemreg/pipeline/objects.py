"""``clemreg measure --report``: shape, centre lines and pictures of all objects on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.stages import Blockwise
from clemreg.measure.mesh import MeshOptions, mesh_mask, simplify
from clemreg.measure.morphology import object_boxes
from clemreg.measure.skeleton import (
    SkeletonOptions,
    measure_skeleton,
    skeleton_table,
    skeletonize,
)
from clemreg.measure.tables import Table
from clemreg.report.objects import Quantity, Surface, write_object_report
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels

_DRAWN = 60
_TRIANGLES = 40_000
_TILE = 64


def report_objects(
    labels: Labels, objects: Table, path: Path, how: Blockwise, scratch: Path | None
) -> None:
    """Write the page.

    Objects too large to be thinned in memory have no part in the histograms of centre lines, and
    are drawn from every second, third, ... voxel.

    Parameters
    ----------
    objects
        Table of `measure_objects`.
    """
    ids, boxes = object_boxes(labels, how=how, scratch=scratch)
    options = SkeletonOptions()
    fit = [i for i, box in zip(ids, boxes, strict=True) if box.size <= options.largest_box_voxels]
    items = skeletonize(labels, options, only=fit, how=how, scratch=scratch)
    lines = skeleton_table([measure_skeleton(item) for item in items])
    largest = objects["object_id"][np.argsort(-objects["volume_nm3"], kind="stable")[:_DRAWN]]
    shown = {i: box for i, box in zip(ids.tolist(), boxes, strict=True) if i in largest}
    surfaces = dict(_surfaces(labels, shown))
    cut = int(objects["cut_by_border"].sum())
    write_object_report(path, labels.name or "Objects", _quantities(objects, lines), surfaces, cut)


def _surfaces(labels: Labels, boxes: Mapping[int, Box]) -> Iterator[tuple[int, Surface]]:
    """Coarse meshes of some objects, each with its share of the triangles that can be drawn."""
    options = MeshOptions(keep=1)
    for number, box in boxes.items():
        mask, grid = coarse_mask(labels, number, box, options.largest_box_voxels)
        if not mask.any():  # a thin one between the voxels that were taken
            continue
        mesh = mesh_mask(mask, grid, options)
        share = _TRIANGLES / len(boxes) / len(mesh.faces)
        mesh = simplify(mesh, share) if share < 1 else mesh
        yield number, (mesh.vertices_nm, mesh.faces)


def coarse_mask(
    labels: Labels, number: int, box: Box, largest_voxels: int
) -> tuple[NDArray[np.bool_], Grid]:
    """Every k-th voxel of an object along each axis, with the least k that makes it small enough.

    Parameters
    ----------
    largest_voxels
        Voxels of the array at most, but for rounding.
    """
    k = max(1, math.ceil((box.size / largest_voxels) ** (1 / 3) - 1e-9))
    mask = np.zeros([-(-n // k) for n in box.shape], bool)
    for tile in box.tiles((_TILE * k,) * 3):
        place = tuple(
            slice((a - o) // k, -(-(b - o) // k))
            for a, b, o in zip(tile.start, tile.stop, box.start, strict=True)
        )
        mask[place] = labels.read(tile)[::k, ::k, ::k] == number
    fine = labels.grid.crop(box)
    spacing_nm = tuple(k * s for s in fine.spacing_nm)
    return mask, replace(fine, shape=mask.shape, spacing_nm=spacing_nm)


def _quantities(objects: Table, lines: Table) -> list[Quantity]:
    found = [
        Quantity("Volume", "µm³", objects["volume_nm3"] / 1e9),
        Quantity("Surface area", "µm²", objects["surface_nm2"] / 1e6),
        Quantity("Sphericity", "", objects["sphericity"]),
    ]
    if "fraction_of_cell" in objects.columns:
        found.append(Quantity("Part of the cell", "%", 100 * objects["fraction_of_cell"]))
    if len(lines):
        found += [
            Quantity("Length of the centre line", "µm", lines["smooth_length_nm"] / 1e3),
            Quantity("Mean radius", "nm", lines["radius_mean_nm"]),
            Quantity("Branches", "", lines["branches"].astype(float)),
        ]
    return found

"""``clemreg measure --report``: shape, centre lines and pictures of all objects on one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.stages import Blockwise
from clemreg.measure.mesh import MeshOptions, mesh_mask, simplify
from clemreg.measure.morphology import object_boxes
from clemreg.measure.skeleton import measure_skeleton, skeleton_table, skeletonize
from clemreg.measure.tables import Table
from clemreg.report.objects import Quantity, Surface, write_object_report
from clemreg.volume import Labels

_DRAWN = 60
_TRIANGLES = 40_000


def report_objects(
    labels: Labels, objects: Table, path: Path, how: Blockwise, scratch: Path | None
) -> None:
    """Write the page.

    Parameters
    ----------
    objects
        Table of `measure_objects`.
    """
    items = skeletonize(labels, how=how, scratch=scratch)
    lines = skeleton_table([measure_skeleton(item) for item in items])
    largest = np.argsort(-objects["volume_nm3"], kind="stable")[:_DRAWN]
    surfaces = dict(_surfaces(labels, objects["object_id"][largest], how, scratch))
    cut = int(objects["cut_by_border"].sum())
    write_object_report(path, labels.name or "Objects", _quantities(objects, lines), surfaces, cut)


def _surfaces(
    labels: Labels, drawn: NDArray[np.uint64], how: Blockwise, scratch: Path | None
) -> Iterator[tuple[int, Surface]]:
    """Coarse meshes of some objects, each with its share of the triangles that can be drawn."""
    ids, boxes = object_boxes(labels, how=how, scratch=scratch)
    for number, box in zip(ids, boxes, strict=True):
        if number in drawn:
            mask = labels.read(box) == number
            mesh = mesh_mask(mask, labels.grid.crop(box), MeshOptions(keep=1))
            share = _TRIANGLES / len(drawn) / len(mesh.faces)
            mesh = simplify(mesh, share) if share < 1 else mesh
            yield int(number), (mesh.vertices_nm, mesh.faces)


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

"""``clemreg ribosomes``: a prediction in, a table of ribosomes and their spheres out."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import GridError
from clemreg.io.atomic import atomic_write_text, remove
from clemreg.io.volumes import open_volume
from clemreg.io.xyz import flip
from clemreg.measure.binding import Binding, BindingOptions, Bindings, classify_ribosomes
from clemreg.measure.ribosomes import (
    RibosomeOptions,
    Ribosomes,
    find_ribosomes,
    write_spheres,
)
from clemreg.space.grid import Grid
from clemreg.units import parse_xyz_nm


@dataclass(frozen=True)
class RibosomeCommand:
    """What ``clemreg ribosomes`` was told.

    Attributes
    ----------
    prediction
        Volume of the ribosome channel.
    out
        Folder for ``ribosomes.csv``, ``spheres.zarr`` and ``classes.zarr``.
    planarity, nuclear_envelope
        Volumes that say what the ribosomes sit on; no classes without the first.
    spacing
        Voxel size "x, y, z unit" of a file that has none.
    options, binding
        What counts as a ribosome, and as bound.
    """

    prediction: str
    out: Path
    planarity: str | None = None
    nuclear_envelope: str | None = None
    spacing: str | None = None
    options: RibosomeOptions = field(default_factory=RibosomeOptions)
    binding: BindingOptions = field(default_factory=BindingOptions)


def ribosomes_in_file(command: RibosomeCommand, progress: Progress | None = None) -> dict[str, Any]:
    """Find, draw and classify the ribosomes of a file; return the figures of the report.

    Raises
    ------
    GridError
        The planarity is on another grid than the prediction.
    """
    spacing = parse_xyz_nm(command.spacing) if command.spacing else None
    prediction = open_volume(command.prediction, spacing_nm=spacing)
    store = command.out / ".ribosomes.partial"
    found = find_ribosomes(prediction, command.options, store=store, progress=progress)
    radius = command.options.radius_nm
    grid = prediction.grid
    write_spheres(found, grid, command.out / "spheres.zarr", radius_nm=radius, progress=progress)
    bound = _classify(command, found, grid, progress)
    if bound is not None:
        classes = command.out / "classes.zarr"
        write_spheres(found, grid, classes, radius_nm=radius, values=bound.code, progress=progress)
    write_ribosomes(found, bound, command.out / "ribosomes.csv")
    remove(store)
    volume_um3 = float(np.prod(grid.extent_nm)) * 1e-9
    report: dict[str, Any] = {"count": len(found), "per_um3": len(found) / volume_um3}
    if bound is not None:
        report["classes"] = bound.counts()
    return {"ribosomes": report}


def write_ribosomes(found: Ribosomes, bound: Bindings | None, path: Path) -> None:
    """Write one row a ribosome: id, x, y, z in nm, score, filled share, class, planarity."""
    head = ["id", "x_nm", "y_nm", "z_nm", "score", "fraction"]
    body: list[list[Any]] = [
        [i + 1, *(f"{v:.3f}" for v in centre), f"{score:.4f}", f"{fraction:.4f}"]
        for i, (centre, score, fraction) in enumerate(
            zip(flip(found.centre_nm), found.score, found.fraction, strict=True)
        )
    ]
    if bound is not None:
        head += ["class", "planarity"]
        for row, code, planarity in zip(body, bound.code, bound.planarity, strict=True):
            row += [Binding(code).name.lower(), "" if np.isnan(planarity) else f"{planarity:.4f}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    atomic_write_text(path, text.getvalue())


def _classify(
    command: RibosomeCommand, found: Ribosomes, grid: Grid, progress: Progress | None
) -> Bindings | None:
    if command.planarity is None:
        return None
    planarity = open_volume(command.planarity)
    if planarity.grid != grid:
        raise GridError(
            f"{command.planarity} is on {planarity.grid}, the prediction on {grid}",
            hint="make the planarity from the ER of the same volume",
        )
    nuclear = command.nuclear_envelope
    return classify_ribosomes(
        found,
        planarity,
        None if nuclear is None else open_volume(nuclear),
        command.binding,
        progress=progress,
    )

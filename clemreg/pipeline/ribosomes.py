"""``clemreg ribosomes``: a prediction in, a table of ribosomes and their spheres out."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.io.atomic import atomic_write_json, atomic_write_text, put_in_place, remove
from clemreg.io.xyz import flip
from clemreg.measure.binding import Binding, BindingOptions, Bindings, classify_ribosomes
from clemreg.measure.gather import same_grid
from clemreg.measure.ribosomes import (
    RibosomeOptions,
    Ribosomes,
    find_ribosomes,
    write_spheres,
)
from clemreg.pipeline.measure import open_mask, open_prediction, working_folder
from clemreg.volume import Volume

log = logging.getLogger(__name__)

CROWD = 6.0
"""Others within 1.5 times the least distance: balls that fill a body have 10 to 12, chains 2."""
OUTPUTS = ("spheres.zarr", "classes.zarr", "ribosomes.csv")


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
    options, binding
        What counts as a ribosome, and as bound.
    json
        File for the figures of the report.
    """

    prediction: VolumeFile
    out: Path
    planarity: str | None = None
    nuclear_envelope: str | None = None
    options: RibosomeOptions = field(default_factory=RibosomeOptions)
    binding: BindingOptions = field(default_factory=BindingOptions)
    json: Path | None = None


def ribosomes_in_file(command: RibosomeCommand, how: Blockwise | None = None) -> dict[str, Any]:
    """Find, draw and classify the ribosomes of a file; return the figures of the report.

    A killed run goes on where it stopped.

    Raises
    ------
    GridError
        Planarity or nuclear envelope have other voxels than the prediction.
    """
    how = how or Blockwise()
    prediction = open_prediction(command.prediction)
    membranes = _membranes(command, prediction)
    inputs = (command.prediction.uri, command.planarity, command.nuclear_envelope)
    chosen = (command.options, command.binding, command.prediction.channel)
    parts = (*chosen, how.block, prediction.grid)
    table = command.out / "ribosomes.csv"
    outputs = (table, *(command.out / name for name in OUTPUTS), command.json)
    with working_folder(outputs, inputs, parts) as given:
        scratch = given or command.out
        found = find_ribosomes(prediction, command.options, how=how, scratch=scratch)
        bound = None
        if membranes is not None:
            options = command.binding
            bound = classify_ribosomes(found, *membranes, options, how=how, scratch=scratch)
        drawn = {"spheres": None} if bound is None else {"spheres": None, "classes": bound.code}
        for name, values in drawn.items():
            made, radius = scratch / f"{name}.zarr", command.options.radius_nm
            write_spheres(found, prediction.grid, made, radius_nm=radius, values=values, how=how)
            put_in_place(made, command.out / made.name)
        if bound is None:
            remove(command.out / "classes.zarr")  # of an earlier run that had a planarity
        write_ribosomes(found, bound, table)
        report = {"ribosomes": _summary(found, bound, command, prediction)}
        if command.json is not None:
            atomic_write_json(command.json, report)
    return report


def _summary(
    found: Ribosomes, bound: Bindings | None, command: RibosomeCommand, prediction: Volume
) -> dict[str, Any]:
    """Return the figures, and warn where they are not those of ribosomes."""
    volume_um3 = float(np.prod(prediction.grid.extent_nm)) * 1e-9
    report: dict[str, Any] = {"count": len(found), "per_um3": len(found) / volume_um3}
    report["neighbours"] = _neighbours(found, 1.5 * command.options.separation_nm)
    if report["neighbours"] > CROWD:
        log.warning(
            "%s gives %d ribosomes, %.0f per um3, each with %.1f others around it as close as they "
            "may be: it is filled with them, so is it the prediction of ribosomes?",
            *(prediction.name, len(found), report["per_um3"], report["neighbours"]),
        )
    if bound is not None:
        report["classes"] = bound.counts()
    return report


def _neighbours(found: Ribosomes, reach_nm: float) -> float:
    """Mean number of others within reach of a centre."""
    from scipy.spatial import cKDTree

    if not len(found):
        return 0.0
    near = cKDTree(found.centre_nm).query_ball_point(found.centre_nm, reach_nm, return_length=True)
    return float(np.mean(near - 1))


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


def _membranes(command: RibosomeCommand, prediction: Volume) -> tuple[Volume, Volume | None] | None:
    """Open planarity and nuclear envelope, and compare their voxels, before any work."""
    if command.planarity is None:
        return None
    planarity = open_mask(command.planarity)
    same_grid(planarity, prediction)
    nuclear = None if command.nuclear_envelope is None else open_mask(command.nuclear_envelope)
    if nuclear is not None:
        same_grid(nuclear, prediction)
    return planarity, nuclear

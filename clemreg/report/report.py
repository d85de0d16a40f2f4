"""Put figures and numbers together: ``report.html`` and ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.io.atomic import atomic_write_json, atomic_write_text, plain
from clemreg.report import figures
from clemreg.report.figures import Overlay
from clemreg.report.html import Figure, render_html
from clemreg.report.verdict import Verdict, decide
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform

SCHEMA = 1
PARTS = (
    "orientation", "affine", "landmarks", "jacobian", "round_trip_nm", "stability", "truth",
    "timings_s", "provenance",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a report is made of; parts that were not measured are None.

    Attributes
    ----------
    title
        Heading.
    numbers
        The objects of ``report.json`` by name (`PARTS`).
    before, after
        LM and EM on the LM grid, in the start pose and registered.
    transform, affine, grid
        Result, its affine part, and the LM grid that figures are drawn over.
    point_errors_nm
        (N,) error of each landmark.
    determinants, determinant_plane
        Values after the affine: (N,), and (y, x) in the middle plane.
    worst
        Rows (name, error, dz, dy, dx) of the worst landmarks.
    """

    title: str
    numbers: Mapping[str, Any]
    before: Overlay | None = None
    after: Overlay | None = None
    transform: Transform | None = None
    affine: Affine | None = None
    grid: Grid | None = None
    point_errors_nm: NDArray[np.float64] | None = None
    determinants: NDArray[np.float64] | None = None
    determinant_plane: NDArray[np.float64] | None = None
    worst: tuple[tuple[Any, ...], ...] = field(default=())


def write_report(inputs: ReportInputs, folder: Path) -> Verdict:
    """Write ``report.html`` and ``report.json`` into `folder` and return the verdict."""
    numbers = {name: plain(inputs.numbers.get(name)) for name in PARTS}
    verdict = decide(numbers)
    report = {"schema": SCHEMA, "verdict": verdict.to_json(), **numbers}
    html = render_html(inputs.title, report, list(_figures(inputs, numbers)), inputs.worst)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "report.html", html)
    atomic_write_json(folder / "report.json", report)
    return verdict


def _figures(inputs: ReportInputs, numbers: Mapping[str, Any]) -> list[Figure]:
    found: list[Figure] = []
    if inputs.before is not None and inputs.after is not None:
        found.append(
            Figure(
                "Before and after",
                "Light microscopy in magenta, EM prediction in green, white where both are; "
                "slabs of 0.3 um through the middle, seen along z (above) and along y (below).",
                figures.overlay_figure(inputs.before, inputs.after),
            )
        )
    if inputs.point_errors_nm is not None and len(inputs.point_errors_nm):
        found.append(
            Figure(
                "Error at landmarks that were not used",
                "Each point is a landmark. The dashed line is what two people differ by: "
                "no method can be shown to be better than that.",
                figures.landmark_figure(numbers["landmarks"], inputs.point_errors_nm),
            )
        )
    if inputs.after is not None:
        found.append(
            Figure(
                "Checkerboard",
                "Squares of light microscopy and EM in turn; outlines must run on across edges.",
                figures.checkerboard_figure(inputs.after),
            )
        )
    found += _deformation_figures(inputs)
    return found


def _deformation_figures(inputs: ReportInputs) -> list[Figure]:
    found: list[Figure] = []
    if inputs.grid is None:
        return found
    if inputs.transform is not None and inputs.affine is not None:
        found.append(
            Figure(
                "Deformation",
                "What the B-spline adds to the affine, in the middle plane: smooth and of the "
                "size of preparation artefacts, or else it follows noise.",
                figures.deformation_figure(inputs.transform, inputs.affine, inputs.grid),
            )
        )
    if inputs.determinants is not None and inputs.determinant_plane is not None:
        found.append(
            Figure(
                "Local volume change",
                "Jacobian determinant after the best affine. 1 is no change; 0 or less is a fold.",
                figures.jacobian_figure(inputs.determinants, inputs.determinant_plane, inputs.grid),
            )
        )
    return found

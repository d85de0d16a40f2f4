"""Put figures and numbers together: ``report.html`` and ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.io.atomic import atomic_path, plain
from clemreg.report import figures
from clemreg.report.figures import Overlay
from clemreg.report.html import Figure, render_html
from clemreg.report.verdict import Verdict, decide
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume

SCHEMA = 1
PARTS = (
    "orientation", "affine", "landmarks", "jacobian", "round_trip_nm", "stability", "overlap",
    "truth", "stiffened", "timings_s", "provenance",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """What a report is made of; parts that were not measured are None or empty.

    Attributes
    ----------
    title
        Heading.
    numbers
        The objects of ``report.json`` by name (`PARTS`); ``scores`` and ``grid_spacing_um`` of
        the registration are shown too, but are no part of ``report.json``.
    before, after
        LM and EM on the LM grid, in the start pose and registered.
    transform, affine, grid
        Result, its affine part, and the LM grid that figures are drawn over.
    point_errors_nm
        (N,) error of each landmark.
    rater_errors_nm
        (N,) errors against each person.
    determinants, determinant_plane
        Values after the affine: (N,), and (y, x) in the middle plane.
    worst
        Rows (name, error, dz, dy, dx) of the worst landmarks.
    repeats
        Transforms found with other seeds.
    predicted_error
        Map in nm; NaN where the EM was not imaged.
    check_channel, check
        Name of a light channel that was not used; it, and the registered EM itself.
    """

    title: str
    numbers: Mapping[str, Any]
    before: Overlay | None = None
    after: Overlay | None = None
    transform: Transform | None = None
    affine: Affine | None = None
    grid: Grid | None = None
    point_errors_nm: NDArray[np.float64] | None = None
    rater_errors_nm: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    determinants: NDArray[np.float64] | None = None
    determinant_plane: NDArray[np.float64] | None = None
    worst: tuple[tuple[Any, ...], ...] = ()
    repeats: tuple[Transform, ...] = ()
    predicted_error: Volume | None = None
    check_channel: str = ""
    check: Overlay | None = None


def write_report(inputs: ReportInputs, folder: Path) -> Verdict:
    """Write ``report.html`` and ``report.json`` into `folder`, both or none; return the verdict.

    Raises
    ------
    StorageError
        They cannot be written.
    """
    numbers = {name: plain(inputs.numbers.get(name)) for name in PARTS}
    extra = {name: plain(inputs.numbers.get(name)) for name in ("scores", "grid_spacing_um")}
    verdict = decide(numbers | extra)
    report = {"schema": SCHEMA, "verdict": verdict.to_json(), **numbers}
    html = render_html(inputs.title, report | extra, list(_figures(inputs, numbers)), inputs.worst)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Left in reverse: the JSON, which scripts wait for, appears last.
    with atomic_path(folder / "report.json") as data, atomic_path(folder / "report.html") as page:
        page.write_text(html, encoding="utf-8")
        data.write_text(text, encoding="utf-8")
    return verdict


def _figures(inputs: ReportInputs, numbers: Mapping[str, Any]) -> Iterator[Figure]:
    if inputs.before is not None and inputs.after is not None:
        yield Figure(
            "Before and after",
            "Light microscopy in magenta, EM prediction in green, white where both are. Above, a "
            "slab of 0.3 µm seen along z; below, one seen along y; ticks at the borders show where "
            "the other is cut. On the right, green must lie in magenta everywhere, not just "
            "in the middle.",
            figures.overlay_figure(inputs.before, inputs.after),
        )
    if inputs.check is not None:
        yield Figure(
            f"Channel {inputs.check_channel}, which was not used",
            "In magenta, a slab of 0.3 µm of a light channel that the registration never saw; in "
            "grey, the middle plane of the EM. What it shows must lie on the same structures in "
            "the EM, also far from the mitochondria.",
            figures.channel_figure(inputs.check),
        )
    yield from _landmark_figures(inputs, numbers)
    if inputs.after is not None:
        yield Figure(
            "Checkerboard",
            "Squares of light microscopy (magenta) and EM (green) in turn, and the middle "
            "enlarged. An outline that breaks at the edge of a square is out of place by as much.",
            figures.checkerboard_figure(inputs.after),
        )
    yield from _deformation_figures(inputs, numbers)
    if inputs.predicted_error is not None:
        places = (numbers["stability"] or {}).get("suggested_landmarks") or ()
        yield Figure(
            "Predicted error",
            "How far the result is probably off, from registrations of random halves of the "
            "mitochondria: where two halves disagree, the whole is uncertain too. Colour is the "
            "largest value along the line of sight. What both halves get wrong alike is not "
            "seen. The numbers mark where a landmark would help most.",
            figures.predicted_error_figure(inputs.predicted_error, places),
        )


def _landmark_figures(inputs: ReportInputs, numbers: Mapping[str, Any]) -> Iterator[Figure]:
    landmarks, errors = numbers["landmarks"], inputs.point_errors_nm
    if not landmarks or errors is None or len(errors) == 0:
        return
    yield Figure(
        "Error at landmarks that were not used",
        "Left, every landmark, from the best to the worst; right, how many have which error. "
        "The green line is what two people differ by: no method can be shown to be better.",
        figures.landmark_figure(landmarks, errors, inputs.rater_errors_nm),
    )
    points = landmarks.get("points")
    if points and inputs.grid is not None:
        yield Figure(
            "Where the errors are",
            "Each landmark in the light volume, coloured by its error; arrows, enlarged, point "
            "from where the EM should be to where it is shown. Neighbours with like arrows: a "
            "part of the cell is out of place. Arrows in all directions: noise of the clicks.",
            figures.landmark_map_figure(points, inputs.affine, inputs.grid),
        )


def _deformation_figures(inputs: ReportInputs, numbers: Mapping[str, Any]) -> Iterator[Figure]:
    grid, transform = inputs.grid, inputs.transform
    if grid is None:
        return
    if transform is not None and inputs.affine is not None:
        yield Figure(
            "Deformation",
            "What is left after the affine, in the middle planes: colour is its length, the "
            "lattice its shape, exaggerated. Preparation bends tissue smoothly; wiggles of the "
            "size of a mitochondrion follow noise.",
            figures.deformation_figure(transform, inputs.affine, grid),
        )
    if inputs.determinants is not None and inputs.determinant_plane is not None:
        scale = (numbers["jacobian"] or {}).get("affine_determinant") or 1.0
        yield Figure(
            "Local volume change",
            "Jacobian determinant: left, after the best affine, in the middle plane; right, "
            "all of the imaged volume, and of the whole transform (negative if it mirrors). "
            "1 after the affine is no change; 0 or less is a fold, which tissue cannot do.",
            figures.jacobian_figure(inputs.determinants, inputs.determinant_plane, grid, scale),
        )
    if transform is not None and inputs.repeats:
        yield Figure(
            "Repeatability",
            "How far the result scatters when the registration is repeated with other seeds. "
            "Small is necessary, not sufficient: a wrong result can be repeatable.",
            figures.stability_figure((transform, *inputs.repeats), grid),
        )

"""A page on measured objects: a table of sizes, histograms, pictures in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.io.atomic import atomic_write_text
from clemreg.report.canvas import BLUE, INK, new_figure, plain_text, png
from clemreg.report.html import Figure, fill

FloatArray = NDArray[np.float64]
_PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b79a20", "#439894", "#d6616b", "#9467bd", "#8c6d31")
_VIEWS = ((25.0, -60.0), (25.0, 30.0))
_LIGHT = np.array([0.3, -0.5, 0.81])


@dataclass(frozen=True)
class Quantity:
    """One measured number per object.

    Attributes
    ----------
    name, unit
        What it is, in words; unit in which it is shown, or empty.
    values
        (N,) in that unit; NaN where unknown.
    """

    name: str
    unit: str
    values: FloatArray

    @property
    def label(self) -> str:
        """Name with unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


Surface = tuple[FloatArray, NDArray[np.int64]]
"""Vertices (N, 3) zyx nm and triangles (M, 3)."""


def write_object_report(
    path: str | Path,
    title: str,
    quantities: Sequence[Quantity],
    surfaces: Mapping[int, Surface],
    cut_by_border: int,
) -> None:
    """Write the page, one file with its figures inside.

    Parameters
    ----------
    surfaces
        Meshes to draw, by object id; none: no picture.
    cut_by_border
        Number of objects that reach the border of the volume.
    """
    figures = [Figure("Histograms", "Number of objects by size.", png(histograms(quantities)))]
    if surfaces:
        caption = "The same objects from two sides, each in a colour of its own; axes in µm."
        figures.insert(0, Figure("Shape", caption, png(picture(surfaces))))
    page = fill(
        "objects.html",
        title=title,
        count=len(quantities[0].values),
        cut=cut_by_border,
        rows=[_row(quantity) for quantity in quantities],
        figures=figures,
    )
    atomic_write_text(path, page)


def _row(quantity: Quantity) -> dict[str, Any]:
    known = quantity.values[np.isfinite(quantity.values)]
    if not len(known):
        return {"name": quantity.label, "n": 0, "numbers": ["–"] * 5}
    spread = known.std(ddof=1) if len(known) > 1 else 0.0
    numbers = (known.mean(), spread, np.median(known), known.min(), known.max())
    return {"name": quantity.label, "n": len(known), "numbers": [_three(v) for v in numbers]}


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{digits}f}"


def histograms(quantities: Sequence[Quantity]) -> Any:
    """Draw a histogram of each quantity, three in a row, with its median."""
    columns = min(3, len(quantities))
    rows = -(-len(quantities) // columns)
    figure, axes = new_figure(rows, columns, (3.3 * columns, 2.5 * rows))
    for each in axes.ravel()[len(quantities) :]:
        each.set_visible(False)
    for each, quantity in zip(axes.ravel(), quantities, strict=False):
        known = quantity.values[np.isfinite(quantity.values)]
        each.set_xlabel(plain_text(quantity.label), fontsize=9, color=INK)
        each.set_ylabel("objects", fontsize=9, color=INK)
        if len(known):
            bins = min(30, max(5, int(np.sqrt(len(known)) * 2)))
            each.hist(known, bins=bins, range=_span(known), color=BLUE)
            # Of objects that hardly differ the labels are long.
            each.xaxis.get_major_locator().set_params(nbins=3)
            each.axvline(np.median(known), color=INK, lw=1, ls="--")
            title = f"median {_three(float(np.median(known)))}"
        else:
            each.set_xticks([])
            title = "not known"
        each.set_title(title, fontsize=8, color=INK)
        each.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _span(values: FloatArray) -> tuple[float, float]:
    """Range of a histogram; of one value alone half of it on either side, so that it shows."""
    low, high = float(values.min()), float(values.max())
    if low < high:
        return low, high
    return low - (abs(low) / 2 or 0.5), low + (abs(low) / 2 or 0.5)


def picture(surfaces: Mapping[int, Surface]) -> Any:
    """Draw meshes from two sides, shaded, x and y in the image plane of the microscope."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    triangles, colours = _shaded(surfaces)
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    figure = Canvas(figsize=(10, 4.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, (elevation, azimuth) in enumerate(_VIEWS, 1):
        axes: Any = figure.add_subplot(1, 2, number, projection="3d")
        body = Poly3DCollection(triangles, facecolors=colours, edgecolors=colours, linewidths=0.2)
        axes.add_collection3d(body)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axes.set_box_aspect(np.maximum(high - low, 1e-3), zoom=1.0)
        axes.view_init(elevation, azimuth)
        axes.tick_params(labelsize=7, pad=0)
        for axis, size in zip("xyz", high - low, strict=True):
            ticks = max(1, round(5 * size / (high - low).max()))
            getattr(axes, f"{axis}axis").get_major_locator().set_params(nbins=ticks)
            getattr(axes, f"set_{axis}label")(f"{axis} (µm)", fontsize=8, color=INK)
        axes.set_facecolor("white")
    return figure


def _shaded(surfaces: Mapping[int, Surface]) -> tuple[FloatArray, FloatArray]:
    """Triangles (N, 3, 3) in um xyz and their colours (N, 3)."""
    from matplotlib.colors import to_rgb

    triangles, colours = [], []
    for number, (points, faces) in enumerate(surfaces.values()):
        own = points[:, ::-1][faces] / 1e3
        normal = np.cross(own[:, 1] - own[:, 0], own[:, 2] - own[:, 0])
        size = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        bright = 0.45 + 0.55 * np.clip(normal @ _LIGHT / size, 0, 1)
        triangles.append(own)
        colours.append(bright[:, None] * np.array(to_rgb(_PALETTE[number % len(_PALETTE)])))
    return np.concatenate(triangles), np.concatenate(colours)

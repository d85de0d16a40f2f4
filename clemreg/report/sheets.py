"""A page on sheets and tubes: histograms of planarity, thickness and curvature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.io.atomic import atomic_write_text
from clemreg.measure.planarity import split
from clemreg.measure.tables import Table
from clemreg.report.canvas import BLUE, INK, ORANGE, colour_bar, new_figure, png
from clemreg.report.html import Figure, fill

FloatArray = NDArray[np.float64]
LEVELS = np.arange(21) / 20
"""Edges of the bins of planarity that are drawn."""
_SIZE = (9.6, 3.3)


def write_sheets_report(
    path: str | Path,
    title: str,
    cut: float,
    histogram: Table,
    thickness: Table,
    curvature: Table,
) -> None:
    """Write the page, one file with its figures inside.

    Parameters
    ----------
    cut
        Planar at and above.
    histogram, thickness
        As `clemreg.measure.planarity.measure_planarity` finds them.
    curvature
        As `clemreg.measure.curvature.curvature_histogram` finds it.
    """
    figures = [
        Figure(
            "Planarity",
            "Volume and surface area by planarity; the line is the cut between tubes and sheets.",
            png(planarity_figure(histogram, cut)),
        ),
        Figure(
            "Thickness",
            "Twice the distance from the medial surface to the background, weighed by the volume "
            "of the voxels of the medial surface; left: of sheets and of tubes, right: by "
            "planarity.",
            png(thickness_figure(thickness, cut)),
        ),
        Figure(
            "Curvature",
            "Of the surface, at its voxels. A tube of radius r has a mean curvature of 1/(2r), a "
            "sphere 1/r, a flat sheet 0; where the surface bends inwards it is below 0. The "
            "Gaussian curvature is 0 on tubes and flat sheets, above 0 on caps, below 0 on saddles "
            "such as junctions. Beyond the outermost bins counts there.",
            png(curvature_figure(curvature)),
        ),
    ]
    page = fill("sheets.html", title=title, cut=cut, parts=split(histogram, cut), figures=figures)
    atomic_write_text(path, page)


def planarity_figure(histogram: Table, cut: float) -> Any:
    """Draw share of volume and of area by planarity."""
    figure, axes = new_figure(1, 2, _SIZE)
    for each, name, words in zip(
        axes[0], ("volume_nm3", "area_nm2"), ("volume", "surface area"), strict=True
    ):
        weights = _shares(histogram[name])
        each.hist(histogram["sheetness"], bins=LEVELS, weights=weights, color=BLUE)
        each.axvline(cut, color=INK, lw=1, ls="--")
        _name(each, "planarity", f"{words} (%)")
        each.set_xlim(0, 1)
    return figure


def thickness_figure(thickness: Table, cut: float) -> Any:
    """Draw thickness of sheets and tubes, and thickness against planarity."""
    figure, axes = new_figure(1, 2, _SIZE)
    low, high = thickness["thickness_from_nm"], thickness["thickness_to_nm"]
    planarity, weights = thickness["sheetness"], _shares(thickness["medial_volume_nm3"])
    edges = _edges(low, high)
    planar = planarity >= cut
    bars, map_ = axes[0]
    bars.hist(
        [low[planar], low[~planar]],
        bins=edges,
        weights=[weights[planar], weights[~planar]],
        color=[BLUE, ORANGE],
        label=["planar", "tubular"],
        stacked=True,
    )
    bars.legend(fontsize=8, frameon=False)
    _name(bars, "thickness (nm)", "medial surface (%)")
    bars.set_xlim(edges[0], edges[-1])
    _map(figure, map_, (low, planarity, weights), edges)
    map_.axhline(cut, color=INK, lw=1, ls="--")
    _name(map_, "thickness (nm)", "planarity")
    return figure


def _map(
    figure: Any, axes: Any, found: tuple[FloatArray, FloatArray, FloatArray], edges: FloatArray
) -> None:
    """Show weights by thickness and planarity on a logarithmic scale: most bins hold little."""
    from matplotlib.colors import LogNorm

    thickness, planarity, weights = found
    counts = np.histogram2d(thickness, planarity, bins=(edges, LEVELS), weights=weights)[0]
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    if counts.any():
        shown = np.where(counts > 0, counts, np.nan).T
        norm = LogNorm(max(counts.max() / 1e3, counts[counts > 0].min() / 2), counts.max())
        image = axes.pcolormesh(edges, LEVELS, shown, cmap="viridis", norm=norm)
        colour_bar(figure, image, axes, "medial surface (%)")


def curvature_figure(curvature: Table) -> Any:
    """Draw mean curvature, and the Gaussian curvature that goes with it."""
    figure, axes = new_figure(1, 2, _SIZE)
    low, high = curvature["curvature_from_per_nm"], curvature["curvature_to_per_nm"]
    bars, line = axes[0]
    bars.bar(low, _shares(curvature["voxels"]), width=high - low, align="edge", color=BLUE)
    gauss = 1e3 * curvature["gauss_mean_per_nm2"]
    line.plot((low + high) / 2, gauss, "o-", ms=3, lw=1, color=BLUE)
    line.axhline(0, color=INK, lw=0.6)
    for each in (bars, line):
        each.axvline(0, color=INK, lw=0.6)
        each.set_xlim(*_span(curvature))
    _name(bars, "mean curvature (1/nm)", "surface voxels (%)")
    _name(line, "mean curvature (1/nm)", "Gaussian curvature (10⁻³ nm⁻²)")
    return figure


def _span(curvature: Table) -> tuple[float, float]:
    """Range of the bins that are not empty, and one more on either side."""
    low, high = curvature["curvature_from_per_nm"], curvature["curvature_to_per_nm"]
    filled = np.flatnonzero(curvature["voxels"])
    if not len(filled):
        return float(low[0]), float(high[-1])
    first, last = max(0, filled[0] - 1), min(len(low) - 1, filled[-1] + 1)
    return float(low[first]), float(high[last])


def _edges(low: FloatArray, high: FloatArray) -> FloatArray:
    """Edges of all bins of equal width from 0 up to the last that is filled."""
    if not len(low):
        return np.array([0.0, 1.0])
    width = float(high[0] - low[0])
    count = round(float(high.max()) / width) + 1
    return np.asarray(np.arange(count) * width, np.float64)


def _shares(values: NDArray[Any]) -> FloatArray:
    """Parts of the whole in per cent; of nothing, nothing."""
    total = float(values.sum())
    return np.asarray(100 * values / total if total else np.zeros(len(values)), np.float64)


def _name(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)

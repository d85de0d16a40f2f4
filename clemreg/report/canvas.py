"""What every picture shares: a canvas, axes in um with y down, a scale bar, PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Grid

INK, SOFT, PAPER = "#1c2330", "#7b8494", "#ffffff"
MAGENTA, GREEN, ORANGE, BLUE = "#b5179e", "#2e7d32", "#d97706", "#2563a8"
DPI = 130
MOST_INCHES = 14.0
_BAR_STEPS = (1.0, 2.0, 5.0)


def new_figure(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    heights: Sequence[float] | None = None,
    widths: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """Return a figure of `size` inches and its axes (rows, columns), outside pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = (min(MOST_INCHES, max(2.0, side)) for side in size)
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights, width_ratios=widths)
    for each in axes.ravel():
        each.tick_params(labelsize=8, color=SOFT, labelcolor=INK)
        for side in each.spines.values():
            side.set_color("#c5cad3")
    return figure, axes


def png(figure: Any) -> bytes:
    """Render a figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def plain_text(text: str) -> str:
    """Keep matplotlib from reading formulas in names that people chose."""
    return text.replace("$", r"\$")


def extent_um(grid: Grid, axis: int) -> tuple[float, float, float, float]:
    """Return left, right, bottom, top in um of a plane across `axis`; rows go down."""
    low = (np.asarray(grid.origin_nm) - np.asarray(grid.spacing_nm) / 2) / 1e3
    high = low + grid.extent_nm / 1e3
    row, column = plane_axes(axis)
    return float(low[column]), float(high[column]), float(high[row]), float(low[row])


def plane_axes(axis: int) -> tuple[int, int]:
    """Return the axes zyx drawn downwards and to the right of a plane across `axis`."""
    return (1, 2) if axis == 0 else (0, 2) if axis == 1 else (0, 1)


def frame_axes(axes: Any, grid: Grid, axis: int) -> None:
    """Show the plane across `axis`: true proportions, um, first voxel at the upper left."""
    left, right, bottom, top = extent_um(grid, axis)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    row, column = plane_axes(axis)
    axes.set_xlabel(f"{'zyx'[column]} (µm)", fontsize=9, color=INK)
    axes.set_ylabel(f"{'zyx'[row]} (µm)", fontsize=9, color=INK)


def show_picture(axes: Any, picture: NDArray[Any], grid: Grid, axis: int, **options: Any) -> Any:
    """Draw a plane across `axis` (rows down) and frame it."""
    image = axes.imshow(
        picture, extent=extent_um(grid, axis), interpolation="nearest", origin="upper", **options
    )
    frame_axes(axes, grid, axis)
    return image


def scale_bar(axes: Any, colour: str = "white", avoid: Sequence[tuple[float, float]] = ()) -> None:
    """Draw a bar of a round length, about a fifth of the width, at the lower right.

    It has an edge of the opposite brightness, so that it shows on anything.

    Parameters
    ----------
    avoid
        Places (x, y) of labels: the bar takes the corner that is farthest from all of them.
    """
    from matplotlib.patheffects import withStroke

    opposite = "black" if colour == "white" else "white"
    left, right = axes.get_xlim()
    length = round_length((right - left) / 5)
    end, level = _corner(axes, length, avoid)
    axes.plot(
        [end - length, end], [level, level], color=colour, lw=3, solid_capstyle="butt",
        path_effects=[withStroke(linewidth=4.5, foreground=opposite)],
    )  # fmt: skip
    words = f"{length:g} µm" if length >= 0.1 else f"{1e3 * length:g} nm"
    axes.annotate(
        words, (end - length / 2, level), xytext=(0, 4), textcoords="offset points",
        ha="center", va="bottom", color=colour, fontsize=8, fontweight="bold",
        path_effects=[withStroke(linewidth=1.5, foreground=opposite)],
    )  # fmt: skip


def _corner(axes: Any, length: float, avoid: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Right end and level of a scale bar; lower right unless a label is in the way."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    ends = (right - 0.04 * (right - left), left + 0.04 * (right - left) + length)
    corners = [(end, bottom + up * (top - bottom)) for up in (0.06, 0.88) for end in ends]

    def room(corner: tuple[float, float]) -> float:
        """Distance of the nearest label from the bar, its words included."""
        away = [
            np.hypot(max(corner[0] - length - x, 0.0, x - corner[0]), corner[1] - y)
            for x, y in avoid
        ]
        return float(min(away, default=np.inf))

    enough = 0.12 * min(abs(right - left), abs(top - bottom))
    return next((c for c in corners if room(c) > enough), max(corners, key=room))


def round_length(about: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is not above `about`."""
    power = 10.0 ** np.floor(np.log10(about))
    fitting = [step for step in _BAR_STEPS if step * power <= about * (1 + 1e-9)]
    return float(max(fitting, default=_BAR_STEPS[0]) * power)


def planes_above(grid: Grid, columns: int, width: float = 10.0) -> tuple[Any, Any]:
    """Return a figure with `columns` of xy planes above their xz planes, in proportion."""
    z, y, x = (float(v) for v in grid.extent_nm)
    heights = [max(y, 0.15 * x), max(z, 0.2 * y, 0.1 * x)]
    inches = (width / columns - 0.7) * sum(heights) / x + 1.2
    return new_figure(2, columns, (width, inches), heights=heights)


def planes_beside(grid: Grid, width: float = 10.0) -> tuple[Any, Any]:
    """Return a figure with the xy plane at the left and the xz plane at the right."""
    z, y, x = (float(v) for v in grid.extent_nm)
    inches = (width / 2 - 1.0) * max(y, z, 0.3 * x) / x + 0.9
    figure, axes = new_figure(1, 2, (width, inches))
    for each in axes[0]:
        each.set_anchor("N")
    return figure, axes[0]


def colour_bar(figure: Any, image: Any, axes: Any, label: str) -> None:
    """Draw a slim bar beside `axes` with its label in the type of the axes."""
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02, aspect=28)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, color=SOFT, labelcolor=INK)
    bar.outline.set_visible(False)

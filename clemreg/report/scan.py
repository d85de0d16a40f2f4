"""The picture of a parameter scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clemreg.report import canvas
from clemreg.report.canvas import BLUE, GREEN, MAGENTA, ORANGE

_COLOURS = (BLUE, ORANGE, GREEN, MAGENTA)
_LABELS = {
    "tre_mean_nm": "mean error at held-out landmarks (nm)",
    "stability_rms_nm": "spread over seeds, rms (nm)",
    "grid_spacing_um": "control point spacing (um)",
    "bending_weight": "bending weight (um)",
    "seed": "seed",
}


def scan_figure(rows: Sequence[Mapping[str, Any]], keys: tuple[str, ...], measured: str) -> bytes:
    """Draw what was measured over the first parameter, one line per value of the others.

    Parameters
    ----------
    rows
        One per registration.
    keys
        Names of the scanned parameters.
    measured
        Name of the column to draw.

    Returns
    -------
    bytes
        PNG.
    """
    figure, grid = canvas.new_figure(1, 1, (6.0, 3.6))
    axes = grid[0, 0]
    first, others = keys[0], keys[1:]
    lines: dict[tuple[float, ...], list[tuple[float, float]]] = {}
    for row in rows:
        point = (float(row[first]), float(row[measured]))
        lines.setdefault(tuple(float(row[k]) for k in others), []).append(point)
    for number, (values, points) in enumerate(lines.items()):
        x, y = zip(*sorted(points), strict=True)
        name = ", ".join(f"{k} = {v:g}" for k, v in zip(others, values, strict=True))
        axes.plot(x, y, "o-", color=_COLOURS[number % len(_COLOURS)], label=name or None)
    axes.set_xlabel(_LABELS.get(first, first))
    axes.set_ylabel(_LABELS.get(measured, measured))
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if others:
        axes.legend(frameon=False)
    return canvas.png(figure)

"""Where voxel 0 of a TIFF is: a line that clemreg writes among its notes, and reads again."""

from __future__ import annotations

from collections.abc import Iterable

from clemreg.space.grid import Grid

ORIGIN_KEY = "clemreg-origin-nm-zyx"
Triple = tuple[float, float, float]


def origin_note(grid: Grid) -> str:
    """Return the line for an image on `grid`."""
    return f"{ORIGIN_KEY}: {' '.join(repr(v) for v in grid.origin_nm)}\n"


def noted_origin(lines: Iterable[str]) -> Triple:
    """Return the origin that stands in the notes of an image, or zero."""
    for line in lines:
        if line.startswith(ORIGIN_KEY):
            try:
                z, y, x = (float(v) for v in line.partition(": ")[2].split())
            except ValueError:
                return (0.0, 0.0, 0.0)
            return z, y, x
    return (0.0, 0.0, 0.0)

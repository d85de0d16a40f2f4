"""Where voxel 0 of a TIFF is: lines that clemreg writes among its notes, and reads again.

ImageJ keeps the notes of an image that it crops or scales, so a second line says of which voxels
the first one speaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from clemreg.space.grid import Grid, Shape, Triple
from clemreg.units import format_length

ORIGIN_KEY = "clemreg-origin-nm-zyx"
OF_KEY = "clemreg-origin-of"
KEEP_THE_PLACE = (
    'cut it by "Crop and keep the place" of the macro cookbook (docs/how-to/fiji-macros.md), '
    "or use the whole image"
)
_SAME = 1e-3  # TIFF keeps voxel sizes as fractions


def origin_values(grid: Grid) -> dict[str, str]:
    """Return the values for an image on `grid`, by their keys."""
    shape, spacing = map(str, grid.shape), (repr(float(v)) for v in grid.spacing_nm)
    return {
        ORIGIN_KEY: " ".join(repr(float(v)) for v in grid.origin_nm),
        OF_KEY: f"{' '.join(shape)} @ {' '.join(spacing)}",
    }


def origin_note(grid: Grid) -> str:
    """Return the lines for an image on `grid`."""
    return "".join(f"{key}: {value}\n" for key, value in origin_values(grid).items())


def noted(lines: Iterable[str], key: str) -> str:
    """Return the value of a key among the notes of an image; empty where it is not."""
    found = (line.partition(": ")[2] for line in lines if line.startswith(f"{key}: "))
    return next(found, "").strip()


def parse_origin(text: str) -> Triple:
    """Return the origin that is noted, or zero."""
    try:
        z, y, x = (float(v) for v in text.split())
    except ValueError:
        return (0.0, 0.0, 0.0)
    return (z, y, x) if all(map(math.isfinite, (z, y, x))) else (0.0, 0.0, 0.0)


def changed_since(of: str, shape: Shape, spacing_nm: Triple | None) -> str:
    """Say how an image differs from the one whose origin was noted; empty if it does not.

    Parameters
    ----------
    of
        The value of `OF_KEY`; empty in files of an earlier version.
    shape, spacing_nm
        Of the image as it is; None: not known.
    """
    sizes, _, lengths = of.partition("@")
    try:
        noted_shape = tuple(int(v) for v in sizes.split())
        noted_nm = tuple(float(v) for v in lengths.split())
    except ValueError:
        return ""
    if len(noted_shape) != 3 or len(noted_nm) != 3:
        return ""
    pairs = zip(spacing_nm or noted_nm, noted_nm, strict=True)
    if noted_shape == tuple(shape) and all(math.isclose(a, b, rel_tol=_SAME) for a, b in pairs):
        return ""
    return (
        f"its origin was noted for {_words(noted_shape, noted_nm)}, it has "
        f"{_words(shape, spacing_nm or noted_nm)} (x, y, z): it was cropped, sub-stacked or scaled "
        "since, so where it starts is not known"
    )


def _words(shape: Iterable[int], spacing_nm: Iterable[float]) -> str:
    sizes = " x ".join(str(n) for n in reversed(tuple(shape)))
    return f"{sizes} voxels of {' x '.join(format_length(v) for v in reversed(tuple(spacing_nm)))}"

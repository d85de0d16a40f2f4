"""MRC maps, memory mapped; the header is in angstrom."""

from __future__ import annotations

from pathlib import Path

from clemreg.errors import FormatError
from clemreg.io.source import AxesView, Level, Source

SUFFIXES = (".mrc", ".rec", ".map", ".st")


def matches(path: Path) -> bool:
    """Tell whether a file is MRC by its name."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def open_source(path: Path, inner: str = "") -> Source:
    """Open the map; a voxel size of zero in the header counts as missing.

    Raises
    ------
    FormatError
        Truncated, not MRC, or not a volume.
    """
    if inner:
        raise FormatError(f"{path} is a map; it has no inner dataset {inner!r}")
    import mrcfile

    try:
        file = mrcfile.mmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} is not a readable MRC file: {error}") from error
    if file.data is None or file.data.ndim != 3:
        raise FormatError(f"{path} is not a volume")
    size = file.voxel_size
    spacing = tuple(float(v) * 0.1 for v in (size.z, size.y, size.x))
    origin = file.header.origin
    oz, oy, ox = (float(v) * 0.1 for v in (origin.z, origin.y, origin.x))
    known = spacing if min(spacing) > 0 else None
    level = Level(AxesView(file.data, "zyx", str(path)), known, (oz, oy, ox))  # type: ignore[arg-type]
    return Source("MRC", (level,), (), "angstrom")

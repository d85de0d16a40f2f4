"""OME-TIFF, written plane by plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.io.atomic import atomic_path
from clemreg.space.grid import Box
from clemreg.volume import Volume

SUFFIXES = (".ome.tif", ".ome.tiff")
KEPT = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_BIG = 2**32 - 2**25  # as tifffile decides for files of known size


def is_ome_tiff(path: Path) -> bool:
    """Tell whether a file is to be an OME-TIFF, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def write_ome_tiff(path: str | Path, volume: Volume) -> None:
    """Write an OME-TIFF with physical sizes and channel names; memory holds one plane.

    The origin is not written. Types that OME does not know become float32.

    Parameters
    ----------
    path
        The file, ``.ome.tif``.
    volume
        zyx or czyx.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    import tifffile

    dtype = volume.dtype if volume.dtype.name in KEPT else np.dtype(np.float32)
    count = max(1, len(volume.channels))
    shape = (count, *volume.shape)
    z, y, x = (s / 1e3 for s in volume.grid.spacing_nm)
    metadata: dict[str, Any] = {"axes": "CZYX"}
    for axis, size in (("X", x), ("Y", y), ("Z", z)):
        metadata[f"PhysicalSize{axis}"] = size
        metadata[f"PhysicalSize{axis}Unit"] = "µm"
    if volume.channels:
        metadata["Channel"] = {"Name": list(volume.channels)}
    size = int(np.prod(shape)) * dtype.itemsize
    with atomic_path(path) as partial:
        tifffile.imwrite(
            partial,
            _planes(volume, dtype),
            shape=shape,
            dtype=dtype,
            ome=True,
            bigtiff=size > _BIG,
            photometric="minisblack",
            metadata=metadata,
        )


def _planes(volume: Volume, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for number in range(max(1, len(volume.channels))):
        channel = volume.channel(number) if volume.channels else volume
        depth, height, width = channel.shape
        for z in range(depth):
            plane = channel.read(Box((z, 0, 0), (z + 1, height, width)))[0]
            yield np.ascontiguousarray(plane.astype(dtype, copy=False))

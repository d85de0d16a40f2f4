"""OME-TIFF, written plane by plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError
from clemreg.io.atomic import atomic_path
from clemreg.io.origin_note import origin_note
from clemreg.space.grid import Box
from clemreg.volume import Labels, Volume

SUFFIXES = (".ome.tif", ".ome.tiff")
KEPT = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_LARGEST_ID = 2**32 - 1
_BIG = 2**32 - 2**25  # as tifffile decides for files of known size


def is_ome_tiff(path: Path) -> bool:
    """Tell whether a file is to be an OME-TIFF, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def write_ome_tiff(path: str | Path, volume: Volume) -> None:
    """Write an OME-TIFF with physical sizes and channel names; memory holds one plane.

    The origin is written as a note, the description of the image, which clemreg reads. Types that
    OME does not know become float32, of `Labels` the smallest unsigned integer that holds all ids.

    Parameters
    ----------
    path
        The file, ``.ome.tif``.
    volume
        zyx or czyx.

    Raises
    ------
    DataError
        An id is negative or does not fit into 32 bits.
    StorageError
        It cannot be written.
    """
    import tifffile

    dtype = _stored_dtype(volume)
    count = max(1, len(volume.channels))
    shape = (count, *volume.shape)
    z, y, x = (s / 1e3 for s in volume.grid.spacing_nm)
    metadata: dict[str, Any] = {"axes": "CZYX", "Description": origin_note(volume.grid)}
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


def _stored_dtype(volume: Volume) -> np.dtype[Any]:
    if volume.dtype.name in KEPT:
        return volume.dtype
    if not isinstance(volume, Labels):
        return np.dtype(np.float32)
    ends = [(int(p.min()), int(p.max())) for p in _planes(volume, volume.dtype)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    if low < 0 or high > _LARGEST_ID:
        raise DataError(
            f"{volume.name or 'labels'} hold ids from {low} to {high}; an OME-TIFF holds 0 to "
            f"{_LARGEST_ID}",
            hint="renumber the labels, or export OME-Zarr or BigDataViewer",
        )
    return np.min_scalar_type(high)


def _planes(volume: Volume, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for number in range(max(1, len(volume.channels))):
        channel = volume.channel(number) if volume.channels else volume
        depth, height, width = channel.shape
        for z in range(depth):
            plane = channel.read(Box((z, 0, 0), (z + 1, height, width)))[0]
            yield np.ascontiguousarray(plane.astype(dtype, copy=False))

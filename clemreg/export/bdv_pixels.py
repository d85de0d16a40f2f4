"""The pixels of a BigDataViewer dataset: HDF5 or N5, a pyramid a volume, block by block."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.errors import DataError
from clemreg.export.hdf5_file import create_hdf5
from clemreg.io.atomic import atomic_write_json
from clemreg.io.n5 import disk_errors, kvstore
from clemreg.io.writer import pooling_factor, pyramid_grids
from clemreg.space.grid import Box, Grid
from clemreg.space.resample import pool_mean, pool_mode
from clemreg.volume import Labels, Volume

CHUNK = (32, 64, 64)
# A block, pooled by two, is still made of whole chunks.
BLOCK = (64, 256, 256)
COMPRESSION_LEVEL = 1
WORKERS = min(4, os.cpu_count() or 1)


class PixelStore(Protocol):
    """Where the levels of the setups are kept; boxes start on chunk borders."""

    def create(self, number: int, volume: Volume, grids: Sequence[Grid]) -> None:
        """Make the empty levels of a setup."""

    def write(self, number: int, level: int, box: Box, block: NDArray[Any]) -> None:
        """Store the voxels of a box."""

    def read(self, number: int, level: int, box: Box) -> NDArray[Any]:
        """Return the voxels of a box that was written."""


def write_pyramids(
    store: PixelStore,
    volumes: Sequence[tuple[int, str, Volume]],
    progress: Progress | None = None,
) -> None:
    """Write every volume (setup number, name, pixels) and its coarser levels.

    Each level is pooled from the one before, block by block, several blocks at a time. Memory is a
    few blocks of at most 4 million voxels, whatever the size of the volume.
    """
    pyramids = [pyramid_grids(volume.grid, None) for _, _, volume in volumes]
    total = sum(_count(grids) for grids in pyramids)
    done = 0
    for (number, name, volume), grids in zip(volumes, pyramids, strict=True):
        store.create(number, volume, grids)
        writer = _SetupWriter(store, number, volume, grids, threading.Lock())
        for level in range(max(1, len(grids) - 1)):
            run(
                writer.at(level),
                plan_blocks(grids[level].shape, BLOCK),
                workers=WORKERS,
                progress=_shifted(progress, done, total, name),
            )
            done += len(plan_blocks(grids[level].shape, BLOCK))


def _count(grids: Sequence[Grid]) -> int:
    return sum(len(plan_blocks(grid.shape, BLOCK)) for grid in grids[: max(1, len(grids) - 1)])


def _shifted(progress: Progress | None, before: int, total: int, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _total, _message: progress(before + done, total, name)


@dataclass(frozen=True, eq=False)
class _SetupWriter:
    """Writes one volume; `reading` guards it, since not every file can be read by two threads."""

    store: PixelStore
    number: int
    volume: Volume
    grids: Sequence[Grid]
    reading: threading.Lock

    def at(self, level: int) -> Callable[[Block], None]:
        """Return what fills the next coarser level from `level`, and level 0 from the volume."""

        def work(block: Block) -> None:
            if level == 0:
                with self.reading:
                    pixels = self.volume.read(block.core)
                self.store.write(self.number, 0, block.core, pixels)
            else:
                pixels = self.store.read(self.number, level, block.core)
            if level + 1 < len(self.grids):
                self._pool(level, block.core, pixels)

        return work

    def _pool(self, level: int, box: Box, pixels: NDArray[Any]) -> None:
        factor = pooling_factor(self.grids[level], self.grids[level + 1])
        pooled = _pooled(pixels, factor, self.volume)
        z, y, x = (a // f for a, f in zip(box.start, factor, strict=True))
        coarse = Box.of_shape(pooled.shape).shift((z, y, x))
        self.store.write(self.number, level + 1, coarse, pooled)


def _pooled(fine: NDArray[Any], factor: tuple[int, int, int], volume: Volume) -> NDArray[Any]:
    if isinstance(volume, Labels):
        return pool_mode(fine, factor)
    mean = pool_mean(fine, factor)
    return (np.rint(mean) if volume.dtype.kind in "iu" else mean).astype(volume.dtype)


@contextmanager
def create_hdf5_store(path: Path, *, legacy: bool = False) -> Iterator[PixelStore]:
    """Yield a store in a new HDF5 file in the layout of bigdataviewer-core.

    Parameters
    ----------
    path
        The file.
    legacy
        Keep 16 bits as signed numbers without ``dataType``, as readers before 2023 expect.

    Raises
    ------
    OSError
        The disk is full; see `create_hdf5`.
    """
    with create_hdf5(path) as (file, check_disk):
        yield _Hdf5Store(file, check_disk, legacy)


@dataclass(frozen=True, eq=False)
class _Hdf5Store:
    """HDF5 whose chunks are compressed here: zlib lets other threads run, HDF5 does not."""

    file: Any
    check_disk: Callable[[], None]
    legacy: bool

    def create(self, number: int, volume: Volume, grids: Sequence[Grid]) -> None:
        """Write the factors and chunk sizes of all levels, x, y, z, and make their arrays."""
        group = self.file.create_group(f"s{number:02d}")
        if not self.legacy:
            group.attrs["dataType"] = volume.dtype.name
        factors = [pooling_factor(grids[0], grid)[::-1] for grid in grids]
        group["resolutions"] = np.array(factors, dtype=np.float64)
        group["subdivisions"] = np.array([_chunk(grid)[::-1] for grid in grids], dtype=np.int32)
        for level, grid in enumerate(grids):
            self.file.create_dataset(
                cells_path(number, level),
                shape=grid.shape,
                dtype=np.dtype("<i2") if self.legacy else volume.dtype.newbyteorder("<"),
                chunks=_chunk(grid),
                compression="gzip",
                compression_opts=COMPRESSION_LEVEL,
                shuffle=volume.dtype.itemsize > 1,
            )

    def write(self, number: int, level: int, box: Box, block: NDArray[Any]) -> None:
        """Compress and store the chunks of a box."""
        cells = self.file[cells_path(number, level)]
        pixels = np.asarray(block)
        pixels = pixels.view(np.int16) if self.legacy else pixels.astype(cells.dtype, copy=False)
        shape = cells.chunks  # asks HDF5 every time
        for chunk in Box.of_shape(pixels.shape).tiles(shape):
            packed = _deflated(pixels[chunk.slices], shape)
            start = tuple(a + b for a, b in zip(box.start, chunk.start, strict=True))
            cells.id.write_direct_chunk(start, packed)
        self.check_disk()

    def read(self, number: int, level: int, box: Box) -> NDArray[Any]:
        """Return the voxels of a box; 16 bits are unsigned again."""
        pixels = np.asarray(self.file[cells_path(number, level)][box.slices])
        return pixels.view(np.uint16) if self.legacy else pixels


def cells_path(number: int, level: int) -> str:
    """Name of the array of a setup and level."""
    return f"t00000/s{number:02d}/{level}/cells"


def _chunk(grid: Grid) -> tuple[int, int, int]:
    z, y, x = (min(c, n) for c, n in zip(CHUNK, grid.shape, strict=True))
    return z, y, x


def _deflated(pixels: NDArray[Any], chunk: tuple[int, ...]) -> bytes:
    """One chunk as HDF5's shuffle and gzip filters leave it; beyond the volume it is filled up."""
    missing = [(0, c - n) for c, n in zip(chunk, pixels.shape, strict=True)]
    whole = np.ascontiguousarray(np.pad(pixels, missing) if np.any(missing) else pixels)
    if whole.itemsize > 1:
        whole = np.ascontiguousarray(whole.reshape(-1).view(np.uint8).reshape(whole.size, -1).T)
    return zlib.compress(whole.data, COMPRESSION_LEVEL)


class N5Store:
    """N5 in the layout of bigdataviewer-core (BdvN5Format), through tensorstore.

    Parameters
    ----------
    root
        Folder of the N5 container.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._arrays: dict[tuple[int, int], Any] = {}

    def create(self, number: int, volume: Volume, grids: Sequence[Grid]) -> None:
        """Write the attributes of setup, timepoint and levels, and make their arrays."""
        import tensorstore

        setup = self.root / f"setup{number}"
        timepoint = setup / "timepoint0"
        timepoint.mkdir(parents=True)
        factors = [list(pooling_factor(grids[0], grid)[::-1]) for grid in grids]
        atomic_write_json(
            setup / "attributes.json",
            {"downsamplingFactors": factors, "dataType": volume.dtype.name},
        )
        atomic_write_json(
            timepoint / "attributes.json",
            {
                "resolution": list(grids[0].spacing_nm[::-1]),
                "saved_completely": True,
                "multiScale": True,
            },
        )
        for level, grid in enumerate(grids):
            metadata = {
                "dimensions": list(grid.shape[::-1]),
                "blockSize": list(_chunk(grid)[::-1]),
                "dataType": volume.dtype.name,
                "compression": {"type": "gzip", "level": COMPRESSION_LEVEL, "useZlib": False},
                "downsamplingFactors": factors[level],
            }
            place = kvstore(timepoint / f"s{level}")
            spec = {"driver": "n5", "kvstore": place, "metadata": metadata}
            self._arrays[number, level] = tensorstore.open(spec, create=True).result()

    def write(self, number: int, level: int, box: Box, block: NDArray[Any]) -> None:
        """Store the voxels of a box; on disk they lie x, y, z."""
        array = self._arrays[number, level]
        with disk_errors():
            array[box.slices[::-1]].write(block.transpose()).result()

    def read(self, number: int, level: int, box: Box) -> NDArray[Any]:
        """Return the voxels of a box."""
        array = self._arrays[number, level]
        return np.asarray(array[box.slices[::-1]].read().result()).transpose()


def create_n5_store(root: Path) -> N5Store:
    """Make an empty N5 container."""
    root.mkdir(parents=True)
    atomic_write_json(root / "attributes.json", {"n5": "2.5.1"})
    return N5Store(root)


def as_16_bit(volume: Volume, window: tuple[float, float], name: str) -> Volume:
    """Return a volume as readers before 2023 can show it: unsigned 16 bits, converted when read.

    uint8 and uint16 keep their values. Floating point is stretched: the lower end of `window`
    becomes 0, the upper 65535. Other integers must fit, which is checked block by block.
    """
    if volume.dtype == np.uint16:
        return volume
    convert = _stretch(window) if volume.dtype.kind == "f" else _checked_cast(name)
    return replace(volume, data=_Converted(volume, convert), coarser=())


@dataclass(frozen=True, eq=False)
class _Converted:
    volume: Volume
    convert: Callable[[NDArray[Any]], NDArray[np.uint16]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.volume.shape

    @property
    def dtype(self) -> np.dtype[np.uint16]:
        return np.dtype(np.uint16)

    def __getitem__(self, key: Any, /) -> NDArray[np.uint16]:
        return self.convert(np.asarray(self.volume.data[key]))


def _stretch(window: tuple[float, float]) -> Callable[[NDArray[Any]], NDArray[np.uint16]]:
    low, high = window

    def convert(block: NDArray[Any]) -> NDArray[np.uint16]:
        scaled = (np.nan_to_num(block.astype(np.float64), nan=low) - low) / (high - low)
        return np.rint(np.clip(scaled, 0, 1) * 65535).astype(np.uint16)

    return convert


def _checked_cast(name: str) -> Callable[[NDArray[Any]], NDArray[np.uint16]]:
    def convert(block: NDArray[Any]) -> NDArray[np.uint16]:
        low, high = int(block.min(initial=0)), int(block.max(initial=0))
        if low < 0 or high > 65535:
            raise DataError(
                f"{name} holds {low if low < 0 else high}, old BigDataViewer shows 0 to 65535",
                hint="leave out --legacy, or renumber the labels",
            )
        return block.astype(np.uint16)

    return convert

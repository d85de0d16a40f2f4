"""Write volumes block by block: OME-Zarr 0.5 and 0.4, N5; pyramids, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from clemreg.errors import ConfigError, StorageError
from clemreg.io.atomic import (
    atomic_write_json,
    discard,
    partial_path,
    put_in_place,
    remove,
    storage_errors,
)
from clemreg.io.n5 import can_name, dataset_attributes, disk_errors, kvstore
from clemreg.io.ngff import multiscales_metadata
from clemreg.io.source import AxesView
from clemreg.space.grid import Box, Grid, Shape
from clemreg.space.resample import pool_mean, pool_mode
from clemreg.volume import Labels, Volume

Format = Literal["zarr", "zarr2", "n5"]
# Types that N5 does not have.
_WIDER_IN_N5 = {"bool": "uint8", "float16": "float32"}
# Names under which zarr-python and tensorstore write a chunk before it is whole.
_TORN = ("*.partial", "*.__lock")
# Endings of files: a folder of such a name would be opened by nothing.
_OF_FILES = frozenset(
    [".tif", ".tiff", ".png", ".jpg", ".h5", ".hdf5", ".nrrd", ".mha", ".nii", ".gz", ".mrc"]
)


@dataclass(frozen=True)
class WriteOptions:
    """How a volume is stored.

    Attributes
    ----------
    chunk
        Voxels per chunk, zyx.
    shard
        Voxels per shard (a file of many chunks), zyx; None: one file a chunk. OME-Zarr 0.5 only.
        Those of coarser levels are at most twice the chunk, so that pooling them takes no more.
    levels
        Number of resolutions; None: until every axis is below 64 voxels.
    labels
        Ids: pooled by the most frequent value.
    colours, windows
        Display colour (hex) and grey range of each channel.
    resume
        Keep an unfinished output on failure, and go on with one that is found.
    """

    chunk: Shape = (64, 64, 64)
    shard: Shape | None = None
    levels: int | None = None
    labels: bool = False
    colours: tuple[str, ...] = ()
    windows: tuple[tuple[float, float], ...] = ()
    resume: bool = False


class VolumeWriter:
    """A volume being written; leave its ``with`` block without error to finish it.

    Blocks are assigned with ``writer[box] = array``. Different boxes may be written by several
    threads if their borders lie on chunk (or shard) borders.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        dtype: DTypeLike,
        format_: Format,
        channels: Sequence[str],
        options: WriteOptions,
    ) -> None:
        self.path = path
        self.grid = grid
        self.dtype = np.dtype(dtype)
        if format_ == "n5":
            self.dtype = np.dtype(_WIDER_IN_N5.get(self.dtype.name, self.dtype))
        self.channels = tuple(channels)
        self.options = options
        self.grids = pyramid_grids(grid, options.levels)
        self.pooled = 0  # levels after this one are made at the end of the ``with`` block
        self.partial = partial_path(path)
        self.goes_on = False  # with what an earlier, killed run left
        self._store: _ZarrStore | _N5Store = (
            _N5Store(self) if format_ == "n5" else _ZarrStore(self, format_)
        )

    def __enter__(self) -> VolumeWriter:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.options.resume:
                remove(self.partial)
            self.goes_on = self.partial.exists()
            self._store.create()
        return self

    def __setitem__(self, box: Box, block: ArrayLike) -> None:
        self.write(box, block)

    def write(self, box: Box, block: ArrayLike) -> None:
        """Write the voxels of `box`: (z, y, x), or (c, z, y, x) with channels."""
        with storage_errors(self.path):
            self._store.write(0, box, np.asarray(block, dtype=self.dtype))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                with storage_errors(self.path):
                    for level in range(self.pooled + 1, len(self.grids)):
                        for box in self.grids[level].box.tiles(self.pooling_block):
                            self.pool(level, box)
                    self._store.finish()
                    if self.goes_on:
                        _remove_torn(self.partial)
                    put_in_place(self.partial, self.path)
            except BaseException:
                self._abandon()
                raise
            return
        self._abandon()

    def _abandon(self) -> None:
        if not self.options.resume:
            discard(self.partial)

    @property
    def pooling_block(self) -> Shape:
        """Voxels (zyx) of a coarse level that are pooled at a time; whole chunks or shards."""
        z, y, x = (2 * c for c in self.options.chunk)
        if self.options.shard is None:
            return z, y, x
        a, b, c = self.options.shard
        return min(z, a), min(y, b), min(x, c)

    def pool(self, level: int, box: Box) -> None:
        """Make the voxels of `box` of a coarse level from the level before, which is whole."""
        fine = self.grids[level - 1]
        factor = pooling_factor(fine, self.grids[level])
        source = Box(
            tuple(a * f for a, f in zip(box.start, factor, strict=True)),  # type: ignore[arg-type]
            tuple(b * f for b, f in zip(box.stop, factor, strict=True)),  # type: ignore[arg-type]
        ).clip(fine.shape)
        data = self._store.read(level - 1, source)
        volumes = data if self.channels else data[None]
        pooled = np.stack([_pool(v, factor, self.options.labels) for v in volumes])
        self._store.write(level, box, pooled if self.channels else pooled[0])


def create_volume(
    path: str | Path,
    grid: Grid,
    dtype: DTypeLike,
    *,
    format: Format = "zarr",  # noqa: A002
    channels: Sequence[str] = (),
    options: WriteOptions | None = None,
) -> VolumeWriter:
    """Start a volume; use the result in a ``with`` block.

    Parameters
    ----------
    path
        Folder to write; it appears when the ``with`` block ends without error.
    grid
        Where the voxels are.
    format
        ``"zarr"`` is OME-Zarr 0.5, ``"zarr2"`` OME-Zarr 0.4, ``"n5"`` N5 with COSEM metadata.
    channels
        Names of the channels, if there are any.

    Raises
    ------
    ConfigError
        The format is not one of these, or the name is that of a file.
    """
    if format not in ("zarr", "zarr2", "n5"):
        raise ConfigError(f"cannot write format {format!r}", hint="zarr, zarr2 or n5")
    if Path(path).suffix.lower() in _OF_FILES:
        raise ConfigError(
            f"{Path(path).name!r} would be a folder, since volumes are written as OME-Zarr or N5",
            hint="let the name end in .zarr",
        )
    return VolumeWriter(Path(path), grid, dtype, format, channels, options or WriteOptions())


def write_volume(
    path: str | Path,
    volume: Volume,
    *,
    format: Format = "zarr",  # noqa: A002
    options: WriteOptions | None = None,
) -> None:
    """Copy a volume to `path`, a slab of chunks at a time."""
    options = options or WriteOptions(labels=isinstance(volume, Labels))
    writer = create_volume(
        path, volume.grid, volume.dtype, format=format, channels=volume.channels, options=options
    )
    block = options.shard or tuple(4 * c for c in options.chunk)
    with writer:
        for box in volume.grid.box.tiles(block):
            writer[box] = volume.read(box)


def pyramid_grids(grid: Grid, levels: int | None) -> tuple[Grid, ...]:
    """Grids of a pyramid: halved along axes that are fine (within 1.5 of the finest) and long.

    Parameters
    ----------
    levels
        Number of grids; None: until every axis is below 64 voxels.
    """
    grids = [grid]
    while levels is None or len(grids) < levels:
        last = grids[-1]
        spacing = np.asarray(last.spacing_nm)
        # Anisotropic voxels become more alike: coarse axes wait for the fine ones.
        fine = (spacing <= 1.5 * spacing.min()) & (np.asarray(last.shape) > 1)
        if not fine.any() or (levels is None and max(last.shape) <= 64):
            break
        grids.append(last.downsample(tuple(2 if f else 1 for f in fine)))
    return tuple(grids)


def pooling_factor(fine: Grid, coarse: Grid) -> tuple[int, int, int]:
    """Voxels of `fine` per voxel of `coarse`, zyx."""
    z, y, x = (round(a / b) for a, b in zip(coarse.spacing_nm, fine.spacing_nm, strict=True))
    return z, y, x


def _pool(array: NDArray[Any], factor: Sequence[int], labels: bool) -> NDArray[Any]:
    if labels:
        return pool_mode(array, factor)
    mean = pool_mean(array, factor)
    rounded = array.dtype.kind in "iub"
    return np.rint(mean).astype(array.dtype) if rounded else mean.astype(array.dtype)


def _remove_torn(folder: Path) -> None:
    """Remove what a killed run was writing: chunks are renamed when they are whole."""
    for pattern in _TORN:
        for path in folder.rglob(pattern):
            path.unlink()


class _ZarrStore:
    """OME-Zarr: zarr-python makes the arrays, tensorstore writes and reads their chunks.

    zarr-python does so in one thread, however many write.
    """

    def __init__(self, writer: VolumeWriter, format_: Format) -> None:
        self.writer = writer
        self.version = 3 if format_ == "zarr" else 2
        self.arrays: list[Any] = []

    def create(self) -> None:
        import zarr

        w = self.writer
        group = zarr.open_group(str(w.partial), mode="a", zarr_format=self.version)  # type: ignore[arg-type]
        for level, grid in enumerate(w.grids):
            name = f"s{level}"
            if name in group:
                self._check(group[name], grid)
            else:
                shard = w.pooling_block if level and w.options.shard else w.options.shard
                self._create_array(group, name, grid, shard)
            self.arrays.append(self._chunks_of(group[name]))

    def _chunks_of(self, array: Any) -> Any:
        import tensorstore

        if not can_name(self.writer.partial):
            return array
        driver = "zarr3" if self.version == 3 else "zarr"
        spec = {"driver": driver, "kvstore": kvstore(self.writer.partial / array.basename)}
        return tensorstore.open(spec, open=True).result()

    def _create_array(self, group: Any, name: str, grid: Grid, wanted: Shape | None) -> Any:
        w = self.writer
        lead = (len(w.channels),) if w.channels else ()
        chunk = tuple(min(c, n) for c, n in zip(w.options.chunk, grid.shape, strict=True))
        shard = None
        if wanted is not None and self.version == 3:
            shard = tuple(
                -(-min(s, n) // c) * c for s, n, c in zip(wanted, grid.shape, chunk, strict=True)
            )
        one = (1,) if lead else ()
        extra: dict[str, Any] = {}
        if self.version == 3:
            extra["dimension_names"] = [*("c" if lead else ""), "z", "y", "x"]
        else:
            extra["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
        return group.create_array(
            name,
            shape=lead + grid.shape,
            chunks=one + chunk,
            shards=None if shard is None else one + shard,
            dtype=w.dtype,
            fill_value=0,
            **extra,
        )

    def _check(self, array: Any, grid: Grid) -> None:
        if tuple(array.shape[-3:]) != grid.shape or array.dtype != self.writer.dtype:
            raise StorageError(
                f"{self.writer.partial} is an unfinished output of another kind",
                hint="remove it and run again",
            )

    def write(self, level: int, box: Box, block: NDArray[Any]) -> None:
        key = (slice(None), *box.slices) if self.writer.channels else box.slices
        with disk_errors():
            self.arrays[level][key] = block

    def read(self, level: int, box: Box) -> NDArray[Any]:
        key = (slice(None), *box.slices) if self.writer.channels else box.slices
        return np.asarray(self.arrays[level][key])

    def finish(self) -> None:
        import zarr

        w = self.writer
        version = "0.5" if self.version == 3 else "0.4"
        name = w.path.name.partition(".")[0]
        meta = multiscales_metadata(name, w.grids, _omero_channels(w), version)
        group = zarr.open_group(str(w.partial), mode="r+")
        group.attrs.update(meta)


def _omero_channels(writer: VolumeWriter) -> list[dict[str, Any]]:
    defaults = ("FFFFFF", "FF00FF", "00FF00", "00FFFF", "FFFF00")
    channels = []
    for i, label in enumerate(writer.channels):
        colours, windows = writer.options.colours, writer.options.windows
        top = float(np.iinfo(writer.dtype).max) if writer.dtype.kind in "iu" else 1.0
        low, high = windows[i] if i < len(windows) else (0.0, top)
        channels.append(
            {
                "label": label,
                "color": (colours[i] if i < len(colours) else defaults[(i + 1) % 5]).lstrip("#"),
                "window": {"start": low, "end": high, "min": 0.0, "max": max(top, high)},
                "active": True,
            }
        )
    return channels


class _N5Store:
    """N5 through tensorstore; arrays are x, y, z there."""

    def __init__(self, writer: VolumeWriter) -> None:
        self.writer = writer
        self.arrays: list[Any] = []

    def create(self) -> None:
        import tensorstore

        w = self.writer
        if w.channels:
            raise ConfigError("N5 output has no channels", hint="write one volume a channel")
        w.partial.mkdir(parents=True, exist_ok=True)
        for level, grid in enumerate(w.grids):
            chunk = [min(c, n) for c, n in zip(w.options.chunk, grid.shape, strict=True)]
            spec = {
                "driver": "n5",
                "kvstore": kvstore(w.partial / f"s{level}"),
                "metadata": {
                    "dimensions": list(grid.shape[::-1]),
                    "blockSize": chunk[::-1],
                    "dataType": w.dtype.name,
                    "compression": {"type": "gzip", "level": 6, "useZlib": False},
                },
            }
            self.arrays.append(tensorstore.open(spec, create=True, open=True).result())

    def write(self, level: int, box: Box, block: NDArray[Any]) -> None:
        with disk_errors():
            self.arrays[level][box.slices[::-1]].write(block.transpose()).result()

    def read(self, level: int, box: Box) -> NDArray[Any]:
        view = AxesView(_Indexed(self.arrays[level]), "xyz", str(self.writer.path))
        return np.asarray(view[box.slices])

    def finish(self) -> None:
        w = self.writer
        base = np.asarray(w.grid.spacing_nm)
        factors = [
            [round(s / b) for s, b in zip(g.spacing_nm, base, strict=True)][::-1] for g in w.grids
        ]
        for level, grid in enumerate(w.grids):
            path = w.partial / f"s{level}" / "attributes.json"
            own = json.loads(path.read_text(encoding="utf-8"))
            own |= dataset_attributes(grid) | {"downsamplingFactors": factors[level]}
            atomic_write_json(path, own)
        root = {
            "n5": "2.0.0",
            "multiscales": [
                {
                    "name": w.path.name.partition(".")[0],
                    "datasets": [
                        {"path": f"s{i}", "transform": dataset_attributes(g)["transform"]}
                        for i, g in enumerate(w.grids)
                    ],
                }
            ],
            "scales": factors,
            "axes": ["x", "y", "z"],
            "units": ["nm", "nm", "nm"],
            "pixelResolution": dataset_attributes(w.grid)["pixelResolution"],
        }
        atomic_write_json(w.partial / "attributes.json", root)


class _Indexed:
    """Tensorstore array that gives numpy when indexed."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = tuple(array.shape)
        self.dtype = array.dtype

    def __getitem__(self, key: Any, /) -> Any:
        return self._array[key].read().result()

"""BigDataViewer: XML and HDF5, several volumes in one physical frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import DataError, FrameError
from clemreg.export.bdv_xml import SetupXml, dataset_xml, settings_xml
from clemreg.export.hdf5_file import create_hdf5
from clemreg.io.atomic import atomic_path
from clemreg.io.writer import pooling_factor, pyramid_grids
from clemreg.space.grid import Box, Grid
from clemreg.space.resample import pool_mean, pool_mode
from clemreg.space.transform import Affine
from clemreg.volume import Labels, Volume

FLIP = np.eye(4)[[2, 1, 0, 3]]
NM_PER = {"nm": 1.0, "um": 1e3}
CHUNK = (32, 64, 64)
# Blocks are whole chunks; a pooled block needs eight times its voxels of the level before.
BLOCK = (64, 256, 256)
POOLED_BLOCK = (32, 128, 128)
DTYPES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class BdvSetup:
    """One volume as BigDataViewer shows it.

    Attributes
    ----------
    volume
        (z, y, x) without channels. `Labels` are pooled by the most frequent id and stored in
        their own integer type, 64 bits included.
    name
        Shown in the viewer.
    to_world
        Places the volume's frame in the common frame; None if it is there already.
    colour
        Red, green, blue, 0 to 255.
    window
        Grey values shown as black and as full colour.
    visible
        Whether it is switched on when the dataset is opened.
    """

    volume: Volume
    name: str
    to_world: Affine | None = None
    colour: tuple[int, int, int] = (255, 255, 255)
    window: tuple[float, float] = (0.0, 255.0)
    visible: bool = True


def write_bdv(
    path: str | Path,
    setups: Sequence[BdvSetup],
    *,
    unit: str = "um",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``NAME.xml``, ``NAME.h5`` and ``NAME.settings.xml``, all three or none.

    Parameters
    ----------
    path
        The XML file; its name ends in ``.xml``.
    setups
        Volumes; all must end in the same world frame.
    unit
        ``"um"`` or ``"nm"``: unit of the world in the XML.
    overwrite
        Whether files of that name are replaced.
    progress
        Told of every block.

    Raises
    ------
    StorageError
        The files exist and must not be replaced, or cannot be written.
    FrameError
        The volumes are not brought to one frame.
    DataError
        There is no volume, one has channels, a display range that is not finite, or a pixel type
        that BigDataViewer does not know; or the name does not end in ``.xml``.

    Notes
    -----
    HDF5 layout, transforms (last listed is applied first) and block-mean mipmaps as in
    bigdataviewer-core 10; ``dataType`` is written, so any type is shown as it is. Each mipmap is
    pooled from the one before, a block of at most 4 million voxels at a time.
    """
    path = Path(path)
    _check(path, setups)
    entries = [_setup_xml(setup, unit) for setup in setups]
    data, settings = path.with_suffix(".h5"), path.with_suffix(".settings.xml")
    # Left in reverse: the XML, which is what people open, appears last.
    with (
        atomic_path(path, overwrite=overwrite) as xml_file,
        atomic_path(settings, overwrite=overwrite) as settings_file,
        atomic_path(data, overwrite=overwrite) as data_file,
    ):
        xml_file.write_text(dataset_xml(entries, data.name, unit), encoding="utf-8")
        settings_file.write_text(settings_xml(entries), encoding="utf-8")
        _write_hdf5(data_file, setups, progress)
    return path


def voxel_to_world(setup: BdvSetup, unit: str = "um") -> tuple[NDArray[Any], NDArray[Any]]:
    """Registration and calibration of a setup: 4 x 4, x y z, world in `unit`.

    Their product maps voxel indices (x, y, z) to the world.
    """
    factor = NM_PER[unit]
    calibration = FLIP @ setup.volume.grid.index_to_world @ FLIP
    calibration[:3] /= factor
    registration = np.eye(4)
    if setup.to_world is not None:
        registration = FLIP @ setup.to_world.matrix @ FLIP
        registration[:3, 3] /= factor
    return registration, calibration


def _check(path: Path, setups: Sequence[BdvSetup]) -> None:
    if path.suffix != ".xml":
        raise DataError(f"{path} must end in .xml", hint="the pixels go to .h5 of the same name")
    if not setups:
        raise DataError(f"{path}: there is no volume to write")
    frames = {_checked_frame(setup) for setup in setups}
    if len(frames) > 1:
        raise FrameError(
            f"the volumes end in different frames: {sorted(frames)}",
            hint="give each a transform to the common frame (to_world)",
        )


def _checked_frame(setup: BdvSetup) -> str:
    """Return the frame that a setup ends in, if it can be written."""
    volume, move = setup.volume, setup.to_world
    if volume.channels:
        raise DataError(
            f"{setup.name} has channels {list(volume.channels)}", hint="give each its own setup"
        )
    if volume.dtype.name not in DTYPES:
        raise DataError(
            f"{setup.name}: BigDataViewer does not know {volume.dtype}",
            hint="convert it, for example a mask to uint8",
        )
    if not np.isfinite(setup.window).all():
        raise DataError(f"{setup.name}: display range {setup.window} is not finite")
    if move is None:
        return volume.grid.frame
    if move.source != volume.grid.frame:
        raise FrameError(
            f"{setup.name} lies in {volume.grid.frame!r}, its placement starts in {move.source!r}"
        )
    return move.target


def _setup_xml(setup: BdvSetup, unit: str) -> SetupXml:
    registration, calibration = voxel_to_world(setup, unit)
    return SetupXml(
        setup.name,
        setup.volume.shape[::-1],
        tuple(s / NM_PER[unit] for s in setup.volume.grid.spacing_nm[::-1]),
        (registration, calibration),
        setup.colour,
        setup.window,
        setup.visible,
    )


def _write_hdf5(path: Path, setups: Sequence[BdvSetup], progress: Progress | None) -> None:
    pyramids = [pyramid_grids(setup.volume.grid, None) for setup in setups]
    total = sum(len(_tiles(grids, level)) for grids in pyramids for level in range(len(grids)))
    done = 0
    with create_hdf5(path) as (file, check_disk):
        for number, (setup, grids) in enumerate(zip(setups, pyramids, strict=True)):
            _write_header(file, number, setup.volume, grids)
            for _ in _write_blocks(file, number, setup.volume, grids):
                check_disk()
                done += 1
                if progress is not None:
                    progress(done, total, setup.name)


def _tiles(grids: Sequence[Grid], level: int) -> list[Box]:
    return list(grids[level].box.tiles(POOLED_BLOCK if level else BLOCK))


def _chunk(grid: Grid) -> tuple[int, ...]:
    return tuple(min(c, n) for c, n in zip(CHUNK, grid.shape, strict=True))


def _write_header(file: Any, number: int, volume: Volume, grids: Sequence[Grid]) -> None:
    """Write the factors and chunk sizes of all levels, x, y, z, and make their arrays."""
    group = file.create_group(f"s{number:02d}")
    group.attrs["dataType"] = volume.dtype.name
    factors = [pooling_factor(grids[0], grid)[::-1] for grid in grids]
    group["resolutions"] = np.array(factors, dtype=np.float64)
    group["subdivisions"] = np.array([_chunk(grid)[::-1] for grid in grids], dtype=np.int32)
    for level, grid in enumerate(grids):
        file.create_dataset(
            _cells(number, level),
            shape=grid.shape,
            dtype=volume.dtype.newbyteorder("="),
            chunks=_chunk(grid),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )


def _cells(number: int, level: int) -> str:
    return f"t00000/s{number:02d}/{level}/cells"


def _write_blocks(
    file: Any, number: int, volume: Volume, grids: Sequence[Grid]
) -> Iterator[tuple[int, Box]]:
    """Write block by block: level 0 from the volume, others from the level before; yield each."""
    for box in _tiles(grids, 0):
        file[_cells(number, 0)][box.slices] = volume.read(box)
        yield 0, box
    for level in range(1, len(grids)):
        before = file[_cells(number, level - 1)]
        factor = pooling_factor(grids[level - 1], grids[level])
        for box in _tiles(grids, level):
            fine = before[_finer(box, factor).clip(before.shape).slices]
            file[_cells(number, level)][box.slices] = _pool(fine, factor, volume)
            yield level, box


def _finer(box: Box, factor: tuple[int, int, int]) -> Box:
    start, stop = (
        [a * f for a, f in zip(ends, factor, strict=True)] for ends in (box.start, box.stop)
    )
    return Box(start, stop)  # type: ignore[arg-type]


def _pool(fine: NDArray[Any], factor: tuple[int, int, int], volume: Volume) -> NDArray[Any]:
    if isinstance(volume, Labels):
        return pool_mode(fine, factor)
    mean = pool_mean(fine, factor)
    return np.rint(mean) if volume.dtype.kind in "iu" else mean

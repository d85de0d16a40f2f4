"""BigDataViewer: XML and HDF5, several volumes in one physical frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import DataError, FrameError, StorageError
from clemreg.export.bdv_xml import SetupXml, dataset_xml, settings_xml
from clemreg.io.atomic import atomic_path, atomic_write_text
from clemreg.io.writer import pooling_factor, pyramid_grids
from clemreg.space.grid import Box, Grid
from clemreg.space.resample import pool_mean, pool_mode
from clemreg.space.transform import Affine
from clemreg.volume import Labels, Volume

FLIP = np.eye(4)[[2, 1, 0, 3]]
NM_PER = {"nm": 1.0, "um": 1e3}
CHUNK = (32, 64, 64)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32")


@dataclass(frozen=True, eq=False)
class BdvSetup:
    """One volume as BigDataViewer shows it.

    Attributes
    ----------
    volume
        (z, y, x) without channels.
    name
        Shown in the viewer.
    to_world
        Places the volume's frame in the common frame; None if it is there already.
    colour
        Red, green, blue, 0 to 255.
    window
        Grey values shown as black and as full colour.
    """

    volume: Volume
    name: str
    to_world: Affine | None = None
    colour: tuple[int, int, int] = (255, 255, 255)
    window: tuple[float, float] = (0.0, 255.0)


def write_bdv(
    path: str | Path,
    setups: Sequence[BdvSetup],
    *,
    unit: str = "um",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``NAME.xml``, ``NAME.h5`` and ``NAME.settings.xml``.

    Parameters
    ----------
    path
        The XML file.
    setups
        Volumes; all must end in the same world frame.
    unit
        ``"um"`` or ``"nm"``: unit of the world in the XML.
    overwrite
        Whether files of that name are replaced.

    Raises
    ------
    StorageError
        The files exist and must not be replaced.
    FrameError
        The volumes are not brought to one frame.
    DataError
        A volume has channels, or a pixel type that BigDataViewer does not know.

    Notes
    -----
    HDF5 layout, transforms (last listed is applied first) and block-mean mipmaps as in
    bigdataviewer-core 10; ``dataType`` is written, so any type is shown as it is.
    """
    path = Path(path)
    data = path.with_suffix(".h5")
    if not overwrite and (path.exists() or data.exists()):
        raise StorageError(f"{path} exists already", hint="choose another name")
    _check(setups)
    with atomic_path(data) as partial:
        _write_hdf5(partial, setups, progress)
    entries = [_setup_xml(setup, unit) for setup in setups]
    atomic_write_text(path.with_suffix(".settings.xml"), settings_xml(entries))
    atomic_write_text(path, dataset_xml(entries, data.name, unit))
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


def _check(setups: Sequence[BdvSetup]) -> None:
    frames = set()
    for setup in setups:
        volume, move = setup.volume, setup.to_world
        if volume.channels:
            raise DataError(f"{setup.name} has channels", hint="give each its own setup")
        if volume.dtype.name not in DTYPES:
            raise DataError(f"{setup.name}: BigDataViewer does not know {volume.dtype}")
        if move is not None and move.source != volume.grid.frame:
            raise FrameError(
                f"{setup.name} lies in {volume.grid.frame!r}, its placement starts in "
                f"{move.source!r}"
            )
        frames.add(volume.grid.frame if move is None else move.target)
    if len(frames) > 1:
        raise FrameError(f"the volumes end in different frames: {sorted(frames)}")


def _setup_xml(setup: BdvSetup, unit: str) -> SetupXml:
    registration, calibration = voxel_to_world(setup, unit)
    return SetupXml(
        setup.name,
        setup.volume.shape[::-1],
        tuple(s / NM_PER[unit] for s in setup.volume.grid.spacing_nm[::-1]),
        (registration, calibration),
        setup.colour,
        setup.window,
    )


def _write_hdf5(path: Path, setups: Sequence[BdvSetup], progress: Progress | None) -> None:
    import h5py

    total = sum(-(-s.volume.grid.size // (2 * np.prod(CHUNK) * 4)) for s in setups)
    done = 0

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, int(total)), int(total), name)

    with h5py.File(path, "w", libver=("earliest", "v110")) as file:
        for number, setup in enumerate(setups):
            grids = pyramid_grids(setup.volume.grid, None)
            _write_header(file, number, setup.volume, grids)
            for level, grid in enumerate(grids):
                _write_level(file, (number, level), setup.volume, grids, grid)
                tick(setup.name)


def _factors(grids: Sequence[Grid]) -> NDArray[np.float64]:
    return np.array([pooling_factor(grids[0], g)[::-1] for g in grids], dtype=np.float64)


def _write_header(file: Any, number: int, volume: Volume, grids: Sequence[Grid]) -> None:
    group = file.create_group(f"s{number:02d}")
    group.attrs["dataType"] = volume.dtype.name
    group["resolutions"] = _factors(grids)
    chunks = [[min(c, n) for c, n in zip(CHUNK, g.shape, strict=True)][::-1] for g in grids]
    group["subdivisions"] = np.array(chunks, dtype=np.int32)


def _write_level(
    file: Any, where: tuple[int, int], volume: Volume, grids: Sequence[Grid], grid: Grid
) -> None:
    """Write one resolution slab by slab: level 0 from the volume, others from the level before."""
    number, level = where
    cells = file.create_dataset(
        f"t00000/s{number:02d}/{level}/cells",
        shape=grid.shape,
        dtype=volume.dtype,
        chunks=tuple(min(c, n) for c, n in zip(CHUNK, grid.shape, strict=True)),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
    )
    slab = (CHUNK[0], 8 * CHUNK[1], 8 * CHUNK[2])
    if level == 0:
        for box in grid.box.tiles(slab):
            cells[box.slices] = volume.read(box)
        return
    before = file[f"t00000/s{number:02d}/{level - 1}/cells"]
    factor = pooling_factor(grids[level - 1], grid)
    pool = pool_mode if isinstance(volume, Labels) else pool_mean
    for box in grid.box.tiles(slab):
        source = Box(
            tuple(a * f for a, f in zip(box.start, factor, strict=True)),  # type: ignore[arg-type]
            tuple(b * f for b, f in zip(box.stop, factor, strict=True)),  # type: ignore[arg-type]
        ).clip(before.shape)
        pooled = pool(before[source.slices], factor)
        whole = volume.dtype.kind in "iu" and not isinstance(volume, Labels)
        cells[box.slices] = np.rint(pooled) if whole else pooled

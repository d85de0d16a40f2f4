"""BigDataViewer: XML with HDF5 or N5, several volumes in one physical frame."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, DataError, FrameError
from clemreg.export.bdv_pixels import (
    PixelStore,
    as_16_bit,
    create_hdf5_store,
    create_n5_store,
    write_pyramids,
)
from clemreg.export.bdv_xml import SetupXml, dataset_xml, settings_xml
from clemreg.io.atomic import atomic_set
from clemreg.io.xyz import flip_matrix
from clemreg.space.transform import Affine
from clemreg.units import nm_per
from clemreg.volume import Volume

Storage = Literal["hdf5", "hdf5-legacy", "n5"]
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
    storage: Storage = "hdf5",
    unit: str = "um",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``NAME.xml``, ``NAME.settings.xml`` and ``NAME.h5`` or ``NAME.n5``, all or none.

    While they are put in place there is no XML, so no reader sees pixels of one dataset with the
    XML of another; after a kill at that moment the same call does it again.

    The pixels' name differs if `NAME` has characters that viewers stumble over: see `data_path`.

    Parameters
    ----------
    path
        The XML file; its name ends in ``.xml``.
    setups
        Volumes; all must end in the same world frame.
    storage
        ``"hdf5"`` or ``"n5"`` keep any type of `DTYPES`. ``"hdf5-legacy"`` is for Fiji from before
        2023, which shows 16 bits only: see `as_16_bit`.
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
        There is no volume, one has channels, a display range that is empty or not finite, or a
        pixel type that BigDataViewer does not know; or the name does not end in ``.xml``.
    ConfigError
        `storage` is none of the three.

    Notes
    -----
    Layout, transforms (last listed is applied first) and block-mean mipmaps as in
    bigdataviewer-core 10; ``dataType`` is written, so any type is shown as it is. A block of at
    most 4 million voxels a thread is in memory.
    """
    path = Path(path)
    data, open_store = data_path(path, storage), _store(storage)[1]
    check_setups(path, setups)
    setups = [legacy_setup(s) for s in setups] if storage == "hdf5-legacy" else list(setups)
    entries = [setup_xml(setup, unit) for setup in setups]
    others = [path.with_suffix(".settings.xml"), data]
    with atomic_set(path, others, overwrite=overwrite) as (xml_file, settings_file, data_file):
        xml_file.write_text(dataset_xml(entries, data.name, unit), encoding="utf-8")
        settings_file.write_text(settings_xml(entries), encoding="utf-8")
        with open_store(data_file) as store:
            write_pyramids(store, [(i, s.name, s.volume) for i, s in enumerate(setups)], progress)
    return path


@contextmanager
def _n5_store(path: Path) -> Iterator[PixelStore]:
    yield create_n5_store(path)


_Store = tuple[str, Callable[[Path], AbstractContextManager[PixelStore]]]
_STORES: dict[str, _Store] = {
    "hdf5": (".h5", create_hdf5_store),
    "hdf5-legacy": (".h5", lambda path: create_hdf5_store(path, legacy=True)),
    "n5": (".n5", _n5_store),
}


def _store(storage: Storage) -> _Store:
    if storage not in _STORES:
        raise ConfigError(f"cannot store as {storage!r}", hint=f"one of {', '.join(_STORES)}")
    return _STORES[storage]


def data_path(xml: Path, storage: Storage) -> Path:
    """Return where the pixels of a dataset go: beside the XML, under its name.

    The XML names them, and bigdataviewer-core 10.5 and newer take the name of an N5 as a URI
    without having it escaped, older ones as a file name; so it has no character that the two
    read differently. A name that had to be changed ends in its checksum, to stay unique.
    """
    suffix = _store(storage)[0]
    kept = _IN_URI if suffix == ".n5" else _IN_XML
    name = kept.sub("_", xml.stem)
    if name != xml.stem:
        name += f"-{zlib.crc32(os.fsencode(xml.stem)):08x}"
    return xml.with_name(name + suffix)


_IN_URI = re.compile(r"[^\w.+=,@~-]")
_IN_XML = re.compile(r"[\\\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def voxel_to_world(setup: BdvSetup, unit: str = "um") -> tuple[NDArray[Any], NDArray[Any]]:
    """Registration and calibration of a setup: 4 x 4, x y z, world in `unit`.

    Their product maps voxel indices (x, y, z) to the world.
    """
    factor = nm_per(unit)
    calibration = flip_matrix(setup.volume.grid.index_to_world)
    calibration[:3] /= factor
    registration = np.eye(4)
    if setup.to_world is not None:
        registration = flip_matrix(setup.to_world.matrix)
        registration[:3, 3] /= factor
    return registration, calibration


def check_setups(path: Path, setups: Sequence[BdvSetup]) -> None:
    """Refuse what cannot be written; see `write_bdv`."""
    if path.suffix != ".xml":
        raise DataError(
            f"{path} must end in .xml", hint="the pixels go to .h5 or .n5 of the same name"
        )
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
    low, high = setup.window
    if not (np.isfinite(setup.window).all() and low < high):
        raise DataError(f"{setup.name}: display range {setup.window} is empty or not finite")
    if move is None:
        return volume.grid.frame
    if move.source != volume.grid.frame:
        raise FrameError(
            f"{setup.name} lies in {volume.grid.frame!r}, its placement starts in {move.source!r}"
        )
    return move.target


def legacy_setup(setup: BdvSetup) -> BdvSetup:
    """Return a setup in 16 bits; its display range follows where values are stretched."""
    volume = as_16_bit(setup.volume, setup.window, setup.name)
    stretched = setup.volume.dtype.kind == "f"
    return replace(setup, volume=volume, window=(0.0, 65535.0) if stretched else setup.window)


def setup_xml(setup: BdvSetup, unit: str) -> SetupXml:
    """Return what the XML says of a setup."""
    return SetupXml(
        setup.name,
        setup.volume.shape[::-1],
        tuple(s / nm_per(unit) for s in setup.volume.grid.spacing_nm[::-1]),
        voxel_to_world(setup, unit),
        setup.colour,
        setup.window,
        setup.visible,
    )

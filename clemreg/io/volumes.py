"""Open any volume, say what is in it. Writing is in `clemreg.io.writer`, re-exported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError, VoxelSizeError
from clemreg.io import hdf5, itk_images, mrc, n5, ngff, tiff
from clemreg.io.origin_note import KEEP_THE_PLACE
from clemreg.io.source import AxesView, Source
from clemreg.io.tiff import WHOLE_IN_FLOAT32, write_tiff
from clemreg.io.writer import VolumeWriter, WriteOptions, create_volume, write_volume
from clemreg.space.grid import Grid
from clemreg.units import format_length
from clemreg.volume import Labels, LazyArray, Volume

__all__ = [
    "VolumeInfo",
    "VolumeWriter",
    "WriteOptions",
    "check_voxel_size",
    "create_volume",
    "describe",
    "open_labels",
    "open_volume",
    "place_of",
    "stored_axes",
    "write_tiff",
    "write_volume",
]

FOLDERS = (ngff, n5)
FILES = (tiff, hdf5, itk_images, mrc)
PLAUSIBLE_NM = (0.3, 50_000.0)
MAX_ANISOTROPY = 30.0
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class VolumeInfo:
    """What a file says of its volume.

    Attributes
    ----------
    uri, format, unit
        Where, which format, unit as written.
    shape, dtype, channels
        Of the finest level; shape zyx.
    spacing_nm, origin_nm
        zyx; None where the file does not say.
    levels
        Shape and voxel size of each resolution.
    notes
        What a user should know or mend.
    """

    uri: str
    format: str
    shape: tuple[int, ...]
    dtype: str
    channels: tuple[str, ...]
    spacing_nm: Triple | None
    origin_nm: Triple
    unit: str
    levels: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def open_volume(
    uri: str | Path,
    *,
    spacing_nm: Triple | None = None,
    frame: str = "world",
    channel: str | int | None = None,
) -> Volume:
    """Open a volume lazily: only the blocks that are read leave the disk.

    Parameters
    ----------
    uri
        Path of an OME-Zarr, N5, TIFF, HDF5, NRRD, MetaImage, NIfTI or MRC; what is inside a
        container follows as part of the path (zarr, N5) or after ``::``.
    spacing_nm
        Voxel size zyx that overrides the file's. The file's origin stays as many voxels away: if
        the unit was wrong, it was wrong for both.
    frame
        Name of the world frame.
    channel
        Return just this channel, by name or number.

    Raises
    ------
    MissingError
        There is nothing at that path.
    FormatError
        The file is damaged, not a volume, or was cropped after its origin was noted.
    VoxelSizeError
        The voxel size is missing or cannot be right, and was not given.
    """
    source = _open_source(str(uri))
    volume: Volume = _build(source, str(uri), spacing_nm, frame, Volume)
    return volume if channel is None else volume.channel(channel)


def open_labels(
    uri: str | Path, *, spacing_nm: Triple | None = None, frame: str = "world"
) -> Labels:
    """Open ids: as `open_volume`, but never averaged when resampled.

    An ImageJ TIFF may hold them as float32, its only type for ids above 65535.

    Raises
    ------
    FormatError
        The pixels are not integers; of float32 this is seen in the blocks that are read.
    """
    source = _open_source(str(uri))
    if source.format == "ImageJ TIFF" and source.levels[0].data.dtype == np.float32:
        levels = (replace(v, data=_WholeNumbers(v.data, str(uri))) for v in source.levels)
        source = replace(source, levels=tuple(levels))
    volume: Labels = _build(source, str(uri), spacing_nm, frame, Labels)
    if volume.dtype.kind not in "iub":
        raise FormatError(f"{uri} holds {volume.dtype}, labels are integers")
    return volume


@dataclass(frozen=True, eq=False)
class _WholeNumbers:
    """Ids that are stored as float32, as integers."""

    array: LazyArray
    name: str
    dtype = np.dtype(np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def __getitem__(self, key: Any, /) -> Any:
        block = np.asarray(self.array[key])
        # Above, float32 does not hold every whole number, so an id may be a neighbour's.
        if (np.rint(block) != block).any() or (np.abs(block) > WHOLE_IN_FLOAT32).any():
            raise FormatError(
                f"{self.name} holds fractions or values above 2^24, labels are whole numbers",
                hint="store them as integers",
            )
        return block.astype(self.dtype)


def describe(uri: str | Path) -> VolumeInfo:
    """Say what is in a file, also where the voxel size is missing."""
    source = _open_source(str(uri))
    first = source.levels[0]
    notes = [*source.notes, *([source.lost_origin] if source.lost_origin else [])]
    z, y, x = first.data.shape[-3:]
    shape = (z, y, x)
    if first.spacing_nm is None:
        notes.append(ngff.missing_voxel_size(str(uri)).message)
    else:
        try:
            check_voxel_size(Grid(shape, first.spacing_nm), str(uri))
        except VoxelSizeError as error:
            notes.append(error.message)
    if min(shape) == 1:
        notes.append("one voxel thick: it cannot be registered as a volume")
    levels = tuple(
        {"shape": list(level.data.shape[-3:]), "spacing_nm": level.spacing_nm}
        for level in source.levels
    )
    return VolumeInfo(
        str(uri),
        source.format,
        shape,
        str(getattr(first.data, "stored_dtype", first.data.dtype)),
        source.channels,
        first.spacing_nm,
        first.origin_nm,
        source.unit,
        levels,
        tuple(notes),
    )


def place_of(uri: str | Path) -> Path:
    """Return where a volume is: one inside a zarr or N5, ``A::B``, is the folder ``A/B``."""
    container, _, inner = str(uri).partition("::")
    return Path(container) / inner.strip("/") if Path(container).is_dir() else Path(uri)


def stored_axes(uri: str | Path) -> str:
    """Return the letters of a file's axes in the order in which they are stored, as ``"tczyx"``."""
    view = _open_source(str(uri)).levels[0].data
    assert isinstance(view, AxesView)
    return view.axes


def check_voxel_size(grid: Grid, name: str) -> None:
    """Refuse voxel sizes that no microscope has.

    Raises
    ------
    VoxelSizeError
        Outside 0.3 nm to 50 um, or more than 30 times longer along one axis.
    """
    low, high = min(grid.spacing_nm), max(grid.spacing_nm)
    sizes = " x ".join(format_length(s) for s in grid.spacing_nm[::-1])
    fix = 'the unit may be wrong; give the voxel size: --spacing "x, y, z nm"'
    if low < PLAUSIBLE_NM[0] or high > PLAUSIBLE_NM[1]:
        raise VoxelSizeError(f"{name}: voxels of {sizes} (x, y, z) cannot be right", hint=fix)
    if high / low > MAX_ANISOTROPY:
        raise VoxelSizeError(
            f"{name}: voxels of {sizes} (x, y, z) are {high / low:.0f} times longer than wide",
            hint=fix,
        )


def _open_source(uri: str) -> Source:
    path, inner = _split(uri)
    for module in FOLDERS if path.is_dir() else FILES:
        if module.matches(path):
            source: Source = module.open_source(path, inner)
            return source
    if path.is_dir():
        raise FormatError(
            f"{path} is a folder, but neither zarr nor N5", hint="name the volume inside it"
        )
    raise FormatError(
        f"{path.name}: format not known",
        hint="zarr, N5, TIFF, HDF5, NRRD, MHA, NIfTI and MRC are read",
    )


def _split(uri: str) -> tuple[Path, str]:
    container, _, inner = uri.partition("::")
    path = Path(container)
    if not path.exists():
        raise ngff.missing_path(path)
    return path, inner.strip("/")


def _build(
    source: Source, name: str, spacing_nm: Triple | None, frame: str, kind: type[Any]
) -> Any:
    if source.lost_origin:
        raise FormatError(f"{name}: {source.lost_origin}", hint=KEEP_THE_PLACE)
    first = source.levels[0]
    finest = spacing_nm or first.spacing_nm
    if finest is None:
        raise ngff.missing_voxel_size(name)
    volumes: list[Any] = []
    for level in source.levels:
        own = level.spacing_nm
        origin = level.origin_nm
        if spacing_nm is not None or own is None:
            own, origin = _rescaled(
                level.data.shape[-3:], first.data.shape[-3:], finest, own, first
            )
        z, y, x = level.data.shape[-3:]
        grid = Grid((z, y, x), own, origin, frame)
        if not volumes:  # coarser levels may have voxels that no microscope has
            check_voxel_size(grid, name)
        volumes.append(kind(level.data, grid, source.channels, name=Path(name).name))
    top, *coarser = volumes
    return kind(top.data, top.grid, top.channels, tuple(coarser), top.name)


def _rescaled(
    shape: Any, full: Any, finest: Triple, own: Triple | None, first: Any
) -> tuple[Triple, Triple]:
    """Geometry of a level when the voxel size of the finest is given by the user."""
    if own is not None and first.spacing_nm is not None:
        factor = [round(a / b) for a, b in zip(own, first.spacing_nm, strict=True)]
    else:
        factor = [max(1, round(n / m)) for n, m in zip(full, shape, strict=True)]
    z, y, x = (s * f for s, f in zip(finest, factor, strict=True))
    begin = first.scaled_origin_nm(finest)
    oz, oy, ox = (o + (f - 1) / 2 * s for o, f, s in zip(begin, factor, finest, strict=True))
    return (z, y, x), (oz, oy, ox)

"""TIFF, OME-TIFF and ImageJ hyperstacks, plane by plane; gzip-compressed ones in memory."""

from __future__ import annotations

import colorsys
import gzip
import html
import io
import math
import re
import struct
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, FormatError, VoxelSizeError
from clemreg.io.atomic import atomic_path
from clemreg.io.names import one_line
from clemreg.io.ome_tiff import is_ome_tiff, write_ome_tiff
from clemreg.io.origin_note import (
    OF_KEY,
    ORIGIN_KEY,
    changed_since,
    noted,
    origin_note,
    parse_origin,
)
from clemreg.io.source import AxesView, Level, Source, require_spatial
from clemreg.space.grid import Box
from clemreg.units import nm_per
from clemreg.volume import Labels, Volume

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".ome.tif", ".tif.gz", ".tiff.gz")
_RESOLUTION_UNIT = {2: "inch", 3: "cm"}
Triple = tuple[float, float, float]


def matches(path: Path) -> bool:
    """Tell whether a file is a TIFF by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def open_source(path: Path, inner: str = "") -> Source:
    """Open the first image series.

    Raises
    ------
    FormatError
        The file is truncated or not a TIFF, or it is not a volume.
    """
    import tifffile

    if inner:
        raise FormatError(f"{path} is a TIFF; it has no inner dataset {inner!r}")
    try:
        data: Any = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
        tiff = tifffile.TiffFile(data)
    except (tifffile.TiffFileError, OSError, EOFError, ValueError, struct.error) as error:
        raise _unreadable(path, error) from error
    tiff.filehandle.set_lock(True)  # several threads read pages of one open file
    try:
        return _series_source(tiff, path)
    except FormatError:
        tiff.close()
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, struct.error) as error:
        tiff.close()
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FormatError:
    return FormatError(
        f"{path} is not a readable TIFF: {error}", hint="copy it again; it may be truncated"
    )


def _series_source(tiff: Any, path: Path) -> Source:
    series = tiff.series[0]
    axes = _axes(series.axes, series.shape)
    shape = [n for n, a in zip(series.shape, series.axes, strict=True) if a != "S" or n > 1]
    require_spatial(axes, shape, str(path))
    planes = _Planes(tiff, series, tuple(shape), path)
    spacing, unit = _voxel_size(tiff)
    count = dict(zip(axes, shape, strict=True)).get("c", 0)
    names = _channel_names(tiff, count)
    notes = _notes(tiff)
    view = AxesView(planes, axes, str(path))
    level = Level(view, spacing, parse_origin(noted(notes, ORIGIN_KEY)))
    depth, height, width = view.shape[-3:]
    lost = changed_since(noted(notes, OF_KEY), (depth, height, width), spacing)
    return Source(_format_name(tiff), (level,), names, unit, lost_origin=lost)


def _axes(axes: str, shape: tuple[int, ...]) -> str:
    """Lower-case axis letters; a plain stack of pages is z, the samples of a colour are c.

    Time is never z: it stands only in files that say so.
    """
    letters = [a for a, n in zip(axes, shape, strict=True) if a != "S" or n > 1]
    text = "".join(letters).lower()
    if "c" not in text:
        text = text.replace("s", "c")
    pages = next((a for a in "iq" if a in text), None) if "z" not in text else None
    return text.replace(pages, "z", 1) if pages else text


def _format_name(tiff: Any) -> str:
    return "OME-TIFF" if tiff.is_ome else "ImageJ TIFF" if tiff.is_imagej else "TIFF"


class _Planes:
    """Pages of a TIFF series as one array; only the pages asked for are decoded."""

    def __init__(self, tiff: Any, series: Any, shape: tuple[int, ...], path: Path) -> None:
        self._tiff = tiff
        weakref.finalize(self, tiff.close)
        self._series = series
        self._path = path
        self.shape = shape
        self.dtype = series.dtype
        self._mapped = self._map()
        if self._mapped is None:
            self._check_offsets()

    def _map(self) -> NDArray[Any] | None:
        """Memory map of a file without compression, in its own byte order."""
        offset = self._series.dataoffset
        if offset is None or not self._path.suffix.lower().startswith((".tif", ".btf", ".tf8")):
            return None
        size = offset + int(np.prod(self.shape)) * self.dtype.itemsize
        self._require(size)
        dtype = np.dtype(self.dtype).newbyteorder(self._tiff.byteorder)
        return np.memmap(self._path, dtype, "r", offset, self.shape)

    def _check_offsets(self) -> None:
        pages = self._series.pages
        ends = [
            max(map(sum, zip(p.dataoffsets, p.databytecounts, strict=True))) for p in pages if p
        ]
        self._require(max(ends))

    def _require(self, size: int) -> None:
        actual = self._tiff.filehandle.size
        if actual < size:
            raise FormatError(
                f"{self._path} is truncated: {actual} bytes, at least {size} expected",
                hint="copy it again",
            )

    def __getitem__(self, key: tuple[Any, ...], /) -> Any:
        if self._mapped is not None:
            return np.asarray(self._mapped[key]).astype(self.dtype, copy=False)
        pages = self._series.pages
        n = len(self.shape) - self._page_axes(pages[0].size)
        numbers = np.arange(math.prod(self.shape[:n])).reshape(self.shape[:n])[key[:n]]
        images = [pages[int(i)].asarray().reshape(self.shape[n:])[key[n:]] for i in numbers.flat]
        return np.stack(images).reshape(*numbers.shape, *images[0].shape)

    def _page_axes(self, size: int) -> int:
        """Last axes that one page holds: y and x, and the colours of RGB."""
        return next(k for k in (2, 3) if math.prod(self.shape[-k:]) == size)


def _voxel_size(tiff: Any) -> tuple[Triple | None, str]:
    if tiff.is_ome:
        return _ome_voxel_size(tiff.ome_metadata or "")
    page = tiff.pages[0]
    description = tiff.imagej_metadata or {}
    unit = _plain_unit(str(description.get("unit", "")))
    x, y = (_pixel_size(page, name) for name in ("XResolution", "YResolution"))
    if tiff.is_imagej and unit and unit not in {"pixel", "pixels"} and x and y:
        factors = {a: _factor(_plain_unit(description.get(f"{a}unit", unit))) for a in "zy"}
        z = _slice_distance(description)
        factor = _factor(unit)
        if z <= 0 or not (factor and all(factors.values())):
            return None, unit
        return (z * factors["z"], y * factors["y"], x * factor), unit
    return None, unit


def _slice_distance(description: Mapping[str, Any]) -> float:
    """Distance of slices in their unit; 0 where it is not said.

    ImageJ leaves it out where it is 1; other programs do where they do not know it.
    """
    by_imagej = _IMAGEJ.match(str(description.get("ImageJ", ""))) is not None
    usual = 1.0 if by_imagej and description.get("images", 1) > 1 else 0.0
    return float(description.get("spacing", usual) or 0.0)


def _factor(unit: str) -> float:
    """Nanometres in a unit; 0 for pixels, and words that are no length."""
    try:
        return nm_per(unit)
    except VoxelSizeError:
        return 0.0


def _plain_unit(text: str) -> str:
    """Undo ImageJ's escapes, as of the micro sign."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).strip()


def _pixel_size(page: Any, tag: str) -> float:
    value = page.tags.get(tag)
    if value is None:
        return 0.0
    top, bottom = value.value
    return float(bottom) / float(top) if top else 0.0


_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})")
_IMAGEJ = re.compile(r"1\.[3-9]\d|[2-9]\.")  # others pretend to be its version 1.11a
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")
_PHYSICAL = re.compile(r'PhysicalSize([XYZ])(Unit)?\s*=\s*"([^"]*)"')
# Older files have "channels=", which Bio-Formats takes for the number of channels.
_CHANNELS = ("channel names: ", "channels=")
_DESCRIPTION = re.compile(r"<(?:\w+:)?Description\b[^>]*>([^<]*)<")
_CHANNEL = re.compile(r'<(?:\w+:)?Channel\b[^>]*\bName\s*=\s*"([^"]*)"')


def _ome_voxel_size(xml: str) -> tuple[Triple | None, str]:
    """Read the physical sizes from the first Pixels element.

    Attributes of one element are all that is needed, so no XML parser runs on a file from
    elsewhere, and no entity in it is expanded.
    """
    pixels = _PIXELS.search(xml)
    if pixels is None:
        return None, ""
    sizes: dict[str, float] = {}
    units = dict.fromkeys("XYZ", "µm")  # the default of the OME schema
    for axis, is_unit, text in _PHYSICAL.findall(pixels.group(0)):
        if is_unit:
            units[axis] = text.replace("&#181;", "µ").replace("&#xB5;", "µ")
        else:
            sizes[axis] = float(text)
    if set(sizes) != set("XYZ"):
        return None, units["X"]
    z, y, x = (sizes[a] * _factor(units[a]) for a in "ZYX")
    return ((z, y, x) if z and y and x else None), units["X"]


def _channel_names(tiff: Any, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    found = _CHANNEL.findall(tiff.ome_metadata or "") if tiff.is_ome else []
    names = [html.unescape(name) for name in found]
    if tiff.is_imagej:
        notes = tiff.imagej_metadata or {}
        names = list(notes.get("ChannelNames") or _info_channels(tiff))
        if names and len(names) != count:  # a name with a comma; the planes are named, too
            names = list(notes.get("Labels", ()))[:count]
    if len(names) == count and len(set(names)) == count:
        return tuple(names)
    return tuple(f"channel {i}" for i in range(count))


def _notes(tiff: Any) -> list[str]:
    """Lines that people and programs wrote about the image."""
    if tiff.is_ome:
        texts = map(html.unescape, _DESCRIPTION.findall(tiff.ome_metadata or ""))
        return [line for text in texts for line in text.splitlines()]
    found = tiff.imagej_metadata or {}
    properties = [f"{key}: {value}" for key, value in found.get("Properties", {}).items()]
    return [*properties, *str(found.get("Info", "")).splitlines()]


def calibration_origin(path: Path) -> Triple:
    """Return ImageJ's own origin as BigWarp takes it, for lengths in the file's unit: zyx, nm."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        notes = file.imagej_metadata or {}
        unit = _plain_unit(str(notes.get("unit", "")))
        found = [float(notes.get(f"{axis}origin", 0.0)) for axis in "zyx"]
    if not any(found):
        return (0.0, 0.0, 0.0)
    z, y, x = (value * nm_per(unit) for value in found)
    return z, y, x


def _info_channels(tiff: Any) -> list[str]:
    for line in _notes(tiff):
        if line.startswith(_CHANNELS):
            names = line.removeprefix(_CHANNELS[0]).removeprefix(_CHANNELS[1])
            return [name.strip() for name in names.split(",")]
    return []


@dataclass(frozen=True)
class TiffOptions:
    """How ImageJ shows a hyperstack.

    Attributes
    ----------
    colours
        Red, green, blue (0 to 255) of each channel; empty: grey, or `DEFAULT_COLOURS`.
    windows
        Grey values shown as black and as full colour, of each channel; empty: its extremes.
    """

    colours: tuple[tuple[int, int, int], ...] = ()
    windows: tuple[tuple[float, float], ...] = ()


DEFAULT_COLOURS = ((255, 0, 255), (0, 255, 0), (0, 255, 255), (255, 255, 0), (255, 255, 255))
WHOLE_IN_FLOAT32 = 1 << 24
_SLAB_BYTES = 1 << 27
_COLOUR_MAP, _SHORT = 320, 3  # TIFF tag and type


def write_tiff(path: str | Path, volume: Volume, options: TiffOptions | None = None) -> None:
    """Write an ImageJ hyperstack with voxel size, unit, channels, colours and display ranges.

    A name that ends in ``.ome.tif`` makes it an OME-TIFF: see `write_ome_tiff`.

    Planes are read a slab at a time and written one by one. The origin is written as a note
    (Image > Show Info) that clemreg reads, not as ImageJ's calibration origin: ImageJ and BigWarp
    disagree on what that means. uint8, uint16 and float32 are kept; other intensities become
    float32. `Labels` become uint8, uint16 or, up to 2^24, float32, whichever holds all ids, shown
    from 0 to the largest id in colours of their own.

    Raises
    ------
    DataError
        An id is larger than 2^24, or negative.
    StorageError
        It cannot be written.
    """
    import tifffile

    if is_ome_tiff(Path(path)):
        return write_ome_tiff(path, volume)
    options = options or TiffOptions()
    extremes = [_extremes(volume, c) for c in range(len(volume.channels) or 1)]
    dtype = _stored_dtype(volume, extremes)
    z, y, x = (s / 1e3 for s in volume.grid.spacing_nm)
    depth, height, width = volume.shape
    display = _display(volume, options, extremes)
    with atomic_path(path) as partial, warnings.catch_warnings():
        # Beyond 4 GB a file has one page entry and the pixels of all behind it, as ImageJ does.
        warnings.filterwarnings("ignore", message=".*truncating ImageJ file")
        tifffile.imwrite(
            partial,
            (plane.astype(dtype, copy=False) for plane in _plane_by_plane(volume)),
            shape=(depth, len(extremes), height, width),
            dtype=dtype,
            imagej=True,
            resolution=(1 / x, 1 / y),
            metadata={
                "axes": "ZCYX",
                "unit": "um",
                "spacing": z,
                "mode": "composite" if len(extremes) > 1 else "grayscale",
                **display,
            },
            extratags=_colour_map(display["LUTs"]),
        )
    return None


def _plane_by_plane(volume: Volume) -> Iterator[NDArray[Any]]:
    """Yield planes (y, x), channels fastest; several are read at once, as chunks hold several."""
    depth, height, width = volume.shape
    plane_bytes = height * width * volume.dtype.itemsize * (len(volume.channels) or 1)
    step = max(1, min(64, _SLAB_BYTES // plane_bytes))
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        slab = volume.read(Box((start, 0, 0), (stop, height, width)))
        planes = slab if volume.channels else slab[None]
        for z in range(stop - start):
            yield from planes[:, z]


def _extremes(volume: Volume, channel: int) -> tuple[float, float]:
    """Return the lowest and highest value, of `Labels` the lowest and highest id."""
    part = volume.channel(channel) if volume.channels else volume
    low, high = np.inf, -np.inf
    for plane in _plane_by_plane(part):
        finite = plane[plane != 0 if isinstance(volume, Labels) else np.isfinite(plane)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _stored_dtype(volume: Volume, extremes: Sequence[tuple[float, float]]) -> np.dtype[Any]:
    if not isinstance(volume, Labels):
        native = volume.dtype.newbyteorder("=")
        kept = native in (np.uint8, np.uint16, np.float32)
        return native if kept else np.dtype(np.float32)
    low, high = min(e[0] for e in extremes), max(e[1] for e in extremes)
    if low < 0 or high > WHOLE_IN_FLOAT32:
        raise DataError(
            f"{volume.name or 'labels'} hold ids from {low:.0f} to {high:.0f}; an ImageJ TIFF "
            f"holds 0 to {WHOLE_IN_FLOAT32}",
            hint="renumber the labels, or export OME-Zarr or BigDataViewer",
        )
    for dtype in (np.uint8, np.uint16):
        if high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _display(
    volume: Volume, options: TiffOptions, extremes: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Colour tables, ranges, and the name of the channel on every plane."""
    windows = options.windows or [(low, max(high, low + 1)) for low, high in extremes]
    if isinstance(volume, Labels):
        tables = [label_table()]
        windows = [label_window(*extremes[0])]
    else:
        grey = ((255, 255, 255),) if len(extremes) == 1 else ()
        colours = options.colours or grey or DEFAULT_COLOURS
        tables = [_ramp(colours[c % len(colours)]) for c in range(len(extremes))]
    names = [one_line(name) for name in volume.channels]
    found: dict[str, Any] = {
        "LUTs": tables,
        "Ranges": tuple(float(v) for window in windows for v in window),
        "Info": _info(volume, names),
    }
    if len(extremes) == 1:  # ImageJ reads Ranges only where there are several channels
        found["min"], found["max"] = found["Ranges"]
    if names:
        found["Labels"] = names * volume.shape[0]
    return found


def _colour_map(tables: Sequence[NDArray[np.uint8]]) -> list[tuple[int, int, int, Any, bool]]:
    """Return the tag that ImageJ reads for one channel; it reads LUTs only for several."""
    if len(tables) > 1 or np.ptp(tables[0], axis=0).max() == 0:
        return []
    return [
        (
            _COLOUR_MAP,
            _SHORT,
            tables[0].size,
            (tables[0].ravel().astype(np.uint16) * 257).tolist(),
            True,
        )
    ]


def _info(volume: Volume, names: Sequence[str]) -> str:
    return f"{_CHANNELS[0]}{', '.join(names)}\n{origin_note(volume.grid)}"


def _ramp(colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    steps = np.linspace(0, 1, 256)
    return np.rint(np.asarray(colour)[:, None] * steps).astype(np.uint8)


def label_window(lowest: float, highest: float) -> tuple[float, float]:
    """Return the display range of labels: only 0 is black, every id has a colour.

    ImageJ has 256 colours for the whole range, so an id below 1/256 of its width may be black
    (how it rounds differs from command to command). Ids above the range share the last colour.

    Parameters
    ----------
    lowest, highest
        Ids that are there, above 0; or both 0.
    """
    return 0.0, max(min(highest, 255 * lowest), 1.0)


def label_table() -> NDArray[np.uint8]:
    """Return the colours (3, 256) of labels.

    Black for 0, then hues a golden angle apart, so that ids that follow each other differ.
    """
    strengths = ((1.0, 1.0), (0.55, 1.0), (1.0, 0.7))
    colours = [(0.0, 0.0, 0.0)]
    for number in range(1, 256):
        hue = number * (math.sqrt(5) - 1) / 2 % 1
        colours.append(colorsys.hsv_to_rgb(hue, *strengths[number % 3]))
    return np.ascontiguousarray(np.rint(255 * np.array(colours)).T, dtype=np.uint8)

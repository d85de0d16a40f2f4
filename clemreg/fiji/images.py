"""`Volume` to ImageJ's ImagePlus and back: pixels, calibration, channels, colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, MissingError, VoxelSizeError
from clemreg.io.origin_note import (
    KEEP_THE_PLACE,
    OF_KEY,
    ORIGIN_KEY,
    changed_since,
    origin_values,
    parse_origin,
)
from clemreg.io.tiff import label_table, label_window
from clemreg.space.grid import Grid
from clemreg.units import nm_per
from clemreg.volume import Labels, Volume

Rgb = tuple[int, int, int]
COLOURS: tuple[Rgb, ...] = ((255, 0, 255), (0, 255, 0), (0, 255, 255), (255, 255, 0))
GREY: Rgb = (255, 255, 255)
KEPT = (np.uint8, np.uint16, np.float32)
LARGEST_EXACT = 2**24
"""Ids above this are not exact in float32, the widest pixel type of ImageJ 1."""
_SIGNED = {"uint8": np.int8, "uint16": np.int16, "float32": np.float32}
_FRAME = "clemreg-frame"
_CHANNELS = "channel names"


@dataclass(frozen=True)
class Look:
    """How a volume is shown.

    Attributes
    ----------
    unit
        Unit of the calibration.
    colours
        Red, green, blue of each channel; default: grey, or magenta, green, cyan, yellow. `Labels`
        without have a colour for every id.
    windows
        Lowest and highest grey value of each channel; default: of the data.
    """

    unit: str = "um"
    colours: Sequence[Rgb] = ()
    windows: Sequence[tuple[float, float]] = ()


def to_imageplus(volume: Volume, look: Look | None = None) -> Any:
    """Copy a volume to an ImageJ hyperstack.

    The origin is kept as a property of the image, not as ImageJ's calibration origin: ImageJ and
    BigWarp disagree on what that means.

    Parameters
    ----------
    volume
        zyx or czyx. uint8, uint16 and float32 are kept; other types become float32.
    look
        Unit, colours and display ranges.

    Returns
    -------
    ij.ImagePlus
        A CompositeImage if there are channels.

    Raises
    ------
    DataError
        Ids above 2^24, which float32 cannot hold; or a number of colours that does not fit.
    """
    import jpype

    look = look or Look()
    pixels = _imagej_pixels(volume)
    count, (depth, height, width) = len(pixels), volume.shape
    stack = jpype.JClass("ij.ImageStack")(width, height)
    names = volume.channels or (volume.name,)
    for z in range(depth):
        for channel in range(count):
            stack.addSlice(names[channel], _java_plane(pixels[channel, z]))
    image = jpype.JClass("ij.ImagePlus")(volume.name or "volume", stack)
    image.setDimensions(count, depth, 1)
    _calibrate(image, volume.grid, look.unit)
    coloured = isinstance(volume, Labels) and not (look.colours or look.windows)
    image = _labelled(image, pixels[0]) if coloured else _coloured(image, pixels, look)
    for key, value in origin_values(volume.grid).items():
        image.setProp(key, value)
    image.setProp(_FRAME, volume.grid.frame)
    if volume.channels:
        image.setProp(_CHANNELS, ", ".join(volume.channels))
    return image


def _imagej_pixels(volume: Volume) -> NDArray[Any]:
    """Pixels czyx in a type that ImageJ has."""
    data = volume.read()
    if data.dtype.newbyteorder("=") not in KEPT:
        if data.dtype.kind in "iu" and data.size and np.abs(data).max() > LARGEST_EXACT:
            raise DataError(
                f"{volume.name or 'volume'}: ids up to {data.max()} do not fit ImageJ's pixels, "
                f"at most {LARGEST_EXACT} are exact",
                hint="relabel them consecutively first",
            )
        data = data.astype(np.float32)
    return data if volume.channels else data[None]


def _java_plane(plane: NDArray[Any]) -> Any:
    import jpype

    flat = np.ascontiguousarray(plane).ravel()
    native = flat.astype(flat.dtype.newbyteorder("="), copy=False)
    return jpype.JArray.of(native.view(_SIGNED[native.dtype.name]))


def _calibrate(image: Any, grid: Grid, unit: str) -> None:
    calibration = image.getCalibration()
    factor = nm_per(unit)
    depth, height, width = (s / factor for s in grid.spacing_nm)
    calibration.pixelWidth, calibration.pixelHeight = width, height
    calibration.pixelDepth = depth
    calibration.setUnit(unit)


def _coloured(image: Any, pixels: NDArray[Any], look: Look) -> Any:
    import jpype

    count = len(pixels)
    colours = tuple(look.colours) or _default_colours(count)
    windows = tuple(look.windows) or tuple(_window(channel) for channel in pixels)
    if len(colours) != count or len(windows) != count:
        raise DataError(
            f"{len(colours)} colours and {len(windows)} windows for {count} channels",
            hint="give one for each channel",
        )
    if count > 1:
        composite = jpype.JClass("ij.CompositeImage")
        image = composite(image, composite.COMPOSITE)
    image.setOpenAsHyperStack(True)
    for channel, (colour, (low, high)) in enumerate(zip(colours, windows, strict=True), start=1):
        if count > 1:
            image.setC(channel)
            image.setChannelLut(_lut(colour), channel)
        elif colour != GREY:
            image.setLut(_lut(colour))
        image.setDisplayRange(low, high)
    if count > 1:
        image.setC(1)
    return image


def _labelled(image: Any, ids: NDArray[Any]) -> Any:
    import jpype

    tables = [jpype.JArray.of(row.view(np.int8)) for row in label_table()]
    image.setLut(jpype.JClass("ij.process.LUT")(*tables))
    present = ids[ids > 0]
    ends = (float(present.min()), float(present.max())) if present.size else (0.0, 0.0)
    image.setDisplayRange(*label_window(*ends))
    return image


def _default_colours(count: int) -> tuple[Rgb, ...]:
    if count == 1:
        return (GREY,)
    return tuple(COLOURS[i % len(COLOURS)] for i in range(count))


def _lut(colour: Rgb) -> Any:
    import jpype

    awt = jpype.JClass("java.awt.Color")(*map(int, colour))
    return jpype.JClass("ij.process.LUT").createLutFromColor(awt)


def _window(channel: NDArray[Any]) -> tuple[float, float]:
    finite = channel[np.isfinite(channel)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0


def from_imageplus(image: Any, *, frame: str = "") -> Volume:
    """Copy an ImageJ image of one time point to a volume.

    Parameters
    ----------
    image
        8-bit, 16-bit or 32-bit; grey, not RGB.
    frame
        Name of its world frame; default: what `to_imageplus` kept, or ``"world"``.

    Raises
    ------
    DataError
        RGB pixels, several time points, or an image that was cropped after its origin was noted.
    VoxelSizeError
        The calibration has no length unit.
    """
    if image.getNFrames() > 1:
        raise DataError(
            f"{image.getTitle()} has {image.getNFrames()} time points, expected one",
            hint="Image > Duplicate one time point",
        )
    stack = image.getStack()
    count, depth = int(image.getNChannels()), int(image.getNSlices())
    planes = [
        _numpy_plane(image, stack, image.getStackIndex(c + 1, z + 1, 1))
        for c in range(count)
        for z in range(depth)
    ]
    grid = _grid(image, (depth, *planes[0].shape), frame)
    data = np.stack(planes).reshape(count, *grid.shape)
    title = str(image.getTitle())
    if count == 1:
        return Volume(data[0], grid, name=title)
    return Volume(data, grid, _channel_names(image, count), name=title)


def labels_from_imageplus(image: Any, *, frame: str = "") -> Labels:
    """Copy an ImageJ label image: as `from_imageplus`, ids as integers.

    Raises
    ------
    DataError
        Values that are not whole.
    """
    volume = from_imageplus(image, frame=frame)
    data = volume.read()
    if data.dtype.kind == "f":
        if not np.array_equal(data, np.rint(data)):
            raise DataError(f"{volume.name} holds fractions, labels are whole numbers")
        data = data.astype(np.int32)
    return Labels(data, volume.grid, volume.channels, name=volume.name)


def _numpy_plane(image: Any, stack: Any, index: int) -> NDArray[Any]:
    kind = {8: np.uint8, 16: np.uint16, 32: np.float32}.get(int(image.getBitDepth()))
    if kind is None:
        raise DataError(
            f"{image.getTitle()} has RGB pixels, expected grey values",
            hint="Image > Color > Split Channels, or Make Composite",
        )
    plane = np.asarray(stack.getPixels(index)).view(kind)
    return plane.reshape(int(image.getHeight()), int(image.getWidth())).copy()


def _grid(image: Any, shape: tuple[int, int, int], frame: str) -> Grid:
    calibration = image.getCalibration()
    unit = str(calibration.getUnit() or "")
    title = image.getTitle()
    if not calibration.scaled() or unit in ("", "pixel", "pixels", "null"):
        raise VoxelSizeError(
            f"{title} has no voxel size (unit {unit!r})",
            hint="set it with Image > Properties in um or nm",
        )
    z = float(calibration.pixelDepth) * nm_per(str(calibration.getZUnit()))
    y = float(calibration.pixelHeight) * nm_per(str(calibration.getYUnit()))
    x = float(calibration.pixelWidth) * nm_per(unit)
    if lost := changed_since(_property(image, OF_KEY), shape, (z, y, x)):
        raise DataError(f"{title}: {lost}", hint=KEEP_THE_PLACE)
    origin = parse_origin(_property(image, ORIGIN_KEY))
    return Grid(shape, (z, y, x), origin, frame or _property(image, _FRAME) or "world")


def _channel_names(image: Any, count: int) -> tuple[str, ...]:
    names = tuple(_property(image, _CHANNELS).split(", "))
    if len(names) > count:  # a name with a comma; the planes are named, too
        labels = (image.getStack().getSliceLabel(i + 1) for i in range(count))
        names = tuple("" if label is None else str(label) for label in labels)
    if len(names) == count and len(set(names)) == count:
        return names
    return tuple(f"channel {i}" for i in range(count))


def _property(image: Any, key: str) -> str:
    value = image.getProp(key)
    return "" if value is None else str(value)


def find_image(title: str = "") -> Any:
    """Return an open image by its title, or the one in front.

    Raises
    ------
    MissingError
        There is none; the text lists those that are open.
    """
    import jpype

    manager = jpype.JClass("ij.WindowManager")
    image = manager.getImage(title) if title else manager.getCurrentImage()
    if image is None:
        titles = [str(t) for t in manager.getImageTitles()]
        raise MissingError(
            f"no open image {title!r}" if title else "no image is open in ImageJ",
            hint=f"open are: {', '.join(titles) or 'none'}",
        )
    return image

"""One image for Fiji and OME-Zarr viewers, with the colours and windows they show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clemreg.errors import ConfigError
from clemreg.export.ngff import Display, write_ome_zarr
from clemreg.export.replace import ZARR, require_free, require_free_folder
from clemreg.io.tiff import TiffOptions, write_tiff
from clemreg.io.volumes import open_labels, open_volume
from clemreg.pipeline.scene import channel_colour, channels_of, display_window
from clemreg.volume import Labels, Volume

NAMED_COLOURS = {
    "white": (255, 255, 255), "grey": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "cyan": (0, 255, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0),
    "orange": (255, 160, 0),
}  # fmt: skip
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ImageCommand:
    """What ``clemreg export imagej`` or ``omezarr`` was told.

    Attributes
    ----------
    image
        Path of any image that clemreg opens.
    out
        Where the copy goes.
    labels
        Whether it holds ids.
    colours
        Comma separated, one a channel: names, or hex ``#RRGGBB``; None: magenta, green and so on.
    overwrite
        Replace what is at `out`.
    """

    image: str
    out: Path
    labels: bool = False
    colours: str | None = None
    overwrite: bool = False

    def open(self) -> Volume:
        """Open the image."""
        return open_labels(self.image) if self.labels else open_volume(self.image)


def export_imagej(command: ImageCommand) -> None:
    """Write an ImageJ hyperstack.

    Raises
    ------
    ConfigError
        The name is not that of a TIFF, a colour is not known, or there are not as many as channels.
    StorageError
        The file exists already, and must not be replaced.
    """
    if command.out.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(
            f"{command.out} must end in .tif", hint="other programs go by the name of a file"
        )
    require_free(command.out, overwrite=command.overwrite)
    volume = command.open()
    displays = tuple(displays_of(volume, command.colours))
    options = TiffOptions(
        tuple(display.colour for display in displays), tuple(display.window for display in displays)
    )
    write_tiff(command.out, volume, options)


def export_ome_zarr(command: ImageCommand, version: Literal["0.4", "0.5"] = "0.5") -> None:
    """Write an OME-Zarr; see `export_imagej` for what is raised."""
    if version not in ("0.4", "0.5"):
        raise ConfigError(f"cannot write OME-Zarr {version}", hint="0.4 or 0.5")
    require_free_folder(command.out, ZARR, overwrite=command.overwrite)
    volume = command.open()
    displays = [] if isinstance(volume, Labels) else list(displays_of(volume, command.colours))
    write_ome_zarr(command.out, volume, displays, version=version, overwrite=command.overwrite)


def displays_of(volume: Volume, colours: str | None = None) -> Iterator[Display]:
    """Yield how each channel is shown; an image without channels is white."""
    given = None if colours is None else [_colour(text) for text in colours.split(",")]
    count = len(volume.channels) or 1
    if given is not None and len(given) != count:
        raise ConfigError(f"{len(given)} colours for {count} channels", hint="give one a channel")
    for number, (name, part) in enumerate(channels_of(volume)):
        colour = channel_colour(name, number) if name else NAMED_COLOURS["white"]
        if given is not None:
            colour = given[number]
        yield Display(name or part.name or "image", colour, display_window(part))


def _colour(text: str) -> Colour:
    word = text.strip().lower()
    if word in NAMED_COLOURS:
        return NAMED_COLOURS[word]
    try:
        red, green, blue = bytes.fromhex(word.removeprefix("#"))
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a colour", hint=f"#RRGGBB, or {', '.join(NAMED_COLOURS)}"
        ) from error
    return red, green, blue

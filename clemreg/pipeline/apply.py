"""``clemreg apply``: a transform and an image or a table of points in, the same out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.atomic import remove
from clemreg.io.points import read_points, write_points
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_labels, open_volume, write_tiff
from clemreg.register.apply import apply_to_image, apply_to_points
from clemreg.space.transform import Transform

Direction = Literal["lm-to-em", "em-to-lm"]
TABLES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class ApplyCommand:
    """What ``clemreg apply`` was told.

    Attributes
    ----------
    transform
        File of a transform LM to EM.
    subject
        Image, or table of points.
    out
        Output: ``.zarr``, ``.tif``, or ``.csv`` for points.
    onto
        Image whose grid an image gets.
    direction
        Of the points: ``"lm-to-em"`` uses the transform as it is, which also resamples an EM image
        onto an LM grid; ``"em-to-lm"`` uses its inverse, which resamples an LM image onto an EM
        grid.
    labels
        Whether the image holds ids.
    """

    transform: str
    subject: str
    out: Path
    onto: str | None = None
    direction: Direction = "lm-to-em"
    labels: bool = False


def apply_file(command: ApplyCommand, progress: Progress | None = None) -> None:
    """Map points, or resample an image.

    Raises
    ------
    ConfigError
        An image without ``onto``.
    """
    forward = read_transform(command.transform)
    used = forward if command.direction == "lm-to-em" else forward.inverse()
    if command.subject.lower().endswith(TABLES):
        write_points(apply_to_points(used, read_points(command.subject)), command.out)
        return
    _apply_image(command, used, progress)


def _apply_image(command: ApplyCommand, used: Transform, progress: Progress | None) -> None:
    if command.onto is None:
        raise ConfigError("an image needs a grid to be resampled onto", hint="add --onto IMAGE")
    opener = open_labels if command.labels else open_volume
    image = opener(command.subject, frame=used.target)
    grid = open_volume(command.onto, frame=used.source).grid
    out = command.out
    if out.suffix.lower() not in (".tif", ".tiff"):
        apply_to_image(used, image, grid, out, progress=progress)
        return
    beside = out.with_name(f".{out.name}.zarr")
    write_tiff(out, apply_to_image(used, image, grid, beside, progress=progress))
    remove(beside)

"""``clemreg apply``: a transform and an image or a table of points in, the same out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.points import read_points, write_points
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_labels, open_volume, write_tiff
from clemreg.register.apply import apply_to_image, apply_to_points
from clemreg.space.transform import Transform

Direction = Literal["lm-to-em", "em-to-lm"]
TABLES = (".csv", ".tsv", ".txt")


def apply_file(
    transform: str,
    subject: str,
    out: Path,
    *,
    onto: str | None = None,
    direction: Direction = "lm-to-em",
    labels: bool = False,
    progress: Progress | None = None,
) -> None:
    """Map points, or resample an image.

    Parameters
    ----------
    transform
        File of a transform LM to EM.
    direction
        Of the points: ``"lm-to-em"`` uses the transform as it is, which also resamples an EM image
        onto an LM grid; ``"em-to-lm"`` uses its inverse, which resamples an LM image onto an EM
        grid.

    Raises
    ------
    ConfigError
        An image without ``onto``.
    """
    forward = read_transform(transform)
    used = forward if direction == "lm-to-em" else forward.inverse()
    if subject.lower().endswith(TABLES):
        write_points(apply_to_points(used, read_points(subject)), out)
        return
    if onto is None:
        raise ConfigError("an image needs a grid to be resampled onto", hint="add --onto IMAGE")
    _apply_image(used, subject, onto, out, labels, progress)


def _apply_image(
    used: Transform, subject: str, onto: str, out: Path, labels: bool, progress: Progress | None
) -> None:
    opener = open_labels if labels else open_volume
    image = opener(subject, frame=used.target)
    grid = open_volume(onto, frame=used.source).grid
    if out.suffix.lower() not in (".tif", ".tiff"):
        apply_to_image(used, image, grid, out, progress=progress)
        return
    beside = out.with_name(f".{out.name}.zarr")
    write_tiff(out, apply_to_image(used, image, grid, beside, progress=progress))
    from clemreg.io.atomic import remove

    remove(beside)

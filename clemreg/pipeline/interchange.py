"""A transform for other programs: elastix, ITK, N5 displacement field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, FormatError
from clemreg.export.dfield import FieldOptions, write_n5_field
from clemreg.export.sampled_field import FieldError, SampledField, field_grid
from clemreg.io.elastix_files import write_elastix
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import open_volume
from clemreg.pipeline.scene import affine_part
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.units import parse_length_nm


@dataclass(frozen=True)
class FieldCommand:
    """What ``clemreg export dfield`` was told.

    Attributes
    ----------
    transform
        Transform file, LM to EM.
    grid_of
        LM image that the field covers.
    out
        N5 container.
    spacing
        Distance between the points of the field, with unit; None: the voxels of the image.
    max_error
        Error allowed to 16-bit integers, with unit; None: float32.
    with_inverse
        Whether the inverse is written too.
    unit
        Unit of the numbers in the file.
    """

    transform: str
    grid_of: str
    out: Path
    spacing: str | None = None
    max_error: str | None = None
    with_inverse: bool = False
    unit: str = "um"


def export_dfield(command: FieldCommand, progress: Progress | None = None) -> FieldError:
    """Write a displacement field, and say how well interpolating it reproduces the transform."""
    options = FieldOptions(
        command.unit,
        None if command.max_error is None else parse_length_nm(command.max_error),
        command.with_inverse,
    )
    field = sampled_field(command.transform, command.grid_of, command.spacing)
    write_n5_field(command.out, field, options, progress)
    return field.error()


def sampled_field(transform_file: str, grid_of: str, spacing: str | None) -> SampledField:
    """Return the field of a transform file over an LM image, its affine part apart."""
    transform = read_transform(transform_file)
    grid = _lm_grid(grid_of)
    step = None if spacing is None else parse_length_nm(spacing)
    return SampledField(transform, field_grid(grid, step), affine_part(transform, grid))


def export_elastix(transform: str, grid_of: str, out: Path) -> Path:
    """Write a transform as elastix parameter files."""
    write_elastix(read_transform(transform), out, _lm_grid(grid_of))
    return out


def export_itk(transform: str, out: Path, grid_of: str | None) -> None:
    """Write an ITK transform file; what ITK has no equal for is sampled over an LM image.

    Raises
    ------
    ConfigError
        It must be sampled, but there is no image.
    """
    read = read_transform(transform)
    try:
        write_transform(read, out)
    except FormatError as error:
        if "ITK has no transform" not in error.message:
            raise
        if grid_of is None:
            raise ConfigError(
                f"{error.message}; it must be sampled", hint="add --grid-of LM_IMAGE"
            ) from error
        write_transform(DisplacementField.sample(read, _lm_grid(grid_of)), out)


def _lm_grid(image: str) -> Grid:
    return open_volume(image, frame="lm").grid

"""Transforms and landmarks for other programs: elastix, ITK, N5 fields, NGFF, ec-CLEM."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, FormatError
from clemreg.export.dfield import FieldOptions, write_n5_field
from clemreg.export.ngff import SceneImage, write_scene
from clemreg.export.replace import N5, ZARR, claimed, require_free, require_free_folder
from clemreg.export.sampled_field import FieldError, SampledField, field_grid
from clemreg.io.ecclem import write_ecclem, write_ecclem_matrix, write_fiducials
from clemreg.io.elastix_files import write_elastix
from clemreg.io.ngff import finest_array
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import describe, open_volume, place_of, stored_axes
from clemreg.pipeline.scene import affine_part
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine
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
    overwrite
        Replace a field of that name.
    """

    transform: str
    grid_of: str
    out: Path
    spacing: str | None = None
    max_error: str | None = None
    with_inverse: bool = False
    unit: str = "um"
    overwrite: bool = False


def export_dfield(command: FieldCommand, progress: Progress | None = None) -> FieldError:
    """Write a displacement field, and say how well interpolating it reproduces the transform.

    Raises
    ------
    StorageError
        There is something of that name, and it must not be replaced.
    """
    require_free_folder(command.out, N5, overwrite=command.overwrite)
    options = FieldOptions(
        command.unit,
        None if command.max_error is None else parse_length_nm(command.max_error),
        command.with_inverse,
        command.overwrite,
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


def export_elastix(transform: str, grid_of: str, out: Path, *, overwrite: bool = False) -> Path:
    """Write a transform as elastix parameter files, into a folder that may hold other files.

    Raises
    ------
    StorageError
        The folder holds parameter files, and they must not be replaced.
    """
    taken = [out] if out.is_file() else sorted(out.glob("TransformParameters.*.txt"))
    require_free(*taken, overwrite=overwrite and not out.is_file())
    written = write_elastix(read_transform(transform), out, _lm_grid(grid_of))
    for path in set(taken) - set(written):  # the last one is given to transformix: not an old one
        path.unlink()
    return out


def export_itk(transform: str, out: Path, grid_of: str | None, *, overwrite: bool = False) -> None:
    """Write an ITK transform file; what ITK has no equal for is sampled over an LM image.

    Raises
    ------
    ConfigError
        It must be sampled, but there is no image.
    StorageError
        A file of that name is there and must not be replaced.
    """
    require_free(out, overwrite=overwrite)
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


def export_ngff(
    transform: str,
    out: Path,
    images: tuple[str, str],
    spacing: str | None = None,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> FieldError | None:
    """Write an NGFF 0.6 scene of LM and EM (paths); return the error of a sampled field.

    Raises
    ------
    StorageError
        There is something of that name, and it must not be replaced.
    ConfigError
        An image is no OME-Zarr.
    """
    require_free_folder(out, ZARR, overwrite=overwrite)
    lm, em = images
    places = (_scene_image(lm, "lm", out), _scene_image(em, "em", out))
    read = read_transform(transform)
    if isinstance(read, Affine):
        write_scene(out, read, places, overwrite=overwrite)
        return None
    field = sampled_field(transform, images[0], spacing)
    write_scene(out, field, places, overwrite=overwrite, progress=progress)
    return field.error()


def _scene_image(image: str, frame: str, out: Path) -> SceneImage:
    if not describe(image).format.startswith("OME-Zarr"):
        raise ConfigError(
            f"{image} is no OME-Zarr, which a scene needs",
            hint="convert it: clemreg export omezarr IMAGE --out IMAGE.zarr",
        )
    volume = open_volume(image, frame=frame)
    place = place_of(image).resolve()
    relative = Path(os.path.relpath(place, out.resolve())).as_posix()
    return SceneImage(relative, finest_array(place), volume.grid, stored_axes(image))


@dataclass(frozen=True)
class EcclemCommand:
    """What ``clemreg export ecclem`` was told.

    Attributes
    ----------
    subject
        Landmark table, or with `matrix` a transform file.
    out
        ``.xml``; or ``.csv`` for two tables of fiducials, ``NAME-lm.csv`` and ``NAME-em.csv``.
    em, lm
        Images whose sizes stand in the XML; the LM is also where the affine is fitted.
    kind
        What ec-CLEM is to fit: rigid, similarity, affine or spline.
    matrix
        Write the affine part of a transform instead of landmarks.
    rater
        Whose landmarks, where there are several raters.
    overwrite
        Replace files of these names.
    """

    subject: str
    out: Path
    em: str | None = None
    lm: str | None = None
    kind: str = "similarity"
    matrix: bool = False
    rater: str | None = None
    overwrite: bool = False

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that are written."""
        if self.matrix or self.out.suffix != ".csv":
            return (self.out,)
        return tuple(self.out.with_name(f"{self.out.stem}-{side}.csv") for side in ("lm", "em"))


def export_ecclem(command: EcclemCommand) -> tuple[Path, ...]:
    """Write for ec-CLEM, the LM being its source and the EM its target; return the files.

    Raises
    ------
    ConfigError
        An image is missing, or the suffix is neither ``.xml`` nor ``.csv``.
    StorageError
        A file of that name is there and must not be replaced.
    """
    with claimed(*command.outputs, overwrite=command.overwrite):
        return _write_ecclem(command)


def _write_ecclem(command: EcclemCommand) -> tuple[Path, ...]:
    out = command.out
    if command.matrix:
        if command.lm is None:
            raise ConfigError("the affine is fitted over the LM image", hint="add --lm IMAGE")
        part = affine_part(read_transform(command.subject), _lm_grid(command.lm))
        write_ecclem_matrix(part, out)
        return (out,)
    landmarks = read_landmarks(command.subject).select(rater=command.rater)
    if out.suffix == ".csv":
        lm, em = command.outputs
        write_fiducials(landmarks, lm, em)
        return lm, em
    if out.suffix != ".xml" or command.lm is None or command.em is None:
        raise ConfigError(
            f"{out.name}: an ec-CLEM file ends in .xml and needs both images, or in .csv",
            hint="add --em EM --lm LM, or choose --out NAME.csv",
        )
    grids = (_lm_grid(command.lm), open_volume(command.em, frame="em").grid)
    write_ecclem(landmarks, out, grids, kind=command.kind.upper())
    return (out,)


def _lm_grid(image: str) -> Grid:
    return open_volume(image, frame="lm").grid

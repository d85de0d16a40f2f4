"""``clemreg export bigwarp``: landmarks and projects for BigWarp."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.export.bdv import BdvSetup, write_bdv
from clemreg.export.bigwarp import (
    BigWarpImage,
    SplineError,
    sample_landmarks,
    write_bigwarp_project,
)
from clemreg.export.replace import claimed
from clemreg.io.bigwarp import add_left_out, write_bigwarp
from clemreg.io.bigwarp_images import Triple, left_out_nm
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import describe, open_volume, place_of
from clemreg.pipeline.scene import channel_colour, channels_of, display_window
from clemreg.space.landmarks import Landmarks
from clemreg.units import nm_per, parse_length_nm


@dataclass(frozen=True)
class BigWarpCommand:
    """What ``clemreg export bigwarp`` was told.

    Attributes
    ----------
    out
        Landmark table (``.csv``) or transform file (``.json``).
    transform, grid_of
        Transform file, LM to EM, and the LM image over which landmarks are placed.
    landmarks, rater
        Instead: a landmark table to convert, and whose landmarks.
    spacing
        Distance between landmarks, with unit.
    unit
        Unit of the coordinates; BigWarp shows the numbers of an image in the unit of its file.
    project, em
        Project file to write besides, and the EM image it opens; the LM image is `grid_of`.
    as_bdv
        The project opens copies of the images as BigDataViewer datasets, written beside it.
    overwrite
        Replace files of these names.
    read_from_zero
        The table in `landmarks` was made in BigWarp on `em` and `grid_of`, which it showed without
        their origins; these are added.
    write_from_zero
        What is written is for BigWarp on these images, so their origins are left out.
    """

    out: Path
    transform: str | None = None
    grid_of: str | None = None
    landmarks: str | None = None
    rater: str | None = None
    spacing: str = "1 um"
    unit: str = "um"
    project: Path | None = None
    em: str | None = None
    as_bdv: bool = False
    overwrite: bool = False
    read_from_zero: bool = False
    write_from_zero: bool = False


def export_bigwarp(command: BigWarpCommand, progress: Progress | None = None) -> SplineError | None:
    """Write BigWarp landmarks, and a project if asked for.

    Returns
    -------
    SplineError or None
        How well the spline reproduces the transform, if landmarks were sampled from one.

    Raises
    ------
    ConfigError
        It is not said where landmarks come from; a project without its images, or with images
        that BigWarp would show elsewhere or in another unit.
    StorageError
        A file of that name is there and must not be replaced. After a kill the same command
        goes on: what it had written is its own.
    """
    with claimed(*_outputs(command), overwrite=command.overwrite) as replaces:
        return _write(replace(command, overwrite=replaces), progress)


def _write(command: BigWarpCommand, progress: Progress | None) -> SplineError | None:
    """Write the files, replacing those that are there."""
    images = () if command.project is None else _project_images(command)
    landmarks, error = _bigwarp_landmarks(command)
    if command.read_from_zero:
        landmarks = add_left_out(landmarks, *_left_out(command))
    if command.write_from_zero:
        em, lm = (np.negative(offset) for offset in _left_out(command))
        landmarks = add_left_out(landmarks, tuple(em), tuple(lm))
    if command.as_bdv:
        images = tuple(_bdv_copy(command, image, progress) for image in images)
    write_bigwarp(landmarks, command.out, unit=command.unit)
    if command.project is not None:
        moving, target = (BigWarpImage(place_of(image), Path(image).name) for image in images)
        write_bigwarp_project(command.project, moving, target, landmarks, unit=command.unit)
    return error


def _outputs(command: BigWarpCommand) -> list[Path]:
    if command.project is None:
        return [command.out]
    copies = [_copy_path(command.project, side) for side in ("em", "lm")]
    return [command.out, command.project, *(copies if command.as_bdv else [])]


def _copy_path(project: Path, side: str) -> Path:
    return project.with_name(f"{project.stem}-{side}.xml")


def _left_out(command: BigWarpCommand) -> tuple[Triple, Triple]:
    """Return what BigWarp leaves out of the places of EM and LM."""
    if command.em is None or command.grid_of is None:
        raise ConfigError(
            "it takes both images to know the origins that BigWarp left out",
            hint="add --em IMAGE and --grid-of LM_IMAGE, the files that BigWarp opens",
        )
    if command.as_bdv:
        raise ConfigError(
            "--bdv opens copies that stand where they are, not from 0", hint="choose one of them"
        )
    em, lm = (_left_out_of(image) for image in (command.em, command.grid_of))
    return em, lm


def _left_out_of(image: str) -> Triple:
    info = describe(image)
    return left_out_nm(image) if "TIFF" in info.format else info.origin_nm


def placement_note(command: BigWarpCommand) -> str:
    """Say which images BigWarp may show beside their place; empty: none."""
    if command.as_bdv or command.write_from_zero:
        return ""
    if command.project is None:
        return _table_note(command)
    moved = [str(i) for i in (command.em, command.grid_of) if any(describe(str(i)).origin_nm)]
    if not moved:
        return ""
    return (
        f"BigWarp may leave out the origin of {' and '.join(moved)}, which is not 0; "
        "--bdv opens exact copies"
    )


def _table_note(command: BigWarpCommand) -> str:
    images = [image for image in (command.em, command.grid_of) if image is not None]
    moved = [i for i in images if "TIFF" in describe(i).format and any(left_out_nm(i))]
    if not moved or command.read_from_zero:
        return ""
    return (
        f"BigWarp shows {' and '.join(moved)} from 0, so these landmarks would lie beside it; "
        "--write-from-zero leaves its origin out of them"
    )


def _bigwarp_landmarks(command: BigWarpCommand) -> tuple[Landmarks, SplineError | None]:
    if command.landmarks is not None and command.transform is None:
        return read_landmarks(command.landmarks).select(rater=command.rater), None
    if command.transform is None or command.grid_of is None or command.landmarks is not None:
        raise ConfigError(
            "landmarks come from a transform over an LM image, or from a table",
            hint="clemreg export bigwarp TRANSFORM --grid-of LM, or --landmarks TABLE",
        )
    grid = open_volume(command.grid_of, frame="lm").grid
    transform = read_transform(command.transform)
    return sample_landmarks(transform, grid, parse_length_nm(command.spacing))


def _project_images(command: BigWarpCommand) -> tuple[str, ...]:
    if command.em is None or command.grid_of is None:
        raise ConfigError(
            "a BigWarp project needs both images", hint="add --em IMAGE and --grid-of LM_IMAGE"
        )
    images = (command.em, command.grid_of)
    if not command.as_bdv:
        for image in images:
            _check_unit(image, command.unit)
            if not command.write_from_zero:
                _check_place(image)
    return images


def _check_unit(image: str, unit: str) -> None:
    """Refuse an image that BigWarp shows in another unit than the landmarks."""
    found = describe(image).unit or "um"
    if nm_per(found) != nm_per(unit):
        raise ConfigError(
            f"{image} is in {found}, the landmarks in {unit}; BigWarp does not convert units",
            hint="choose --unit, give both images in one unit, or add --bdv",
        )


def _check_place(image: str) -> None:
    """Refuse an image that BigWarp shows elsewhere than the landmarks are."""
    info = describe(image)
    if "TIFF" in info.format and any(left_out_nm(image)):
        raise ConfigError(
            f"{image} starts at x, y, z = {info.origin_nm[::-1]} nm, but BigWarp shows it from 0",
            hint="add --bdv, which opens exact copies, or --write-from-zero",
        )


def _bdv_copy(command: BigWarpCommand, image: str, progress: Progress | None) -> str:
    """Write an image as a BigDataViewer dataset beside the project, where it is in its frame."""
    assert command.project is not None
    is_em = image == command.em
    volume = open_volume(image, frame="em" if is_em else "lm")
    setups = []
    for number, (name, part) in enumerate(channels_of(volume)):
        colour = (255, 255, 255) if is_em else channel_colour(name, number)
        setups.append(BdvSetup(part, name or volume.name, None, colour, display_window(part)))
    out = _copy_path(command.project, "em" if is_em else "lm")
    write_bdv(out, setups, unit=command.unit, overwrite=command.overwrite, progress=progress)
    return str(out)

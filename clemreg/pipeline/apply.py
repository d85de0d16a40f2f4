"""``clemreg apply``: a transform and an image, points, a mesh or a skeleton in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, ConvergenceError, FormatError, GridError
from clemreg.export.replace import require_free_output
from clemreg.io.atomic import remove
from clemreg.io.localisations import (
    HDF5,
    looks_like_localisations,
    read_localisations,
    write_localisations,
)
from clemreg.io.meshes import mesh_unit, read_mesh, write_mesh
from clemreg.io.points import read_point_names, read_points, write_points
from clemreg.io.skeletons import read_skeleton, write_skeleton
from clemreg.io.transforms import read_fixed_grid, read_transform
from clemreg.io.volumes import open_labels, open_volume, write_tiff
from clemreg.pipeline.steps import input_fingerprint
from clemreg.pipeline.voxels import hinting
from clemreg.register.apply import ApplyOptions, apply_to_image, apply_to_points
from clemreg.register.estimate import estimate_apply
from clemreg.register.render import apply_to_localisations
from clemreg.register.shapes import apply_to_mesh, apply_to_skeleton
from clemreg.space.grid import Grid, Triple
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Volume

Direction = Literal["lm-to-em", "em-to-lm"]
Moved = tuple[FloatArray, FloatArray]
"""Points (N, 3) before and after."""
TABLES = (".csv", ".tsv", ".txt")
MESHES = (".obj", ".ply")
SKELETONS = (".swc", ".nml")
TIFFS = (".tif", ".tiff")
IMAGES = (".zarr", ".n5", *TIFFS)
# Places along each axis at which the direction of a transform is judged, and the share of them
# below which nothing is.
_LATTICE = 10
_SOME = 0.05


@dataclass(frozen=True)
class ApplyCommand:
    """What ``clemreg apply`` was told.

    Attributes
    ----------
    transform
        File of a transform LM to EM.
    subject
        Image, table of points, mesh or skeleton.
    out
        Output: ``.zarr``, ``.n5`` or ``.tif`` for images, else a file of the kind of the subject.
    onto
        Image whose grid an image gets.
    spacing_nm
        Voxel size zyx of the result, over the extent of `onto`; None: that of `onto`.
    direction
        Of the points: ``"lm-to-em"`` uses the transform as it is, which also resamples an EM image
        onto an LM grid; ``"em-to-lm"`` uses its inverse, which resamples an LM image onto an EM
        grid.
    labels
        Whether the image holds ids.
    unit
        Of the coordinates in a file that does not say it.
    pixel_nm
        Camera pixel, for localisation tables in pixels.
    subject_spacing_nm, onto_spacing_nm
        Voxel sizes zyx of the image and of `onto`, instead of what the files say.
    options
        Of resampling.
    overwrite
        Replace what is at `out`.
    transform_unit
        Unit of a transform that does not say it.
    """

    transform: str
    subject: str
    out: Path
    onto: str | None = None
    spacing_nm: Triple | None = None
    direction: Direction = "lm-to-em"
    labels: bool = False
    unit: str | None = None
    options: ApplyOptions = field(default_factory=ApplyOptions)
    overwrite: bool = False
    pixel_nm: float | None = None
    subject_spacing_nm: Triple | None = None
    onto_spacing_nm: Triple | None = None
    transform_unit: str = "um"

    @property
    def kind(self) -> str:
        """Lower-case suffix of the subject."""
        return Path(self.subject.partition("::")[0]).suffix.lower()

    @property
    def endings(self) -> tuple[str, ...]:
        """How the output of a subject that is made of points may end."""
        return next((kinds for kinds in (MESHES, SKELETONS) if self.kind in kinds), TABLES)


def apply_file(command: ApplyCommand, progress: Progress | None = None) -> tuple[str, ...]:
    """Map points, vertices or nodes, or resample an image.

    Returns
    -------
    tuple of str
        What is suspicious about the points or the direction, in sentences.

    Raises
    ------
    ConfigError
        An image without ``onto``, or an output that is not of the kind of the subject, or that is
        one of the inputs.
    StorageError
        There is something at `out`, and it must not be replaced. What a killed run has done of an
        image lies elsewhere, so going on needs no leave.
    """
    mapped = _mapped(command)
    if mapped is None and command.out.suffix.lower() not in IMAGES:
        raise ConfigError(
            f"an image cannot be written as {command.out.name!r}",
            hint=f"let --out end in {', '.join(IMAGES)}",
        )
    if mapped is not None and command.out.suffix.lower() not in command.endings:
        raise ConfigError(
            f"{command.subject} is no image and cannot be written as {command.out.name!r}",
            hint=f"let --out end in {' or '.join(command.endings)}",
        )
    _require_another_place(command)
    require_free_output(command.out, overwrite=command.overwrite)
    used = _transform(command)
    if mapped is None:
        return _apply_image(command, used, progress)
    before, after = mapped(used)
    return _beside(command, before if command.direction == "lm-to-em" else after)


def _require_another_place(command: ApplyCommand) -> None:
    """Refuse to write over what is read, also if what is there may be replaced."""
    for read in (command.subject, command.onto, command.transform):
        if read is not None and Path(read.partition("::")[0]).resolve() == command.out.resolve():
            raise ConfigError(
                f"{command.out} is read, and would be replaced by the result",
                hint="give the result another name: --out",
            )


def _beside(command: ApplyCommand, lm_nm: FloatArray) -> tuple[str, ...]:
    """Say so if most points lie outside the light volume that the transform was made for."""
    try:
        grid = read_fixed_grid(command.transform, unit=command.transform_unit)
    except FormatError:  # the transform itself could be read
        return ()
    if grid is None or not len(lm_nm):
        return ()
    outside = int((~grid.contains(lm_nm)).sum())
    if 2 * outside <= len(lm_nm):
        return ()
    return (
        f"{outside} of {len(lm_nm)} points of {command.subject} lie outside the light volume of "
        "the transform, where it is a guess: check their unit (--unit) and the direction "
        "(--inverse).",
    )


def estimate_file(command: ApplyCommand) -> dict[str, Any]:
    """Say what `apply_file` would take for an image; nothing is written.

    Raises
    ------
    ConfigError
        The subject is no image, or there is no ``onto``.
    """
    if _mapped(command) is not None:
        raise ConfigError(
            f"{command.subject} is no image: there is nothing to estimate",
            hint="leave --dry-run out",
        )
    used = _transform(command)
    image, grid = _image_and_grid(command, used)
    return {"apply": estimate_apply(used, image, grid, command.options).to_json()}


def _transform(command: ApplyCommand) -> Transform:
    forward = read_transform(command.transform, unit=command.transform_unit)
    return forward if command.direction == "lm-to-em" else forward.inverse()


def _mapped(command: ApplyCommand) -> Callable[[Transform], Moved] | None:
    """Return what maps a subject that is made of points; None for an image."""
    subject, out, unit = command.subject, command.out, command.unit

    def localisations(used: Transform) -> Moved:
        table = read_localisations(subject, pixel_nm=command.pixel_nm)
        moved = apply_to_localisations(used, table)
        write_localisations(moved, out)
        return table.points_nm, moved.points_nm

    def points(used: Transform) -> Moved:
        if looks_like_localisations(subject):
            return localisations(used)
        given = read_points(subject, unit=unit)
        moved = apply_to_points(used, given)
        write_points(moved, out, names=read_point_names(subject))
        return given, moved

    def mesh(used: Transform) -> Moved:
        length = mesh_unit(subject) or unit or "nm"
        given = read_mesh(subject, unit=length)
        moved = apply_to_mesh(used, given)
        write_mesh(moved, out, unit=length)
        return given.vertices_nm, moved.vertices_nm

    def skeleton(used: Transform) -> Moved:
        length = unit or "um"
        given = read_skeleton(subject, unit=length)
        moved = apply_to_skeleton(used, given)
        write_skeleton(moved, out)
        return given.nodes_nm, moved.nodes_nm

    # With an inner part, it is an image of the file.
    if command.kind in HDF5 and "::" not in subject and looks_like_localisations(subject):
        return localisations
    kinds = {TABLES: points, MESHES: mesh, SKELETONS: skeleton}
    return next((work for suffixes, work in kinds.items() if command.kind in suffixes), None)


def _image_and_grid(command: ApplyCommand, used: Transform) -> tuple[Volume, Grid]:
    if command.onto is None:
        raise ConfigError("an image needs a grid to be resampled onto", hint="add --onto IMAGE")
    opener = open_labels if command.labels else open_volume
    with hinting("--subject-spacing"):
        image = opener(command.subject, frame=used.target, spacing_nm=command.subject_spacing_nm)
    with hinting("--onto-spacing"):
        grid = open_volume(command.onto, frame=used.source, spacing_nm=command.onto_spacing_nm).grid
    return image, grid if command.spacing_nm is None else grid.with_spacing(command.spacing_nm)


def _apply_image(
    command: ApplyCommand, used: Transform, progress: Progress | None
) -> tuple[str, ...]:
    image, grid = _image_and_grid(command, used)
    out = command.out
    options = replace(command.options, inputs=input_fingerprint(command.subject) or "")
    if out.suffix.lower() == ".n5":
        options = replace(options, format="n5")
    if out.suffix.lower() not in TIFFS:
        apply_to_image(used, image, grid, out, options, progress=progress)
        return _turned_round(command, used, image.grid, grid)
    beside = out.with_name(f".{out.name}.zarr")
    write_tiff(out, apply_to_image(used, image, grid, beside, options, progress=progress))
    remove(beside)
    return _turned_round(command, used, image.grid, grid)


def _turned_round(
    command: ApplyCommand, used: Transform, image: Grid, grid: Grid
) -> tuple[str, ...]:
    """Say so if the transform the other way round would show much more of the image."""
    try:
        back = used.inverse()
        shown, turned = _common(used, back, image, grid), _common(back, used, image, grid)
    except (ConvergenceError, GridError):  # folded or flat: there is no other way round
        return ()
    if turned <= max(2 * shown, _SOME):
        return ()
    change = "add" if command.direction == "lm-to-em" else "leave out"
    return (
        f"{command.subject} and its result have {shown:.0%} in common; with the transform the "
        f"other way round it would be {turned:.0%}: {change} --inverse?",
    )


def _common(there: Transform, back: Transform, image: Grid, grid: Grid) -> float:
    """Share of the smaller of two grids in the other one; `there` leads from `grid` to `image`."""
    onto, from_ = image.contains(there(_lattice(grid))), grid.contains(back(_lattice(image)))
    return max(float(onto.mean()), float(from_.mean()))


def _lattice(grid: Grid) -> FloatArray:
    axes = [np.linspace(0, n - 1, _LATTICE) for n in grid.shape]
    return grid.to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))

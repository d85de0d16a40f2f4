"""``clemreg register``: two files in, a folder with the transform out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, FormatError, VoxelSizeError
from clemreg.evaluate.jacobian import evaluate_jacobian
from clemreg.evaluate.masks import nonzero
from clemreg.io.atomic import require_writable
from clemreg.io.elastix_files import read_parameter_file
from clemreg.io.localisations import HDF5, looks_like_localisations
from clemreg.io.points import read_landmarks
from clemreg.io.volumes import open_volume
from clemreg.pipeline.light import check_shifts, chosen_channel, light_channel, mito_channel
from clemreg.pipeline.steps import one_run_at_a_time
from clemreg.pipeline.voxels import hinting, suspicious_voxels
from clemreg.register.elastix_keys import check_parameters
from clemreg.register.engines import ElastixStages, NewtonStages, Stages
from clemreg.register.features import (
    PSF_SIGMA_NM,
    Kind,
    MovingOptions,
    Ramp,
    prepare_fixed,
    prepare_moving,
    sigma_from_fwhm,
)
from clemreg.register.guides import LANDMARK_USES, Guides, LandmarkUse
from clemreg.register.matching import Channel, Masks
from clemreg.register.orientation import OrientationOptions
from clemreg.register.registration import RegisterOptions, register
from clemreg.register.stages import ParameterMap, preset_parameters
from clemreg.register.structure import structure
from clemreg.register.trusted import mask_onto
from clemreg.report.verdict import decide_unmeasured
from clemreg.space.grid import Grid, Triple
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Transform
from clemreg.units import parse_xyz_nm
from clemreg.volume import Volume

GRID_SPACING_UM = (0.1, 100.0)


@dataclass(frozen=True)
class StageChoice:
    """How a person says what is to be run.

    Attributes
    ----------
    engine
        ``"newton"`` or ``"elastix"``.
    preset
        Name of published elastix parameter maps, or None.
    params
        elastix parameter files, in order.
    grid_spacing_um, bending_weight
        None leaves the default of the engine.
    overrides
        elastix keys with a value that replaces the one in the preset or the files.
    """

    engine: str = "newton"
    preset: str | None = None
    params: tuple[Path, ...] = ()
    grid_spacing_um: float | None = None
    bending_weight: float | None = None
    overrides: tuple[tuple[str, float], ...] = ()

    def stages(self) -> Stages:
        """Return the stages.

        Raises
        ------
        ConfigError
            Engine or preset unknown, a parameter key misspelt, or choices that exclude each other.
        """
        if self.preset and self.params:
            raise ConfigError("give a preset or parameter files, not both")
        if self.preset or self.params:
            return ElastixStages(parameters=self._parameters())
        if self.overrides:
            raise ConfigError(
                f"{self.overrides[0][0]} is a key of elastix's parameters",
                hint="add --preset heinrich2021, or --params FILE",
            )
        tuned = self._tuned()
        if self.engine == "newton":
            stages = NewtonStages()
            return replace(stages, deformation=replace(stages.deformation, **tuned))
        if self.engine == "elastix":
            elastix = ElastixStages()
            return replace(elastix, bspline=replace(elastix.bspline, **tuned))
        raise ConfigError(f"no engine {self.engine!r}", hint="newton or elastix")

    def _parameters(self) -> tuple[ParameterMap, ...]:
        if self.grid_spacing_um is not None or self.bending_weight is not None:
            raise ConfigError(
                "grid spacing and bending weight stand in the elastix parameters",
                hint="set them in the files, or leave out --preset and --params",
            )
        if self.preset:
            return self._overridden(preset_parameters(self.preset))
        maps = tuple(dict(read_parameter_file(path).values) for path in self.params)
        for one in maps:
            check_parameters(one)
        return self._overridden(maps)

    def _overridden(self, maps: tuple[ParameterMap, ...]) -> tuple[ParameterMap, ...]:
        """Change the keys in the maps that have them."""
        for key, value in self.overrides:
            if not any(key in one for one in maps):
                raise ConfigError(
                    f"none of the elastix parameter maps has {key}", hint="set it in the file first"
                )
            text = (format(value, ".15g"),)
            maps = tuple({**one, key: text} if key in one else one for one in maps)
        return maps

    def _tuned(self) -> dict[str, Any]:
        tuned: dict[str, Any] = {}
        if self.grid_spacing_um is not None:
            low, high = GRID_SPACING_UM
            if not low < self.grid_spacing_um < high:
                raise ConfigError(
                    f"control points {self.grid_spacing_um:g} um apart make no sense",
                    hint=f"{low:g} to {high:g} um; 1 to 3 are usual",
                )
            tuned["grid_spacing_um"] = (self.grid_spacing_um,) * 3
        if self.bending_weight is not None:
            if not 0 <= self.bending_weight < math.inf:
                raise ConfigError(
                    f"a bending weight of {self.bending_weight:g} makes no sense",
                    hint="0 or more; 0.5 to 10 are usual",
                )
            tuned["bending_weight"] = self.bending_weight
        return tuned


@dataclass(frozen=True)
class GuideFiles:
    """Files that guide the registration.

    Attributes
    ----------
    also
        ``"CHANNEL=EM_VOLUME"`` or ``"CHANNEL=EM_VOLUME@WEIGHT"``: further structures.
    fixed_mask, moving_mask
        Volumes, not 0 where the light volume or the EM can be trusted.
    landmarks
        Table of pairs; if some rows have the role ``fit``, only those are used.
    uses
        What the landmarks are for.
    fixed_offset_nm
        Added to their LM side, zyx: where they were clicked in a crop.
    """

    also: tuple[str, ...] = ()
    fixed_mask: str | None = None
    moving_mask: str | None = None
    landmarks: Path | None = None
    uses: tuple[str, ...] = ()
    fixed_offset_nm: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class RegisterCommand:
    """What ``clemreg register`` was told.

    Attributes
    ----------
    fixed, moving
        Light volume and EM segmentation.
    out
        Folder for the result.
    channel
        Mitochondria channel of the light volume; None is the only one, or the one that its name
        gives away.
    psf
        ``"palm"``, ``"sim"``, ``"confocal"``, or full widths at half maximum ``"x, y, z unit"``.
    orientation, seed, stages, guides
        How it is registered.
    kind
        What the EM segmentation is: ``"auto"``, ``"prediction"``, ``"probability"``, ``"mask"``.
    ramp
        How stored predictions become membrane (`clemreg.register.features.MovingOptions`).
    ecs
        Extracellular space of the EM from elsewhere, on its own grid, or None.
    shifts_nm
        Channel name or number to an offset zyx that is added to it: chromatic shift.
    fixed_spacing_nm, moving_spacing_nm
        Voxel sizes zyx instead of what the files say.
    """

    fixed: str
    moving: str
    out: Path
    channel: str | None = None
    psf: str = "palm"
    orientation: OrientationOptions = field(default_factory=OrientationOptions)
    seed: int = 0
    stages: StageChoice = StageChoice()
    guides: GuideFiles = GuideFiles()
    kind: Kind = "auto"
    ramp: Ramp = "linear"
    ecs: str | None = None
    shifts_nm: Mapping[str, Triple] = field(default_factory=dict)
    fixed_spacing_nm: Triple | None = None
    moving_spacing_nm: Triple | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared images and guides of a command.

    Attributes
    ----------
    fixed, moving, guides
        What is registered.
    warnings
        What is unusual about the files, in sentences.
    """

    fixed: Volume
    moving: Volume
    guides: Guides
    warnings: tuple[str, ...] = ()

    @property
    def channel(self) -> Channel:
        """The images that poses are scored on."""
        return Channel(self.fixed, self.moving)


def register_files(command: RegisterCommand, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare, register and save; return the figures, the Jacobian determinant and a verdict.

    Raises
    ------
    ConfigError
        The point spread, engine or preset is not known.
    StorageError
        Nothing can be written to the output folder, or another registration does.
    """
    options = options_of(command)
    ready = prepare_files(command)
    require_writable(command.out)
    with one_run_at_a_time(command.out):
        guides = ready.guides
        result = register(ready.fixed, ready.moving, options, guides=guides, progress=progress)
        result = replace(result, warnings=(*ready.warnings, *result.warnings))
        result.save(command.out, ready.fixed.grid)
    grid, inside = imaged_part(ready.fixed.grid, ready.moving.grid, result.transform)
    figures = result.to_json()
    if inside.any():
        figures["jacobian"] = evaluate_jacobian(result.transform, grid, inside).to_json()
    return {**figures, "verdict": decide_unmeasured(figures).to_json()}


def imaged_part(lm: Grid, em: Grid, transform: Transform) -> tuple[Grid, NDArray[np.bool_]]:
    """Coarse LM grid (about 200 nm) and which of its voxels lie in the imaged EM."""
    grid = lm.with_spacing(tuple(max(200.0, s) for s in lm.spacing_nm))
    there = transform(grid.points_nm().reshape(-1, 3))
    return grid, em.contains(there).reshape(grid.shape)


def options_of(command: RegisterCommand) -> RegisterOptions:
    """Translate the command."""
    return RegisterOptions(
        orientation=command.orientation, stages=command.stages.stages(), seed=command.seed
    )


def prepare_files(command: RegisterCommand) -> Prepared:
    """Open and prepare everything that the command names.

    Raises
    ------
    ConfigError
        The point spread is not known, or a shift is for no channel.
    VoxelSizeError
        A voxel size is missing, or cannot be right.
    """
    psf = MovingOptions(
        psf_sigma_nm=psf_sigma_nm(command.psf), kind=command.kind, ramp_kind=command.ramp
    )
    refuse_localisations(command.fixed)
    with hinting("--fixed-spacing"):
        lm = open_volume(command.fixed, frame="lm", spacing_nm=command.fixed_spacing_nm)
    with hinting("--moving-spacing"):
        em = open_volume(command.moving, frame="em", spacing_nm=command.moving_spacing_nm)
    warnings = suspicious_voxels(em, lm)
    check_shifts(command.shifts_nm, lm)
    fixed = prepare_fixed(
        light_channel(lm, chosen_channel(lm, command.channel, mito_channel(lm)), command.shifts_nm)
    )
    outside = open_outside(command.ecs)
    moving = prepare_moving(em, lm.grid.spacing_nm, psf, outside)
    guides = read_guides(command.guides, lm, Channel(fixed, moving), psf, command.shifts_nm)
    return Prepared(fixed, moving, guides, warnings)


def refuse_localisations(path: str) -> None:
    """Say what to do with a localisation table that was given as the light volume.

    Raises
    ------
    FormatError
        It is one.
    """
    file = Path(path)
    tables = (".csv", ".tsv", ".txt", *HDF5)
    if file.is_file() and file.suffix.lower() in tables and looks_like_localisations(path):
        raise FormatError(
            f"{path} is a table of localisations, not a volume",
            hint=f'draw it first: clemreg render mito={path} --spacing "52, 52, 104 nm" '
            "--out lm.zarr",
        )


def open_outside(path: str | None) -> Volume | None:
    """Open a volume of the extracellular space of the EM; None if there is no path."""
    return None if path is None else open_placed(path, "em")


def open_placed(path: str, frame: str) -> Volume:
    """Open a further volume, for which no option gives a voxel size."""
    try:
        return open_volume(path, frame=frame)
    except VoxelSizeError as error:
        hint = "its voxel size and origin place it: save it as OME-Zarr, or as a calibrated TIFF"
        raise VoxelSizeError(error.message, hint=hint) from error


def psf_sigma_nm(text: str) -> Triple:
    """Gaussian sigma zyx of a point spread: its name, or its full widths ``"x, y, z unit"``.

    Raises
    ------
    ConfigError
        It is neither.
    """
    if text in PSF_SIGMA_NM:
        return PSF_SIGMA_NM[text]
    if not any(letter.isdigit() for letter in text):
        hint = f'{", ".join(PSF_SIGMA_NM)}, or full widths such as "110, 110, 300 nm"'
        raise ConfigError(f"no point spread {text!r}", hint=hint)
    return sigma_from_fwhm(parse_xyz_nm(text))


def read_guides(
    files: GuideFiles,
    lm: Volume,
    first: Channel,
    psf: MovingOptions,
    shifts_nm: Mapping[str, Triple] | None = None,
) -> Guides:
    """Open and prepare what guides the registration.

    Parameters
    ----------
    lm
        Light volume with all its channels.
    first
        Prepared images of the mitochondria.
    psf
        How further EM volumes are prepared.
    shifts_nm
        Chromatic shift zyx of channels.

    Raises
    ------
    ConfigError
        A channel is not given as ``CHANNEL=EM_VOLUME[@WEIGHT]``, a mask is empty or does not fit
        all channels, or landmarks have no such use.
    """
    channels = tuple(_further(lm, text, psf, shifts_nm or {}) for text in files.also)
    grid = first.moving.grid
    other = [c.moving.grid for c in channels if c.moving.grid != grid]
    if files.moving_mask and other:
        raise ConfigError(
            f"a mask of the EM needs all channels on one grid: found {grid} and {other[0]}",
            hint="leave out the mask, or resample the further EM volumes onto the first one's grid",
        )
    masks = Masks(_mask(files.fixed_mask, first.fixed.grid), _mask(files.moving_mask, grid))
    landmarks, uses = guide_landmarks(files)
    return Guides(channels, masks, landmarks, uses)


def split_channel(text: str) -> tuple[str, str, float]:
    """Read ``CHANNEL=EM_VOLUME[@WEIGHT]``: name, path and weight.

    Raises
    ------
    ConfigError
        It is not of that form.
    """
    where = "--also or register.channels"
    name, equals, rest = text.partition("=")
    path, at, weight = rest.rpartition("@")
    if not equals or not rest:
        raise ConfigError(f"{where}: {text!r} is not of the form CHANNEL=EM_VOLUME[@WEIGHT]")
    if at and set(weight) & set("./\\") and not _is_number(weight):  # a name with an at sign
        return name, rest, 1.0
    if at and not _is_number(weight):
        raise ConfigError(f"{where}: {text!r}: the weight {weight!r} is not a number")
    value = float(weight) if at else 1.0
    if not 0 < value < math.inf:
        raise ConfigError(f"{where}: {text!r}: the weight must be positive")
    return name, path if at else rest, value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _further(lm: Volume, text: str, psf: MovingOptions, shifts_nm: Mapping[str, Triple]) -> Channel:
    name, path, weight = split_channel(text)
    light = light_channel(lm, name, shifts_nm)
    em, kind = structure(open_placed(path, "em"), light.name if lm.channels else None)
    options = replace(psf, kind=kind, min_volume_nm3=0.0)
    return Channel(prepare_fixed(light), prepare_moving(em, lm.grid.spacing_nm, options), weight)


def _mask(path: str | None, grid: Grid) -> NDArray[np.bool_] | None:
    """Read a mask onto a grid, nearest voxel."""
    if path is None:
        return None
    volume = open_placed(path, grid.frame)
    if len(volume.channels) > 1:
        raise ConfigError(f"{path}: a mask has one channel, this has {list(volume.channels)}")
    if volume.channels:
        volume = volume.channel(0)
    mask = mask_onto(nonzero(volume.read()), volume.grid, grid)
    if not mask.any():
        raise ConfigError(
            f"{path}: the mask is empty where the image is", hint="check its voxel size and origin"
        )
    return mask


def guide_landmarks(files: GuideFiles) -> tuple[Landmarks | None, tuple[LandmarkUse, ...]]:
    """Read the landmarks that guide the registration, if there are any, and what they are for.

    Raises
    ------
    ConfigError
        There is no such use, or there are no landmarks to use.
    """
    unknown = [use for use in files.uses if use not in LANDMARK_USES]
    if unknown:
        raise ConfigError(
            f"landmarks cannot be used for {unknown[0]!r}: {', '.join(LANDMARK_USES)}"
        )
    if files.landmarks is None:
        if files.uses:
            raise ConfigError(
                "--use-landmarks needs --landmarks FILE (or register.use_landmarks, "
                "register.landmarks)"
            )
        return None, ()
    table = read_landmarks(files.landmarks)
    if "fit" in table.role:
        table = table.select(role="fit")
    table = replace(table, lm_nm=table.lm_nm + np.asarray(files.fixed_offset_nm))
    uses: Mapping[str, LandmarkUse] = {use: use for use in LANDMARK_USES}
    return table, tuple(uses[use] for use in files.uses) or ("metric",)

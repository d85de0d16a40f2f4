"""The configuration of `clemreg run`: frozen models, read from TOML, unknown keys refused."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clemreg.errors import ClemregError, ConfigError, MissingError
from clemreg.units import parse_xyz_nm


def readable_by(parse: Callable[[str], object]) -> AfterValidator:
    """Validate a text by a function of ours; what that says is what the user reads."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ClemregError as error:
            raise ValueError(error.message) from error
        return text

    return AfterValidator(check)


XyzLength = Annotated[str, readable_by(parse_xyz_nm)]
Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """Part of a configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EmInput(Section):
    """The electron microscopy volume.

    Attributes
    ----------
    path
        Any volume that `clemreg info` can read; relative to the configuration file.
    voxel_size
        ``"x, y, z unit"``; only to override what the file says.
    channel
        Name or number of its channel, if it has several; None: the first.
    prediction
        A prediction or mask from elsewhere; then `segment` is skipped.
    """

    path: str
    voxel_size: XyzLength | None = None
    channel: str | int | None = None
    prediction: str | None = None


class LmInput(Section):
    """The light microscopy volume.

    Attributes
    ----------
    path, voxel_size
        As for the EM.
    channel
        Name or number of the mitochondria channel, which drives the registration.
    check_channel
        Name or number of a channel that the registration never sees; the report shows it on the
        registered EM.
    shifts
        Channel name or number to ``"x, y, z unit"`` that is added to it: chromatic shift.
    """

    path: str
    voxel_size: XyzLength | None = None
    channel: str | int = "mito"
    check_channel: str | int | None = None
    shifts: dict[str, XyzLength] = Field(default_factory=dict)


class SegmentConfig(Section):
    """How the EM is segmented.

    Attributes
    ----------
    model
        Name of a bundled model, path of a ``.safetensors`` file, or ``"auto"`` for the bundled
        model whose voxel size is nearest.
    block
        Output voxels per block along each axis.
    """

    model: str = "auto"
    block: Annotated[int, Field(ge=16, le=512)] = 96


class RegisterConfig(Section):
    """How the EM is registered to the light volume.

    Attributes
    ----------
    psf
        Point spread preset of the light microscope: ``"palm"``, ``"sim"`` or ``"confocal"``.
    psf_fwhm
        ``"x, y, z unit"`` full width at half maximum; overrides `psf`.
    kind
        What the EM segmentation is: ``"prediction"``, ``"probability"``, ``"mask"``; ``"auto"``
        goes by its values.
    ramp
        How a prediction becomes membrane: ``"linear"``, or ``"published"`` with the wrong slope of
        the paper's program.
    ecs
        Volume of the extracellular space of the EM, instead of a channel ``ecs`` of the prediction.
    engine
        ``"newton"``: Gauss-Newton steps; ``"elastix"``: the stages by elastix.
    preset
        elastix parameter maps of a published registration, for example ``"heinrich2021"``.
    params
        elastix parameter files instead, in order; relative to the configuration file.
    grid_spacing_um
        Final control point spacing of the B-spline in um.
    bending_weight
        Weight of the bending energy in um; more is stiffer.
    channels
        Further structures that both microscopes show: ``"CHANNEL=EM_VOLUME"`` or
        ``"CHANNEL=EM_VOLUME@WEIGHT"``.
    fixed_mask, moving_mask
        Volumes, not 0 where the light volume or the EM can be trusted.
    landmarks
        Table of pairs to fit; if some rows have the role ``fit``, only those are used.
    use_landmarks
        What they are for: ``"start"``, ``"metric"``, ``"correction"``; if empty, ``"metric"``.
    fixed_offset
        ``"x, y, z unit"`` added to the LM coordinates of `landmarks` (a cropped LM volume).
    search
        ``"in-plane"``: any rotation about z, turns by 180 degrees and small tilts; ``"all"``: every
        axis permutation too.
    allow_mirror
        Whether a mirrored pose may be the answer.
    seed
        Seed of the sampler; the same seed and thread count give the same result.
    stability_seeds
        How many times the deformable stage is repeated with other seeds to measure its spread.
    halves
        How many times the mitochondria are divided at random into two halves that are registered
        apart, to predict where the result is uncertain; ``newton`` only; 0 for none.
    threads
        Threads for elastix; 0 means all cores.
    """

    psf: Literal["palm", "sim", "confocal"] = "palm"
    psf_fwhm: XyzLength | None = None
    kind: Literal["auto", "prediction", "probability", "mask"] = "auto"
    ramp: Literal["linear", "published"] = "linear"
    ecs: str | None = None
    engine: Literal["newton", "elastix"] = "newton"
    preset: Literal["heinrich2021"] | None = None
    params: tuple[str, ...] = ()
    grid_spacing_um: Annotated[float, Field(gt=0.1, lt=100)] | None = None
    bending_weight: Annotated[float, Field(ge=0)] | None = None
    channels: tuple[str, ...] = ()
    fixed_mask: str | None = None
    moving_mask: str | None = None
    landmarks: str | None = None
    use_landmarks: tuple[Literal["start", "metric", "correction"], ...] = ()
    fixed_offset: XyzLength | None = None
    search: Literal["in-plane", "all"] = "in-plane"
    allow_mirror: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    stability_seeds: Annotated[int, Field(ge=0, le=50)] = 2
    halves: Annotated[int, Field(ge=0, le=50)] = 1
    threads: Annotated[int, Field(ge=0)] = 0


class ProofConfig(Section):
    """What the result is checked against.

    Attributes
    ----------
    landmarks
        Landmark table; its points must not have been used for fitting.
    raters
        Which raters to report; empty means all.
    fixed_offset
        ``"x, y, z unit"`` added to the LM coordinates of the landmarks (a cropped LM volume).
    overlap
        Structures that the registration never saw: ``"CHANNEL=EM_VOLUME"``.
    truth
        The true transform, known for simulated data only.
    """

    landmarks: str | None = None
    raters: tuple[str, ...] = ()
    fixed_offset: XyzLength | None = None
    overlap: tuple[str, ...] = ()
    truth: str | None = None


class ExportConfig(Section):
    """Which files are written for other programs."""

    bdv: bool = True
    bigwarp: bool = True
    elastix: bool = True


class OutputConfig(Section):
    """Where results go; `dir` is relative to the configuration file."""

    dir: str = "clemreg-run"
    title: str = "EM to LM registration"


class RunConfig(Section):
    """Everything that `clemreg run` needs; every key has a default but the two paths."""

    em: EmInput
    lm: LmInput
    segment: SegmentConfig = SegmentConfig()
    register_: RegisterConfig = Field(default=RegisterConfig(), alias="register")
    proof: ProofConfig = ProofConfig()
    export: ExportConfig = ExportConfig()
    output: OutputConfig = OutputConfig()


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration, apply ``a.b=value`` overrides, and validate once.

    Parameters
    ----------
    path
        TOML file. Environment variables such as ``$DATA`` in its paths are expanded.
    overrides
        ``section.key=value`` with the value in TOML notation; a bare word is a string.

    Raises
    ------
    MissingError
        There is no such file.
    ConfigError
        The TOML is broken, a key is unknown or a value impossible; every fault is listed.
    """
    return read_config(
        RunConfig,
        path,
        overrides,
        absent="`clemreg init DIR --em EM --lm LM` writes one",
        invalid="docs/reference/config.md lists every key with its default",
    )


def read_config(
    model: type[Model], path: Path, overrides: Sequence[str], *, absent: str, invalid: str
) -> Model:
    """Read TOML as `model`, with overrides.

    Parameters
    ----------
    path, overrides
        As in `load_run_config`.
    absent, invalid
        Hints for a file that is not there, and for keys or values that are wrong.

    Raises
    ------
    MissingError, ConfigError
        As in `load_run_config`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no configuration at {path}", hint=absent)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"invalid configuration in {path}:\n{faults(error)}", hint=invalid
        ) from error


def resolve(path: str, base: Path) -> str:
    """Make a path of the configuration absolute: relative to `base`, variables expanded.

    A file that is there keeps its name, even one with a dollar sign in it.
    """
    container, separator, inner = path.partition("::")
    if not (base / container).exists():
        expanded = os.path.expandvars(Path(path).expanduser())
        container, separator, inner = expanded.partition("::")
    return str((base / container).resolve()) + separator + inner


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text!r} is not of the form section.key=value")
    target = data
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {text!r}: {part!r} is a value, not a section")
    target[parts[-1]] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def faults(error: ValidationError) -> str:
    """Say what is wrong with which key, a line each."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        found = "" if fault["type"] == "missing" else f" (got {fault['input']!r})"
        lines.append(f"  {where}: {fault['msg']}{found}")
    return "\n".join(lines)

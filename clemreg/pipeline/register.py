"""``clemreg register``: two files in, a folder with the transform out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.io.elastix_files import read_parameter_file
from clemreg.io.volumes import open_volume
from clemreg.register.features import PSF_SIGMA_NM, MovingOptions, prepare_fixed, prepare_moving
from clemreg.register.orientation import OrientationOptions
from clemreg.register.registration import RegisterOptions, register
from clemreg.register.stages import BSplineStage


@dataclass(frozen=True)
class RegisterCommand:
    """What ``clemreg register`` was told."""

    fixed: str
    moving: str
    out: Path
    channel: str | None = None
    psf: str = "palm"
    search: str = "in-plane"
    allow_mirror: bool = False
    seed: int = 0
    grid_spacing_um: float | None = None
    params: tuple[Path, ...] = ()


def register_files(command: RegisterCommand, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare, register and save; return the figures.

    Raises
    ------
    ConfigError
        The point spread is not known.
    """
    if command.psf not in PSF_SIGMA_NM:
        raise ConfigError(f"no point spread {command.psf!r}", hint=f"{', '.join(PSF_SIGMA_NM)}")
    lm = open_volume(command.fixed, frame="lm")
    if lm.channels:
        wanted = command.channel or "0"
        lm = lm.channel(int(wanted) if wanted.isdigit() else wanted)
    moving = open_volume(command.moving, frame="em")
    bspline = BSplineStage()
    if command.grid_spacing_um is not None:
        bspline = replace(bspline, grid_spacing_um=(command.grid_spacing_um,) * 3)
    options = RegisterOptions(
        orientation=OrientationOptions(
            search=command.search,  # type: ignore[arg-type]
            allow_mirror=command.allow_mirror,
        ),
        bspline=bspline,
        seed=command.seed,
        parameters=tuple(dict(read_parameter_file(path).values) for path in command.params),
    )
    psf = MovingOptions(psf_sigma_nm=PSF_SIGMA_NM[command.psf])
    result = register(
        prepare_fixed(lm), prepare_moving(moving, lm.grid.spacing_nm, psf), options,
        progress=progress,
    )  # fmt: skip
    result.save(command.out, lm.grid)
    return result.to_json()

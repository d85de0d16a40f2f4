"""Step ``prepare``: both images as they are compared."""

from __future__ import annotations

from clemreg.config import RegisterConfig
from clemreg.io.atomic import atomic_path
from clemreg.io.volumes import open_volume, write_volume
from clemreg.pipeline.context import RunContext
from clemreg.register.features import (
    PSF_SIGMA_NM,
    MovingOptions,
    prepare_fixed,
    prepare_moving,
    sigma_from_fwhm,
)
from clemreg.units import parse_xyz_nm
from clemreg.volume import Volume


def psf_sigma_nm(config: RegisterConfig) -> tuple[float, float, float]:
    """Gaussian sigma zyx of the configured point spread."""
    if config.psf_fwhm is not None:
        return sigma_from_fwhm(parse_xyz_nm(config.psf_fwhm))
    return PSF_SIGMA_NM[config.psf]


def open_prediction(context: RunContext) -> Volume:
    """Open the run's own prediction, or the one from elsewhere."""
    given = context.input(context.config.em.prediction)
    return open_volume(given or context.path("prediction.zarr"), frame="em")


def prepare(context: RunContext) -> None:
    """Write ``prepared/fixed.zarr`` and ``prepared/moving.zarr``."""
    lm = context.open_lm().channel(context.config.lm.channel)
    options = MovingOptions(psf_sigma_nm=psf_sigma_nm(context.config.register_))
    with context.progress("prepare") as progress:
        progress(0, 2, "light volume")
        fixed = prepare_fixed(lm)
        progress(1, 2, "EM prediction")
        moving = prepare_moving(open_prediction(context), lm.grid.spacing_nm, options)
        with atomic_path(context.path("prepared")) as folder:
            for name, volume in (("fixed", fixed), ("moving", moving)):
                write_volume(folder / f"{name}.zarr", volume)
        progress(2, 2, "done")


def open_prepared(context: RunContext) -> tuple[Volume, Volume]:
    """Open fixed (LM) and moving (EM) as `prepare` wrote them."""
    folder = context.path("prepared")
    return (
        open_volume(folder / "fixed.zarr", frame="lm"),
        open_volume(folder / "moving.zarr", frame="em"),
    )

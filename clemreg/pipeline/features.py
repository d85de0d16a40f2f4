"""Step ``prepare``: both images as they are compared."""

from __future__ import annotations

from clemreg.config import RegisterConfig
from clemreg.io.atomic import atomic_path
from clemreg.io.volumes import open_volume, write_volume
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.light import check_shifts, light_channel
from clemreg.pipeline.register import open_outside, psf_sigma_nm
from clemreg.register.features import MovingOptions, prepare_fixed, prepare_moving
from clemreg.volume import Volume


def moving_options(config: RegisterConfig) -> MovingOptions:
    """How the configuration prepares EM segmentations."""
    psf = psf_sigma_nm(config.psf_fwhm or config.psf)
    return MovingOptions(psf_sigma_nm=psf, kind=config.kind, ramp_kind=config.ramp)


def open_prediction(context: RunContext) -> Volume:
    """Open the run's own prediction, or the one from elsewhere."""
    given = context.input(context.config.em.prediction)
    return open_volume(given or context.path("prediction.zarr"), frame="em")


def prepare(context: RunContext) -> None:
    """Write ``prepared/fixed.zarr`` and ``prepared/moving.zarr``."""
    whole = context.open_lm()
    check_shifts(context.shifts_nm(), whole)
    lm = light_channel(whole, context.config.lm.channel, context.shifts_nm())
    options = moving_options(context.config.register_)
    with context.progress("prepare") as progress:
        progress(0, 2, "light volume")
        fixed = prepare_fixed(lm)
        progress(1, 2, "EM prediction")
        outside = open_outside(context.input(context.config.register_.ecs))
        prediction = open_prediction(context)
        moving = prepare_moving(prediction, lm.grid.spacing_nm, options, outside)
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

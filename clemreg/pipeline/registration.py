"""Steps ``register`` and ``apply``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clemreg.config import RegisterConfig, resolve
from clemreg.errors import ConfigError
from clemreg.io.atomic import atomic_path
from clemreg.io.transforms import read_transform
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.features import moving_options, open_prediction, open_prepared
from clemreg.pipeline.halves import find_halves, write_halves
from clemreg.pipeline.register import StageChoice, read_guides
from clemreg.pipeline.voxels import (
    Finding,
    check_em_channel,
    check_prediction,
    sentences,
    suspicious_voxels,
)
from clemreg.register.apply import ApplyOptions, apply_to_image, covering_box
from clemreg.register.guides import Guides
from clemreg.register.matching import Channel
from clemreg.register.orientation import OrientationOptions
from clemreg.register.registration import RegisterOptions, register
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume


def register_options(config: RegisterConfig, base: Path) -> RegisterOptions:
    """Translate the configuration; relative paths start from `base`."""
    choice = StageChoice(
        config.engine,
        config.preset,
        tuple(Path(resolve(path, base)) for path in config.params),
        config.grid_spacing_um,
        config.bending_weight,
    )
    return RegisterOptions(
        orientation=OrientationOptions(search=config.search, allow_mirror=config.allow_mirror),
        stages=choice.stages(),
        seed=config.seed,
        stability_seeds=config.stability_seeds,
        threads=config.threads,
    )


def register_run(context: RunContext) -> None:
    """Write ``registration/``."""
    fixed, moving = open_prepared(context)
    fixed = Volume(fixed.read(), fixed.grid, name="light volume")
    moving = Volume(moving.read(), moving.grid, name="EM prediction")
    with (
        context.progress("register") as progress,
        atomic_path(context.path("registration")) as folder,
    ):
        options = register_options(context.config.register_, context.base)
        guides = run_guides(context, Channel(fixed, moving))
        result = register(
            fixed,
            moving,
            options,
            guides=guides,
            work_dir=folder / "elastix-runs",
            progress=progress,
        )
        prediction = open_prediction(context)
        unusual = (
            *suspicious_voxels(prediction, context.open_lm()),
            *sentences([check_prediction(context.open_em(), prediction), _em_channel(context)]),
        )
        result = replace(result, warnings=(*unusual, *result.warnings))
        result.save(folder, fixed.grid)
        splits = context.config.register_.halves
        halves = find_halves((fixed, moving), guides, result, options, splits, progress)
        write_halves(halves, folder, fixed.grid)
        for image in (folder / "elastix-runs").rglob("*.npy"):
            image.unlink()  # the prepared images are kept once, as zarr


def _em_channel(context: RunContext) -> Finding:
    return check_em_channel(context.open_whole_em(), context.config.em.channel)


def run_guides(context: RunContext, first: Channel) -> Guides:
    """Open and prepare the channels, masks and landmarks of the configuration.

    Raises
    ------
    ConfigError
        As `read_guides`; or the landmarks that are fitted are those that the result is checked
        with.
    """
    files = context.guides()
    options = moving_options(context.config.register_)
    guides = read_guides(files, context.open_lm(), first, options, context.shifts_nm())
    proof = context.input(context.config.proof.landmarks)
    fitted = guides.landmarks is not None and "fit" not in guides.landmarks.role
    if fitted and files.landmarks is not None and proof == str(files.landmarks):
        raise ConfigError(
            f"{proof} is register.landmarks and proof.landmarks: what is fitted proves nothing",
            hint="give some rows the role fit, or keep two tables",
        )
    return guides


def read_result(context: RunContext) -> Transform:
    """Read the transform LM to EM of a run."""
    return read_transform(context.path("registration", "transform.json"))


def read_start(context: RunContext) -> Affine:
    """Read the start pose LM to EM of a run."""
    start = read_transform(context.path("registration", "orientation.json"))
    assert isinstance(start, Affine)
    return start


def read_repeats(context: RunContext) -> tuple[Transform, ...]:
    """Read the transforms that were found with other seeds."""
    files = sorted(context.path("registration").glob("repeat-*.json"))
    return tuple(read_transform(path) for path in files)


def apply_run(context: RunContext) -> None:
    """Write ``warped_em.zarr``: the EM on the part of the LM grid that it covers."""
    transform = read_result(context)
    em, lm = context.open_em(), context.open_lm()
    onto = lm.grid.crop(covering_box(transform, em.grid, lm.grid))
    level = em
    for coarser in em.coarser:  # not finer than the LM, or the result would alias
        if all(a <= b for a, b in zip(coarser.grid.spacing_nm, lm.grid.spacing_nm, strict=True)):
            level = coarser
    options = ApplyOptions(inputs=context.inputs()["em"] or "")
    with context.progress("apply") as progress:
        out = context.path("warped_em.zarr")
        apply_to_image(transform, level, onto, out, options, progress=progress)

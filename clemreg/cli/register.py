"""``clemreg register``: find a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, table, write_json


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(register)


def register(
    fixed: Annotated[str, typer.Option(help="Light volume.")],
    moving: Annotated[str, typer.Option(help="EM mitochondria mask, probability or prediction.")],
    out: Annotated[Path, typer.Option(help="Folder for the transform.")],
    channel: Annotated[
        str | None, typer.Option(help="Mitochondria channel of the light volume.")
    ] = None,
    psf: Annotated[str, typer.Option(help="Point spread: palm, sim or confocal.")] = "palm",
    search: Annotated[str, typer.Option(help="Start poses: in-plane or all.")] = "in-plane",
    allow_mirror: Annotated[bool, typer.Option(help="Accept a mirrored pose.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    engine: Annotated[str, typer.Option(help="newton or elastix.")] = "newton",
    preset: Annotated[
        str | None, typer.Option(help="Published elastix parameters: heinrich2021.")
    ] = None,
    params: Annotated[
        list[Path] | None,
        typer.Option(help="elastix parameter files instead of the default stages, in order."),
    ] = None,
    grid_spacing: Annotated[
        float | None, typer.Option(help="Final control point spacing in um.")
    ] = None,
    bending_weight: Annotated[
        float | None, typer.Option(help="Weight of the bending energy in um; more is stiffer.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="A further structure: CHANNEL=EM_VOLUME[@WEIGHT]."),
    ] = None,
    fixed_mask: Annotated[
        str | None, typer.Option(help="Where the light volume can be trusted.")
    ] = None,
    moving_mask: Annotated[str | None, typer.Option(help="Where the EM can be trusted.")] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="Pairs to fit; not for measuring accuracy.")
    ] = None,
    use_landmarks: Annotated[
        list[str] | None, typer.Option(help="start, metric or correction; may be repeated.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Register an EM mask to a light volume: orientation search, affine, B-spline."""
    from clemreg.pipeline.register import GuideFiles, RegisterCommand, StageChoice, register_files
    from clemreg.register.orientation import OrientationOptions

    command = RegisterCommand(
        fixed=fixed,
        moving=moving,
        out=out,
        channel=channel,
        psf=psf,
        orientation=OrientationOptions(search=search, allow_mirror=allow_mirror),  # type: ignore[arg-type]
        seed=seed,
        stages=StageChoice(engine, preset, tuple(params or ()), grid_spacing, bending_weight),
        guides=GuideFiles(
            tuple(also or ()), fixed_mask, moving_mask, landmarks, tuple(use_landmarks or ())
        ),
    )
    with progress_bar("register") as progress:
        answer = register_files(command, progress)
    table(answer)
    write_json(json, answer)
    result(f"transform: {out / 'transform.json'}")

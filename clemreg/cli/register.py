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
    grid_spacing: Annotated[
        float | None, typer.Option(help="Final control point spacing in um.")
    ] = None,
    params: Annotated[
        list[Path] | None,
        typer.Option(help="elastix parameter files instead of the default stages, in order."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Register an EM mask to a light volume: orientation search, affine, B-spline."""
    from clemreg.pipeline.register import RegisterCommand, register_files

    command = RegisterCommand(
        fixed=fixed,
        moving=moving,
        out=out,
        channel=channel,
        psf=psf,
        search=search,
        allow_mirror=allow_mirror,
        seed=seed,
        grid_spacing_um=grid_spacing,
        params=tuple(params or ()),
    )
    with progress_bar("register") as progress:
        answer = register_files(command, progress)
    table(answer)
    write_json(json, answer)
    result(f"transform: {out / 'transform.json'}")

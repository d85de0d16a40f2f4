"""``clemreg render``: localisation tables to a light volume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    named_values,
    progress_bar,
    require_free,
    result,
    table,
    write_json,
)


def add_to(parent: typer.Typer) -> None:
    """Attach the command."""
    parent.command()(render)


def render(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]TABLE[@LABEL]...", help="Localisation tables, one a channel."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output OME-Zarr.")],
    spacing: Annotated[str | None, typer.Option(help='Voxel size "x, y, z unit".')] = None,
    onto: Annotated[str | None, typer.Option(help="Image whose grid is taken.")] = None,
    pixel_size: Annotated[
        str | None, typer.Option(help='Camera pixel, for tables in pixels: "133 nm".')
    ] = None,
    shift: Annotated[
        list[str] | None, typer.Option(help='Chromatic shift to add: NAME="x, y, z nm"; repeat.')
    ] = None,
    max_precision: Annotated[float, typer.Option(help="Leave out less precise ones, nm.")] = float(
        "inf"
    ),
    min_photons: Annotated[float, typer.Option(help="Leave out dimmer ones.")] = 0,
    min_neighbours: Annotated[
        int, typer.Option(help="Background: leave out those with fewer others nearby.")
    ] = 0,
    radius: Annotated[float, typer.Option(help="How near, nm.")] = 100,
    blur: Annotated[float, typer.Option(help="Further blur, nm (standard deviation).")] = 0,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Draw localisations as Gaussians of their own precision; every one counts as 1."""
    from clemreg.pipeline.render import RenderCommand, render_files
    from clemreg.register.render import RenderOptions
    from clemreg.units import given_xyz_nm, parse_length_nm, parse_xyz_nm

    require_free(out, overwrite=overwrite)
    shifts = named_values("--shift", map(_named, shift or ()))
    command = RenderCommand(
        named_values("channel", map(_named, tables)),
        out,
        given_xyz_nm(spacing),
        onto,
        parse_length_nm(pixel_size) if pixel_size else None,
        {name: parse_xyz_nm(value) for name, value in shifts.items()},
        RenderOptions(max_precision, min_photons, min_neighbours, radius, blur),
    )
    with progress_bar("render") as progress:
        report = render_files(command, progress)
    table(report)
    write_json(json, report)
    result(f"wrote {out}")


def _named(text: str) -> tuple[str, str]:
    """Split NAME=VALUE; without a name, that of the file."""
    name, equals, value = text.partition("=")
    return (name, value) if equals else (Path(text).name.partition(".")[0], text)

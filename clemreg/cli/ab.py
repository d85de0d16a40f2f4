"""``clemreg ab``: let a person judge two predictions, blinded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import (
    JsonOption,
    OverwriteOption,
    progress_bar,
    require_free,
    result,
    table,
    write_json,
)

app = typer.Typer(no_args_is_help=True, help="Judge two predictions by eye, blinded.")


def add_to(parent: typer.Typer) -> None:
    """Attach the command group."""
    parent.add_typer(app, name="ab")


@app.command()
def start(
    em: Annotated[str, typer.Argument(help="EM volume.")],
    first: Annotated[str, typer.Argument(metavar="A", help="A prediction on its voxels.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[Path, typer.Option(help="Folder for pairs.html and key.json.")],
    channel: Annotated[str, typer.Option(help="Class, if the predictions have several.")] = "",
    voxel_size: Annotated[
        str | None,
        typer.Option("--voxel-size", "--spacing", help='"x, y, z unit", if the files have none.'),
    ] = None,
    count: Annotated[int, typer.Option(help="Places to judge.")] = 100,
    edge: Annotated[int, typer.Option(help="Voxels of a place along each axis.")] = 150,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of places and sides; else one by chance.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw places and sides by chance and write the page for the one who judges."""
    from clemreg.pipeline.blinded import KEY, PAGE, BlindedOptions, start_comparison

    require_free(out / PAGE, out / KEY, overwrite=overwrite)
    options = BlindedOptions(channel, voxel_size, count, edge, seed)
    with progress_bar("ab") as progress:
        page = start_comparison(em, (first, second), out, options, progress=progress)
    result(f"wrote {page}; keep key.json from the one who judges")


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(help="Folder with key.json.")],
    choices: Annotated[Path, typer.Argument(help="choices.csv as saved by the page.")],
    decoded: Annotated[
        Path | None, typer.Option(help="Also write which prediction was chosen at each place.")
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Count the choices; exact two-sided binomial p that both are as good."""
    from clemreg.pipeline.blinded import read_comparison

    require_free(decoded, overwrite=overwrite)
    report = read_comparison(folder, choices, decoded)
    table({k: "–" if v is None else v for k, v in report.items()})
    write_json(json, report)

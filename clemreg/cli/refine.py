"""``clemreg refine``: predictions to organelles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, table, write_json


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(refine)


def refine(
    source: Annotated[
        str, typer.Argument(help="Predictions: a volume with channels, or a folder of volumes.")
    ],
    recipe: Annotated[
        str, typer.Option(help="Preset (generic, heinrich2021/jrc_hela-2, ...) or TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="OME-Zarr group to write, one image an organelle.")],
    organelle: Annotated[
        list[str] | None, typer.Option(help="Only this one and what it needs; repeat.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help='Voxel size "x, y, z unit", if the file has none.')
    ] = None,
    block: Annotated[int, typer.Option(help="Voxels per block along each axis.")] = 128,
    executor: Annotated[
        str,
        typer.Option(
            help="serial, threads, processes; Dask: local, slurm, lsf or tcp://host:port."
        ),
    ] = "processes",
    workers: Annotated[int, typer.Option(help="Threads, processes or jobs.")] = 1,
    json: JsonOption = None,
) -> None:
    """Turn predictions into organelles by a recipe; killed runs go on where they stopped."""
    from clemreg.pipeline.refine import RefineOptions, refine_cell

    name = "serial" if workers == 1 and executor == "processes" else executor
    options = RefineOptions(tuple(organelle or ()), spacing, block, name, workers)
    with progress_bar("refine") as progress:
        report = refine_cell(source, recipe, out, options=options, progress=progress)
    table(report["organelles"])
    if report["skipped"]:
        table({"skipped": report["skipped"]})
    write_json(json, report)
    result(f"wrote {out}")

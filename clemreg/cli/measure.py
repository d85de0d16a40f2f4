"""``clemreg measure`` and its sisters: objects in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clemreg.cli.console import JsonOption, progress_bar, result, table, write_json

LabelsArgument = Annotated[str, typer.Argument(help="Label volume: one id per object.")]
SpacingOption = Annotated[
    str | None, typer.Option(help='Voxel size "x, y, z unit", if the file has none.')
]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="Table to write (.csv).")]
ParquetOption = Annotated[Path | None, typer.Option("--parquet", help="Table to write.")]
BlockOption = Annotated[int, typer.Option(help="Voxels per block along each axis.")]
WorkersOption = Annotated[int, typer.Option(help="Threads.")]


def add_to(parent: typer.Typer) -> None:
    """Attach the commands."""
    parent.command()(measure)


def measure(
    labels: LabelsArgument,
    spacing: SpacingOption = None,
    cell: Annotated[
        str | None, typer.Option(help="Mask of the cell: adds the fraction that each object fills.")
    ] = None,
    csv: CsvOption = None,
    parquet: ParquetOption = None,
    json: JsonOption = None,
    block: BlockOption = 128,
    workers: WorkersOption = 1,
) -> None:
    """Volume, surface, centre, box and axes of every object."""
    from clemreg.measure.morphology import measure_objects
    from clemreg.pipeline.measure import open_ids, open_mask, scheduled, summary, write_tables

    ids = open_ids(labels, spacing)
    mask = open_mask(cell, spacing) if cell else None
    with (
        progress_bar("measure") as progress,
        scheduled(csv or parquet or json, block, workers, progress) as schedule,
    ):
        objects = measure_objects(ids, cell=mask, schedule=schedule)
    shown = ["volume_nm3", "surface_nm2", "semi_axis_1_nm", "sphericity"]
    report = summary(objects, [*shown, *(["fraction_of_cell"] if cell else [])])
    table(report)
    for path in write_tables(objects, (csv, parquet)):
        result(f"wrote {path}")
    write_json(json, {"measure": {**report, "table": list(objects.rows())}})
